"""Requests that wait for what is full: who is served when, who is refused and told what, and who leaves."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path

import openai
import pytest
from tests.gateway.harness import (
    PRICE,
    SECRET,
    Answer,
    Bench,
    Exchange,
    MockUpstream,
    RawClient,
    ask,
    chat,
    completion,
    get,
    key,
    post,
    route,
    running,
    well_behaved,
)

from groundplane.domain.serving.limits import Limit, Measure
from groundplane.domain.serving.queueing import KeyPriority, Priority, QueueRule
from groundplane.domain.serving.snapshot import Route, Target

QUEUE = QueueRule(size=100, wait_ms=20_000)


def waiting(upstream: MockUpstream, rule: QueueRule = QUEUE, project: str = "vision") -> Route:
    target = Target(
        endpoint=f"tiny-of-{project}", revision=1, base_url=upstream.base_url, upstream_model="tiny", price=PRICE
    )
    return Route(model="tiny", project=project, targets=(target,), queue=rule)


def depth(bench: Bench) -> int:
    assert bench.gateway is not None
    return bench.gateway.state.room.count


class Held:
    """An upstream that answers when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[Exchange] = []

    async def __call__(self, exchange: Exchange) -> None:
        self.waiting.append(exchange)
        done = asyncio.Event()
        exchange.done = done  # type: ignore[attr-defined]
        await done.wait()
        await exchange.json(completion())

    def release(self) -> str:
        exchange = self.waiting.pop(0)
        exchange.done.set()  # type: ignore[attr-defined]
        return str(json.loads(exchange.seen.body)["user"])


async def metric(bench: Bench, line: str) -> int:
    text = (await ask(bench.port, get("/metrics", secret=None))).body.decode()
    return sum(int(one.rpartition(" ")[2]) for one in text.splitlines() if one.startswith(f"groundplane_{line} "))


async def test_requests_over_the_rate_wait_and_are_all_served_in_order(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(requests_per_minute=600),)
    async with running(tmp_path, keys=keys, routes=(waiting(upstream, QueueRule(size=400)),)) as bench:
        began = time.monotonic()
        answers = await asyncio.gather(*(ask(bench.port, post(chat())) for _ in range(640)))
        took_s = time.monotonic() - began
        assert {answer.status for answer in answers} == {200}
        assert took_s >= 3.9, "40 more than the burst, at 10 a second"
        waits = [int(one.headers["x-queue-time"]) for one in answers if "x-queue-time" in one.headers]
        assert 1 <= len(waits) <= 400 and max(waits) <= 1000 * took_s
        assert await metric(bench, 'gateway_queue_wait_seconds_count{model="tiny"}') == len(waits)
        assert depth(bench) == 0


async def test_who_would_wait_too_long_is_told_the_truth_at_once(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(requests_per_minute=120),)
    async with running(tmp_path, keys=keys, routes=(waiting(upstream),)) as bench:
        assert bench.gateway is not None
        burst = [asyncio.create_task(ask(bench.port, post(chat()))) for _ in range(126)]
        await bench.until(lambda: len(upstream.seen) >= 120 and depth(bench) >= 4)
        began = time.monotonic()
        refused = await ask(bench.port, post(chat(), headers="x-request-timeout: 0.5\r\n"))
        asked_s = time.monotonic() - began
        told_s = int(refused.headers["retry-after-ms"]) / 1000
        assert refused.status == 429
        assert "longer than this request may wait" in refused.error["message"]
        await asyncio.gather(*burst)
        # Those before it are served now: the next unit is what it would have had.
        last = await ask(bench.port, post(chat()))
        true_s = time.monotonic() - began
        assert last.status == 200
        # What is told counts from some moment between asking and hearing it.
        assert 0.9 * (true_s - asked_s) - 0.15 <= told_s <= 1.1 * true_s + 0.15


