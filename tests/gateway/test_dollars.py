"""Dollars of keys, models and endpoints: reserved at worst, settled to what was used, never passed by anybody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.gateway.harness import (
    Answer,
    Exchange,
    MockUpstream,
    RawClient,
    Workers,
    ask,
    chat,
    completion,
    event,
    get,
    key,
    poll,
    post,
    route,
    running,
    start_workers,
    write_snapshot,
)

from groundplane.adapters.catalog_files import load_catalogue
from groundplane.adapters.usage_log import FolderUsageLog
from groundplane.domain.serving.hosted_prices import Named, bounded, filled_in
from groundplane.domain.serving.limits import Limit, Measure, WhenDown
from groundplane.domain.serving.provider import Provider, ProviderKind, RouteRule, RouteTarget
from groundplane.domain.serving.routing import RoutePolicy
from groundplane.domain.serving.snapshot import Route, compile_snapshot
from groundplane.domain.serving.usage import Usage, rate_special

COST = 10 + 2 * 80
"""Micro-dollars of each answer of `eighty`, at the harness's prices."""


@pytest.fixture
def fleets() -> Iterator[list[Workers]]:
    started: list[Workers] = []
    yield started
    for workers in started:
        workers.stop()


async def eighty(exchange: Exchange) -> None:
    for _ in range(20):
        await asyncio.sleep(0)  # others come in meanwhile
    await exchange.json(completion(prompt=10, completion=80))


def dollars(scope: str, name: str, microusd: int, measure: Measure = Measure.DOLLARS_DAY) -> Limit:
    return Limit(scope, name, measure, microusd, WhenDown.CLOSED)


async def burst(port: int, count: int, *, secret: str = "gp-caller-secret", **body: object) -> list[Answer]:
    asked = post({**chat(max_tokens=80), **body}, secret=secret)
    return await asyncio.gather(*(ask(port, asked) for _ in range(count)))


def served(answers: list[Answer]) -> int:
    return sum(answer.status == 200 for answer in answers)


@pytest.mark.parametrize(("scope", "name"), [("key", "key-1"), ("model", "vision/tiny"), ("endpoint", "tiny")])
async def test_dollars_of_a_scope_are_never_passed_and_concern_nobody_else(
    tmp_path: Path, upstream: MockUpstream, scope: str, name: str
) -> None:
    upstream.behave = eighty
    routes = (route("tiny", upstream.base_url), route("other", upstream.base_url))
    keys = (key(), key("second", id="key-2"))
    limits = (dollars(scope, name, 2_000), dollars(scope, name, 10**9, Measure.DOLLARS_MONTH))
    async with running(tmp_path, keys=keys, routes=routes, limits=limits) as bench:
        answers = await burst(bench.port, 40)
        while served(last := await burst(bench.port, 5)):
            answers += last
        assert 2_000 - 2 * 330 < COST * served(answers) == COST * len(upstream.seen) <= 2_000
        refused = next(answer for answer in last if answer.status != 200)
        other = await ask(bench.port, post(chat(max_tokens=80) | {"model": "other"}, secret="second"))
    assert (refused.status, refused.error["code"], refused.error["type"]) == (429, *["insufficient_quota"] * 2)
    assert f"{scope} {name} has $0.00" in refused.error["message"] and "at midnight UTC" in refused.error["message"]
    assert refused.headers["x-should-retry"] == "false" and "retry-after" not in refused.headers
    assert other.status == 200


async def test_a_caller_that_leaves_pays_what_was_relayed_and_gets_the_rest_back(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    left = asyncio.Event()

    async def endless(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(event("one "))
        await left.wait()
        await exchange.reader.read()
        raise ConnectionResetError

    upstream.behave = endless
    limits = (dollars("key", "key-1", 1_000),)
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),), limits=limits) as bench:
        assert bench.gateway is not None
        client = await RawClient.open(bench.port)
        await client.send(post(chat(stream=True, max_tokens=400)))
        await client.head()
        assert (await ask(bench.port, post(chat(max_tokens=400)))).status == 429, "900 of 1,000 are reserved"
        await client.close()
        left.set()
        share = bench.gateway.state._shares["key:key-1:dollars per day"]
        await poll(lambda: share.in_flight == 0)
        (record,) = await bench.records()
        assert record.status == 499 and 0 < record.amount_microusd < 100
        assert share.unseen == record.amount_microusd
        upstream.behave = eighty
        assert (await ask(bench.port, post(chat(max_tokens=400)))).status == 200


