"""What a run and an attempt are, how they end, and what each ending means.

A run is one admitted execution of a job spec. An attempt is one try of it on a node.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from groundplane.domain.model import ManifestFile
from groundplane.domain.preflight import CheckResult
from groundplane.domain.spec import JobSpec
from groundplane.domain.staging import StagingProgress


class RunStatus(StrEnum):
    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_over(self) -> bool:
        return self in {RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.STOPPED}


class EndReason(StrEnum):
    """Why an attempt ended. Every reason has a row in ENDINGS."""

    SUCCEEDED = "succeeded"
    COMMAND_FAILED = "command-failed"
    COMMAND_NOT_FOUND = "command-not-found"
    KILLED = "killed"
    OUT_OF_MEMORY = "out-of-memory"
    DISK_FULL = "disk-full"
    RUNNER_LOST = "runner-lost"
    NODE_LOST = "node-lost"
    START_FAILED = "start-failed"
    NOT_PLACED = "not-placed"
    PREEMPTED = "preempted"
    NEED_FAILED = "need-failed"
    MAX_DURATION = "max-duration"
    MAX_COST = "max-cost"
    IDLE = "idle"
    END_DATE = "end-date"
    CONTROL_PLANE_GONE = "control-plane-gone"
    STOPPED_BY_USER = "stopped-by-user"
    BUDGET_SPENT = "budget-spent"
    OUTPUT_REFUSED = "output-refused"
    ENDPOINT_STOPPED = "endpoint-stopped"
    NEVER_READY = "never-ready"
    PREFLIGHT_FAILED = "preflight-failed"
    DATA_REFUSED = "data-refused"
    DATA_UNREACHABLE = "data-unreachable"
    NODE_UNFIT = "node-unfit"
    HUNG = "hung"
    SPOT_RECLAIMED = "spot-reclaimed"
    TEST_KILL = "test-kill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What follows from an end reason: the run's status, whether another attempt may help, and a sentence."""

    status: RunStatus
    retry: bool
    meaning: str


ENDINGS: dict[EndReason, Ending] = {
    EndReason.SUCCEEDED: Ending(status=RunStatus.SUCCEEDED, retry=False, meaning="The command exited with status 0."),
    EndReason.COMMAND_FAILED: Ending(
        # The same command on the same input fails the same way: paying again would not help.
        status=RunStatus.FAILED,
        retry=False,
        meaning="The command exited with a status other than 0.",
    ),
    EndReason.COMMAND_NOT_FOUND: Ending(
        status=RunStatus.FAILED, retry=False, meaning="The program or the working folder does not exist."
    ),
    EndReason.KILLED: Ending(status=RunStatus.FAILED, retry=True, meaning="A signal from outside ended the command."),
    EndReason.OUT_OF_MEMORY: Ending(
        status=RunStatus.FAILED, retry=False, meaning="The command needed more memory than it was given."
    ),
    EndReason.DISK_FULL: Ending(
        status=RunStatus.FAILED,
        retry=False,
        meaning="The node's disk is full; nothing more could be written.",
    ),
    EndReason.RUNNER_LOST: Ending(
        status=RunStatus.FAILED, retry=True, meaning="The runner beside the command died; its job was ended."
    ),
    EndReason.NODE_LOST: Ending(status=RunStatus.FAILED, retry=True, meaning="The node is gone."),
    EndReason.START_FAILED: Ending(
        status=RunStatus.FAILED, retry=True, meaning="The executor could not start the attempt."
    ),
    EndReason.PREEMPTED: Ending(
        status=RunStatus.STOPPED,
        retry=True,
        meaning="It made room for more important work and waits in the queue again.",
    ),
    EndReason.NEED_FAILED: Ending(status=RunStatus.FAILED, retry=False, meaning="A run that it needs did not succeed."),
    EndReason.NOT_PLACED: Ending(
        # No failure of the run's: it counts as none, and the queue finds it another node.
        status=RunStatus.FAILED,
        retry=True,
        meaning="The node it was given could not take it.",
    ),
    EndReason.MAX_DURATION: Ending(
        status=RunStatus.FAILED, retry=False, meaning="The run reached the duration its spec allows."
    ),
    EndReason.MAX_COST: Ending(
        status=RunStatus.STOPPED, retry=False, meaning="The run reached the cost its spec allows."
    ),
    EndReason.IDLE: Ending(status=RunStatus.STOPPED, retry=False, meaning="The run idled longer than its spec allows."),
    EndReason.END_DATE: Ending(status=RunStatus.STOPPED, retry=False, meaning="The run reached its end date."),
    EndReason.CONTROL_PLANE_GONE: Ending(
        status=RunStatus.FAILED,
        retry=True,
        meaning="The control plane was silent longer than the spec allows, so the node stopped the job.",
    ),
    EndReason.STOPPED_BY_USER: Ending(status=RunStatus.STOPPED, retry=False, meaning="Somebody stopped it."),
    EndReason.BUDGET_SPENT: Ending(status=RunStatus.STOPPED, retry=False, meaning="The project's budget is spent."),
    EndReason.ENDPOINT_STOPPED: Ending(
        status=RunStatus.STOPPED, retry=False, meaning="The endpoint it served was stopped."
    ),
    EndReason.NEVER_READY: Ending(
        status=RunStatus.FAILED, retry=False, meaning="The model server never answered its test prompt."
    ),
    EndReason.PREFLIGHT_FAILED: Ending(
        # No node would do: the same check on the same storage fails the same way.
        status=RunStatus.FAILED,
        retry=False,
        meaning="A check before the start failed, so the command was not started.",
    ),
    EndReason.DATA_REFUSED: Ending(
        status=RunStatus.FAILED,
        retry=False,
        meaning="Its data is missing, may not be read or is not what the spec says, so the command was not started.",
    ),
    EndReason.DATA_UNREACHABLE: Ending(
        status=RunStatus.FAILED, retry=True, meaning="Its data could not be reached; what had come is kept."
    ),
    EndReason.NODE_UNFIT: Ending(
        status=RunStatus.FAILED, retry=True, meaning="A check found a fault of the node, which takes no more work."
    ),
    EndReason.HUNG: Ending(
        status=RunStatus.FAILED,
        retry=True,
        meaning="It made no progress for longer than its spec allows; stacks were taken before it was ended.",
    ),
    EndReason.SPOT_RECLAIMED: Ending(
        # Announced, and no failure of the run's: it counts as none.
        status=RunStatus.FAILED,
        retry=True,
        meaning="The cloud took its spot machine back, after a notice.",
    ),
    EndReason.TEST_KILL: Ending(
        status=RunStatus.FAILED, retry=True, meaning="It was killed on purpose, to see whether it resumes."
    ),
    EndReason.OUTPUT_REFUSED: Ending(
        # The files stay where they are: registering them by hand needs no new training.
        status=RunStatus.FAILED,
        retry=False,
        meaning="The command succeeded, but an output its spec declares could not be registered.",
    ),
}