async def test_the_official_clients_time_out_is_its_deadline(tmp_path: Path, upstream: MockUpstream) -> None:
    patient = waiting(upstream, QueueRule(wait_ms=60_000))
    async with running(tmp_path, keys=(key(requests_per_minute=2),), routes=(patient,)) as bench:
        await asyncio.gather(*(ask(bench.port, post(chat())) for _ in range(2)))
        client = openai.AsyncOpenAI(base_url=bench.base_url, api_key=SECRET, max_retries=0, timeout=10.0)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
        assert "longer than this request may wait" in str(refused.value), "half a minute, of the route's whole one"
        await client.close()


async def test_a_caller_that_leaves_the_queue_costs_nothing(tmp_path: Path, upstream: MockUpstream) -> None:
    keys, patient = (key(requests_per_minute=60),), waiting(upstream, QueueRule(wait_ms=60_000))
    async with running(tmp_path, keys=keys, routes=(patient,)) as bench:
        await asyncio.gather(*(ask(bench.port, post(chat())) for _ in range(60)))
        gone = [await RawClient.open(bench.port) for _ in range(45)]
        for one in gone:
            await one.send(post(chat(user="gone")))
        await bench.until(lambda: depth(bench) >= 44)
        for one in gone:
            await one.close()
        await bench.until(lambda: depth(bench) == 0)
        began = time.monotonic()
        assert (await ask(bench.port, post(chat()))).status == 200
        assert time.monotonic() - began < 30, "it did not wait for those that left"
        records = await bench.records()
    served = [one for one in upstream.seen if b"gone" in one.body]
    assert len(records) == len(upstream.seen) <= 62 and len(served) <= 1