def hosted(upstream: MockUpstream, folder: Path, target: RouteTarget) -> Route:
    """The route as the control plane compiles it, to the upstream as a provider of OpenAI's kind."""
    (folder / "provider-keys" / "vision").mkdir(parents=True)
    (folder / "provider-keys" / "vision" / "hosted").write_text("sk-x")
    now = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
    provider = Provider(id="vision:hosted", name="hosted", project="vision", kind=ProviderKind.OPENAI, private=True,
                        base_url=f"{upstream.base_url}/v1", set_by="ana", set_at=now)  # fmt: skip
    rule = RouteRule(id="vision:tiny", project="vision", model="tiny", policy=RoutePolicy.WEIGHTED,
                     targets=(bounded(target, provider, ROWS),), set_by="ana", set_at=now)  # fmt: skip
    return compile_snapshot(
        keys=(), endpoints=(), budgets={}, ingested={}, version=1, now=now, providers=(provider,), rules=(rule,)
    ).routes[0]


ROWS = load_catalogue().token_prices
LISTED, LONG = (
    filled_in(RouteTarget(provider="hosted", model=name), Named(), next(row for row in ROWS if row.id == name))
    for name in ("gpt-4o", "gpt-5.4")
)
BEFORE = RouteTarget(provider="hosted", model="gpt-4o", price=Named(prompt=2_500_000, completion=10_000_000).price())
UNKNOWN = replace(BEFORE, model="our-chat")
WHITE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
SEEN = {"messages": [{"role": "user", "content": [WHITE]}], "max_tokens": 5}
DRAWN = {"path": "/v1/images/generations", "prompt": "a cat", "n": 4}


@pytest.mark.parametrize(
    ("target", "asked", "used", "limit"),
    [
        pytest.param(LISTED, {}, (10, 16_384), 1_500_000, id="a model the catalogue knows"),
        pytest.param(BEFORE, {}, (10, 16_384), 1_500_000, id="a route from before the catalogue was asked"),
        pytest.param(UNKNOWN, {}, (10, 120_000), 6_000_000, id="a model nobody knows"),
        pytest.param(LISTED, SEEN, (36_000, 5), 1_500_000, id="a small file that is a big picture"),
        pytest.param(LONG, SEEN, (900_000, 5), 12_000_000, id="a prompt so long that it costs twice as much"),
        pytest.param(UNKNOWN, SEEN, (900_000, 5), 11_000_000, id="a picture for a model nobody knows"),
        pytest.param(LISTED, DRAWN, (10, 4 * 6_240), 1_500_000, id="pictures are answers too"),
    ],
)
async def test_dollars_at_a_provider_never_pass_a_limit_however_long_the_answers_are(
    tmp_path: Path,
    upstream: MockUpstream,
    target: RouteTarget,
    asked: dict[str, object],
    used: tuple[int, int],
    limit: int,
) -> None:
    async def long(exchange: Exchange) -> None:
        for _ in range(20):
            await asyncio.sleep(0)  # others come in meanwhile
        prompt, answer = used
        await exchange.json({**completion(), "usage": {"input_tokens": prompt, "output_tokens": answer}})

    upstream.behave = long
    assert target.price is not None
    cost = rate_special(Usage(*used), target.price)
    body = {**chat(), **asked}
    path = str(body.pop("path", "/v1/chat/completions"))
    values = {"routes": (hosted(upstream, tmp_path, target),), "limits": (dollars("key", "key-1", limit),)}
    async with running(tmp_path, keys=(key(),), **values) as bench:
        answers = await asyncio.gather(*(ask(bench.port, post(body, path=path)) for _ in range(30)))
    assert {answer.status for answer in answers} == {200, 429}
    assert 0 < cost * served(answers) == cost * len(upstream.seen) <= limit