_missing = set(EndReason) - set(ENDINGS)
if _missing:
    raise AssertionError(f"end reasons without a row in ENDINGS: {sorted(_missing)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One admitted execution of a job spec. `due_at` says when its reconcile should look again.

    `dev` says of a dev environment which, as its spec does.
    """

    id: str
    name: str
    project: str
    owner: str
    cost_center: str
    spec: JobSpec
    spec_digest: str
    plan_id: str
    hold_id: str
    pool: str
    price_microusd_per_hour: int
    status: RunStatus = RunStatus.PENDING
    stop_requested: EndReason | None = None
    end_reason: EndReason | None = None
    message: str = ""
    attempt: int = 0
    endpoint: str = ""
    dev: str = ""
    idempotency_key: str = ""
    created_by: str
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    end_date: datetime
    due_at: datetime | None
    lease_owner: str = ""
    lease_expires_at: datetime | None = None
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of a run on a node. `billed_until` is the moment up to which its cost is in the ledger.

    `port` is the loopback port a replica was told to serve on; 0 for jobs. `nodes` is how many it was started on, 0
    before. `idle_since` is set while it has done nothing for long enough to tell its owner.
    """

    id: str
    run_id: str
    number: int
    pool: str
    node: str = ""
    port: int = 0
    started: bool = False
    resumed_from_step: int | None = None
    last_step: int | None = None
    end_reason: EndReason | None = None
    exit_code: int | None = None
    message: str = ""
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    billed_until: datetime | None = None
    nodes: int = 0
    idle_since: datetime | None = None
    version: int = 0


class CopyState(StrEnum):
    """A checkpoint's copy in the artifact store: `waiting` for it, `copied`, or `off`: none is wanted any more."""

    WAITING = "waiting"
    COPIED = "copied"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A complete, verified checkpoint on durable storage. id = `<run>:<step>`.

    `path` is where it lies on `node` until `removed_at`. `files` are in the artifact store while `copy` is `copied`,
    manifest.json among them; `manifest_sha256` is that file's. `note` says why there is no copy.
    """

    id: str
    run_id: str
    attempt_id: str
    step: int
    path: str
    size_bytes: int
    found_at: datetime
    metrics: dict[str, float] = field(default_factory=dict)
    project: str = ""
    node: str = ""
    copy: CopyState = CopyState.OFF
    files: tuple[ManifestFile, ...] = ()
    manifest_sha256: str = ""
    copied_at: datetime | None = None
    removed_at: datetime | None = None
    note: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCheckpoint:
    """A complete checkpoint as a runner found it on the node. `written_at_s` is its manifest's time since 1970."""

    step: int
    path: str
    size_bytes: int
    metrics: dict[str, float] = field(default_factory=dict)
    written_at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberHang:
    """What one member's runner saw of a hang: why it takes it for one, and which ranks it can't reach."""

    node: str
    rank: int
    why: str
    quiet_s: float
    unreachable: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What an executor knows of one attempt. `state`: absent, starting, running, ended, or unknown (≠ dead).

    `absent` means it was never started here or already released. `end_reason` is set when `state` is ended.
    `silent_since` is set when it is unknown for want of an answer: since when its node has not been heard;
    `gone_limit_s` is then the dead-man timer its node was told, if any.
    `active_at` is when it last did something; `hangs` has a row per member that is stuck, of `members`. `energy_j` is
    what its accelerators took so far, None where nobody measures it; `energy_how` says how it is known.
    """

    attempt_id: str
    state: str
    node: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    end_reason: EndReason | None = None
    exit_code: int | None = None
    message: str = ""
    last_log_at: datetime | None = None
    checkpoints: tuple[FoundCheckpoint, ...] = ()
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    accelerator_percent: float | None = None
    preflight: tuple[CheckResult, ...] = ()
    unfit_node: str = ""
    silent_since: datetime | None = None
    gone_limit_s: float | None = None
    active_at: datetime | None = None
    members: int = 1
    hangs: tuple[MemberHang, ...] = ()
    staging: StagingProgress | None = None
    energy_j: float | None = None
    energy_how: str = ""
