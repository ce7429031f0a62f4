"""Kept answers as callers meet them: who gets one, what it costs, and what equal requests at once come to."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from tests.gateway.harness import (
    DONE,
    PRICE,
    SECRET,
    Bench,
    Exchange,
    MockUpstream,
    RawClient,
    ask,
    chat,
    completion,
    event,
    get,
    key,
    left,
    post,
    running,
    well_behaved,
)

from groundplane.domain.serving.queueing import QueueRule
from groundplane.domain.serving.response_cache import CacheRule
from groundplane.domain.serving.snapshot import Route, Target
from groundplane.gateway.state import Options


def keeping(
    upstream: MockUpstream, rule: CacheRule | None = None, project: str = "vision", revision: int = 1, **more: object
) -> Route:
    target = Target(
        endpoint=f"tiny-of-{project}", revision=revision, base_url=upstream.base_url, upstream_model="tiny", price=PRICE
    )
    rule = rule or CacheRule(ttl_s=60)
    return Route(model="tiny", project=project, targets=(target,), cache=rule, **more)  # type: ignore[arg-type]


def sure(**more: object) -> dict[str, object]:
    return chat(temperature=0, **more)


def followers(bench: Bench) -> int:
    assert bench.gateway is not None
    return sum(len(one.followers) for one in bench.gateway.state.answers._flights.values())


async def test_an_equal_request_is_answered_again_for_nothing(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(requests_per_minute=10, tokens_per_minute=1000),)
    async with running(tmp_path, keys=keys, routes=(keeping(upstream),)) as bench:
        assert bench.gateway is not None
        first = await ask(bench.port, post(sure()))
        money = left(bench.gateway.state)
        again = await ask(bench.port, post(sure()))
        assert first.headers["cache-status"] == "groundplane; fwd=uri-miss" and "age" not in first.headers
        assert again.headers["cache-status"].startswith("groundplane; hit; ttl=") and again.headers["age"] == "0"
        assert again.body == first.body and again.headers["content-type"] == first.headers["content-type"]
        assert len(upstream.seen) == 1 and left(bench.gateway.state) == money
        tokens = [int(one.headers["x-ratelimit-remaining-tokens"]) for one in (first, again)]
        assert again.headers["x-ratelimit-remaining-requests"] == "8" and tokens[1] >= tokens[0]
        miss, hit = await bench.records()
        assert (miss.cache, miss.amount_microusd, miss.saved_microusd) == ("", 17, 0)
        assert (hit.cache, hit.amount_microusd, hit.saved_microusd) == ("hit", 0, 17)
        assert (hit.prompt_tokens, hit.completion_tokens, hit.status) == (0, 0, 200)
        text = (await ask(bench.port, get("/metrics", secret=None))).body.decode()
        assert 'groundplane_gateway_cache_requests_total{model="tiny",result="hit"} 1' in text
        assert "groundplane_gateway_cache_answers 1" in text


async def test_a_hit_counts_as_a_request(tmp_path: Path, upstream: MockUpstream) -> None:
    async with running(tmp_path, keys=(key(requests_per_minute=3),), routes=(keeping(upstream),)) as bench:
        answers = [await ask(bench.port, post(sure())) for _ in range(4)]
    assert [one.status for one in answers] == [200, 200, 200, 429]
    assert "requests per minute" in answers[-1].error["message"]


async def test_no_project_sees_anothers_answers(tmp_path: Path, upstream: MockUpstream) -> None:
    keys, budgets = (key(), key("b", id="key-b", project="sound")), {"vision": 10**12, "sound": 10**12}
    routes = (keeping(upstream), keeping(upstream, project="sound"))
    async with running(tmp_path, keys=keys, routes=routes, budgets=budgets) as bench:
        for secret in (SECRET, "b", "b"):
            assert (await ask(bench.port, post(sure(), secret=secret))).status == 200
    assert len(upstream.seen) == 2


@pytest.mark.parametrize(
    ("body", "path", "upstream_calls"),
    [
        (chat(), "/v1/chat/completions", 2),
        (chat(temperature=0.7), "/v1/chat/completions", 2),
        (chat(temperature=0), "/v1/chat/completions", 1),
        (chat(temperature=0, store=True), "/v1/chat/completions", 2),
        ({"model": "tiny", "input": "hi"}, "/v1/embeddings", 1),
        ({"model": "tiny", "input": "hi"}, "/v1/embeddings?v={}", 2),
        ({"model": "tiny", "input": "hi", "temperature": 0}, "/v1/responses", 2),
        ({"model": "tiny", "input": "hi", "temperature": 0, "store": False}, "/v1/responses", 1),
    ],
)
async def test_only_what_has_one_answer_is_kept(
    tmp_path: Path, upstream: MockUpstream, body: dict[str, object], path: str, upstream_calls: int
) -> None:
    async with running(tmp_path, keys=(key(),), routes=(keeping(upstream),)) as bench:
        for number in range(2):
            assert (await ask(bench.port, post(body, path=path.format(number)))).status == 200
    assert len(upstream.seen) == upstream_calls


async def test_a_route_may_keep_answers_of_chance_too(tmp_path: Path, upstream: MockUpstream) -> None:
    rule = CacheRule(ttl_s=60, sampled=True)
    async with running(tmp_path, keys=(key(),), routes=(keeping(upstream, rule),)) as bench:
        for _ in range(2):
            await ask(bench.port, post(chat(temperature=1)))
    assert len(upstream.seen) == 1


async def test_a_caller_decides_for_itself(tmp_path: Path, upstream: MockUpstream) -> None:
    async with running(tmp_path, keys=(key(),), routes=(keeping(upstream),)) as bench:
        assert bench.gateway is not None

        async def status(cache_control: str) -> str:
            answer = await ask(bench.port, post(sure(), headers=f"cache-control: {cache_control}\r\n"))
            return answer.headers["cache-status"].removeprefix("groundplane; ").partition(";")[0]

        assert await status("no-store") == "fwd=request"
        assert await status("max-age=10") == "fwd=uri-miss", "no-store was not kept"
        assert await status("no-cache") == "fwd=request"
        assert await status("max-age=10") == "hit"
        shelf = bench.gateway.state.answers._shelf
        (kept,) = list(shelf)
        await bench.until(lambda: time.time() > kept.at_s)
        assert await status("max-age=0") == "fwd=stale"
    assert len(upstream.seen) == 4


async def test_answers_last_as_long_as_the_route_says_and_as_the_model_is_the_same(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    async with running(tmp_path, keys=(key(),), routes=(keeping(upstream, CacheRule(ttl_s=1)),)) as bench:
        await ask(bench.port, post(sure()))
        assert bench.gateway is not None
        state = bench.gateway.state
        (kept,) = list(state.answers._shelf)
        await bench.until(lambda: time.time() >= kept.until_s)
        assert "fwd=uri-miss" in (await ask(bench.port, post(sure()))).headers["cache-status"]
        await bench.publish(keys=(key(),), routes=(keeping(upstream, revision=2),))
        await bench.until(lambda: state.metrics.snapshot_version == 2)
        assert "fwd=uri-miss" in (await ask(bench.port, post(sure()))).headers["cache-status"]
    assert len(upstream.seen) == 3


async def failing(exchange: Exchange) -> None:
    await exchange.json({"error": {"message": "no"}}, status=400)


async def cut_short(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
    exchange.cut()


async def too_large(exchange: Exchange) -> None:
    await exchange.json(completion("x" * 2**20))


async def broken_stream(exchange: Exchange) -> None:
    """As vLLM ends a stream that fails: an error event, then [DONE]."""
    await exchange.begin_stream()
    await exchange.chunk(event("one"))
    await exchange.chunk(b'data: {"error": {"message": "the engine is gone"}}\n\n')
    await exchange.chunk(DONE)
    await exchange.end()


@pytest.mark.parametrize("behave", [failing, cut_short, too_large, broken_stream])
async def test_what_is_no_good_answer_is_not_kept(
    tmp_path: Path, upstream: MockUpstream, behave: Callable[[Exchange], object]
) -> None:
    upstream.behave = behave  # type: ignore[assignment]
    async with running(tmp_path, keys=(key(),), routes=(keeping(upstream),)) as bench:
        for _ in range(2):
            await ask(bench.port, post(sure(stream=behave is broken_stream)))
        assert bench.gateway is not None
        assert not bench.gateway.state.answers._flights
        assert 200 not in {one.status for one in await bench.records()} or behave is too_large
    assert len(upstream.seen) >= 2


async def test_memory_is_bounded(tmp_path: Path, upstream: MockUpstream) -> None:
    options = Options(drain_s=0.2, cache_max_bytes=20_000)
    async with running(tmp_path, options, keys=(key(),), routes=(keeping(upstream),)) as bench:
        for number in range(60):
            await ask(bench.port, post(sure(user=str(number))))
        assert bench.gateway is not None
        assert 10_000 < bench.gateway.state.metrics.flow.kept_bytes <= 20_000
        await ask(bench.port, post(sure(user="59")))
        await ask(bench.port, post(sure(user="0")))
    assert len(upstream.seen) == 61


# ---------------------------------------------------------------- streams, and many at once


async def test_a_stream_is_replayed_as_one_to_the_official_client(tmp_path: Path, upstream: MockUpstream) -> None:
    async with running(tmp_path, keys=(key(),), routes=(keeping(upstream),)) as bench:
        client = openai.AsyncOpenAI(base_url=bench.base_url, api_key=SECRET, max_retries=0)
        texts = []
        for _ in range(2):
            stream = await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "hi"}], temperature=0, stream=True
            )
            texts.append("".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]))
        whole = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], temperature=0
        )
        await client.close()
    assert texts == ["one two three four five"] * 2
    assert whole.choices[0].message.content == "hello there", "a kept stream does not answer who wants none"
    assert len(upstream.seen) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_equal_requests_at_once_are_one_upstream_call(
    tmp_path: Path, upstream: MockUpstream, stream: bool
) -> None:
    release = asyncio.Event()

    async def held(exchange: Exchange) -> None:
        await release.wait()
        await well_behaved(exchange)

    upstream.behave = held
    async with running(tmp_path, keys=(key(),), routes=(keeping(upstream),)) as bench:
        tasks = [asyncio.create_task(ask(bench.port, post(sure(stream=stream)))) for _ in range(20)]
        await bench.until(lambda: followers(bench) == 19)
        gone = await RawClient.open(bench.port)
        await gone.send(post(sure(stream=stream)))
        await bench.until(lambda: followers(bench) == 20)
        await gone.close()
        await bench.until(lambda: followers(bench) == 19)
        release.set()
        answers = await asyncio.gather(*tasks)
        assert {one.status for one in answers} == {200} and all(one.whole for one in answers)
        assert len({one.body for one in answers}) == 1 and len(upstream.seen) == 1
        assert sum("collapsed" in one.headers["cache-status"] for one in answers) == 19
        records = await bench.records()
        assert sum(one.amount_microusd for one in records) == 17 and len(records) == 20


async def test_does_the_first_fail_the_next_goes_itself(tmp_path: Path, upstream: MockUpstream) -> None:
    release = asyncio.Event()

    async def fails_first(exchange: Exchange) -> None:
        await release.wait()
        await (failing if len(upstream.seen) == 1 else well_behaved)(exchange)

    upstream.behave = fails_first
    async with running(tmp_path, keys=(key(),), routes=(keeping(upstream),)) as bench:
        tasks = [asyncio.create_task(ask(bench.port, post(sure()))) for _ in range(10)]
        await bench.until(lambda: followers(bench) == 9)
        release.set()
        answers = await asyncio.gather(*tasks)
    assert sorted(one.status for one in answers) == [200] * 9 + [400]
    assert len(upstream.seen) == 2


async def test_who_leads_may_leave_and_the_next_goes_itself(tmp_path: Path, upstream: MockUpstream) -> None:
    release = asyncio.Event()

    async def held(exchange: Exchange) -> None:
        await release.wait()
        await well_behaved(exchange)

    upstream.behave = held
    async with running(tmp_path, keys=(key(),), routes=(keeping(upstream),)) as bench:
        leader = await RawClient.open(bench.port)
        await leader.send(post(sure()))
        await bench.until(lambda: len(upstream.seen) == 1)
        tasks = [asyncio.create_task(ask(bench.port, post(sure()))) for _ in range(3)]
        await bench.until(lambda: followers(bench) == 3)
        await leader.close()
        await bench.until(lambda: len(upstream.seen) == 2)
        release.set()
        assert {one.status for one in await asyncio.gather(*tasks)} == {200}
    assert len(upstream.seen) == 2


async def test_an_answer_too_large_to_keep_lets_everybody_go(tmp_path: Path, upstream: MockUpstream) -> None:
    release = asyncio.Event()

    async def held(exchange: Exchange) -> None:
        await release.wait()
        await too_large(exchange)

    upstream.behave = held
    async with running(tmp_path, keys=(key(),), routes=(keeping(upstream, queue=QueueRule()),)) as bench:
        tasks = [asyncio.create_task(ask(bench.port, post(sure()))) for _ in range(4)]
        await bench.until(lambda: followers(bench) == 3)
        release.set()
        answers = await asyncio.gather(*tasks)
    assert {one.status for one in answers} == {200} and len(upstream.seen) == 4


# ---------------------------------------------------------------- providers' prompt caches


async def test_what_a_providers_prompt_cache_saves_is_in_the_record(tmp_path: Path, upstream: MockUpstream) -> None:
    async def cached(exchange: Exchange) -> None:
        if exchange.seen.path == "/v1/messages":
            used = {"input_tokens": 100, "output_tokens": 5}
            used |= {"cache_read_input_tokens": 800, "cache_creation_input_tokens": 100}
            await exchange.json({"type": "message", "content": [], "usage": used})
        else:
            await exchange.json(completion(prompt=1000, completion=5, cached=800))

    upstream.behave = cached
    price = PRICE.__class__(
        prompt_microusd_per_million=1_000_000,
        completion_microusd_per_million=2_000_000,
        cached_microusd_per_million=100_000,
        written_microusd_per_million=1_250_000,
    )
    target = Target(endpoint="tiny", revision=1, base_url=upstream.base_url, upstream_model="tiny", price=price)
    one = Route(model="tiny", project="vision", targets=(target,))
    async with running(tmp_path, keys=(key(),), routes=(one,)) as bench:
        assert (await ask(bench.port, post(chat()))).status == 200
        assert (await ask(bench.port, post(json.dumps(chat()).encode(), path="/v1/messages"))).status == 200
        openai_like, anthropic_like = await bench.records()
    assert (openai_like.cached_tokens, openai_like.amount_microusd) == (800, 200 + 80 + 10)
    assert openai_like.saved_microusd == 720 and openai_like.written_tokens == 0
    assert (anthropic_like.prompt_tokens, anthropic_like.cached_tokens, anthropic_like.written_tokens) == (
        1000,
        800,
        100,
    )
    assert anthropic_like.amount_microusd == 100 + 80 + 125 + 10
    assert anthropic_like.saved_microusd == 1010 - 315


async def test_a_prompt_in_bad_order_is_found_and_no_text_is_kept(tmp_path: Path, upstream: MockUpstream) -> None:
    rules = "".join(f"Rule {number}: answer politely, and never promise what can't be kept.\n" for number in range(90))
    price = PRICE.__class__(
        prompt_microusd_per_million=1_000_000, completion_microusd_per_million=0, cached_microusd_per_million=500_000
    )
    target = Target(endpoint="tiny", revision=1, base_url=upstream.base_url, upstream_model="tiny", price=price)
    one = Route(model="tiny", project="vision", targets=(target,))
    async with running(tmp_path, keys=(key(),), routes=(one,)) as bench:
        assert bench.gateway is not None
        for number in range(320):
            system = f"It is {number} seconds past noon.\n{rules}"
            body = chat(messages=[{"role": "system", "content": system}, {"role": "user", "content": f"q{number}"}])
            assert (await ask(bench.port, post(body))).status == 200
        (found,) = [one for one in bench.gateway.state.prompt_findings() if one is not None]
        assert "politely" not in repr([one._kept for one in bench.gateway.state._samples.values()])
    assert (found.project, found.model, found.key_id) == ("vision", "tiny", "key-1")
    assert found.place == "messages[0] (system) line 1" and found.samples >= 10
    assert 1400 < found.static_tokens < 1800
    assert found.saved_microusd_per_1000_requests == found.saved_tokens_per_1000_requests // 2
