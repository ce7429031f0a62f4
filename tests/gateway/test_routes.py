"""Routes with several targets: who is asked, who is left alone, and hosted providers with keys of their own."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.gateway.harness import (
    PRICE,
    Exchange,
    MockUpstream,
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
from groundplane.domain.serving.snapshot import Route, Target


@pytest.fixture
async def other() -> AsyncIterator[MockUpstream]:
    mock = MockUpstream(well_behaved)
    await mock.start()
    yield mock
    await mock.stop()


def target(upstream: MockUpstream, name: str = "tiny", **more: object) -> Target:
    values: dict[str, object] = {"endpoint": name, "revision": 1, "upstream_model": "tiny", "price": PRICE, **more}
    return Target(base_url=str(values.pop("base_url", upstream.base_url)), **values)  # type: ignore[arg-type]


def hosted(upstream: MockUpstream, kind: str, **more: object) -> Target:
    values: dict[str, object] = {"kind": kind, "key_file": "vision/hosted", "upstream_model": "big", **more}
    return target(upstream, "vision:hosted", **values)


def to(*targets: Target, **more: object) -> Route:
    return Route(model="tiny", project="vision", targets=targets, **more)  # type: ignore[arg-type]


def put_key(folder: Path, text: str = "sk-of-the-provider\n") -> None:
    (folder / "provider-keys" / "vision").mkdir(parents=True)
    (folder / "provider-keys" / "vision" / "hosted").write_text(text)


def limited(retry_after: str, status: int = 429) -> object:
    async def behave(exchange: Exchange) -> None:
        body = b'{"error": {"message": "slow down"}}'
        head = (
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{retry_after}content-length: {len(body)}\r\n\r\n"
        )
        await exchange.send(head.encode() + body)

    return behave


# ---------------------------------------------------------------- hosted providers


@pytest.mark.parametrize(
    ("kind", "more", "path", "expected_path", "expected_header"),
    [
        ("openai", {}, "/v1/chat/completions", "/v1/chat/completions", ("authorization", "Bearer sk-of-the-provider")),
        (
            "openai-compatible",
            {"suffix": "/api/v3/openai"},
            "/v1/embeddings",
            "/api/v3/openai/embeddings",
            ("authorization", "Bearer sk-of-the-provider"),
        ),
        (
            "azure",
            {"api_version": "2024-10-21", "upstream_model": "gpt 4"},
            "/v1/chat/completions",
            "/openai/deployments/gpt%204/chat/completions?api-version=2024-10-21",
            ("api-key", "sk-of-the-provider"),
        ),
        ("azure", {"api_version": "v1"}, "/v1/responses", "/openai/v1/responses", ("api-key", "sk-of-the-provider")),
        ("anthropic", {}, "/v1/messages", "/v1/messages", ("x-api-key", "sk-of-the-provider")),
    ],
)
async def test_each_provider_is_asked_in_its_own_way(
    tmp_path: Path,
    upstream: MockUpstream,
    kind: str,
    more: dict[str, object],
    path: str,
    expected_path: str,
    expected_header: tuple[str, str],
) -> None:
    put_key(tmp_path)
    suffix = str(more.pop("suffix", ""))
    one = hosted(upstream, kind, base_url=upstream.base_url + suffix, **more)
    async with running(tmp_path, keys=(key(),), routes=(to(one),)) as bench:
        answer = await ask(bench.port, post(chat(), path=path))
        (record,) = await bench.records()
    assert answer.status == 200 and record.endpoint == "vision:hosted"
    seen = upstream.seen[0]
    assert seen.path == expected_path
    assert seen.headers[expected_header[0]] == expected_header[1]
    credentials = {"authorization", "api-key", "x-api-key"} & seen.headers.keys()
    assert credentials == {expected_header[0]}, "the caller's own key never leaves"
    assert json.loads(seen.body)["model"] == one.upstream_model
    if kind == "anthropic":
        assert seen.headers["anthropic-version"] == "2023-06-01"


@pytest.mark.parametrize("text", ["", "two\nlines", "ctrl\x07", "snow\u2603"])
async def test_a_provider_without_a_readable_key_is_not_asked(
    tmp_path: Path, upstream: MockUpstream, other: MockUpstream, text: str
) -> None:
    put_key(tmp_path, text)
    routes = (to(hosted(upstream, "openai"), target(other, order=1)),)
    async with running(tmp_path, keys=(key(),), routes=routes) as bench:
        assert (await ask(bench.port, post(chat()))).status == 200
        health = (await ask(bench.port, get("/healthz"))).json
    assert not upstream.seen and len(other.seen) == 1
    assert health["snapshot_trouble"] == "keys of providers can't be read: vision/hosted"


async def test_certificates_are_verified_and_the_worlds_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ssl.SSLContext] = []
    make = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda: made.append(make()) or made[-1])
    certificate = self_signed(tmp_path)
    server = MockUpstream(well_behaved, certificate)
    await server.start()
    try:
        for trusted, statuses in ((certificate, [200, 200]), (None, [502, 502])):
            if trusted is None:
                monkeypatch.delenv("SSL_CERT_FILE")
            else:
                monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
            folder = tmp_path / str(statuses[0])
            async with running(folder, keys=(key(),), routes=(route("tiny", server.base_url),)) as bench:
                answers = await asyncio.gather(*(ask(bench.port, post(chat())) for _ in statuses))
                assert [answer.status for answer in answers] == statuses
    finally:
        await server.stop()
    assert len(made) == 2, "one for each gateway, however many connections"


def self_signed(folder: Path) -> Path:
    """A certificate of 127.0.0.1 and its key in one file."""
    path, secret = folder / "server.pem", ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, secret.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(secret, hashes.SHA256())
    )
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(
        secret.private_bytes(serialization.Encoding.PEM, *form) + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


async def test_a_providers_name_may_not_lead_into_a_private_network(tmp_path: Path, upstream: MockUpstream) -> None:
    put_key(tmp_path)
    one = hosted(upstream, "openai", base_url=upstream.base_url.replace("127.0.0.1", "localhost"), private=False)
    async with running(tmp_path, keys=(key(),), routes=(to(one),)) as bench:
        answer = await ask(bench.port, post(chat()))
    assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
    assert upstream.connections == 0


async def test_a_path_that_no_provider_speaks_is_not_found(tmp_path: Path, upstream: MockUpstream) -> None:
    put_key(tmp_path)
    async with running(tmp_path, keys=(key(),), routes=(to(hosted(upstream, "anthropic")),)) as bench:
        answer = await ask(bench.port, post(chat()))
    assert (answer.status, answer.error["code"]) == (404, "path_not_served")
    assert not upstream.seen


# ---------------------------------------------------------------- 429 of an upstream


async def test_a_limited_target_leaves_requests_to_the_next_order_and_is_left_alone(
    tmp_path: Path, upstream: MockUpstream, other: MockUpstream
) -> None:
    upstream.behave = limited("retry-after-ms: 30000\r\n")  # type: ignore[assignment]
    async with running(
        tmp_path, keys=(key(),), routes=(to(target(upstream), target(other, "spare", order=1)),)
    ) as bench:
        for _ in range(5):
            assert (await ask(bench.port, post(chat()))).status == 200
        metrics = (await ask(bench.port, get("/metrics"))).body.decode()
        records = await bench.records()
    assert (len(upstream.seen), len(other.seen)) == (1, 5)
    assert "groundplane_gateway_spilled_total 1" in metrics
    assert {record.endpoint for record in records} == {"spare"}


async def test_when_all_are_limited_the_soonest_of_them_says_when_to_return(
    tmp_path: Path, upstream: MockUpstream, other: MockUpstream
) -> None:
    upstream.behave = limited("retry-after: 50\r\n")  # type: ignore[assignment]
    other.behave = limited("retry-after: 20\r\n")  # type: ignore[assignment]
    async with running(tmp_path, keys=(key(),), routes=(to(target(upstream), target(other, "spare")),)) as bench:
        first = await ask(bench.port, post(chat()))
        second = await ask(bench.port, post(chat()))
        records = await bench.records()
    for answer in (first, second):
        assert answer.status == 429
        assert 18_000 < int(answer.headers["retry-after-ms"]) <= 20_000
    assert len(upstream.seen) + len(other.seen) == 2, "the second request asks nobody"
    assert sum(record.amount_microusd for record in records) == 0


@pytest.mark.parametrize(("retry_after", "asked"), [(90, "far"), (5, "near")])
async def test_another_region_is_asked_when_the_wait_is_long(
    tmp_path: Path, upstream: MockUpstream, other: MockUpstream, retry_after: int, asked: str
) -> None:
    near = MockUpstream(well_behaved)
    await near.start()
    upstream.behave = limited(f"retry-after: {retry_after}\r\n")  # type: ignore[assignment]
    targets = (
        target(upstream, "first", region="eu"),
        target(near, "near", region="eu", order=1),
        target(other, "far", region="us", order=1),
    )
    async with running(tmp_path, keys=(key(),), routes=(to(*targets),)) as bench:
        assert (await ask(bench.port, post(chat()))).status == 200
        (record,) = await bench.records()
    await near.stop()
    assert record.endpoint == asked


async def test_one_targets_own_429_passes_as_it_came(tmp_path: Path, upstream: MockUpstream) -> None:
    upstream.behave = limited("retry-after: 7\r\n")  # type: ignore[assignment]
    async with running(tmp_path, keys=(key(),), routes=(to(target(upstream)),)) as bench:
        answer = await ask(bench.port, post(chat()))
    assert (answer.status, answer.headers["retry-after"], answer.error["message"]) == (429, "7", "slow down")


# ---------------------------------------------------------------- limits of targets


def endpoint_limit(name: str, measure: Measure, value: int) -> Limit:
    return Limit("endpoint", name, measure, value)


async def test_a_full_target_spills_and_when_all_are_full_the_soonest_says_when(
    tmp_path: Path, upstream: MockUpstream, other: MockUpstream
) -> None:
    limits = (endpoint_limit("tiny", Measure.REQUESTS, 3), endpoint_limit("spare", Measure.REQUESTS, 2))
    routes = (to(target(upstream), target(other, "spare", order=1)),)
    async with running(tmp_path, keys=(key(),), routes=routes, limits=limits) as bench:
        answers = [await ask(bench.port, post(chat())) for _ in range(7)]
    assert [one.status for one in answers] == [200] * 5 + [429] * 2
    assert (len(upstream.seen), len(other.seen)) == (3, 2)
    # 3 a minute come back one every 20 s, 2 a minute one every 30 s: the sooner of them counts.
    assert 17_000 < int(answers[-1].headers["retry-after-ms"]) <= 20_000
    assert "endpoint tiny" in answers[-1].error["message"]


async def test_a_keys_limit_takes_nothing_from_a_targets(
    tmp_path: Path, upstream: MockUpstream, other: MockUpstream
) -> None:
    limits = (endpoint_limit("tiny", Measure.REQUESTS, 2), endpoint_limit("spare", Measure.REQUESTS, 100))
    keys = (key(requests_per_minute=1), key("gp-second", id="key-2"))
    routes = (to(target(upstream), target(other, "spare", order=1)),)
    async with running(tmp_path, keys=keys, routes=routes, limits=limits) as bench:
        statuses = [(await ask(bench.port, post(chat()))).status for _ in range(5)]
        assert statuses == [200, 429, 429, 429, 429]
        assert (await ask(bench.port, post(chat(), secret="gp-second"))).status == 200
    assert (len(upstream.seen), len(other.seen)) == (2, 0), "refused requests took nothing from the endpoint"


async def test_a_failing_target_gives_its_limits_back(
    tmp_path: Path, upstream: MockUpstream, other: MockUpstream
) -> None:
    async def broken(exchange: Exchange) -> None:
        exchange.cut()

    upstream.behave = broken
    limits = (endpoint_limit("tiny", Measure.CONCURRENT, 1), endpoint_limit("spare", Measure.CONCURRENT, 1))
    routes = (to(target(upstream), target(other, "spare", order=1)),)
    async with running(tmp_path, keys=(key(),), routes=routes, limits=limits) as bench:
        for _ in range(4):
            assert (await ask(bench.port, post(chat()))).status == 200
        assert bench.gateway is not None
        shares = bench.gateway.state._shares
        assert all(share.in_flight == 0 for share in shares.values() if share.limit.measure is Measure.CONCURRENT)
        routed = bench.gateway.state.tables
        assert routed is not None
        assert {one.in_flight_tokens for one in bench.gateway.state._standings.values()} == {0}


# ---------------------------------------------------------------- policies


async def test_sessions_stay_and_prompts_that_begin_alike_go_together(
    tmp_path: Path, upstream: MockUpstream, other: MockUpstream
) -> None:
    targets = (target(upstream), target(other, "spare"))
    routes = (to(*targets, sticky=True), Route(model="shared", project="vision", targets=targets, policy="prefix"))
    async with running(tmp_path, keys=(key(),), routes=routes) as bench:
        for session in range(8):
            for _ in range(4):
                await ask(bench.port, post(chat(user=str(session)), headers=f"x-session-id: s{session}\r\n"))
        homes = [{json.loads(seen.body)["user"] for seen in one.seen} for one in (upstream, other)]
        assert not homes[0] & homes[1] and homes[0] and homes[1]
        upstream.seen.clear()
        other.seen.clear()
        for number in range(32):
            system = {"role": "system", "content": f"topic {number % 8} " * 100}
            body = {
                "model": "shared",
                "messages": [system, {"role": "user", "content": str(number)}],
                "user": number % 8,
            }
            await ask(bench.port, post(body))
    homes = [{json.loads(seen.body)["user"] for seen in one.seen} for one in (upstream, other)]
    assert not homes[0] & homes[1] and homes[0] and homes[1]


async def test_the_less_loaded_target_is_asked(tmp_path: Path, upstream: MockUpstream, other: MockUpstream) -> None:
    release = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await release.wait()
        await exchange.json(completion())

    upstream.behave = other.behave = slow
    routes = (to(target(upstream), target(other, "spare"), policy="least-loaded"),)
    async with running(tmp_path, keys=(key(),), routes=routes) as bench:
        asked = []
        for count in range(1, 11):
            asked.append(asyncio.create_task(ask(bench.port, post(chat(max_tokens=100)))))
            await bench.until(lambda count=count: len(upstream.seen) + len(other.seen) == count)  # type: ignore[misc]
        assert (len(upstream.seen), len(other.seen)) == (5, 5)
        release.set()
        assert {answer.status for answer in await asyncio.gather(*asked)} == {200}


# ---------------------------------------------------------------- a storm


async def test_a_burst_over_the_provisioned_limit_spills_and_nobody_sees_a_429(
    tmp_path: Path, upstream: MockUpstream, other: MockUpstream
) -> None:
    """200K tokens at once on 80K a minute, with a standard deployment behind it."""
    limits = (endpoint_limit("provisioned", Measure.TOKENS, 80_000),)
    routes = (to(target(upstream, "provisioned"), target(other, "standard", order=1)),)
    system = {"role": "system", "content": "x" * 7_200}  # 1,800 tokens
    body = chat(messages=[system, {"role": "user", "content": "hi"}], max_tokens=150)
    reserved = -(-len(json.dumps(body)) // 4) + 150

    def answer(exchange: Exchange) -> object:
        return exchange.json(completion(prompt=reserved - 150, completion=150))

    upstream.behave = other.behave = answer  # type: ignore[assignment]
    async with running(tmp_path, keys=(key(),), routes=routes, limits=limits) as bench:
        answers = await asyncio.gather(*(ask(bench.port, post(body)) for _ in range(103)))
    assert 103 * reserved > 200_000
    assert {one.status for one in answers} == {200}
    assert 80_000 - reserved < len(upstream.seen) * reserved <= 80_000 * 1.05, "the limit is used up, and kept"
    assert len(upstream.seen) + len(other.seen) == 103


# ---------------------------------------------------------------- hedging, and keys that are refused


async def test_a_second_target_is_asked_when_the_first_keeps_the_caller_waiting(
    tmp_path: Path, upstream: MockUpstream, other: MockUpstream
) -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.reader.read()
        raise ConnectionResetError

    upstream.behave = silent
    targets = (target(upstream), target(other, "spare"))
    async with running(tmp_path, keys=(key(),), routes=(to(*targets, policy="failover", hedge_ms=20),)) as bench:
        for stream in (False, True):
            answer = await ask(bench.port, post(chat(stream=stream)))
            assert answer.whole and answer.status == 200
        await bench.until(lambda: all(one.aborted_at for one in upstream.seen))
        records = await bench.records()
        assert bench.gateway is not None
        assert {one.in_flight_tokens for one in bench.gateway.state._standings.values()} == {0}
        assert bench.gateway.state.metrics.hedged == 2
    assert (len(upstream.seen), len(other.seen)) == (2, 2)
    assert [(record.endpoint, record.completion_tokens) for record in records] == [("spare", 5)] * 2, "charged once"


async def test_a_prompt_answer_is_not_hedged_and_a_late_loser_is_dropped(
    tmp_path: Path, upstream: MockUpstream, other: MockUpstream
) -> None:
    begin = asyncio.Event()

    async def late(exchange: Exchange) -> None:
        await begin.wait()
        await well_behaved(exchange)

    async def silent(exchange: Exchange) -> None:
        begin.set()
        await exchange.reader.read()
        raise ConnectionResetError

    upstream.behave, other.behave = late, silent
    targets = (target(upstream), target(other, "spare"))
    async with running(tmp_path, keys=(key(),), routes=(to(*targets, policy="failover", hedge_ms=20),)) as bench:
        assert (await ask(bench.port, post(chat(stream=True)))).whole
        await bench.until(lambda: other.seen[0].aborted_at is not None)
        assert (await ask(bench.port, post(chat()))).status == 200
        records = await bench.records()
    assert len(other.seen) == 1 and {record.endpoint for record in records} == {"tiny"}


@pytest.mark.parametrize("first_fails", [True, False])
async def test_when_both_fail_the_caller_hears_of_it_once(
    tmp_path: Path, upstream: MockUpstream, other: MockUpstream, first_fails: bool
) -> None:
    hedged, gone = asyncio.Event(), asyncio.Event()

    async def first(exchange: Exchange) -> None:
        await hedged.wait()
        exchange.cut()
        gone.set()

    async def second(exchange: Exchange) -> None:
        hedged.set()
        if first_fails:
            await gone.wait()
        await limited("retry-after: 5\r\n", 500)(exchange)  # type: ignore[operator]

    upstream.behave, other.behave = first, second
    targets = (target(upstream), target(other, "spare"))
    async with running(tmp_path, keys=(key(),), routes=(to(*targets, policy="failover", hedge_ms=20),)) as bench:
        answer = await ask(bench.port, post(chat()))
        (record,) = await bench.records()
        assert bench.gateway is not None
        assert {one.in_flight_tokens for one in bench.gateway.state._standings.values()} == {0}
    assert (answer.status, answer.error["code"], record.amount_microusd) == (502, "upstream_cut", 0)


async def test_a_refused_key_of_ours_is_not_the_callers_fault(
    tmp_path: Path, upstream: MockUpstream, other: MockUpstream
) -> None:
    put_key(tmp_path)
    upstream.behave = limited("", 401)  # type: ignore[assignment]
    alone = to(hosted(upstream, "openai"))
    both = Route(model="both", project="vision", targets=(*alone.targets, target(other, "spare", order=1)))
    async with running(tmp_path, keys=(key(),), routes=(alone, both)) as bench:
        answer = await ask(bench.port, post(chat()))
        assert (answer.status, answer.error["code"]) == (502, "upstream_key_refused")
        assert (await ask(bench.port, post({**chat(), "model": "both"}))).status == 200
