"""Where limits are kept, by one suite: in this process, among a machine's workers, in a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.gateway.harness import poll

from groundplane.domain.serving.limits import Binding, Limit, Measure, Moment, Share, WhenDown
from groundplane.gateway.counting import redis_counters
from groundplane.gateway.counting.broker import BrokerCounters
from groundplane.gateway.counting.counters import Counters, MemoryCounters
from groundplane.gateway.counting.redis_counters import RedisCounters
from groundplane.gateway.counting.resp import call, connect

_NAMES = itertools.count()


@pytest.fixture(params=["memory", "broker", pytest.param("redis", marks=pytest.mark.needs("redis"))])
async def holders(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[Counters]]:
    """Two holders of the same limits; of memory there can be one only, which then is both."""
    for name in ("_DEADLINE_S", "_CONNECT_DEADLINE_S"):  # what is decided, however late, is looked at here
        monkeypatch.setattr(redis_counters, name, 30.0)
    made: list[Counters] = []
    if request.param == "memory":
        made = [MemoryCounters()] * 2
    elif request.param == "broker":
        made = [BrokerCounters(tmp_path / "limits", name, 2) for name in ("a", "b")]
    else:
        url, _ = request.getfixturevalue("redis_socket")
        for name in ("a", "b"):
            one = RedisCounters(url, f"{name}{next(_NAMES)}", 2)
            assert await one.ready(30.0)
            made.append(one)
    yield made
    for counters in dict.fromkeys(made):
        counters.close()


def limit(value: int, measure: Measure = Measure.REQUESTS, name: str = "", **more: object) -> Limit:
    return Limit("key", name or f"key-{next(_NAMES)}", measure, value, **more)  # type: ignore[arg-type]


def now() -> Moment:
    return Moment(time.monotonic_ns(), time.time())


def share(counters: Counters, of: Limit, held: int = 0) -> Share:
    made = Share(of)
    counters.declare(made, held, now())
    return made


async def get(counters: Counters, *wants: tuple[Share, int]) -> Binding | None:
    """What a request does: takes what is free, or asks for what it needs; then has it in flight."""
    if any(one.free < need for one, need in wants):
        future: asyncio.Future[Binding | None] = asyncio.get_running_loop().create_future()
        counters.refill(wants, now(), future.set_result)
        told = await future
        if told is not None:
            return told
    for one, need in wants:
        one.free -= need
    return None


async def settled(counters: Counters, *shares: Share) -> None:
    """Everything that is owed and idle has arrived where limits are kept."""
    for one in shares:
        one.touched = False
        counters.flush([one], now())
    for one in shares:  # whoever keeps limits answers in order
        future: asyncio.Future[Binding | None] = asyncio.get_running_loop().create_future()
        counters.refill([(one, 0)], now(), future.set_result)
        await future


async def test_a_burst_over_two_holders_admits_exactly_the_limit(holders: list[Counters]) -> None:
    of = limit(50, Measure.TOKENS_DAY)
    both = [share(counters, of) for counters in holders]
    if holders[0] is holders[1]:
        both[1] = both[0]
    admitted = 0
    for turn in range(120):
        one = turn % 2
        if await get(holders[one], (both[one], 1)) is None:
            both[one].used += 1
            admitted += 1
    assert admitted == 50


async def test_a_rate_refills_evenly_and_says_when(holders: list[Counters]) -> None:
    of = limit(600)
    one = share(holders[0], of)
    began = time.monotonic()
    admitted = 0
    while (told := await get(holders[0], (one, 100))) is None:
        one.used += 100
        admitted += 100
    assert 600 <= admitted <= 600 + 10 * (time.monotonic() - began) + 100
    assert told.retry_after_ns is not None and 0 < told.retry_after_ns <= 10_000_000_000
    told = await get(holders[0], (one, 1))
    if told is not None:
        assert told.retry_after_ns is not None and told.retry_after_ns <= 100_000_000
        await asyncio.sleep(told.retry_after_ns / 1e9 + 0.001)
        assert await get(holders[0], (one, 1)) is None


async def test_all_are_taken_or_none(holders: list[Counters]) -> None:
    rate, tokens = share(holders[0], limit(10)), share(holders[0], limit(100, Measure.TOKENS_DAY))
    assert await get(holders[0], (rate, 1), (tokens, 60)) is None
    for _ in range(20):
        told = await get(holders[0], (rate, 1), (tokens, 60))
        assert told is not None and told.limit.measure is Measure.TOKENS_DAY
        assert (told.left, told.requested) == (40, 60)
    for _ in range(9):
        assert await get(holders[0], (rate, 1)) is None


async def test_the_spent_budget_is_told_first_and_then_the_longest_wait(holders: list[Counters]) -> None:
    rate, day = share(holders[0], limit(1)), share(holders[0], limit(10, Measure.TOKENS_DAY))
    usd = share(holders[0], limit(5, Measure.BUDGET, version=1))
    assert await get(holders[0], (rate, 1), (day, 10), (usd, 5)) is None
    told = await get(holders[0], (rate, 1), (day, 1), (usd, 1))
    assert told is not None and (told.limit.measure, told.retry_after_ns) == (Measure.BUDGET, None)
    told = await get(holders[0], (rate, 1), (day, 11))
    assert told is not None and (told.limit.measure, told.retry_after_ns) == (Measure.TOKENS_DAY, None)


async def test_what_is_not_used_comes_back_and_what_was_used_does_not(holders: list[Counters]) -> None:
    of = limit(100, Measure.TOKENS_DAY)
    one = share(holders[0], of)
    assert await get(holders[0], (one, 90)) is None
    one.free += 90 - 30
    one.used += 30
    await settled(holders[0], one)
    other = one if holders[0] is holders[1] else share(holders[1], of)
    told = await get(holders[1], (other, 71))
    assert told is not None and told.left == 70
    assert await get(holders[1], (other, 70)) is None


async def test_more_than_reserved_is_a_debt(holders: list[Counters]) -> None:
    one = share(holders[0], limit(100, Measure.TOKENS_DAY))
    assert await get(holders[0], (one, 10)) is None
    one.free += 10 - 100
    one.used += 100
    told = await get(holders[0], (one, 1))
    assert told is not None and told.left == 0 and one.in_flight == 0


async def test_concurrent_requests_are_lent(holders: list[Counters]) -> None:
    one = share(holders[0], limit(2, Measure.CONCURRENT))
    assert await get(holders[0], (one, 1)) is None
    assert await get(holders[0], (one, 1)) is None
    told = await get(holders[0], (one, 1))
    assert told is not None and told.retry_after_ns == 1_000_000_000
    one.free += 1
    assert await get(holders[0], (one, 1)) is None


async def test_an_older_figure_does_not_replace_a_newer_budget(holders: list[Counters]) -> None:
    name = f"p{next(_NAMES)}"
    new = share(holders[0], limit(50, Measure.BUDGET, name, version=7))
    assert await get(holders[0], (new, 10)) is None
    old = share(holders[1], limit(100, Measure.BUDGET, name, version=6))
    if holders[0] is holders[1]:
        old.held = 0
    told = await get(holders[1], (old, 41))
    assert told is not None and told.left == 40


async def test_a_holder_that_comes_back_states_what_it_spent(holders: list[Counters]) -> None:
    name = f"p{next(_NAMES)}"
    first = share(holders[0], limit(100, Measure.BUDGET, name, version=1))
    assert await get(holders[0], (first, 60)) is None
    if holders[0] is holders[1]:
        return  # of a process that was alone nothing is left
    again = share(holders[0], limit(100, Measure.BUDGET, name, version=1), held=25)
    told = await get(holders[0], (again, 76))
    assert told is not None and told.left == 75
    assert await get(holders[0], (again, 75)) is None


async def test_slices_are_handed_out_of_plenty(holders: list[Counters]) -> None:
    one = share(holders[0], limit(1_000_000, Measure.TOKENS))
    assert await get(holders[0], (one, 10)) is None
    assert one.free > 10_000 and not one.tight
    left, _ = one.standing(time.monotonic_ns())
    assert 999_900 <= left <= 1_000_000


# ---------------------------------------------------------------- one machine's workers


async def test_what_a_dead_worker_had_counts_as_used(tmp_path: Path) -> None:
    of, lent = limit(100, Measure.TOKENS_DAY), limit(1, Measure.CONCURRENT)
    dead = BrokerCounters(tmp_path, "a", 2)
    assert await get(dead, (share(dead, of), 60), (share(dead, lent), 1)) is None
    fcntl.flock(dead._held_fd, fcntl.LOCK_UN)  # what `kill -9` does to its locks
    other = BrokerCounters(tmp_path, "b", 2)
    one = share(other, of)
    told = await get(other, (one, 41))
    assert told is not None and told.left == 40
    assert await get(other, (share(other, lent), 1)) is None, "what was only lent is free again"
    other.close()
    dead.close()


async def test_dollars_of_a_dead_worker_wait_a_day_for_it(tmp_path: Path) -> None:
    of = limit(100, Measure.DOLLARS_DAY, version=1)
    dead = BrokerCounters(tmp_path, "a", 2)
    assert await get(dead, (share(dead, of), 60)) is None
    dead.close()
    lefts = []
    for silent_s in (0, 3600, 90_000):
        when = time.time() - silent_s
        os.utime(tmp_path / "a.held", (when, when))
        other = BrokerCounters(tmp_path, "b", 2)
        told = await get(other, (share(other, of), 101))
        assert told is not None
        lefts.append(told.left)
        other.close()
    assert lefts == [40, 40, 100]


async def test_what_a_worker_that_left_had_spent_is_let_go_once_the_ledger_has_it(tmp_path: Path) -> None:
    of, budget = limit(100, Measure.DOLLARS_DAY, version=1), limit(100, Measure.BUDGET, version=1)
    before, other = BrokerCounters(tmp_path, "gw-0", 2), BrokerCounters(tmp_path, "gw-0r", 2)
    assert await get(before, (share(before, of), 60), (share(before, budget), 60)) is None
    before.close()
    mine, lefts, done = share(other, of), [], []
    told = await get(other, (mine, 101))
    assert told is not None and told.left == 40
    for version in (3, 4):
        figures = [replace(one, value=40, version=version) for one in (of, budget)]
        other.let_go("gw-0", figures, now(), done.append)
        told = await get(other, (mine, 101))  # still with the figure it was made with
        assert told is not None
        lefts.append(told.left)
    assert lefts == [40, 40] and done == [True, True]
    last = replace(of, value=40, version=5)
    assert await get(other, (share(other, last), 40)) is None, "held beside the figure that contains it"
    other.close()


async def test_a_worker_that_is_back_keeps_what_it_spent_and_one_killed_is_waited_for(tmp_path: Path) -> None:
    of = limit(100, Measure.DOLLARS_DAY, version=1)
    other = BrokerCounters(tmp_path, "other", 3)
    for name in ("back", "killed"):
        one = BrokerCounters(tmp_path, name, 3)
        assert await get(one, (share(one, of), 30)) is None
        one.close()
    back, done = BrokerCounters(tmp_path, "back", 3), []
    other.let_go("back", [replace(of, version=2)], now(), done.append)
    told = await get(other, (share(other, of), 101))
    assert told is not None and told.left == 40 and done == [False]
    back.close()
    other.close()


async def test_a_reboot_does_not_stop_the_clock(tmp_path: Path) -> None:
    of = limit(60)
    before = BrokerCounters(tmp_path, "a", 1)
    one = share(before, of)
    assert await get(before, (one, 60)) is None
    one.used += 60
    before.flush([one], Moment(time.monotonic_ns() + 10**18, time.time()))
    before._map[8:44] = b"0" * 36
    before.close()
    again = BrokerCounters(tmp_path, "a", 1)
    two = share(again, of)
    assert again._load(again._row(of)).at <= time.monotonic_ns()
    assert two.limit == of
    again.close()


# ---------------------------------------------------------------- Redis away


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    end = time.monotonic() + 30
    while not await condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def paused(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.needs("redis")
async def test_a_silent_server_is_answered_for_by_policy_within_milliseconds(redis_socket: tuple[str, int]) -> None:
    url, pid = redis_socket
    counters = RedisCounters(url, f"h{next(_NAMES)}", 4)
    assert await counters.ready()
    closed = share(counters, limit(100, Measure.TOKENS_DAY, when_down=WhenDown.CLOSED))
    opened = share(counters, limit(100, Measure.TOKENS_DAY, when_down=WhenDown.OPEN))
    local = share(counters, limit(100, Measure.TOKENS_DAY, when_down=WhenDown.LOCAL))
    for one in (closed, opened, local):
        assert await get(counters, (one, 1)) is None
        one.used += 1
    with paused(pid):
        took = []
        for _ in range(50):
            began = time.monotonic()
            told = await get(counters, (closed, 1))
            took.append(time.monotonic() - began)
            assert told is not None and told.store_down
            assert await get(counters, (opened, 1000)) is None
        admitted = 0
        while await get(counters, (local, 1)) is None:
            local.used += 1
            admitted += 1
        assert admitted == 24, "its part of the limit, one of four, less what it had used"
    assert sorted(took)[25] < 0.010, "after three silences nobody waits for the deadline"

    async def answered() -> bool:
        told = await get(counters, (closed, 1))
        return told is None

    await until(answered)
    # What was admitted meanwhile is charged now: 1 before, 24 without the server.
    told = await get(counters, (local, 76))
    assert told is not None and told.left == 75
    counters.close()


@pytest.mark.needs("redis")
async def test_a_server_that_forgot_the_script_or_may_not_write_is_not_connected_to_for_every_request(
    redis_socket: tuple[str, int],
) -> None:
    url, _ = redis_socket
    counters = RedisCounters(url, f"h{next(_NAMES)}", 1)
    assert await counters.ready()
    server = await connect(url, lambda: None)
    mine = share(counters, limit(10**6, when_down=WhenDown.CLOSED))

    async def connections() -> int:
        stats = await call(server, b"INFO", b"stats")
        return int(re.findall(rb"total_connections_received:(\d+)", stats)[0])

    async def asked(units: int) -> bool:
        told = await get(counters, (mine, units))
        await asyncio.sleep(0)
        return told is None

    assert await asked(1)
    await call(server, b"SCRIPT", b"FLUSH")
    await until(lambda: asked(mine.free + 1))
    await call(server, b"REPLICAOF", b"127.0.0.1", b"1")
    try:
        before = await connections()
        for _ in range(200):
            assert not await asked(mine.free + 1)
            await asyncio.sleep(0.001)
        assert await connections() - before <= 5
    finally:
        await call(server, b"REPLICAOF", b"NO", b"ONE")
    await until(lambda: asked(mine.free + 1))
    counters.close()
    server.close()


@pytest.mark.needs("redis")
async def test_without_the_server_each_use_of_a_rate_counts_once(redis_socket: tuple[str, int]) -> None:
    url, pid = redis_socket
    counters = RedisCounters(url, f"h{next(_NAMES)}", 4)
    assert await counters.ready()
    mine = share(counters, limit(1_000, when_down=WhenDown.LOCAL))
    with paused(pid):
        admitted = 0
        for _ in range(200):
            assert await get(counters, (mine, 1)) is None
            mine.used += 1
            admitted += 1
        await poll(counters._usable, 30)  # the breaker lets the next one ask again, and tell what was used
        while await get(counters, (mine, 1)) is None:
            mine.used += 1
            admitted += 1
    counters.close()
    assert admitted >= 250, "its part of the limit, one of four, and what came back meanwhile"


@contextlib.asynccontextmanager
async def behind_a_slow_line(path: Path, server: str, delay_s: float) -> AsyncIterator[str]:
    """The url of a server whose answers arrive so much later."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
        while data := await reader.read(1 << 16):
            await asyncio.sleep(delay_s)
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(server.removeprefix("unix://"))
        await asyncio.gather(carry(reader, far_writer, 0), carry(far_reader, writer, delay_s))
        await asyncio.gather(writer.wait_closed(), far_writer.wait_closed(), return_exceptions=True)
        over.set()

    over = asyncio.Event()
    async with await asyncio.start_unix_server(serve, path):
        yield f"unix://{path}"
        await asyncio.wait_for(over.wait(), 30)


