"""Projects take turns at a worker: a flood of one that is admitted makes the others wait for its fair part only."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.gateway.harness import MockUpstream, RawClient, chat, key, post, route, running

from groundplane.gateway.fairness import Starts
from groundplane.gateway.state import Options


class Request:
    def __init__(self, name: str, began: list[str], *, gone: bool = False) -> None:
        self.name, self.began, self.gone = name, began, gone

    def begin(self) -> bool:
        if not self.gone:
            self.began.append(self.name)
        return not self.gone


def come(starts: Starts, project: str, request: Request) -> None:
    """As a request comes in."""
    if not starts.left:
        starts.wait(project, request)
        return
    starts.left -= 1
    if not starts.left:
        starts.used_up()
    request.begin()


async def until(began: list[str], count: int) -> None:
    async with asyncio.timeout(30):
        while len(began) < count:
            await asyncio.sleep(0)


async def test_who_comes_behind_a_flood_begins_in_the_next_turn() -> None:
    starts, began = Starts(per_turn=4), []
    for number in range(20):
        come(starts, "flood", Request(f"flood {number}", began))
    come(starts, "victim", Request("victim", began))
    assert began == [f"flood {number}" for number in range(4)]
    await asyncio.sleep(0)
    assert began[4:] == ["flood 4", "victim", "flood 5", "flood 6"]
    await until(began, 21)
    assert [name for name in began if name != "victim"] == [f"flood {number}" for number in range(20)]


async def test_each_project_has_its_part_of_every_turn() -> None:
    starts, began = Starts(per_turn=3), []
    for project in ("a", "b", "c"):
        for _ in range(9 if project == "a" else 4):
            come(starts, project, Request(project, began))
    await until(began, 17)
    assert began == ["a"] * 3 + ["a", "b", "c"] * 4 + ["a"] * 2


async def test_callers_that_left_take_no_turn_and_an_idle_worker_begins_at_once() -> None:
    starts, began = Starts(per_turn=2), []
    for number in range(12):
        come(starts, "flood", Request(str(number), began, gone=number < 10))
    await until(began, 2)
    assert began == ["10", "11"]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    come(starts, "flood", Request("later", began))
    assert began[-1] == "later"


async def test_a_request_overtakes_what_a_flood_sent_before_it(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key("flood"), key("victim", id="key-2", project="speech"))
    routes = (route("tiny", upstream.base_url), route("tiny", upstream.base_url, project="speech"))
    budgets = {"vision": 10**12, "speech": 10**12}
    options = Options(drain_s=0.2, starts_per_turn=2)
    async with running(tmp_path, options, keys=keys, routes=routes, budgets=budgets) as bench:
        assert bench.gateway is not None
        state = bench.gateway.state
        clients = [await RawClient.open(bench.port) for _ in range(61)]
        await bench.until(lambda: len(state.clients) == 61, 30)
        for client in clients[:60]:
            client.writer.write(post(chat(user="flood"), secret="flood"))
        gone = clients[30]
        clients[60].writer.write(post(chat(user="victim"), secret="victim"))
        async with asyncio.timeout(30):
            answers = [await client.answer() for client in clients if client is not gone]
            await gone.close()
        assert {one.status for one in answers} == {200}
        arrived = [b"victim" in one.body for one in upstream.seen]
        assert arrived.index(True) < 20, "the victim's request was sent behind most of the flood's"
        for client in clients:
            await client.close()
        await bench.until(lambda: state.metrics.in_flight == 0, 30)
