"""Projects, keys and exposures over real stores: who gets in, who doesn't, and what is written down."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.system import RandomIds
from groundplane.audit import Event
from groundplane.domain.access import Key
from groundplane.errors import Conflict, Forbidden, InvalidInput, NotFound, Refusal, Unauthenticated
from groundplane.identity import Actor, Role
from groundplane.ports import Store
from groundplane.services.access import Access, new_secret, secret_sha256
from groundplane.services.audit_trail import AuditTrail

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
TOMORROW = NOW + timedelta(days=1)
ADMIN = Actor(name="ops", role=Role.ADMIN)
OPERATOR = Actor(name="op", role=Role.OPERATOR)
SECURITY = Actor(name="sec", role=Role.SECURITY)
ANA = Actor(name="ana", role=Role.MEMBER, project="vision")


class FixedClock:
    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> datetime:
        return self.time


class Office:
    def __init__(self, store: Store) -> None:
        self.store, self.clock = store, FixedClock()
        self.access = Access(store=store, clock=self.clock, ids=RandomIds(self.clock))

    async def project(self, name: str = "vision") -> None:
        await self.access.create_project(ADMIN, name=name, owner="ana", cost_center="r&d", reason="new team")

    async def key(self, actor: Actor = ADMIN, **changes: Any) -> tuple[Key, str]:
        wanted: dict[str, Any] = {"name": "laptop", "project": "vision", "owner": "ana", "role": Role.MEMBER}
        return await self.access.create_key(actor, **(wanted | changes))

    async def actions(self) -> list[str]:
        async with self.store.transaction() as tx:
            return [event.action for event in await tx.find(Event)]


@pytest.fixture
def office(store: Store) -> Office:
    return Office(store)


@pytest.fixture
def memory_office() -> Office:
    return Office(MemoryStore())


# ---------------------------------------------------------------- the first start


async def test_the_first_start_makes_one_admin_key_and_the_default_project(office: Office) -> None:
    secret = await office.access.bootstrap()
    assert secret is not None and re.fullmatch(r"gp-admin-[a-z2-7]{40}", secret)
    assert await office.access.bootstrap() is None
    actor = await office.access.authenticate(secret)
    assert (actor.role, actor.project) == (Role.ADMIN, None)
    project = await office.access.project(actor, "default")
    assert (project.owner, project.cost_center, project.monthly_limit_microusd) == ("admin", "default", None)
    assert await office.actions() == ["project.create", "key.create"]
    assert await AuditTrail(store=office.store).verify() == (2, None)


async def test_of_concurrent_first_starts_one_makes_the_key(office: Office) -> None:
    secrets = await asyncio.gather(*(office.access.bootstrap() for _ in range(5)))
    assert len([secret for secret in secrets if secret]) == 1
    assert len(await office.access.keys(ADMIN)) == 1


async def test_the_first_key_can_be_kept_before_it_is_made(memory_office: Office) -> None:
    kept = new_secret(Role.ADMIN)
    assert await memory_office.access.bootstrap(kept) == kept
    assert (await memory_office.access.authenticate(kept)).role is Role.ADMIN


# ---------------------------------------------------------------- keys


async def test_a_key_opens_with_its_secret_and_nothing_else(office: Office) -> None:
    await office.project()
    key, secret = await office.key()
    actor = await office.access.authenticate(secret)
    assert actor == Actor(name="ana", role=Role.MEMBER, key_id=key.id, project="vision")
    for wrong in ("", "gp-member-", secret[:-1], secret + "a", secret.upper(), key.id, "\ud800", "x" * 10**6):
        with pytest.raises(Unauthenticated, match="not known"):
            await office.access.authenticate(wrong)
    with pytest.raises(Unauthenticated):
        await office.access.authenticate(key.secret_sha256)


async def test_a_secret_can_neither_be_guessed_nor_read_back(office: Office) -> None:
    await office.project()
    secrets = [(await office.key(role=Role.CALLER))[1] for _ in range(20)]
    assert len(set(secrets)) == 20
    assert all(len(secret.removeprefix("gp-caller-")) * 5 >= 160 for secret in secrets)
    async with office.store.transaction() as tx:
        stored = repr(await tx.find(Key)) + repr(await tx.find(Event))
    assert not any(secret.removeprefix("gp-caller-") in stored for secret in secrets)
    assert secret_sha256(secrets[0]) in stored


async def test_an_expired_key_opens_nothing(office: Office) -> None:
    await office.project()
    _, secret = await office.key(expires_at=TOMORROW)
    office.clock.time = TOMORROW - timedelta(microseconds=1)
    await office.access.authenticate(secret)
    office.clock.time = TOMORROW
    with pytest.raises(Unauthenticated, match="expired on 2026-11-21"):
        await office.access.authenticate(secret)


async def test_a_revoked_key_opens_nothing(office: Office) -> None:
    await office.project()
    key, secret = await office.key()
    revoked = await office.access.revoke_key(ADMIN, key.id, "laptop stolen")
    assert revoked.revoked_at == NOW
    with pytest.raises(Unauthenticated, match="revoked on 2026-11-20"):
        await office.access.authenticate(secret)
    assert await office.access.revoke_key(ADMIN, key.id, "again") == revoked
    (event,) = await AuditTrail(store=office.store).events(ADMIN, limit=1)
    assert (event.action, event.object_id, event.reason, event.actor) == ("key.revoke", key.id, "laptop stolen", "ops")


async def test_a_key_in_use_ends_at_once_here_and_within_a_second_elsewhere(office: Office) -> None:
    await office.project()
    elsewhere = Access(store=office.store, clock=office.clock, ids=RandomIds(office.clock))
    (key, secret), (other, replaced) = await office.key(), await office.key(name="other")
    for known in (secret, replaced):
        await office.access.authenticate(known)
        await elsewhere.authenticate(known)
    await office.access.revoke_key(ADMIN, key.id)
    await office.access.rotate_key(ADMIN, other.id, grace_s=0)
    revoked_at = time.monotonic()
    for ended in (secret, replaced):
        with pytest.raises(Unauthenticated):
            await office.access.authenticate(ended)
        with pytest.raises(Unauthenticated):
            while True:
                asked_s = time.monotonic() - revoked_at
                await elsewhere.authenticate(ended)
                assert asked_s < 1, "it opened a second after it was ended"
                await asyncio.sleep(0.01)


async def test_a_key_revoked_while_it_is_looked_up_is_not_remembered(office: Office) -> None:
    await office.project()
    key, secret = await office.key()
    await asyncio.gather(
        *(office.access.authenticate(secret) for _ in range(8)),
        office.access.revoke_key(ADMIN, key.id),
        *(office.access.authenticate(secret) for _ in range(8)),
        return_exceptions=True,
    )
    with pytest.raises(Unauthenticated, match="revoked"):
        await office.access.authenticate(secret)


async def test_the_last_admin_key_cant_be_revoked(office: Office) -> None:
    secret = await office.access.bootstrap()
    assert secret is not None
    (first,) = await office.access.keys(ADMIN)
    expiring, _ = await office.key(name="temp", project="default", role=Role.ADMIN, expires_at=TOMORROW)
    office.clock.time = TOMORROW
    with pytest.raises(Refusal) as refused:
        await office.access.revoke_key(ADMIN, first.id)
    assert refused.value.refusals[0].rule == "last-admin-key"
    await office.access.revoke_key(ADMIN, expiring.id)
    await office.key(name="second", project="default", role=Role.ADMIN)
    assert (await office.access.revoke_key(ADMIN, first.id)).revoked_at == TOMORROW


async def test_two_admins_cant_lock_everybody_out_together(office: Office) -> None:
    await office.access.bootstrap()
    await office.key(name="second", project="default", role=Role.ADMIN)
    keys = await office.access.keys(ADMIN)
    results = await asyncio.gather(*(office.access.revoke_key(ADMIN, key.id) for key in keys), return_exceptions=True)
    assert sorted(type(result) for result in results if isinstance(result, Exception)) == [Refusal]


@pytest.mark.parametrize(
    ("actor", "role", "may"),
    [
        (ADMIN, Role.ADMIN, True),
        (OPERATOR, Role.ADMIN, False),
        (OPERATOR, Role.CALLER, True),
        (SECURITY, Role.ADMIN, False),
        (SECURITY, Role.MEMBER, False),
        (SECURITY, Role.VIEWER, True),
    ],
)
async def test_nobody_hands_out_more_than_they_have(memory_office: Office, actor: Actor, role: Role, may: bool) -> None:
    await memory_office.project()
    if may:
        assert (await memory_office.key(actor, role=role))[0].role is role
    else:
        with pytest.raises(Forbidden):
            await memory_office.key(actor, role=role)


@pytest.mark.parametrize(
    "changes",
    [
        {"expires_at": NOW},
        {"requests_per_minute": 0},
        {"tokens_per_minute": -5},
        {"name": "  "},
        {"name": "two\nlines"},
        {"owner": "x" * 501},
        {"models": ("tiny", "")},
    ],
    ids=repr,
)
async def test_keys_that_make_no_sense_are_refused(memory_office: Office, changes: dict[str, Any]) -> None:
    await memory_office.project()
    with pytest.raises(InvalidInput):
        await memory_office.key(**changes)


async def test_a_key_needs_a_project_the_actor_sees(office: Office) -> None:
    await office.project()
    await office.project("other")
    with pytest.raises(NotFound, match="no project"):
        await office.key(project="nothing")
    member = Actor(name="ana", role=Role.MEMBER, project="vision")
    with pytest.raises(NotFound):
        await office.key(member, project="other", role=Role.VIEWER)
    key, _ = await office.key(project="other")
    with pytest.raises(NotFound):
        await office.access.revoke_key(member, key.id)
    assert await office.access.keys(member) == []
    with pytest.raises(NotFound):
        await office.access.keys(member, "other")
    assert [found.id for found in await office.access.keys(ADMIN, "other")] == [key.id]


# ---------------------------------------------------------------- projects


async def test_a_project_is_made_once(office: Office) -> None:
    await office.project()
    with pytest.raises(Conflict, match="exists already"):
        await office.project()
    assert [project.id for project in await office.access.projects(ADMIN)] == ["vision"]
    assert await office.actions() == ["project.create"]


@pytest.mark.parametrize("name", ["", "Vision", "-a", "a-", "a b", "a/b", "a:b", "../x", "x" * 64, "ä", "a\n"])
async def test_a_project_name_can_be_part_of_ids_and_paths(memory_office: Office, name: str) -> None:
    with pytest.raises(InvalidInput, match="lower-case"):
        await memory_office.project(name)


async def test_a_member_sees_only_their_project(office: Office) -> None:
    await office.project()
    await office.project("other")
    assert [project.id for project in await office.access.projects(ANA)] == ["vision"]
    with pytest.raises(NotFound, match="no project 'other'"):
        await office.access.project(ANA, "other")
    events = await AuditTrail(store=office.store).events(ANA)
    assert [event.project for event in events] == ["vision"]


# ---------------------------------------------------------------- exposures


async def expose(office: Office, expires_at: datetime = TOMORROW) -> None:
    await office.access.expose(ADMIN, address="0.0.0.0:4710", owner="ana", reason="trade fair", expires_at=expires_at)


async def test_an_exposure_has_an_owner_a_reason_and_an_end(office: Office) -> None:
    await expose(office)
    (exposure,) = await office.access.exposures(ADMIN)
    assert (exposure.id, exposure.owner, exposure.reason) == ("0.0.0.0:4710", "ana", "trade fair")
    assert exposure.expires_at == TOMORROW
    with pytest.raises(Conflict, match="exposed until 2026-11-21"):
        await expose(office)
    office.clock.time = TOMORROW
    await expose(office, TOMORROW + timedelta(days=1))
    await office.access.withdraw(ADMIN, "0.0.0.0:4710", "fair is over")
    assert await office.access.exposures(ADMIN) == []
    with pytest.raises(NotFound):
        await office.access.withdraw(ADMIN, "0.0.0.0:4710")
    assert await office.actions() == ["exposure.create", "exposure.create", "exposure.withdraw"]


async def test_an_exposure_without_one_of_them_is_refused(memory_office: Office) -> None:
    whole: dict[str, Any] = {"address": "a", "owner": "o", "reason": "r", "expires_at": TOMORROW}
    for missing in ({"address": ""}, {"owner": " "}, {"reason": ""}, {"expires_at": NOW}):
        with pytest.raises(InvalidInput):
            await memory_office.access.expose(ADMIN, **(whole | missing))


async def test_exposures_are_no_business_of_one_projects_members(memory_office: Office) -> None:
    await expose(memory_office)
    assert await memory_office.access.exposures(ANA) == []
