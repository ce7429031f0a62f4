"""Projects, keys and exposures: who belongs where, who may call what, and what is reachable from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_network

from groundplane.errors import InvalidInput
from groundplane.identity import CROSS_PROJECT, ROLE_PERMISSIONS, Actor, Permission, Role
from groundplane.units import MICROUSD_PER_USD, format_usd

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_TEXT_CHARACTERS_MAX = 500
_MONEY_MAX_MICROUSD = 1_000_000_000 * MICROUSD_PER_USD
_ACCELERATORS_MAX = 1_000_000
_APPROVALS_MAX = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfService:
    """What a project may begin without asking. A plan beyond it needs approval.

    `month_max_microusd` limits what is held, spent and waiting in one calendar month; None sets no limit. A plan above
    `second_threshold_microusd` needs `second_approvals` people to agree; None: one is always enough.
    """

    accelerators_max: int = 4
    plan_max_microusd: int = 500 * MICROUSD_PER_USD
    month_max_microusd: int | None = None
    second_threshold_microusd: int | None = None
    second_approvals: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A team's home. id is its name. No budget means nothing of it is admitted."""

    id: str
    owner: str
    cost_center: str
    monthly_limit_microusd: int | None = None
    thresholds_percent: tuple[int, ...] = (50, 80, 100)
    self_service: SelfService = SelfService()
    created_at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A credential; only the SHA-256 of its secret is kept.

    Empty `models` on a caller key allows every model of the project; empty `networks` calls from every address.
    After a rotation the secret before opens too, until `old_secret_expires_at`.
    """

    id: str
    name: str
    project: str
    owner: str
    role: Role
    secret_sha256: str
    models: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    old_secret_sha256: str = ""
    old_secret_expires_at: datetime | None = None
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """Permission for an address to be reachable beyond loopback: owned, reasoned, and ending. id = the address."""

    id: str
    owner: str
    reason: str
    created_at: datetime
    expires_at: datetime
    version: int = 0


def is_active(key: Key, now: datetime) -> bool:
    """Whether the key opens anything at this moment."""
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > now)


def opened_by(key: Key, digest: str, now: datetime) -> bool:
    """Whether a secret of this digest is one of the key's live ones. Compare in constant time before trusting it."""
    if digest == key.secret_sha256:
        return True
    until = key.old_secret_expires_at
    return digest == key.old_secret_sha256 and until is not None and until > now


def checked_networks(networks: Sequence[str]) -> tuple[str, ...]:
    """Networks as CIDR, each once. Raises InvalidInput naming the one that is none."""
    found = []
    for text in networks:
        try:
            found.append(str(ip_network(text.strip(), strict=False)))
        except ValueError:
            raise InvalidInput(f"{text[:80]!r} is no network", "write it like 10.20.0.0/16 or 192.0.2.7") from None
    return tuple(dict.fromkeys(found))


def may_infer(key: Key) -> bool:
    """Whether requests with this key reach models, and so need money reserved ahead."""
    return Permission.INFERENCE in ROLE_PERMISSIONS[key.role]


def actor_of(key: Key) -> Actor:
    """Who acts with this key. Roles that see every project are bound to none."""
    project = None if key.role in CROSS_PROJECT else key.project
    return Actor(name=key.owner, role=key.role, key_id=key.id, project=project)


def may_grant(actor: Actor, role: Role) -> bool:
    """Nobody hands out more than they may do themselves."""
    return ROLE_PERMISSIONS[role] <= ROLE_PERMISSIONS[actor.role]


def covers(exposure: Exposure, now: datetime) -> bool:
    """Whether the permission is in force."""
    return exposure.created_at <= now < exposure.expires_at


def checked_name(name: str, what: str) -> str:
    """The name, when it can be part of ids, paths and host names. Raises InvalidInput."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{what} {name[:80]!r}: use 1 to 63 lower-case letters, digits and hyphens, no hyphen at either end",
            "write it like team-vision",
        )
    return name


def checked_text(text: str, what: str) -> str:
    """The text without outer blanks, when it says something on one line. Raises InvalidInput."""
    cleaned = text.strip()
    if not cleaned:
        raise InvalidInput(f"{what} is required", f"say the {what}")
    if len(cleaned) > _TEXT_CHARACTERS_MAX or not cleaned.isprintable():
        raise InvalidInput(f"{what} must be one line of at most {_TEXT_CHARACTERS_MAX} characters")
    return cleaned


def checked_self_service(limits: SelfService) -> SelfService:
    """The limits, when they can be kept: money of $0 to $1,000,000,000, 1 to 10 approvals. Raises InvalidInput."""
    money = (
        ("dollars a plan", limits.plan_max_microusd),
        ("dollars a month", limits.month_max_microusd),
        ("the threshold of further approvals", limits.second_threshold_microusd),
    )
    for what, amount in money:
        if amount is not None and not 0 <= amount <= _MONEY_MAX_MICROUSD:
            raise InvalidInput(f"{what}: $0 to {format_usd(_MONEY_MAX_MICROUSD)}, not {format_usd(amount)}")
    if not 0 <= limits.accelerators_max <= _ACCELERATORS_MAX:
        raise InvalidInput(f"accelerators: 0 to {_ACCELERATORS_MAX:,}, not {limits.accelerators_max}")
    if not 1 <= limits.second_approvals <= _APPROVALS_MAX:
        raise InvalidInput(f"approvals: 1 to {_APPROVALS_MAX}, not {limits.second_approvals}")
    return limits
