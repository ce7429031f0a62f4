"""The snapshot holds what may be served, and is never read when it is not what was written."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain.access import Key
from groundplane.domain.endpoint import Endpoint, EndpointStatus
from groundplane.domain.serving.provider import Provider, ProviderKind, RouteRule, RouteTarget
from groundplane.domain.serving.routing import RoutePolicy
from groundplane.domain.serving.snapshot import (
    LONGEST_ANSWER_TOKENS,
    LONGEST_CONTEXT_TOKENS,
    Snapshot,
    compile_snapshot,
    dearest_requests,
    decode,
    encode,
)
from groundplane.domain.serving.usage import worst_case
from groundplane.domain.spec import EndpointSpec, Metadata, Resources, ServingNeed, SpecialPrices, TokenPrice
from groundplane.errors import IntegrityFailure
from groundplane.identity import Role

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
PRICE = TokenPrice(prompt_microusd_per_million=100, completion_microusd_per_million=200)
SPEC = EndpointSpec(
    metadata=Metadata(name="tiny", project="vision", owner="ana", cost_center="cc1"),
    model="tiny@1",
    resources=Resources(cpus=1, memory_bytes=2**30),
    end_date=NOW + timedelta(days=1),
    max_cost_microusd=10**6,
    max_duration_s=3600,
    token_price=PRICE,
)
KEY = Key(
    id="key-1",
    name="app",
    project="vision",
    owner="ana",
    role=Role.CALLER,
    secret_sha256="ab" * 32,
    models=("tiny",),
    requests_per_minute=60,
    created_at=NOW,
)
ENDPOINT = Endpoint(
    id="tiny",
    project="vision",
    owner="ana",
    cost_center="cc1",
    spec=SPEC,
    model_version="tiny@1",
    revision=4,
    base_url="http://127.0.0.1:9000",
    status=EndpointStatus.READY,
    created_by="ana",
    created_at=NOW,
    end_date=NOW + timedelta(days=1),
    due_at=None,
)


def compiled(keys: tuple[Key, ...] = (KEY,), endpoints: tuple[Endpoint, ...] = (ENDPOINT,)) -> Snapshot:
    return compile_snapshot(
        keys=keys, endpoints=endpoints, budgets={"vision": 5}, ingested={"gw": 7}, version=3, now=NOW
    )


def test_it_holds_what_the_gateway_needs() -> None:
    snapshot = compiled()
    (key,), (route,) = snapshot.keys, snapshot.routes
    assert (key.id, key.project, key.models, key.requests_per_minute) == ("key-1", "vision", ("tiny",), 60)
    assert (route.model, route.project) == ("tiny", "vision")
    (target,) = route.targets
    assert (target.endpoint, target.revision, target.base_url, target.price) == ("tiny", 4, ENDPOINT.base_url, PRICE)
    assert (snapshot.budgets, snapshot.ingested, snapshot.version) == ({"vision": 5}, {"gw": 7}, 3)


def test_the_longest_answer_is_what_was_said_or_the_served_context_or_4096() -> None:
    served = replace(ENDPOINT, spec=replace(SPEC, serving=ServingNeed(model="x", context=32_768)))
    assert compiled().routes[0].targets[0].max_output_tokens == 4_096
    assert compiled().routes[0].targets[0].context_tokens == 0
    (target,) = compiled(endpoints=(served,)).routes[0].targets
    assert (target.max_output_tokens, target.context_tokens) == (32_768, 32_768)
    said = RouteTarget(endpoint="tiny", max_output_tokens=900, context_tokens=8_000)
    rule = RouteRule(id="vision:big", project="vision", model="big", policy=RoutePolicy.WEIGHTED, targets=(said,),
                     set_by="ana", set_at=NOW)  # fmt: skip
    routes = compile_snapshot(
        keys=(), endpoints=(served,), budgets={}, ingested={}, version=1, now=NOW, rules=(rule,)
    ).routes
    (target,) = next(route.targets for route in routes if route.model == "big")
    assert (target.max_output_tokens, target.context_tokens) == (900, 8_000)


@pytest.mark.parametrize(
    ("known", "longest", "reads"),
    [
        ({}, LONGEST_ANSWER_TOKENS, LONGEST_CONTEXT_TOKENS),
        ({"context_tokens": 8_000}, 8_000, 8_000),
        ({"context_tokens": 8_000, "max_output_tokens": 900}, 900, 8_000),
    ],
)
def test_where_nobody_knows_a_hosted_models_longest_answer_the_longest_there_is_counts(
    known: dict[str, int], longest: int, reads: int
) -> None:
    url = "https://api.example.com/v1"
    provider = Provider(id="vision:hosted", name="hosted", project="vision", kind=ProviderKind.OPENAI, base_url=url,
                        set_by="ana", set_at=NOW)  # fmt: skip
    target = RouteTarget(provider="hosted", model="m", price=PRICE, **known)  # type: ignore[arg-type]
    rule = RouteRule(id="vision:big", project="vision", model="big", policy=RoutePolicy.WEIGHTED, set_by="ana",
                     targets=(target,), set_at=NOW)  # fmt: skip
    (route,) = compile_snapshot(
        keys=(), endpoints=(), budgets={}, ingested={}, version=1, now=NOW, providers=(provider,), rules=(rule,)
    ).routes
    assert [target.max_output_tokens for target in route.targets] == [longest]
    assert dearest_requests([route]) == {"vision": worst_case(reads, longest, (100, 200))}


def test_revoked_and_expired_keys_are_left_out() -> None:
    keys = (
        replace(KEY, id="revoked", revoked_at=NOW),
        replace(KEY, id="expired", expires_at=NOW),
        replace(KEY, id="live", expires_at=NOW + timedelta(seconds=1)),
    )
    assert [key.id for key in compiled(keys).keys] == ["live"]
    assert compiled(keys).keys[0].expires_at == NOW.timestamp() + 1


@pytest.mark.parametrize("status", [status for status in EndpointStatus if status is not EndpointStatus.READY])
def test_only_ready_endpoints_are_routes(status: EndpointStatus) -> None:
    assert compiled(endpoints=(replace(ENDPOINT, status=status),)).routes == ()


def test_the_same_world_gives_the_same_bytes() -> None:
    other = replace(KEY, id="key-0", secret_sha256="cd" * 32)
    assert encode(compiled((KEY, other))) == encode(compiled((other, KEY)))


def test_what_was_written_is_read_back() -> None:
    dear = replace(SPEC, token_price=replace(PRICE, special=SpecialPrices(written_1h=7, long_above_tokens=9)))
    for snapshot in (compiled(), compiled(endpoints=(replace(ENDPOINT, spec=dear),))):
        assert decode(encode(snapshot)) == snapshot


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_is_refused(at: int, bit: int) -> None:
    data = bytearray(encode(compiled()))
    at %= len(data)
    data[at] ^= 1 << bit
    with pytest.raises(IntegrityFailure):
        decode(bytes(data))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"null", b"[]", b"5", b'{"format": 1}', b"groundplane-snapshot 9 x\n", b"\xff", b"[" * 100_000]
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityFailure):
        decode(data)


def test_every_cut_is_refused() -> None:
    data = encode(compiled())
    for end in range(len(data) - 1):
        with pytest.raises(IntegrityFailure):
            decode(data[:end])


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "127.0.0.1:80", "http://x:99999", "http://ü.example", "http://x:0"]
)
def test_an_address_that_cannot_be_called_is_refused(url: str) -> None:
    with pytest.raises(IntegrityFailure):
        decode(encode(compiled(endpoints=(replace(ENDPOINT, base_url=url),))))
