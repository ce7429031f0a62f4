"""What is ordered of a node, and what a node hands out: log pieces and samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from groundplane.domain.isolation import JobIsolation
from groundplane.domain.node import Placement
from groundplane.domain.preflight import PreflightNeed
from groundplane.domain.staging import StagingNeed


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Everything a node needs to run one attempt. `attempt_id` makes starting it idempotent.

    `checkpoint_dir` is shared by all attempts of a run; `output_dir` too. `cpus`, `memory_bytes` and `accelerators` are
    per node. `placements` names the nodes, one per member in order of rank; without it the executor chooses `nodes` of
    them, none named in `avoid`. `readable` are paths the job may read besides its own folders; `secrets` become files.
    With a `preflight` the node checks itself before the command starts. `checkpoint_share` is the folder above a
    checkpoint_dir of the spec's own choice: it must be there already, so that a missing mount is not made by mistake.
    `staging` is data that must be on the node before the command starts. With `observe` the node looks at what is
    around the job before its command starts: code, packages, container, drivers. `dev` makes it a dev environment:
    `shell` or `jupyter`; the node then knows its command.
    """

    attempt_id: str
    run_id: str
    number: int
    command: tuple[str, ...]
    workdir: str
    env: dict[str, str]
    checkpoint_dir: str
    output_dir: str
    cpus: float
    memory_bytes: int
    accelerators: int
    max_duration_s: float
    idle_limit_s: float | None
    control_plane_gone_limit_s: float | None
    stop_grace_s: float
    not_after: datetime
    nodes: int = 1
    placements: tuple[Placement, ...] = ()
    avoid: tuple[str, ...] = ()
    pids_limit: int = 0
    readable: tuple[str, ...] = ()
    isolation: JobIsolation = JobIsolation()
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    preflight: PreflightNeed | None = None
    checkpoint_share: str = ""
    hang_limit_s: float | None = None
    spot: bool = False
    staging: StagingNeed | None = None
    dev: str = ""
    observe: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogChunk:
    """Bytes of an attempt's log from `offset`; `next_offset` is where to go on; `complete` when no more will come."""

    data: bytes
    offset: int
    next_offset: int
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement beside a job, taken by its runner."""

    at: datetime
    cpu_percent: float
    memory_bytes: int
    disk_free_bytes: int
    accelerators: tuple[dict[str, float], ...] = ()
