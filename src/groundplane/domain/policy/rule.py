"""What a rule is: what it looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from groundplane.domain.access import Exposure
from groundplane.domain.hardware import Hardware
from groundplane.domain.isolation import IsolationPolicy
from groundplane.domain.model import ModelVersion
from groundplane.domain.planning.plan import Ranking
from groundplane.domain.spec import EndpointSpec, JobSpec

MAX_HORIZON_DAYS = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Everything the rules may look at: the spec, the offers found for it, and what the store knows of it."""

    spec: JobSpec | EndpointSpec
    ranking: Ranking
    hardware: Hardware
    now: datetime
    pools: tuple[str, ...]
    silent_pools: dict[str, str]
    price_stale_days: int = 30
    model: ModelVersion | None = None
    known_versions: tuple[str, ...] = ()
    exposure: Exposure | None = None
    horizon_days: int = MAX_HORIZON_DAYS
    isolation: IsolationPolicy = IsolationPolicy()
    secrets: frozenset[str] = frozenset()
    resume_proof: str = ""
    spot_blind: Mapping[str, str] = field(default_factory=dict)
    unfit: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found: the number it needs, the one there is, and a way forward better than the rule's own."""

    need: str
    have: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`warns` rules never refuse. Those not `at_apply` are judged once: time alone would turn them, harmlessly.

    `live` rules look at what the plan does not keep (pools, the registry, the catalogue): they can't be replayed.
    """

    id: str
    why: str
    hint: str
    check: Callable[[Subject], Finding | None]
    warns: bool = False
    at_apply: bool = True
    live: bool = False
