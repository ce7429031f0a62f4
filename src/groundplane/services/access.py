"""Who belongs where and who may call what: projects, keys, exposures."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

from groundplane.domain import access
from groundplane.domain.access import Exposure, Key, Project
from groundplane.domain.budget import checked_limit, checked_thresholds
from groundplane.domain.run import Run
from groundplane.errors import Conflict, Forbidden, InvalidInput, NotFound, Refusal, Refused, Unauthenticated
from groundplane.identity import CROSS_PROJECT, SYSTEM, Actor, Role
from groundplane.ports import Clock, Ids, Store, Tx
from groundplane.services.audit_trail import Teller
from groundplane.units import format_usd

DEFAULT_PROJECT = "default"
_SECRET_BYTES = 25  # 200 bits: 40 characters of base 32
_SECRET_CHARACTERS_MAX = 200
_GRACE_MAX_S = 90 * 86_400
_JOB_GRACE_S = 600
"""What a job measured last may still be on its way when its run is over."""
_REMEMBERED_S = 0.5
"""How long a row is believed. What another process revokes is seen within a second, what this one does at once."""
_REMEMBERED_MAX = 1_000
_T = TypeVar("_T")


def new_secret(role: Role) -> str:
    """A key's secret such as `gp-caller-k3j…`: 200 random bits."""
    random = base64.b32encode(secrets.token_bytes(_SECRET_BYTES)).decode().lower()
    return f"gp-{role.value}-{random}"


def unspelled(token: str) -> str:
    """The key behind a token that is spelt as a hub's: `hf_gpcallerk3j…` is `gp-caller-k3j…`; any other as it is.

    llama.cpp sends nothing as a token but `hf_` and letters and digits (its `common/hf-cache.cpp`, 2026).
    """
    spelt = token.removeprefix("hf_gp")
    role = next((role.value for role in Role if spelt.startswith(role.value)), None)
    return f"gp-{role}-{spelt.removeprefix(role)}" if role and token.startswith("hf_gp") else token


def secret_sha256(secret: str) -> str:
    """SHA-256 hex. Unsalted on purpose: 200 random bits can't be guessed, and the hash is what we look up."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


async def visible_project(tx: Tx, actor: Actor, name: str, *, lock: bool = False) -> Project:
    """The project. NotFound when it does not exist or is none of the actor's: the answer does not tell which."""
    project = await tx.get(Project, name, lock=lock) if actor.sees(name) else None
    if project is None:
        raise NotFound(f"no project {name[:80]!r}", "ground projects list")
    return project


class JobTokens(Protocol):
    """What a job proves itself with: one token a run. Whether it still opens anything is the run's to say."""

    def issue(self, run_id: str) -> str:
        """The run's token; twice gives the same."""
        ...

    def run_of(self, token: str) -> str | None:
        """The run whose token this is; None for any other text."""
        ...