async def test_a_full_queue_refuses_and_a_higher_priority_takes_the_place_of_a_lower(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    held = upstream.behave = Held()
    rule = QueueRule(
        size=2, priority=Priority.NORMAL, keys=(KeyPriority(key_id="key-2", priority=Priority.HIGH),), wait_ms=15_000
    )
    limits = (Limit("project", "vision", Measure.CONCURRENT, 1),)
    keys = (key(), key("other", id="key-2"))
    async with running(tmp_path, keys=keys, routes=(waiting(upstream, rule),), limits=limits) as bench:

        def send(name: str, headers: str = "", secret: str = SECRET) -> asyncio.Task[Answer]:
            return asyncio.create_task(ask(bench.port, post(chat(user=name), headers=headers, secret=secret)))

        tasks = [send("first")]
        await bench.until(lambda: len(held.waiting) == 1)
        for number, (name, headers) in enumerate((("normal", ""), ("low", "x-priority: low\r\n"))):
            tasks.append(send(name, headers))
            await bench.until(lambda number=number: depth(bench) == number + 1)  # type: ignore[misc]
        tasks.append(send("high", secret="other"))
        displaced = await tasks.pop(2)
        assert displaced.status == 429 and "higher priority took its place" in displaced.error["message"]
        full = await send("late")
        assert full.status == 429 and "2 requests wait already" in full.error["message"]
        assert int(full.headers["retry-after-ms"]) >= 1
        order = []
        for _ in range(3):
            await bench.until(lambda: len(held.waiting) == 1)
            order.append(held.release())
        assert {one.status for one in await asyncio.gather(*tasks)} == {200}
        assert await metric(bench, 'gateway_shed_total{model="tiny",reason="queue full"}') == 1
        assert await metric(bench, 'gateway_shed_total{model="tiny",reason="displaced"}') == 1
    assert order == ["first", "high", "normal"]


async def test_priorities_are_served_first_and_no_key_gets_more_than_it_may(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    held = upstream.behave = Held()
    rule = QueueRule(size=10, keys=(KeyPriority(key_id="key-2", priority=Priority.HIGH),))
    limits = (Limit("project", "vision", Measure.CONCURRENT, 1),)
    keys = (key(), key("other", id="key-2"))
    async with running(tmp_path, keys=keys, routes=(waiting(upstream, rule),), limits=limits) as bench:
        tasks = []
        for number, (name, headers, secret) in enumerate(
            (
                ("first", "", SECRET),
                ("low", "x-priority: low\r\n", SECRET),
                ("normal", "x-priority: high\r\n", SECRET),
                ("high", "", "other"),
            )
        ):
            tasks.append(asyncio.create_task(ask(bench.port, post(chat(user=name), headers=headers, secret=secret))))
            await bench.until(lambda number=number: depth(bench) == number and len(held.waiting) == 1)  # type: ignore[misc]
        wrong = await ask(bench.port, post(chat(), headers="x-priority: urgent\r\n"))
        assert (wrong.status, wrong.error["code"]) == (400, "invalid_priority")
        assert await metric(bench, 'gateway_queue_depth{model="tiny",priority="low"}') in {0, 1}
        order = []
        for _ in range(4):
            await bench.until(lambda: len(held.waiting) == 1)
            order.append(held.release())
        assert {one.status for one in await asyncio.gather(*tasks)} == {200}
    assert order == ["first", "high", "normal", "low"]


async def test_a_flood_of_one_project_does_not_move_another_at_a_shared_replica(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    held = upstream.behave = Held()
    rule = QueueRule(size=200, concurrency_max=1)
    keys = (key(), key("b", id="key-b", project="sound"))
    routes = (waiting(upstream, rule), waiting(upstream, rule, "sound"))
    async with running(tmp_path, keys=keys, routes=routes, budgets={"vision": 10**12, "sound": 10**12}) as bench:
        flood = [asyncio.create_task(ask(bench.port, post(chat(user="flood")))) for _ in range(60)]
        await bench.until(lambda: len(held.waiting) == 1 and depth(bench) == 59)
        few = [asyncio.create_task(ask(bench.port, post(chat(user="few"), secret="b"))) for _ in range(5)]
        await bench.until(lambda: depth(bench) == 64)
        order = []
        for _ in range(65):
            await bench.until(lambda: len(held.waiting) == 1)
            order.append(held.release())
        assert Counter(one.status for one in await asyncio.gather(*flood, *few)) == {200: 65}
    places = [at for at, name in enumerate(order) if name == "few"]
    assert places[-1] <= 11, f"five requests among sixty were served at {places}"


async def test_limits_of_one_project_are_nobody_elses_queue(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(), key("b", id="key-b", project="sound"))
    routes = (waiting(upstream), waiting(upstream, project="sound"))
    limits = (Limit("project", "vision", Measure.REQUESTS, 30),)
    budgets = {"vision": 10**12, "sound": 10**12}
    async with running(tmp_path, keys=keys, routes=routes, limits=limits, budgets=budgets) as bench:
        flood = [asyncio.create_task(ask(bench.port, post(chat()))) for _ in range(35)]
        await bench.until(lambda: depth(bench) >= 4)
        answers = await asyncio.gather(*(ask(bench.port, post(chat(), secret="b")) for _ in range(20)))
        assert all(one.status == 200 and "x-queue-time" not in one.headers for one in answers)
        for one in flood:
            one.cancel()


async def test_a_revoked_key_leaves_the_queue(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(requests_per_minute=30),)
    routes = (waiting(upstream),)
    async with running(tmp_path, keys=keys, routes=routes) as bench:
        await asyncio.gather(*(ask(bench.port, post(chat())) for _ in range(30)))
        late = asyncio.create_task(ask(bench.port, post(chat())))
        await bench.until(lambda: depth(bench) == 1)
        await bench.publish(keys=(), routes=routes)
        assert (await late).status == 401
        assert len(upstream.seen) <= 31


async def test_what_an_upstream_refuses_waits_as_long_as_it_says(tmp_path: Path, upstream: MockUpstream) -> None:
    refusals = [b"retry-after-ms: 300\r\n", b"retry-after: 1\r\n"]

    async def behave(exchange: Exchange) -> None:
        if refusals:
            head = b"HTTP/1.1 429 X\r\ncontent-type: application/json\r\n%bcontent-length: 2\r\n\r\n{}"
            await exchange.send(head % refusals.pop(0))
        else:
            await well_behaved(exchange)

    upstream.behave = behave
    async with running(tmp_path, keys=(key(),), routes=(waiting(upstream),)) as bench:
        began = time.monotonic()
        answer = await ask(bench.port, post(chat()))
        assert answer.status == 200 and time.monotonic() - began >= 1.25
        assert int(answer.headers["x-queue-time"]) >= 900
        refusals.append(b"retry-after: 60\r\n")
        refused = await ask(bench.port, post(chat()))
        assert refused.status == 429 and 59 <= int(refused.headers["retry-after"]) <= 60
        (first, second) = await bench.records()
        assert (first.status, second.status, second.amount_microusd) == (200, 429, 0)


async def test_an_upstream_that_asks_to_wait_is_not_asked_meanwhile(tmp_path: Path, upstream: MockUpstream) -> None:
    async def behave(exchange: Exchange) -> None:
        if len(upstream.seen) == 1:
            head = b"HTTP/1.1 429 X\r\ncontent-type: application/json\r\nretry-after: 1\r\ncontent-length: 2\r\n\r\n{}"
            await exchange.send(head)
        else:
            await well_behaved(exchange)

    upstream.behave = behave
    async with running(tmp_path, keys=(key(),), routes=(waiting(upstream),)) as bench:
        began = time.monotonic()
        first = asyncio.create_task(ask(bench.port, post(chat())))
        await bench.until(lambda: depth(bench) == 1)
        others = [asyncio.create_task(ask(bench.port, post(chat()))) for _ in range(20)]
        await bench.until(lambda: depth(bench) == 21 or time.monotonic() - began > 0.9)
        asked_before = len(upstream.seen) if time.monotonic() - began < 0.9 else 1
        answers = await asyncio.gather(first, *others)
    assert asked_before == 1 and len(upstream.seen) == 22
    assert {one.status for one in answers} == {200}


async def test_retry_storms_are_told_to_the_caller_and_to_the_operator(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(requests_per_minute=1),)
    async with running(tmp_path, keys=keys, routes=(route("tiny", upstream.base_url),)) as bench:
        assert bench.gateway is not None
        assert (await ask(bench.port, post(chat()))).status == 200
        answers = []
        for _ in range(5):
            answers.append(await ask(bench.port, post(chat())))
            await asyncio.sleep(0.06)
        assert [("x-retry-storm" in one.headers) for one in answers] == [False, False, False, True, True]
        assert "wait as long as retry-after says" in answers[-1].error["message"]
        assert answers[-1].headers["x-retry-storm"] == "early=4, repeated=5"
        assert await metric(bench, 'gateway_retry_storms_total{kind="early"}') == 2
        storms = bench.gateway.state.room.retries.storms(time.monotonic_ns())
        assert list(storms) == [("vision", "key-1")]


async def test_a_burst_over_a_token_limit_spills_waits_and_is_served(tmp_path: Path, upstream: MockUpstream) -> None:
    """Story T14: 200K tokens at once against 80K a minute, with a spill target of 110K a minute."""

    async def as_reserved(exchange: Exchange) -> None:
        body = exchange.seen.body
        await exchange.json(completion(prompt=-(-len(body) // 4), completion=json.loads(body)["max_tokens"]))

    upstream.behave = as_reserved
    spill = MockUpstream(as_reserved)
    await spill.start()
    targets = tuple(
        Target(endpoint=name, revision=1, base_url=one.base_url, upstream_model="tiny", price=PRICE, order=order)
        for order, (name, one) in enumerate((("main", upstream), ("spill", spill)))
    )
    limits = (
        Limit("endpoint", "main", Measure.TOKENS, 80_000),
        Limit("endpoint", "spill", Measure.TOKENS, 110_000),
    )
    one = Route(model="tiny", project="vision", targets=targets, queue=QueueRule(size=100, wait_ms=30_000))
    system = "You are a careful assistant. " * 248  # 1,800 tokens
    body = chat(max_tokens=150, messages=[{"role": "system", "content": system}, {"role": "user", "content": "hi"}])
    each = -(-len(json.dumps(body)) // 4) + 150
    count = -(-200_000 // each)
    async with running(tmp_path, keys=(key(),), routes=(one,), limits=limits) as bench:
        answers = await asyncio.gather(*(ask(bench.port, post(body)) for _ in range(count)))
        records = await bench.records()
    assert [one.status for one in answers].count(429) / count < 0.01
    assert len(upstream.seen) + len(spill.seen) == len(records) == count
    assert sum(one.prompt_tokens + one.completion_tokens for one in records) >= 200_000
    assert any("x-queue-time" in one.headers for one in answers)
    await spill.stop()


async def test_a_replica_is_sent_no_more_than_it_can_answer_in_time(tmp_path: Path, upstream: MockUpstream) -> None:
    at_once, most, turn = 0, 0, asyncio.Semaphore(1)

    async def one_by_one(exchange: Exchange) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        async with turn:
            await asyncio.sleep(0.02)  # what an answer takes
        at_once -= 1
        await exchange.json(completion())

    upstream.behave = one_by_one
    rule = QueueRule(size=1000, wait_ms=60_000, concurrency_max=12)
    async with running(tmp_path, keys=(key(),), routes=(waiting(upstream, rule),)) as bench:
        assert bench.gateway is not None
        (standing,) = bench.gateway.state._standings.values()
        assert standing.concurrency is not None
        for _ in range(8):  # alone, it answers at once: that is the best there is
            assert (await ask(bench.port, post(chat()))).status == 200
        answers = await asyncio.gather(*(ask(bench.port, post(chat())) for _ in range(200)))
        assert {one.status for one in answers} == {200}
        assert most <= 12 and 1 <= standing.concurrency.limit < 8
        assert standing.concurrency.in_flight == standing.in_flight_tokens == depth(bench) == 0


async def test_hedged_failed_and_left_requests_give_their_place_at_a_replica_back(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    async def behave(exchange: Exchange) -> None:
        kind = json.loads(exchange.seen.body)["user"]
        if kind == "cut":
            exchange.cut()
        elif kind == "slow" and exchange.seen is upstream.seen[-1]:
            await asyncio.sleep(0.05)  # longer than it takes to hedge
            await exchange.json(completion())
        else:
            await well_behaved(exchange)

    upstream.behave = behave
    spare = MockUpstream(behave)
    await spare.start()
    targets = tuple(
        Target(endpoint=name, revision=1, base_url=one.base_url, upstream_model="tiny", price=PRICE)
        for name, one in (("main", upstream), ("spare", spare))
    )
    one = Route(
        model="tiny", project="vision", targets=targets, hedge_ms=20, queue=QueueRule(size=500, concurrency_max=4)
    )
    limits = (Limit("endpoint", "main", Measure.REQUESTS, 600),)
    async with running(tmp_path, keys=(key(),), routes=(one,), limits=limits) as bench:
        assert bench.gateway is not None
        kinds = ["slow", "cut", "good", "good"] * 15
        tasks = [asyncio.create_task(ask(bench.port, post(chat(user=kind)))) for kind in kinds]
        gone = [await RawClient.open(bench.port) for _ in range(10)]
        for client in gone:
            await client.send(post(chat(user="slow")))
        for client in gone:
            await client.close()
        answers = await asyncio.gather(*tasks)
        assert {answer.status for answer, kind in zip(answers, kinds, strict=True) if kind == "good"} <= {200, 503}
        state = bench.gateway.state
        await bench.until(lambda: state.metrics.in_flight == 0)
        for standing in state._standings.values():
            assert standing.concurrency is not None
            assert (standing.concurrency.in_flight, standing.in_flight_tokens) == (0, 0)
        assert depth(bench) == 0 and not state.room._queues
    await spare.stop()
