"""The waiting room by itself under random histories, and with limits that several workers or a Redis keep."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from pathlib import Path
from time import monotonic_ns

import pytest
from tests.gateway.harness import (
    MockUpstream,
    ask,
    chat,
    get,
    key,
    post,
    start_workers,
    write_snapshot,
)
from tests.gateway.test_waiting import waiting

from groundplane.domain.serving.queueing import Priority, QueueRule
from groundplane.gateway.telemetry.flow_metrics import FlowMetrics
from groundplane.gateway.waiting import Need, NoPlace, Stay, Ticket, WaitingRoom

_MS = 1_000_000


class Guest:
    """Asks when it is its turn, and does what chance says: goes, waits on, moves, leaves, or answers later."""

    def __init__(self, room: WaitingRoom, chance: random.Random) -> None:
        self.room = room
        self.chance = chance
        self.ticket: Ticket | None = None
        self.ends: list[str] = []

    def come(self) -> None:
        priority, project = self.chance.choice(list(Priority)), self.chance.choice("ab")
        stay = Stay(
            rule=QueueRule(size=6),
            project=project,
            model="m",
            priority=priority,
            tokens=self.chance.randint(1, 50),
            size_bytes=10,
            until_ns=monotonic_ns() + self.chance.randint(0, 60) * _MS,
        )
        told = self.room.enter(self, stay, self.need())
        if isinstance(told, NoPlace):
            assert told.wait_ns > 0
            self.ends.append(told.reason)
        else:
            self.ticket = told

    def need(self) -> Need:
        wait_ns = self.chance.choice([None, _MS, 5 * _MS])
        name = self.chance.choice(["x", "y"])
        return Need(name, wait_ns, 600_000 if wait_ns else 0, self.chance.random() < 0.5, (name,))

    def turn(self) -> None:
        assert self.ticket is not None and not self.ends, "nobody is asked who is out"
        act = self.chance.choice(["go", "go", "wait", "move", "leave", "later"])
        if act == "later":
            asyncio.get_running_loop().call_later(0.001, self._go)
        elif act in {"wait", "move"}:
            need = self.need()
            if act == "wait":
                need.line = self.ticket.queue.name
            told = self.room.still(self.ticket, need)
            if told is not None:
                self.ends.append(told.reason)
        elif act == "leave":
            self.room.leave(self.ticket)
            self.ends.append("left")
        else:
            self._go()

    def _go(self) -> None:
        assert self.ticket is not None
        if not self.ends:
            self.room.admitted(self.ticket)
            self.ends.append("admitted")

    def shed(self, reason: str, wait_ns: int) -> None:
        assert wait_ns > 0
        self.ends.append(reason)


@pytest.mark.parametrize("seed", range(12))
def test_everybody_who_comes_ends_once_and_nothing_is_left_behind(seed: int) -> None:
    chance = random.Random(seed)

    async def play() -> None:
        room = WaitingRoom(FlowMetrics(), workers=1, bytes_max=100)
        guests = [Guest(room, chance) for _ in range(30)]
        for guest in guests:
            guest.come()
            assert room.count == sum(one.ticket is not None and not one.ends for one in guests) <= 12
            if chance.random() < 0.3:
                room.came_back([chance.choice(["x", "y"])])
                await asyncio.sleep(0)
        async with asyncio.timeout(20):
            while room.count:
                await asyncio.sleep(0.001)
        assert all(len(one.ends) == 1 for one in guests)
        assert not room._queues and not room._woken_by and not room._routes and not room._bytes

    for _ in range(5):
        asyncio.run(play())


async def test_the_bytes_of_those_who_wait_are_bounded() -> None:
    room = WaitingRoom(FlowMetrics(), workers=1, bytes_max=25)
    ends = []
    for _ in range(3):
        stay = Stay(
            rule=QueueRule(),
            project="a",
            model="m",
            priority=Priority.NORMAL,
            tokens=1,
            size_bytes=10,
            until_ns=monotonic_ns() + 10**10,
        )
        ends.append(room.enter(Guest(room, random.Random(1)), stay, Need("x", 10**9, 60)))
    assert [isinstance(one, Ticket) for one in ends] == [True, True, False]
    assert isinstance(ends[2], NoPlace) and ends[2].reason == "memory"


@pytest.mark.parametrize("kept_in", ["memory of the machine", "redis"])
async def test_several_workers_let_wait_and_the_limit_holds(
    tmp_path: Path, upstream: MockUpstream, request: pytest.FixtureRequest, kept_in: str
) -> None:
    url = request.getfixturevalue("redis_socket")[0] if kept_in == "redis" else ""
    rule = QueueRule(size=200, wait_ms=30_000)
    await write_snapshot(tmp_path, 1, keys=(key(requests_per_minute=300),), routes=(waiting(upstream, rule),))
    workers = start_workers(tmp_path, 2, limits_url=url)
    try:
        began = monotonic_ns()
        answers = await asyncio.gather(*(ask(workers.port, post(chat())) for _ in range(315)))
        took_s = (monotonic_ns() - began) / 1e9
        assert {one.status for one in answers} == {200}
        assert len(upstream.seen) == 315 <= 300 + 5 * took_s + 1, "never more than the limit"
        text = (await ask(workers.port, get("/metrics", secret=None))).body.decode()
        assert 'groundplane_gateway_queue_wait_seconds_count{model="tiny"}' in text
        reports = [json.loads(path.read_bytes()) for path in (tmp_path / "shared" / "reports").glob("*.json")]
        assert [one["queues"][0]["size"] for one in reports] == [200, 200]
    finally:
        with contextlib.suppress(AssertionError):
            workers.stop()
