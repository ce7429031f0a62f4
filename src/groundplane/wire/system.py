"""What crosses the HTTP door about the installation itself: health, who is asking, a look, and the trail's verdict."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from groundplane.audit import ChainBreak
from groundplane.identity import Permission, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`status` is ok, or says which part does not answer."""

    status: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whoami:
    name: str
    role: Role
    project: str | None
    key_id: str
    permissions: tuple[Permission, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailingLoop:
    """Work of the control plane that is not done: how often it failed in this spell, and the last error's first line.

    `error` is empty for callers who see one project: it can speak of another.
    """

    name: str
    since: datetime
    failures: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The installation in one look. Counts and money cover the projects that the caller sees."""

    version: str
    started_at: datetime
    now: datetime
    database: str
    home: str
    disk_free_bytes: int
    disk_total_bytes: int
    gateway_url: str
    projects: int
    runs_active: dict[str, int]
    endpoints: dict[str, int]
    model_versions: int
    holds_pending: int
    held_microusd: int
    policy: str = ""
    failing: tuple[FailingLoop, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditVerdict:
    """Whether the trail is whole: how many events were checked, and where it breaks if it does."""

    events: int
    broken: ChainBreak | None = None
