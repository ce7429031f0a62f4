"""Projects, keys and exposures: who belongs where, who may call what, and what is reachable from outside."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from groundplane.identity import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A team's home. id is its name. No budget means nothing of it is admitted."""

    id: str
    owner: str
    cost_center: str
    monthly_limit_microusd: int | None = None
    thresholds_percent: tuple[int, ...] = (50, 80, 100)
    created_at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A credential; only the SHA-256 of its secret is kept. Empty `models` on a caller key allows every model of the project."""

    id: str
    name: str
    project: str
    owner: str
    role: Role
    secret_sha256: str
    models: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
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