class _Recent(Generic[_T]):
    """Rows that were read a moment ago. Only what was found is kept: guesses of strangers must not fill it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rows: dict[str, tuple[float, datetime, _T]] = {}

    async def row(self, name: str, read: Callable[[], Awaitable[_T | None]]) -> _T | None:
        now, monotonic_s = self._clock.now(), time.monotonic()
        if (known := self._rows.get(name)) is not None:
            read_s, read_at, row = known
            # By both clocks: one can be set back, the other stands still while the machine sleeps.
            if monotonic_s - read_s < _REMEMBERED_S and abs((now - read_at).total_seconds()) < _REMEMBERED_S:
                return row
        rows = self._rows
        found = await read()
        # Forgotten meanwhile: what was read may be from before the change.
        if found is not None and rows is self._rows:
            if len(rows) >= _REMEMBERED_MAX:
                self._rows = rows = {}
            rows[name] = (monotonic_s, now, found)
        return found

    def forget(self) -> None:
        self._rows = {}


class Access:
    """Projects, keys and exposures."""

    def __init__(self, *, store: Store, clock: Clock, ids: Ids, jobs: JobTokens | None = None) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._jobs = jobs
        self._keys, self._runs = _Recent[Key](clock), _Recent[Run](clock)
        self._tell_project, self._tell_key = Teller(clock, "project"), Teller(clock, "key")
        self._tell_exposure = Teller(clock, "exposure")

    async def bootstrap(self, secret: str | None = None) -> str | None:
        """First start: makes the project `default` and an admin key, and returns the key's secret; None later.

        A caller that must not lose the secret in a crash makes it with `new_secret`, keeps it, and passes it in.
        """
        secret = secret or new_secret(Role.ADMIN)
        now = self._clock.now()
        project = Project(id=DEFAULT_PROJECT, owner="admin", cost_center="default", created_at=now)
        async with self._store.transaction() as tx:
            # Two first starts at once: the one whose project row is there first goes on.
            if not await tx.insert_once(project) and await tx.find(Key, limit=1):
                return None
            key = self._key(secret, name="admin", project=project.id, owner="admin", role=Role.ADMIN, now=now)
            await tx.insert(key)
            await self._tell_project(tx, SYSTEM, "project.create", project.id, project.id, {}, "first start")
            await self._tell_key(tx, SYSTEM, "key.create", key.id, project.id, _facts(key), "first start")
        return secret

    async def authenticate(self, secret: str) -> Actor:
        """Who this secret belongs to. Unauthenticated when it is unknown, revoked or expired."""
        unknown = Unauthenticated("this key is not known here", "pass a key made with `ground keys create`")
        if not secret or len(secret) > _SECRET_CHARACTERS_MAX:
            raise unknown
        if self._jobs is not None and (run_id := self._jobs.run_of(secret)) is not None:
            return await self._job(run_id)
        digest = secret_sha256(unspelled(secret))
        key = await self._keys.row(digest, lambda: self._key_of(digest))
        # The index compares hashes, which tell nothing of the secret; the last word takes constant time.
        if key is None:
            raise unknown
        current = hmac.compare_digest(key.secret_sha256, digest)
        if not current and not hmac.compare_digest(key.old_secret_sha256, digest):
            raise unknown
        if not access.opened_by(key, digest, self._clock.now()):
            raise Unauthenticated(
                f"this secret of key {key.id} was replaced on {key.old_secret_expires_at:%Y-%m-%d %H:%M} UTC",
                "use the key's new secret",
            )
        if key.revoked_at is not None:
            raise Unauthenticated(f"key {key.id} was revoked on {key.revoked_at:%Y-%m-%d}", "ask for a new key")
        if not access.is_active(key, self._clock.now()):
            raise Unauthenticated(f"key {key.id} expired on {key.expires_at:%Y-%m-%d %H:%M} UTC", "ask for a new key")
        return access.actor_of(key)

    async def _key_of(self, digest: str) -> Key | None:
        """The key that has, or had, a secret of this digest."""
        async with self._store.transaction() as tx:
            found = await tx.find(Key, {"secret_sha256": digest}, limit=1)
            found = found or await tx.find(Key, {"old_secret_sha256": digest}, limit=1)
        return found[0] if found else None

    async def _run_of(self, run_id: str) -> Run | None:
        async with self._store.transaction() as tx:
            return await tx.get(Run, run_id)

    async def _job(self, run_id: str) -> Actor:
        """A job with the token of its run, which opens as long as the run is under way, and a little longer."""
        run = await self._runs.row(run_id, lambda: self._run_of(run_id))
        if run is None:
            raise Unauthenticated(f"there is no run {run_id}", "pass a key made with `ground keys create`")
        ended = min(run.ended_at or run.end_date, run.end_date)
        if self._clock.now() > ended + timedelta(seconds=_JOB_GRACE_S):
            raise Unauthenticated(f"the token of {run_id} ended with its run", "use a key of your own")
        return Actor(name=run.created_by, role=Role.JOB, key_id=f"job:{run_id}", project=run.project, run_id=run_id)

    # ------------------------------------------------------------ projects

    async def create_project(
        self,
        actor: Actor,
        *,
        name: str,
        owner: str,
        cost_center: str,
        monthly_limit_microusd: int | None = None,
        thresholds_percent: tuple[int, ...] = (50, 80, 100),
        reason: str = "",
    ) -> Project:
        """Raises InvalidInput for a name that can't be part of ids, Conflict when it is taken."""
        project = Project(
            id=access.checked_name(name, "project"),
            owner=access.checked_text(owner, "owner"),
            cost_center=access.checked_text(cost_center, "cost center"),
            monthly_limit_microusd=checked_limit(monthly_limit_microusd),
            thresholds_percent=checked_thresholds(thresholds_percent),
            created_at=self._clock.now(),
        )
        async with self._store.transaction() as tx:
            if not await tx.insert_once(project):
                raise Conflict(f"project {name} exists already", f"ground budget set {name} changes its budget")
            limit = None if monthly_limit_microusd is None else format_usd(monthly_limit_microusd)
            after: dict[str, object] = {"owner": owner, "cost_center": cost_center, "monthly_limit": limit}
            await self._tell_project(tx, actor, "project.create", name, name, after, reason)
        return project

    async def projects(self, actor: Actor) -> list[Project]:
        """Those the actor sees, by name."""
        async with self._store.transaction() as tx:
            return [project for project in await tx.find(Project) if actor.sees(project.id)]

    async def project(self, actor: Actor, name: str) -> Project:
        async with self._store.transaction() as tx:
            return await visible_project(tx, actor, name)

    # ------------------------------------------------------------ keys

    async def create_key(
        self,
        actor: Actor,
        *,
        name: str,
        project: str,
        owner: str,
        role: Role,
        models: tuple[str, ...] = (),
        networks: tuple[str, ...] = (),
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[Key, str]:
        """The key and its secret, which is kept nowhere. Forbidden when its role may do more than the actor."""
        if not access.may_grant(actor, role):
            raise Forbidden(f"a {actor.role.value} may not make a key of the role {role.value}", "ask an admin")
        now = self._clock.now()
        if expires_at is not None and expires_at <= now:
            raise InvalidInput(f"expires_at {expires_at:%Y-%m-%d %H:%M} UTC is past", "choose a later date")
        for what, limit in (("requests", requests_per_minute), ("tokens", tokens_per_minute)):
            if limit is not None and not 1 <= limit <= 2**53:
                raise InvalidInput(f"{what} per minute must be at least 1, not {limit}", "leave it out for no limit")
        secret = new_secret(role)
        key = replace(
            self._key(secret, name=name, project=project, owner=owner, role=role, now=now),
            models=tuple(dict.fromkeys(access.checked_text(model, "model") for model in models)),
            networks=access.checked_networks(networks),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            expires_at=expires_at,
        )
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
            await tx.insert(key)
            await self._tell_key(tx, actor, "key.create", key.id, project, _facts(key))
        return key, secret

    async def keys(self, actor: Actor, project: str | None = None) -> list[Key]:
        """Those of the projects the actor sees, oldest first; revoked and expired ones too."""
        async with self._store.transaction() as tx:
            if project is not None:
                await visible_project(tx, actor, project)
            where = None if project is None else {"project": project}
            return [key for key in await tx.find(Key, where, order="created_at") if actor.sees(key.project)]

    async def rotate_key(self, actor: Actor, key_id: str, *, grace_s: int, reason: str = "") -> tuple[Key, str]:
        """The key with a new secret; the one it had opens for `grace_s` more. An older one ends now.

        Twice: the secret of the first call is then the one that ends. Conflict when the key opens nothing any more.
        """
        if not 0 <= grace_s <= _GRACE_MAX_S:
            raise InvalidInput(f"a grace of {grace_s} s is not between 0 and {_GRACE_MAX_S}", "use at most 90d")
        now = self._clock.now()
        async with self._store.transaction() as tx:
            if (key := await tx.get(Key, key_id, lock=True)) is None or not actor.sees(key.project):
                raise NotFound(f"no key {key_id[:80]!r}", "ground keys list")
            if not access.may_grant(actor, key.role):
                raise Forbidden(
                    f"a {actor.role.value} may not rotate a key of the role {key.role.value}", "ask an admin"
                )
            if not access.is_active(key, now):
                raise Conflict(f"key {key_id} opens nothing any more", "make a new one: ground keys create")
            secret = new_secret(key.role)
            old_until = now + timedelta(seconds=grace_s)
            rotated = await tx.update(
                replace(
                    key,
                    secret_sha256=secret_sha256(secret),
                    old_secret_sha256=key.secret_sha256,
                    old_secret_expires_at=old_until,
                )
            )
            after = {"old_secret_expires_at": old_until}
            await self._tell_key(tx, actor, "key.rotate", key_id, key.project, after, reason)
        self._keys.forget()
        return rotated, secret

    async def revoke_key(self, actor: Actor, key_id: str, reason: str = "") -> Key:
        """Ends the key at once. Twice is the same as once. Refused for the last admin key that opens anything."""
        now = self._clock.now()
        async with self._store.transaction() as tx:
            if (key := await tx.get(Key, key_id, lock=True)) is None or not actor.sees(key.project):
                raise NotFound(f"no key {key_id[:80]!r}", "ground keys list")
            if key.revoked_at is not None:
                return key
            if not access.may_grant(actor, key.role):
                raise Forbidden(
                    f"a {actor.role.value} may not revoke a key of the role {key.role.value}", "ask an admin"
                )
            if key.role is Role.ADMIN and access.is_active(key, now):
                await self._keep_an_admin(tx, key, now)
            revoked = await tx.update(replace(key, revoked_at=now))
            await self._tell_key(tx, actor, "key.revoke", key_id, key.project, {}, reason)
        self._keys.forget()
        return revoked

    async def _keep_an_admin(self, tx: Tx, key: Key, now: datetime) -> None:
        # The project row is the lock: two admins revoking each other's key at once must not both succeed.
        await tx.get(Project, DEFAULT_PROJECT, lock=True)
        admins = await tx.find(Key, {"role": Role.ADMIN, "revoked_at": None})
        if not any(other.id != key.id and access.is_active(other, now) for other in admins):
            raise Refusal(
                [
                    Refused(
                        rule="last-admin-key",
                        need="another admin key that is active",
                        have=f"only {key.id}",
                        hint="make one first: ground keys create --role admin",
                    )
                ]
            )

    def _key(self, secret: str, *, name: str, project: str, owner: str, role: Role, now: datetime) -> Key:
        return Key(
            id=self._ids.new("key"),
            name=access.checked_text(name, "name"),
            project=project,
            owner=access.checked_text(owner, "owner"),
            role=role,
            secret_sha256=secret_sha256(secret),
            created_at=now,
        )

    # ------------------------------------------------------------ exposures

    async def expose(self, actor: Actor, *, address: str, owner: str, reason: str, expires_at: datetime) -> Exposure:
        """Permits an address beyond loopback until a date. Conflict while a permission for it is in force."""
        now = self._clock.now()
        if expires_at <= now:
            raise InvalidInput(f"expires_at {expires_at:%Y-%m-%d %H:%M} UTC is past", "choose a later date")
        wanted = Exposure(
            id=access.checked_text(address, "address"),
            owner=access.checked_text(owner, "owner"),
            reason=access.checked_text(reason, "reason"),
            created_at=now,
            expires_at=expires_at,
        )
        async with self._store.transaction() as tx:
            before = await tx.get(Exposure, wanted.id, lock=True)
            if before is None:
                await tx.insert(wanted)
            elif access.covers(before, now):
                raise Conflict(
                    f"{wanted.id} is exposed until {before.expires_at:%Y-%m-%d %H:%M} UTC already",
                    f"withdraw it first: ground exposures withdraw {wanted.id}",
                )
            else:
                wanted = await tx.update(replace(wanted, version=before.version))
            after: dict[str, object] = {"owner": wanted.owner, "expires_at": expires_at}
            await self._tell_exposure(tx, actor, "exposure.create", wanted.id, "", after, wanted.reason)
        return wanted

    async def exposures(self, actor: Actor) -> list[Exposure]:
        """All of them, in force and over, for roles that see every project: an address belongs to the installation."""
        if actor.role not in CROSS_PROJECT:
            return []
        async with self._store.transaction() as tx:
            return await tx.find(Exposure)

    async def withdraw(self, actor: Actor, address: str, reason: str = "") -> None:
        """Ends the permission. NotFound when there is none."""
        async with self._store.transaction() as tx:
            if not await tx.delete(Exposure, address):
                raise NotFound(f"no exposure of {address[:80]!r}", "ground exposures")
            await self._tell_exposure(tx, actor, "exposure.withdraw", address, "", {}, reason)


def _facts(key: Key) -> dict[str, object]:
    """What the trail says of a key: everything but its hash."""
    return {
        "name": key.name,
        "owner": key.owner,
        "role": key.role.value,
        "models": key.models,
        "networks": key.networks,
        "expires_at": key.expires_at,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
    }
