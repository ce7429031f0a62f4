"""What crosses the HTTP door about the queue besides the domain's own records: quotas, reservations, schedules."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from groundplane.wire.bounds import STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRequest:
    """What changes of a project's quota. `limits` names `accelerators`, `cpus_milli`, `memory_bytes` or `runs`.

    null lifts a limit; what is not named stays. `cohort` "" leaves the cohort.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    limits: dict[str, int | None] = field(default_factory=dict)
    cohort: str | None = None
    weight: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationRequest:
    """Either accelerators or CPUs of a pool."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    project: str
    pool: str
    starts_at: datetime
    ends_at: datetime
    accelerators: int = 0
    cpus: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRequest:
    """A job spec with `schedule`. Relative dates in it count from each tick."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    text: str
    until: datetime | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleChange:
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    paused: bool
    reason: str = ""
