"""What a node of a pool is, and where on nodes an attempt is placed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class NodeHealth(StrEnum):
    """`silent` is not `dead`: what runs there goes on until its dead-man timer ends it."""

    READY = "ready"
    SILENT = "silent"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAccelerator:
    """One accelerator by the index its driver gives it. `held_by` is the attempt that has it reserved."""

    index: int
    model: str
    memory_bytes: int
    held_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of a pool as its executor sees it.

    `isolation` says for each way of keeping jobs apart why the node can't, empty when it can; `limits` which cgroup
    version keeps memory, cpu and pids, without those that nothing keeps.
    `reason` says why it is not ready, `hint` the way forward. `cordoned` is why no new work is placed there; empty when
    it may be. The figures of a node that does not answer are its last ones, 0 when it never did.
    """

    name: str
    pool: str
    cpus: float = 0.0
    memory_bytes: int = 0
    disk_free_bytes: int = 0
    accelerators: tuple[NodeAccelerator, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    isolation: tuple[tuple[str, str], ...] = ()
    limits: tuple[tuple[str, str], ...] = ()
    address: str = ""
    health: NodeHealth = NodeHealth.READY
    reason: str = ""
    hint: str = ""
    cordoned: str = ""
    attempts: int = 0
    heard_at: datetime | None = None

    @property
    def takes_work(self) -> bool:
        return self.health is NodeHealth.READY and not self.cordoned


@dataclass(frozen=True, slots=True, kw_only=True)
class Cordon:
    """A node that takes no new work, with who said so and why. id = `<pool>/<node>`."""

    id: str
    pool: str
    node: str
    reason: str
    hint: str = ""
    cordoned_by: str
    cordoned_at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """A pool in numbers. `price_*` are per node and hour, None without a node that answers; `why` when none does."""

    name: str
    nodes: int
    ready: int
    cordoned: int
    cpus: float
    memory_bytes: int
    accelerators: int
    accelerators_free: int
    accelerator: str
    price_low_microusd_per_hour: int | None = None
    price_high_microusd_per_hour: int | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One member of an attempt on a node. Empty `accelerators` leaves their choice to the executor."""

    node: str
    accelerators: tuple[int, ...] = ()
