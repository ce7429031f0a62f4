"""What of the queue outlives a process: places in it, quotas, reservations, and what projects held of late."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from groundplane.domain.node import Placement
from groundplane.domain.scheduling.state import Ask, Holding, Quota, Waiting

INPUT_PREFIX = "GROUND_INPUT_"
"""With the name of a needed run after it: the folder with what that run made."""


class Stage(StrEnum):
    """`waiting` holds nothing; `placed` and `leaving` hold their placements; `leaving` was asked to give way."""

    WAITING = "waiting"
    PLACED = "placed"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueEntry:
    """A run's place in its pool's queue, from its admission to its end. id = the run's.

    `queued_at` is kept through retries and preemptions. `needs` maps what its spec calls a needed run to that run's id,
    "" while there is none; of an array to all ids, with spaces between. `array` names the array it is an element of, at
    most `array_limit` of which run at once.
    """

    id: str
    name: str
    project: str
    pool: str
    owner: str
    priority: int
    queued_at: datetime
    stage: Stage = Stage.WAITING
    nodes: int
    accelerators: int
    accelerator: str = ""
    cpus_milli: int
    memory_bytes: int
    expected_s: float
    grace_s: float = 10.0
    not_before: datetime | None = None
    needs: dict[str, str] = field(default_factory=dict)
    array: str = ""
    array_limit: int = 0
    placements: tuple[Placement, ...] = ()
    placed_at: datetime | None = None
    ends_at: datetime | None = None
    gives_way_to: str = ""
    preemptions: int = 0
    version: int = 0

    @property
    def ask(self) -> Ask:
        return Ask(
            nodes=self.nodes,
            accelerators=self.accelerators,
            cpus_milli=self.cpus_milli,
            memory_bytes=self.memory_bytes,
            accelerator=self.accelerator,
        )

    @property
    def holds(self) -> bool:
        return self.stage is not Stage.WAITING

    def waiting(self) -> Waiting:
        return Waiting(
            id=self.id,
            project=self.project,
            priority=self.priority,
            queued_at=self.queued_at.timestamp(),
            ask=self.ask,
            expected_s=self.expected_s,
            preemptions=self.preemptions,
        )

    def holding(self, kept_at: datetime | None = None) -> Holding:
        """`kept_at` is when its newest checkpoint was found. A run that was never placed is a ValueError."""
        if self.placed_at is None or self.ends_at is None:
            raise ValueError(f"{self.id} holds nothing")
        return Holding(
            id=self.id,
            project=self.project,
            priority=self.priority,
            queued_at=self.queued_at.timestamp(),
            ask=self.ask,
            places=self.placements,
            started_at=self.placed_at.timestamp(),
            ends_at=self.ends_at.timestamp(),
            kept_at=kept_at.timestamp() if kept_at is not None else None,
            stopping=self.stage is Stage.LEAVING,
            preemptions=self.preemptions,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectQuota:
    """What a project may hold at once over all pools. id = the project's name. None is no limit."""

    id: str
    accelerators: int | None = None
    cpus_milli: int | None = None
    memory_bytes: int | None = None
    runs: int | None = None
    cohort: str = ""
    weight: float = 1.0
    updated_at: datetime
    version: int = 0

    def quota(self) -> Quota:
        return Quota(
            project=self.id,
            accelerators=self.accelerators,
            cpus_milli=self.cpus_milli,
            memory_bytes=self.memory_bytes,
            runs=self.runs,
            cohort=self.cohort,
            weight=self.weight,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservedPart:
    """What a reservation takes of one node."""

    node: str
    accelerators: int = 0
    cpus_milli: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Capacity of a pool that is a project's alone from `starts_at` to `ends_at`."""

    id: str
    project: str
    pool: str
    owner: str
    reason: str
    starts_at: datetime
    ends_at: datetime
    parts: tuple[ReservedPart, ...]
    created_at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """The one row that queue passes lock, so that quotas over several pools hold. id = `queue`.

    `usage` is pool → project → average share of late, as of `usage_at`.
    """

    id: str = "queue"
    usage: dict[str, dict[str, float]] = field(default_factory=dict)
    usage_at: datetime
    passes: int = 0
    starts: int = 0
    preemptions: int = 0
    waited_s: dict[str, float] = field(default_factory=dict)
    started: dict[str, int] = field(default_factory=dict)
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A job that is submitted at times. id = `<project>.<name>`; `next_at` is `due_at`, None when it is paused or over.

    `text` is the job's spec; relative dates in it count from each tick. `missed` is what happens to ticks that passed
    while nobody was there: `skip` them, or run `once` for all.
    """

    id: str
    project: str
    name: str
    owner: str
    cron: str
    timezone: str
    missed: str
    text: str
    created_by: str
    created_at: datetime
    until: datetime
    paused: bool = False
    last_tick_at: datetime | None = None
    last_run: str = ""
    last_message: str = ""
    due_at: datetime | None
    lease_owner: str = ""
    lease_expires_at: datetime | None = None
    version: int = 0
