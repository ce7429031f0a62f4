"""What the scheduler looks at: nodes, what waits, what holds, quotas and reservations. Times are seconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass, field

from groundplane.domain.node import Node, Placement

CLASSES: dict[str, int] = {"serving": 1_000_000, "training": 100_000, "exploratory": 1_000}
"""Priority classes. A higher one starts first and may preempt a lower one; inside a class the share decides."""

DEFAULT_CLASS = "training"


def class_name(priority: int) -> str:
    """The class of a priority, for people: the highest that it reaches."""
    return next((name for name, value in CLASSES.items() if priority >= value), "exploratory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a run needs: `nodes` alike nodes, all at once, each with this much. Empty `accelerator` takes any.

    CPUs are thousandths, so that sums are exact.
    """

    nodes: int = 1
    accelerators: int = 0
    cpus_milli: int = 0
    memory_bytes: int = 0
    accelerator: str = ""

    @property
    def total(self) -> Amount:
        return Amount(self.nodes * self.accelerators, self.nodes * self.cpus_milli, self.nodes * self.memory_bytes, 1)


@dataclass(frozen=True, slots=True)
class Amount:
    """Accelerators, thousandths of CPUs, bytes of memory, runs."""

    accelerators: int = 0
    cpus_milli: int = 0
    memory_bytes: int = 0
    runs: int = 0

    def plus(self, other: Amount) -> Amount:
        return Amount(
            self.accelerators + other.accelerators,
            self.cpus_milli + other.cpus_milli,
            self.memory_bytes + other.memory_bytes,
            self.runs + other.runs,
        )

    def minus(self, other: Amount) -> Amount:
        return Amount(
            self.accelerators - other.accelerators,
            self.cpus_milli - other.cpus_milli,
            self.memory_bytes - other.memory_bytes,
            self.runs - other.runs,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A run in the queue. `expected_s` is the longest it may still run: it is ended then, so plans can rely on it."""

    id: str
    project: str
    priority: int
    queued_at: float
    ask: Ask
    expected_s: float
    preemptions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A run that holds capacity, from its placement to its end. `kept_at` is when its last checkpoint was taken.

    `stopping` was asked to give way; its `ends_at` is then the end of its grace.
    """

    id: str
    project: str
    priority: int
    queued_at: float
    ask: Ask
    places: tuple[Placement, ...]
    started_at: float
    ends_at: float
    kept_at: float | None = None
    preemptible: bool = True
    stopping: bool = False
    preemptions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a project may hold at once; None is no limit. In a cohort it may borrow what the others leave unused.

    Borrowed capacity is given back when a member waits for what is its own: the borrower is preempted. `runs` is
    never borrowed. `weight` scales the fair share.
    """

    project: str
    accelerators: int | None = None
    cpus_milli: int | None = None
    memory_bytes: int | None = None
    runs: int | None = None
    cohort: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """Capacity on one node that only `project` may use from `start` to `end`."""

    id: str
    project: str
    node: str
    start: float
    end: float
    accelerators: int = 0
    cpus_milli: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How decisions are taken.

    `depth`: how many blocked runs get a start of their own that nothing behind them may delay (1 is EASY backfill).
    `aged_s`: a run that waited this long goes before its class, oldest first: no share keeps it waiting for ever.
    `grace_s`: what a preempted run is given to checkpoint and end. `worth_s`: a wait shorter than this preempts nobody.
    `restart_s`: what a preemption costs its victim besides lost work.
    """

    depth: int = 4
    aged_s: float = 86_400.0
    grace_s: float = 10.0
    worth_s: float = 30.0
    restart_s: float = 120.0
    preempt: bool = True
    backfill: bool = True
    fair: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """Everything about one pool at one moment.

    `usage` is each project's average dominant share over the last half-lives (`shares.decayed`); `elsewhere` is what
    projects hold on other pools, for quotas that cover all of them.
    """

    nodes: tuple[Node, ...]
    waiting: tuple[Waiting, ...] = ()
    holding: tuple[Holding, ...] = ()
    quotas: tuple[Quota, ...] = ()
    reserved: tuple[Reserved, ...] = ()
    usage: dict[str, float] = field(default_factory=dict)
    elsewhere: dict[str, Amount] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Begin now, on these places."""

    id: str
    places: tuple[Placement, ...]
    backfilled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Preempt:
    """Ask `id` to checkpoint and give way to `for_id`; `lost_s` is the work since its last checkpoint."""

    id: str
    for_id: str
    why: str
    lost_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Why a run does not start: the layer that refuses, in words, and when it is planned to start where that is known.

    Layers: `project-quota`, `pool-capacity`, `gang`, `cordon`, `reservation`, `queue`, `preempting`.
    """

    id: str
    layer: str
    reason: str
    starts_at: float | None = None


Decision = Start | Preempt | Wait
