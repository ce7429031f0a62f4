"""Keys and limits as callers meet them: nothing overshoots, and every refusal says which limit, how much, and when."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import time
from pathlib import Path

import openai
import pytest
from tests.gateway.harness import (
    Answer,
    Bench,
    Exchange,
    MockUpstream,
    ask,
    chat,
    completion,
    get,
    key,
    left,
    poll,
    post,
    route,
    running,
)

from groundplane.domain.serving.limits import Limit, Measure
from groundplane.domain.serving.snapshot import SnapshotKey


async def many(bench: Bench, count: int, body: object) -> list[Answer]:
    return await asyncio.gather(*(ask(bench.port, post(body)) for _ in range(count)))


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("", 401),
        ("authorization: Bearer wrong\r\n", 401),
        ("authorization: Bearer \r\n", 401),
        ("authorization: Basic gp-caller-secret\r\n", 401),
        ("authorization: gp-caller-secret\r\n", 401),
    ],
)
async def test_no_good_key_no_answer(tmp_path: Path, upstream: MockUpstream, header: str, status: int) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        answer = await ask(bench.port, post(chat(), secret=None, headers=header))
        assert (answer.status, answer.error["code"]) == (status, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert (await ask(bench.port, get("/v1/models", secret=None))).status == 401
        assert await bench.records() == []
    assert upstream.seen == []


async def test_an_expired_key_is_refused_although_the_snapshot_has_it(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(expires_at=time.time() + 0.3),)
    async with running(tmp_path, keys=keys, routes=(route("tiny", upstream.base_url),)) as bench:
        assert (await ask(bench.port, post(chat()))).status == 200
        await asyncio.sleep(0.35)
        assert (await ask(bench.port, post(chat()))).status == 401


async def test_a_revoked_key_soon_stops_working(tmp_path: Path, upstream: MockUpstream) -> None:
    routes = (route("tiny", upstream.base_url),)
    async with running(tmp_path, keys=(key(), key("other", id="key-2")), routes=routes) as bench:
        assert (await ask(bench.port, post(chat()))).status == 200
        revoked_at = time.monotonic()
        await bench.publish(keys=(key("other", id="key-2"),), routes=routes)
        while (await ask(bench.port, post(chat()))).status != 401:
            assert time.monotonic() - revoked_at < 60
        assert (await ask(bench.port, post(chat(), secret="other"))).status == 200


async def test_a_role_without_inference_is_forbidden(tmp_path: Path, upstream: MockUpstream) -> None:
    async with running(tmp_path, keys=(key(role="finance"),), routes=(route("tiny", upstream.base_url),)) as bench:
        answer = await ask(bench.port, post(chat()))
        assert (answer.status, answer.error["code"]) == (403, "role_forbidden")
        assert (await ask(bench.port, get("/v1/models"))).status == 403


async def test_concurrent_requests_never_pass_the_request_limit(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(requests_per_minute=7),)
    async with running(tmp_path, keys=keys, routes=(route("tiny", upstream.base_url),)) as bench:
        answers = await many(bench, 40, chat())
    assert [answer.status for answer in answers].count(200) == len(upstream.seen) == 7
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.error["code"] == "rate_limit_exceeded"
    assert "requests per minute" in refused.error["message"] and "limit 7" in refused.error["message"]
    wait_s = int(refused.headers["retry-after-ms"]) / 1000
    assert 8.0 <= wait_s <= 60 / 7 + 0.001 and int(refused.headers["retry-after"]) == 9
    assert refused.headers["x-ratelimit-limit-requests"] == "7"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


async def test_retry_after_is_the_truth(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(requests_per_minute=120),)
    async with running(tmp_path, keys=keys, routes=(route("tiny", upstream.base_url),)) as bench:
        answers = await many(bench, 130, chat())
        refused = [answer for answer in answers if answer.status == 429]
        wait_s = min(int(answer.headers["retry-after-ms"]) for answer in refused) / 1000
        assert wait_s <= 0.5
        await asyncio.sleep(wait_s)
        assert (await ask(bench.port, post(chat()))).status == 200


async def test_concurrent_requests_never_pass_the_token_limit(tmp_path: Path, upstream: MockUpstream) -> None:
    used = 0

    async def count(exchange: Exchange) -> None:
        nonlocal used
        await asyncio.sleep(0.02)
        used += 90
        await exchange.json(completion(prompt=10, completion=80))

    upstream.behave = count
    keys = (key(tokens_per_minute=1000),)
    async with running(tmp_path, keys=keys, routes=(route("tiny", upstream.base_url),)) as bench:
        answers = await many(bench, 50, chat(max_tokens=80))
        served = [answer for answer in answers if answer.status == 200]
        assert used <= 1000 and used == 90 * len(served)
        refused = next(answer for answer in answers if answer.status == 429)
        assert "tokens per minute" in refused.error["message"] and refused.error["type"] == "tokens"
        # What was reserved and not used came back: the next request fits if it fits what is really left.
        last = await ask(bench.port, post(chat(max_tokens=1)))
        assert last.status == (200 if used + 25 <= 1000 else 429)


async def test_unused_tokens_return_when_the_answer_is_short(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(tokens_per_minute=1000),)
    async with running(tmp_path, keys=keys, routes=(route("tiny", upstream.base_url),)) as bench:
        for _ in range(20):
            assert (await ask(bench.port, post(chat(max_tokens=700)))).status == 200
        answer = await ask(bench.port, post(chat(max_tokens=700)))
    assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
    assert len(upstream.seen) == 21


async def test_a_request_that_can_never_fit_is_told_so(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(tokens_per_minute=100),)
    async with running(tmp_path, keys=keys, routes=(route("tiny", upstream.base_url),)) as bench:
        answer = await ask(bench.port, post(chat(max_tokens=5000)))
    assert answer.status == 429 and "never fit" in answer.error["message"]
    assert "retry-after" not in answer.headers and answer.headers["x-should-retry"] == "false"


async def test_concurrent_requests_never_pass_the_budget(tmp_path: Path, upstream: MockUpstream) -> None:
    async def slowly(exchange: Exchange) -> None:
        await asyncio.sleep(0.02)
        await exchange.json(completion(prompt=10, completion=100))

    upstream.behave = slowly
    async with running(
        tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),), budgets={"vision": 1000}
    ) as bench:
        for _ in range(6):
            answers = await many(bench, 20, chat(max_tokens=100))
        spent = sum(record.amount_microusd for record in await bench.records())
        assert spent == 210 * len(upstream.seen) <= 1000 and spent > 0
        refused = next(answer for answer in answers if answer.status == 429)
        assert refused.error["code"] == refused.error["type"] == "insufficient_quota"
        assert "project vision has $0.000" in refused.error["message"]
        assert "retry-after" not in refused.headers


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [
        ("/v1/chat/completions", {"max_tokens": 5}, 200),
        ("/v1/chat/completions", {"max_completion_tokens": 5}, 200),
        ("/v1/chat/completions", {"max_completion_tokens": 5, "max_tokens": 4000}, 429),
        ("/v1/chat/completions", {"max_output_tokens": 5}, 429),
        ("/v1/chat/completions", {"max_tokens": -1}, 429),
        ("/v1/chat/completions", {"max_tokens": 0}, 429),
        ("/v1/completions", {"max_completion_tokens": 5}, 429),
        ("/v1/responses", {"max_output_tokens": 5}, 200),
        ("/v1/responses", {"max_tokens": 5}, 429),
        ("/v1/responses", {"max_output_tokens": 5, "background": True}, 400),
        ("/v1/messages", {"max_completion_tokens": 5}, 429),
    ],
)
async def test_only_what_bounds_an_answer_of_this_path_lowers_what_is_reserved(
    tmp_path: Path, upstream: MockUpstream, path: str, more: dict[str, object], status: int
) -> None:
    routes = (route("tiny", upstream.base_url),)
    async with running(tmp_path, keys=(key(),), routes=routes, budgets={"vision": 1000}) as bench:
        assert (await ask(bench.port, post(chat(**more), path=path))).status == status
    assert len(upstream.seen) == (status == 200)


async def test_a_picture_is_no_text_and_no_prompt_is_longer_than_the_model_reads(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    """At 1 micro-dollar a token: a picture of a megabyte would be 1.4 dollars and 350,000 tokens of text."""
    picture = {"url": "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 4096).decode()}
    far, image = {"url": "https://example.com/a.png"}, "image_url"
    routes = (
        route("tiny", upstream.base_url, context_tokens=9000, upstream_model="big"),
        route("unknown", upstream.base_url),
    )
    keys, budgets = (key(tokens_per_minute=80_000),), {"vision": 10_000}
    async with running(tmp_path, keys=keys, routes=routes, budgets=budgets) as bench:

        async def status(content: object, path: str = "/v1/chat/completions", **more: object) -> int:
            body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 5, **more}
            return (await ask(bench.port, post(body, path=path))).status

        assert await status([{"type": image, image: picture}]) == 200
        assert await status([{"type": image, image: picture}], model="unknown") == 429, "every byte may be a token"
        assert await status("word " * 70_000) == 429, "text is"
        assert await status([{"type": image, image: far}]) == 200
        await bench.publish(keys=keys, routes=routes, budgets={"vision": 8_000})
        await poll(lambda: left(bench.gateway.state) < 9_000)  # type: ignore[union-attr]
        assert await status([{"type": image, image: far}]) == 429, "what is fetched may fill the context"
        assert await status("hi") == 200
        answers = [
            await status("hi", "/v1/responses", max_output_tokens=5, previous_response_id=earlier)
            for earlier in (None, "resp_1")
        ]
    assert answers == [200, 429]


async def test_a_new_snapshot_counts_only_what_it_cannot_know(tmp_path: Path, upstream: MockUpstream) -> None:
    """17 micro-dollars a request, two requests: the control plane has seen the first one only."""
    values = {"keys": (key(),), "routes": (route("tiny", upstream.base_url),)}
    async with running(tmp_path, **values, budgets={"vision": 10_000}) as bench:
        assert bench.gateway is not None
        state = bench.gateway.state
        await ask(bench.port, post(chat()))
        await ask(bench.port, post(chat()))
        await bench.usage_log.read(1)
        await bench.usage_log.acknowledge(1)
        await bench.publish(**values, budgets={"vision": 9_983}, ingested=await bench.usage_log.ingested())
        await poll(lambda: state.tables is not None and state.tables.version == 2)
        assert left(state) == 10_000 - 34


async def test_a_project_without_a_budget_is_not_served(tmp_path: Path, upstream: MockUpstream) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),), budgets={}) as bench:
        answer = await ask(bench.port, post(chat()))
    assert (answer.status, answer.error["code"]) == (429, "insufficient_quota")
    assert answer.headers["x-should-retry"] == "false"


async def test_nothing_is_taken_from_any_limit_when_one_refuses(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(requests_per_minute=3, tokens_per_minute=100_000),)
    async with running(
        tmp_path, keys=keys, routes=(route("tiny", upstream.base_url),), budgets={"vision": 5_000}
    ) as bench:
        for _ in range(10):
            assert (await ask(bench.port, post(chat(max_tokens=50_000)))).status == 429
        statuses = [(await ask(bench.port, post(chat(max_tokens=10)))).status for _ in range(4)]
    assert statuses == [200, 200, 200, 429]


async def test_the_client_raises_its_own_rate_limit_error(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(requests_per_minute=1),)
    async with (
        running(tmp_path, keys=keys, routes=(route("tiny", upstream.base_url),)) as bench,
        openai.AsyncOpenAI(base_url=bench.base_url, api_key="gp-caller-secret", max_retries=0) as client,
    ):
        await client.completions.create(model="tiny", prompt="hi")
        with pytest.raises(openai.RateLimitError) as caught:
            await client.completions.create(model="tiny", prompt="hi")
        assert caught.value.code == "rate_limit_exceeded"


async def test_a_batch_of_prompts_reserves_for_each(tmp_path: Path, upstream: MockUpstream) -> None:
    async with running(
        tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),), budgets={"vision": 1_000}
    ) as bench:
        one = {"model": "tiny", "prompt": "a", "max_tokens": 200}
        assert (await ask(bench.port, post(one, path="/v1/completions"))).status == 200
        three = {**one, "prompt": ["a", "b", "c"]}
        refused = await ask(bench.port, post(three, path="/v1/completions"))
    assert refused.status == 429 and "up to $0.001" in refused.error["message"]


async def test_metrics_count_what_happened(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(requests_per_minute=2),)
    async with running(tmp_path, keys=keys, routes=(route("tiny", upstream.base_url),)) as bench:
        for _ in range(3):
            await ask(bench.port, post(chat()))
        await ask(bench.port, post(chat(), secret="wrong"))
        text = (await ask(bench.port, get("/metrics", secret=None))).body.decode()
    lines = set(text.splitlines())
    assert 'groundplane_gateway_requests_total{status="200",model="tiny"} 2' in lines
    assert 'groundplane_gateway_requests_total{status="401",model=""} 1' in lines
    assert 'groundplane_gateway_limited_total{limit="requests"} 1' in lines
    assert 'groundplane_gateway_tokens_total{kind="prompt",model="tiny"} 14' in lines
    assert 'groundplane_gateway_ttft_seconds_count{model="tiny"} 2' in lines
    assert "groundplane_gateway_snapshot_version 1" in lines
    assert "groundplane_gateway_in_flight 0" in lines


async def test_without_a_snapshot_it_says_that_it_waits(tmp_path: Path, upstream: MockUpstream) -> None:
    async with running(tmp_path) as bench:
        answer = await ask(bench.port, post(chat()))
        assert (answer.status, answer.error["code"]) == (503, "no_snapshot")
        assert (await ask(bench.port, get("/healthz", None))).json["snapshot_version"] is None
        await bench.publish(keys=(key(),), routes=(route("tiny", upstream.base_url),))
        assert bench.gateway is not None
        await poll(lambda: bench.gateway is not None and bench.gateway.state.tables is not None)
        assert (await ask(bench.port, post(chat()))).status == 200


async def test_a_damaged_snapshot_changes_nothing_but_the_metrics(tmp_path: Path, upstream: MockUpstream) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        path = tmp_path / "snapshot.json"
        good = path.read_text()
        assert bench.gateway is not None
        metrics = bench.gateway.state.metrics
        newer = good.partition("\n")[2].replace('"owner":', '"born_after_this_gateway":1,"owner":')
        newer = f"groundplane-snapshot 2 {hashlib.sha256(newer.encode()).hexdigest()}\n{newer}"
        for number, damaged in enumerate((good.replace("vision", "speech"), good[:-20], "", "[]", "null", newer), 1):
            path.write_text(damaged)
            await poll(lambda number=number: metrics.snapshot_failures == number)  # type: ignore[misc]
            assert (await ask(bench.port, post(chat()))).status == 200
        health = (await ask(bench.port, get("/healthz", None))).json
        assert health["snapshot_version"] == 1 and health["snapshot_trouble"]


async def test_limits_survive_a_swap_and_a_change(tmp_path: Path, upstream: MockUpstream) -> None:
    routes = (route("tiny", upstream.base_url),)
    async with running(tmp_path, keys=(key(requests_per_minute=5),), routes=routes) as bench:
        assert bench.gateway is not None
        state = bench.gateway.state
        for _ in range(5):
            assert (await ask(bench.port, post(chat()))).status == 200
        await bench.publish(keys=(key(requests_per_minute=8),), routes=routes)
        await poll(lambda: state.tables is not None and state.tables.version == 2)
        statuses = [answer.status for answer in await many(bench, 10, chat())]
    assert statuses.count(200) == 3
    assert json.loads(upstream.seen[0].body)["model"] == "tiny"


async def test_a_key_is_good_from_its_networks_only(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(networks=("10.0.0.0/8",)), key("home", id="key-2", networks=("::1/128", "127.0.0.0/8")))
    both = None
    if socket.has_dualstack_ipv6():  # where IPv4 addresses look like ::ffff:127.0.0.1
        both = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    async with running(tmp_path, listener=both, keys=keys, routes=(route("tiny", upstream.base_url),)) as bench:
        refused = await ask(bench.port, post(chat()))
        assert (refused.status, refused.error["code"]) == (403, "network_not_allowed")
        assert (await ask(bench.port, post(chat(), secret="home"))).status == 200
    assert len(upstream.seen) == 1


async def test_the_old_secret_opens_the_same_key_until_its_grace_is_over(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    routes = (route("tiny", upstream.base_url),)

    def keys(grace_s: float) -> tuple[SnapshotKey, ...]:
        return key("new", requests_per_minute=3), key("old", requests_per_minute=3, expires_at=time.time() + grace_s)

    async with running(tmp_path, keys=keys(60), routes=routes) as bench:
        statuses = [(await ask(bench.port, post(chat(), secret=secret))).status for secret in ("old", "new") * 2]
        assert statuses == [200, 200, 200, 429], "both secrets count for one key"
        await bench.publish(keys=keys(0), routes=routes)
        while (status := (await ask(bench.port, post(chat(), secret="old"))).status) != 401:
            assert status == 429


@pytest.mark.parametrize(
    ("scope", "name"), [("project", "vision"), ("model", "vision/tiny"), ("endpoint", "tiny"), ("key", "key-1")]
)
async def test_every_scope_has_limits_of_every_kind(
    tmp_path: Path, upstream: MockUpstream, scope: str, name: str
) -> None:
    hold = asyncio.Event()

    async def slowly(exchange: Exchange) -> None:
        await hold.wait()
        await exchange.json(completion(prompt=10, completion=10))

    routes = (route("tiny", upstream.base_url),)

    def limits(measure: Measure, value: int) -> dict[str, object]:
        return {"keys": (key(),), "routes": routes, "limits": (Limit(scope, name, measure, value),)}

    async with running(tmp_path, **limits(Measure.CONCURRENT, 2)) as bench:
        assert bench.gateway is not None
        state = bench.gateway.state
        upstream.behave = slowly
        waiting = [asyncio.create_task(ask(bench.port, post(chat(max_tokens=5)))) for _ in range(2)]
        await poll(lambda: len(upstream.seen) == 2)
        refused = await ask(bench.port, post(chat(max_tokens=5)))
        assert refused.status == 429 and f"concurrent requests of {scope} {name}" in refused.error["message"]
        hold.set()
        assert [answer.status for answer in await asyncio.gather(*waiting)] == [200, 200]
        assert (await ask(bench.port, post(chat(max_tokens=5)))).status == 200
        await bench.publish(**limits(Measure.REQUESTS, 2))
        await poll(lambda: state.tables is not None and state.tables.version == 2)
        assert [(await ask(bench.port, post(chat()))).status for _ in range(3)] == [200, 200, 429]
        await bench.publish(**limits(Measure.TOKENS_DAY, 100))
        await poll(lambda: state.tables is not None and state.tables.version == 3)
        statuses = [(await ask(bench.port, post(chat(max_tokens=20)))).status for _ in range(5)]
        assert statuses[:2] == [200, 200] and statuses[-1] == 429
        refused = await ask(bench.port, post(chat(max_tokens=20)))
        assert f"tokens per day of {scope} {name}" in refused.error["message"]
        assert int(refused.headers["retry-after"]) <= 86_400


async def test_answers_lengths_are_learned_where_no_limit_is_named(tmp_path: Path, upstream: MockUpstream) -> None:
    """The first eight reserve 512 tokens each; later ones what 98 of 100 answers came to."""
    keys = (key(tokens_per_minute=100_000),)
    async with running(tmp_path, keys=keys, routes=(route("tiny", upstream.base_url),)) as bench:
        left = [int((await ask(bench.port, post(chat()))).headers["x-ratelimit-remaining-tokens"]) for _ in range(30)]
    assert 100_000 - left[0] > 512
    assert left[-2] - left[-1] < 20, "the reservation is now near the five tokens of an answer"


async def test_many_keys_stall_nothing_when_a_snapshot_is_swapped(tmp_path: Path, upstream: MockUpstream) -> None:
    routes = (route("tiny", upstream.base_url),)
    many_keys = (key(), *(key(f"s{number}", id=f"k{number}") for number in range(20_000)))
    async with running(tmp_path, keys=many_keys, routes=routes) as bench:
        assert bench.gateway is not None
        state = bench.gateway.state
        await asyncio.to_thread(lambda: asyncio.run(bench.publish(keys=many_keys, routes=routes)))
        # In CPU time, the loader's with it, which has the interpreter meanwhile: the machine may have other work to do.
        stalls, before = [], time.process_time()
        while state.tables is None or state.tables.version < 2:
            await asyncio.sleep(0.001)
            stalls.append(time.process_time() - before)
            before = time.process_time()
        assert len(state.tables) == 20_001
        assert (await ask(bench.port, post(chat()))).status == 200
    assert max(stalls) < 0.1, "before, 5,000 keys took 125 ms"