@pytest.mark.parametrize("count", [1, 2, 4])
async def test_workers_keep_dollars_together_and_a_killed_one_gives_back_its_slices_only(
    tmp_path: Path, upstream: MockUpstream, fleets: list[Workers], count: int
) -> None:
    upstream.behave = eighty
    values = {"keys": (key(),), "routes": (route("tiny", upstream.base_url),)}
    await write_snapshot(tmp_path, 1, **values, limits=(dollars("key", "key-1", 60_000),))
    workers = await asyncio.to_thread(start_workers, tmp_path, count)
    fleets.append(workers)
    answers = await burst(workers.port, 40)
    assert served(answers) == 40
    workers.processes[0].kill()
    await asyncio.to_thread(workers.processes[0].wait)
    await asyncio.to_thread(workers.start, 0)
    while served(last := await burst(workers.port, 40)):
        answers += last
    spent = COST * len(upstream.seen)
    assert COST * served(answers) == spent <= 60_000
    assert spent > 60_000 - 2 * 330, "what the killed worker held beyond what it spent came back"
    log = FolderUsageLog(tmp_path / "wal")
    records = await log.read(10_000)
    assert sum(record.amount_microusd for record in records) == spent
    await log.acknowledge(len(records))
    more = (dollars("key", "key-1", 60_000 - spent + 5_000),)
    await write_snapshot(tmp_path, 2, **values, limits=more, ingested=await log.ingested())
    seen = len(upstream.seen)
    async with asyncio.timeout(30):  # each worker reads the new figure when it does
        while COST * (len(upstream.seen) - seen) <= 5_000 - 2 * 330:
            await burst(workers.port, 20)
            await asyncio.sleep(0.05)
    await burst(workers.port, 20)
    assert COST * (len(upstream.seen) - seen) <= 60_000 - spent + 5_000


async def test_what_a_rolled_worker_had_spent_does_not_count_twice(
    tmp_path: Path, upstream: MockUpstream, fleets: list[Workers]
) -> None:
    """Another process with the other id has taken its place, and the ledger has read what it wrote."""
    upstream.behave = eighty
    values = {"keys": (key(),), "routes": (route("tiny", upstream.base_url),)}
    await write_snapshot(tmp_path, 1, **values, limits=(dollars("key", "key-1", 60_000),))
    workers = await asyncio.to_thread(start_workers, tmp_path, 2)
    fleets.append(workers)
    for _ in range(5):
        await burst(workers.port, 40)
    for number in (0, 1):
        old = workers.processes[number]
        await asyncio.to_thread(workers.start, number, "r")
        old.terminate()
        assert await asyncio.to_thread(old.wait, 20) == 0
    spent = COST * len(upstream.seen)
    log = FolderUsageLog(tmp_path / "wal")
    records = await log.read(10_000)
    assert sum(record.amount_microusd for record in records) == spent > 30_000
    await log.acknowledge(len(records))
    left = (dollars("key", "key-1", 60_000 - spent),)
    await write_snapshot(tmp_path, 2, **values, limits=left, ingested=await log.ingested())
    async with asyncio.timeout(20):
        while b"groundplane_gateway_snapshot_version 2\n" not in (await ask(workers.port, get("/metrics"))).body:
            await asyncio.sleep(0.05)
    answers, end = 0, time.monotonic() + 20
    while 60_000 - COST * len(upstream.seen) > 2 * 330 and time.monotonic() < end:
        answers += served(await burst(workers.port, 20))
    assert spent + COST * answers == COST * len(upstream.seen) <= 60_000
    assert 60_000 - COST * len(upstream.seen) <= 2 * 330, "what the workers that left had spent counted twice"


