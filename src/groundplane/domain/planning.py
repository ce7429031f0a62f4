"""A spec becomes a plan: offers that fit, what they cost, what policy says, hash-bound to what it was computed from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum

from groundplane.domain.spec import EndpointSpec, JobSpec
from groundplane.errors import Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A place to run: a pool's node type with its price. `price_source` says where the number is from, and when."""

    pool: str
    node_type: str
    cpus: float
    memory_bytes: int
    disk_free_bytes: int
    accelerators: int
    accelerator: str
    price_microusd_per_hour: int
    price_as_of: date
    price_source: str
    simulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One policy rule's answer on one spec. `refused` is None when the rule is satisfied."""

    rule: str
    why: str
    refused: Refused | None


class PlanStatus(StrEnum):
    READY = "ready"
    REFUSED = "refused"
    APPLIED = "applied"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would happen and cost. Immutable but for `status` and `applied_to`; `hash` binds it to spec, offer and price."""

    id: str
    project: str
    owner: str
    kind: str
    job: JobSpec | None = None
    endpoint: EndpointSpec | None = None
    spec_digest: str
    offer: Offer | None
    max_duration_s: int
    worst_case_microusd: int
    arithmetic: str
    verdicts: tuple[Verdict, ...]
    status: PlanStatus
    hash: str
    created_by: str
    created_at: datetime
    applied_to: str = ""
    version: int = 0
