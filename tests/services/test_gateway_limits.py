"""Limits are set by whoever may make keys, and reach the gateway; a key's secret is replaced without an outage."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.system import RandomIds
from groundplane.domain.ledger import UsageRecord
from groundplane.domain.serving.limits import Limit, Measure, WhenDown
from groundplane.domain.serving.snapshot import compile_snapshot, decode, encode
from groundplane.errors import Conflict, InvalidInput, NotFound, Unauthenticated
from groundplane.identity import Actor, Role
from groundplane.services.access import Access
from groundplane.services.gateway_limits import GatewayLimits, charge_limits, compiled

ADMIN = Actor(name="ana", role=Role.ADMIN, key_id="k", project=None)


class SettableClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.moment


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
async def access(clock: SettableClock) -> Access:
    made = Access(store=MemoryStore(), clock=clock, ids=RandomIds())
    await made.create_project(ADMIN, name="vision", owner="ana", cost_center="cc")
    return made


@pytest.fixture
def limits(access: Access, clock: SettableClock) -> GatewayLimits:
    return GatewayLimits(store=access._store, clock=clock)


async def test_a_limit_is_set_changed_and_lifted(limits: GatewayLimits) -> None:
    values = {"project": "vision", "scope": "model", "name": "tiny", "measure": Measure.TOKENS}
    first = await limits.set_limit(ADMIN, **values, value=80_000)  # type: ignore[arg-type]
    assert first.id == "model:vision/tiny:tokens per minute"
    await limits.set_limit(ADMIN, **values, value=90_000, when_down=WhenDown.CLOSED)  # type: ignore[arg-type]
    (found,) = await limits.limits(ADMIN, "vision")
    assert (found.value, found.when_down) == (90_000, WhenDown.CLOSED)
    await limits.lift(ADMIN, first.id)
    assert await limits.limits(ADMIN) == []
    with pytest.raises(NotFound):
        await limits.lift(ADMIN, first.id)


@pytest.mark.parametrize(
    ("scope", "name", "measure", "value", "error"),
    [
        ("team", "x", Measure.TOKENS, 1, InvalidInput),
        ("project", "vision", Measure.BUDGET, 1, InvalidInput),
        ("project", "vision", Measure.TOKENS, -1, InvalidInput),
        ("model", "", Measure.TOKENS, 1, InvalidInput),
        ("key", "key-none", Measure.TOKENS, 1, NotFound),
        ("endpoint", "none", Measure.TOKENS, 1, NotFound),
    ],
)
async def test_a_limit_that_can_not_be_is_refused(
    limits: GatewayLimits, scope: str, name: str, measure: Measure, value: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await limits.set_limit(ADMIN, project="vision", scope=scope, name=name, measure=measure, value=value)


async def test_another_project_s_people_see_nothing_of_it(limits: GatewayLimits) -> None:
    await limits.set_limit(ADMIN, project="vision", scope="project", name="vision", measure=Measure.REQUESTS, value=5)
    stranger = Actor(name="bob", role=Role.CALLER, key_id="k2", project="speech")
    assert await limits.limits(stranger) == []
    with pytest.raises(NotFound):
        await limits.limits(stranger, "vision")
    with pytest.raises(NotFound):
        await limits.lift(stranger, "project:vision:requests per minute")


async def test_limits_travel_in_the_snapshot(clock: SettableClock) -> None:
    limit = Limit("project", "vision", Measure.TOKENS_DAY, 1_000, WhenDown.CLOSED)
    snapshot = compile_snapshot(
        keys=(), endpoints=(), budgets={}, ingested={}, version=1, now=clock.now(), limits=[limit]
    )
    assert decode(encode(snapshot)).limits == (limit,)


def record(number: int, clock: SettableClock, **more: object) -> UsageRecord:
    values: dict[str, object] = {
        "id": f"req-{number}", "key_id": "key-1", "project": "vision", "model": "tiny", "endpoint": "tiny",
        "revision": 1, "status": 200, "prompt_tokens": 1, "completion_tokens": 1, "cached_tokens": 0,
        "amount_microusd": 100, "estimated": False, "ttft_ms": 1.0, "duration_ms": 1.0, "started_at": clock.now(),
    }  # fmt: skip
    return UsageRecord(**{**values, **more})  # type: ignore[arg-type]


async def ingest(limits: GatewayLimits, *records: UsageRecord) -> None:
    async with limits._store.transaction() as tx:
        await tx.insert_many_once(records)
        await charge_limits(tx, records)


async def left(limits: GatewayLimits, clock: SettableClock) -> dict[str, int]:
    return {one.id: one.value for one in compiled(await limits.limits(ADMIN), clock.now())}


async def test_dollars_of_every_scope_are_what_the_ledger_leaves(limits: GatewayLimits, clock: SettableClock) -> None:
    await ingest(limits, record(1, clock), record(2, clock, model="other", endpoint="other", key_id="key-2"))
    for scope, name in (("project", "vision"), ("model", "tiny")):
        for measure in (Measure.DOLLARS_DAY, Measure.DOLLARS_MONTH):
            await limits.set_limit(ADMIN, project="vision", scope=scope, name=name, measure=measure, value=1_000)
    await ingest(limits, record(3, clock), record(4, clock, project="speech"), record(5, clock, model="other"))
    assert await left(limits, clock) == {
        "project:vision:dollars per day": 600,
        "project:vision:dollars per month": 600,
        "model:vision/tiny:dollars per day": 800,
        "model:vision/tiny:dollars per month": 800,
    }
    (rule, *_) = await limits.limits(ADMIN)
    assert rule.when_down is WhenDown.CLOSED, "money stops where nobody can count it"


async def test_a_day_of_dollars_begins_anew_and_a_changed_limit_keeps_what_was_spent(
    limits: GatewayLimits, clock: SettableClock
) -> None:
    values = {"project": "vision", "scope": "project", "name": "vision"}
    for measure in (Measure.DOLLARS_DAY, Measure.DOLLARS_MONTH):
        await limits.set_limit(ADMIN, **values, measure=measure, value=1_000)  # type: ignore[arg-type]
    await ingest(limits, record(1, clock, amount_microusd=900))
    yesterday = clock.moment
    clock.moment += timedelta(days=1)
    day, month = "project:vision:dollars per day", "project:vision:dollars per month"
    assert await left(limits, clock) == {day: 1_000, month: 100}
    await ingest(limits, record(2, clock, amount_microusd=50), record(3, clock, started_at=yesterday))
    assert await left(limits, clock) == {day: 950, month: 0}, "a late record of yesterday is the month's, not today's"
    await limits.set_limit(ADMIN, **values, measure=Measure.DOLLARS_DAY, value=60)  # type: ignore[arg-type]
    assert (await left(limits, clock))[day] == 10
    clock.moment += timedelta(days=31)
    assert await left(limits, clock) == {day: 60, month: 1_000}


async def test_both_secrets_open_until_the_grace_is_over(access: Access, clock: SettableClock) -> None:
    key, old = await access.create_key(ADMIN, name="app", project="vision", owner="ana", role=Role.CALLER)
    rotated, new = await access.rotate_key(ADMIN, key.id, grace_s=3600)
    assert old != new and rotated.id == key.id
    for secret in (old, new):
        assert (await access.authenticate(secret)).key_id == key.id
    values = {"endpoints": (), "budgets": {}, "ingested": {}, "version": 1}
    both = compile_snapshot(keys=(rotated,), now=clock.now(), **values)  # type: ignore[arg-type]
    assert [one.secret_sha256 for one in both.keys] == [rotated.secret_sha256, rotated.old_secret_sha256]
    assert both.keys[1].expires_at == (clock.now() + timedelta(hours=1)).timestamp()
    clock.moment += timedelta(hours=1)
    with pytest.raises(Unauthenticated, match="was replaced"):
        await access.authenticate(old)
    assert (await access.authenticate(new)).key_id == key.id
    later = compile_snapshot(keys=(rotated,), now=clock.now(), **values)  # type: ignore[arg-type]
    assert [one.secret_sha256 for one in later.keys] == [rotated.secret_sha256]


async def test_only_two_secrets_live_at_once_and_none_of_a_revoked_key(access: Access) -> None:
    key, first = await access.create_key(ADMIN, name="app", project="vision", owner="ana", role=Role.CALLER)
    _, second = await access.rotate_key(ADMIN, key.id, grace_s=3600)
    _, third = await access.rotate_key(ADMIN, key.id, grace_s=3600)
    with pytest.raises(Unauthenticated):
        await access.authenticate(first)
    await access.authenticate(second)
    await access.revoke_key(ADMIN, key.id)
    for secret in (second, third):
        with pytest.raises(Unauthenticated, match="revoked"):
            await access.authenticate(secret)
    with pytest.raises(Conflict):
        await access.rotate_key(ADMIN, key.id, grace_s=1)
    with pytest.raises(InvalidInput):
        await access.rotate_key(ADMIN, key.id, grace_s=-1)


async def test_networks_are_checked_when_a_key_is_made(access: Access) -> None:
    values = {"name": "app", "project": "vision", "owner": "ana", "role": Role.CALLER}
    key, _ = await access.create_key(ADMIN, **values, networks=("10.1.2.3/8", "::1", "10.0.0.0/8"))  # type: ignore[arg-type]
    assert key.networks == ("10.0.0.0/8", "::1/128")
    with pytest.raises(InvalidInput, match="is no network"):
        await access.create_key(ADMIN, **values, networks=("ten",))  # type: ignore[arg-type]