@pytest.mark.parametrize("kept", ["in a file", pytest.param("in redis", marks=pytest.mark.needs("redis"))])
async def test_what_a_killed_worker_had_spent_is_let_go_once_the_ledger_has_it_and_never_before(
    tmp_path: Path, upstream: MockUpstream, fleets: list[Workers], kept: str, request: pytest.FixtureRequest
) -> None:
    """kill -9 while its successor, which has another id, serves already."""
    upstream.behave = eighty
    url = request.getfixturevalue("redis_socket")[0] if kept == "in redis" else ""
    values = {"keys": (key(id="key-killed"),), "routes": (route("tiny", upstream.base_url),)}
    log = FolderUsageLog(tmp_path / "wal")

    async def publish(version: int, microusd: int) -> None:
        limits = (dollars("key", "key-killed", microusd),)
        await write_snapshot(tmp_path, version, **values, limits=limits, ingested=await log.ingested())

    await publish(1, 60_000)
    workers = await asyncio.to_thread(start_workers, tmp_path, 2, limits_url=url)
    fleets.append(workers)
    while COST * len(upstream.seen) <= 30_000:  # a Redis that is late on a busy machine lets no dollars through
        await burst(workers.port, 40)
    old = workers.processes[1]
    await asyncio.to_thread(workers.start, 1, "r")
    old.kill()
    await asyncio.to_thread(old.wait)
    records = await log.read(10_000)
    assert sum(record.amount_microusd for record in records) == COST * len(upstream.seen) > 30_000
    half = len(records) // 2
    await log.acknowledge(half)
    await publish(2, 60_000 - sum(record.amount_microusd for record in records[:half]))
    await poll((tmp_path / "wal" / "gw-1.closed").exists, 30)
    end = time.monotonic() + 2.5  # its log is looked at every second
    while time.monotonic() < end:
        await burst(workers.port, 20)
    assert COST * len(upstream.seen) <= 60_000, "what it had spent was let go of before the ledger had it"
    rest = await log.read(10_000)
    await log.acknowledge(len(rest))
    await publish(3, 90_000 - COST * len(upstream.seen))
    end = time.monotonic() + 30
    while 90_000 - COST * len(upstream.seen) > 2 * 330 and time.monotonic() < end:
        await burst(workers.port, 20)
    assert 0 <= 90_000 - COST * len(upstream.seen) <= 2 * 330, "what it had spent is held beside the figure that has it"


async def test_while_the_ledger_reads_along_nothing_is_counted_twice_or_not_at_all(
    tmp_path: Path, upstream: MockUpstream, fleets: list[Workers]
) -> None:
    """What is left is published again and again while two workers spend it, and one of them is killed."""
    upstream.behave = eighty
    values = {"keys": (key(),), "routes": (route("tiny", upstream.base_url),)}
    await write_snapshot(tmp_path, 1, **values, limits=(dollars("key", "key-1", 100_000),))
    workers = await asyncio.to_thread(start_workers, tmp_path, 2)
    fleets.append(workers)
    log, seen, version = FolderUsageLog(tmp_path / "wal"), 0, 1

    async def ledger() -> None:
        nonlocal seen, version
        records = await log.read(1_000)
        await log.acknowledge(len(records))
        seen, version = seen + sum(record.amount_microusd for record in records), version + 1
        left = (dollars("key", "key-1", 100_000 - seen),)
        await write_snapshot(tmp_path, version, **values, limits=left, ingested=await log.ingested())

    answers: list[Answer] = []
    for turn in range(400):
        last = await burst(workers.port, 20)
        answers += last
        await ledger()
        if turn == 10:
            workers.processes[1].kill()
            await asyncio.to_thread(workers.processes[1].wait)
            await asyncio.to_thread(workers.start, 1)
        spent = seen == COST * len(upstream.seen) > 100_000 - 2 * 330
        if turn > 10 and spent and not served(last):
            break
    assert COST * served(answers) == COST * len(upstream.seen) == seen <= 100_000
    assert seen > 100_000 - 2 * 330


@pytest.mark.needs("redis")
async def test_two_machines_keep_dollars_together_in_redis(
    tmp_path: Path, upstream: MockUpstream, fleets: list[Workers], redis_socket: tuple[str, int]
) -> None:
    upstream.behave = eighty
    limits = (dollars("model", "vision/tiny", 20_000), dollars("key", "key-1", 10**7, Measure.DOLLARS_MONTH))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        routes = (route("tiny", upstream.base_url),)
        await write_snapshot(tmp_path / name, 1, keys=(key(),), routes=routes, limits=limits)
        arguments = ("--node", name, "--nodes", "2")
        fleets.append(
            await asyncio.to_thread(start_workers, tmp_path / name, 1, *arguments, limits_url=redis_socket[0])
        )
    answers: list[Answer] = []
    for _ in range(100):
        last = await burst(fleets[0].port, 10) + await burst(fleets[1].port, 10)
        answers += last
        if {answer.status for answer in last} == {429}:
            break
    assert COST * served(answers) == COST * len(upstream.seen) <= 20_000
    assert COST * served(answers) > 20_000 - 2 * 330
    assert {answer.status for answer in answers} <= {200, 429, 503}