@pytest.mark.needs("redis")
async def test_units_of_an_answer_that_came_too_late_go_to_the_next_or_back(
    tmp_path: Path, redis_socket: tuple[str, int]
) -> None:
    of = limit(100, Measure.TOKENS_DAY, when_down=WhenDown.CLOSED)
    async with behind_a_slow_line(tmp_path / "slow", redis_socket[0], 0.1) as url:
        far, near = RedisCounters(url, f"far{next(_NAMES)}", 2), RedisCounters(redis_socket[0], f"n{next(_NAMES)}", 2)
        assert await far.ready() and await near.ready()
        mine, theirs = share(far, of), share(near, of)
        told = await get(far, (mine, 100))
        assert told is not None and told.store_down, "nobody waits a tenth of a second for an answer"
        await poll(lambda: mine.free >= 100, 30)
        assert await get(far, (mine, 60)) is None, "the next one has it without asking"
        mine.used += 60

        async def rest_is_theirs() -> bool:
            return await get(near, (theirs, 40)) is None

        await until(rest_is_theirs)
        far.close()
        near.close()


@pytest.mark.needs("redis")
async def test_a_server_that_comes_late_is_connected_to(tmp_path: Path) -> None:
    path = tmp_path / "s"
    counters = RedisCounters(f"unix://{path}", "late", 1)
    assert not await counters.ready()
    one = share(counters, limit(10, when_down=WhenDown.CLOSED))
    told = await get(counters, (one, 1))
    assert told is not None and told.store_down
    server = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", ""],
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    try:
        end = time.monotonic() + 60
        while await get(counters, (one, 1)) is not None:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
    finally:
        counters.close()
        server.terminate()
        server.wait(10)
    await poll(lambda: counters._connection is None)
