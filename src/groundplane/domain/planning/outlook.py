"""What a plan shows beside its verdict: every way to buy the work, what it rests on, and what it does to the budget.

Records alone: `domain.planning.choices` makes the choices, `domain.planning.work` the hours, and `services.plans` puts
them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from groundplane.errors import Refused

WEEKEND_H = 60
"""Friday 20:00 to Monday 08:00: how long machines idle when a run dies after everybody went home."""


class Purchase(StrEnum):
    """How a machine is paid for. `on-prem` is a machine that is there anyway, at the operator's own price."""

    ON_PREM = "on-prem"
    ON_DEMAND = "on-demand"
    SPOT = "spot"
    RESERVED = "reserved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to buy the work. `hours` are expected, re-work included; `worst_hours` end at the spec's max duration.

    Prices are of one node and hour. `lead_time_h` is None and `quota` says so where no source was read. `fits` is
    false with `reasons`; `chosen` is the one that the plan is for. `expected_microusd` ≤ `worst_case_microusd`.
    """

    place: str
    node_type: str
    purchase: Purchase
    nodes: int
    cpus: float | None
    memory_bytes: int | None
    accelerators: float
    accelerator: str
    price_microusd_per_hour: int
    price_as_of: date
    price_source: str
    price_stale: bool
    hours: float
    worst_hours: float
    expected_microusd: int
    worst_case_microusd: int
    arithmetic: str
    idle_weekend_microusd: int
    lead_time_h: tuple[int, int] | None = None
    quota: str = ""
    fits: bool = True
    chosen: bool = False
    runnable: bool = False
    simulated: bool = False
    reasons: tuple[Refused, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetImpact:
    """What the worst case would leave of the project's month. `left_after_microusd` is below 0 when it is too much."""

    period: str
    limit_microusd: int
    left_before_microusd: int
    left_after_microusd: int
    percent_of_limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaShot:
    """One limit as it stood when the plan was made. None: the source did not say."""

    cloud: str
    region: str
    family: str
    unit: str
    used: float | None
    limit: float | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What a plan's hash binds it to besides its spec and verdicts: SHA-256 hex of prices, of quotas, of the rules.

    `each_rule` is `id:digest` of every rule: which came, went or changed. What binds is `rules`, made from them.
    """

    prices: str
    quotas: str
    rules: str
    each_rule: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Everything a reader weighs. Lines are sentences with their figures; `choices` are cheapest fitting first.

    `time_basis` says where the hours come from, `memory` and `fixes` are the sizing's sum and what would lower it,
    `storage` and `staging` the data's way to the work, `room` where else there is quota, `assumptions` what was taken
    for granted and by which source.
    """

    choices: tuple[Choice, ...]
    expected_microusd: int
    worst_case_microusd: int
    idle_weekend_microusd: int
    idle_weekend: str
    basis: Basis
    time_basis: str = ""
    budget: BudgetImpact | None = None
    memory: tuple[str, ...] = ()
    fixes: tuple[str, ...] = ()
    storage: tuple[str, ...] = ()
    staging: tuple[str, ...] = ()
    quotas: tuple[QuotaShot, ...] = ()
    room: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    choices_left_out: int = 0
