"""Money reserved before it is spent: budgets and holds, decided here, committed by services.

A hold is pending, then posted (spent in part or whole) or voided. `held + posted ≤ limit` at every reservation;
what was really spent is always posted, even when it is more than was reserved, because the bill comes anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from groundplane.errors import InvalidInput, Refused
from groundplane.units import MICROUSD_PER_USD, exact_usd, format_usd

_MONTHLY_LIMIT_MICROUSD_MAX = 1_000_000_000 * MICROUSD_PER_USD
_THRESHOLD_PERCENT_MAX = 1000
_DEAREST_AT_ONCE = 4


class HoldStatus(StrEnum):
    PENDING = "pending"
    POSTED = "posted"
    VOIDED = "voided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A project's limit for one calendar month (UTC). id = `<project>:<YYYY-MM>`.

    `held_microusd` is the sum of what pending holds still reserve; `posted_microusd` the sum of ledger entries.
    `thresholds_percent` are notified once each when posted crosses them (`fired_percent` remembers).
    """

    id: str
    project: str
    period: str
    limit_microusd: int
    held_microusd: int = 0
    posted_microusd: int = 0
    thresholds_percent: tuple[int, ...] = (50, 80, 100)
    fired_percent: tuple[int, ...] = ()
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Money reserved for a subject (`run/<id>` or `gateway/<project>`).

    `posted_microusd` is the sum of its ledger entries; it passes `amount_microusd` when more was spent than reserved.
    """

    id: str
    budget_id: str
    project: str
    subject: str
    amount_microusd: int
    posted_microusd: int = 0
    status: HoldStatus = HoldStatus.PENDING
    created_at: datetime
    closed_at: datetime | None = None
    version: int = 0

    @property
    def remaining_microusd(self) -> int:
        """What is still reserved: amount − posted while pending, never below 0; nothing once closed."""
        if self.status is not HoldStatus.PENDING:
            return 0
        return max(0, self.amount_microusd - self.posted_microusd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """Budget and hold after a charge. `overrun_microusd` is the part of it that nothing had been reserved for."""

    budget: Budget
    hold: Hold | None
    overrun_microusd: int


def period_of(moment: datetime) -> str:
    """The calendar month (UTC) of a moment: `2026-08`."""
    return moment.astimezone(UTC).strftime("%Y-%m")


def budget_id(project: str, moment: datetime) -> str:
    return f"{project}:{period_of(moment)}"


def left_microusd(budget: Budget) -> int:
    """What may still be reserved; 0 when lowered limits or overruns left nothing."""
    return max(0, budget.limit_microusd - budget.held_microusd - budget.posted_microusd)


def no_budget(project: str) -> Refused:
    """A project without a budget is admitted nothing."""
    return Refused(
        rule="budget",
        need=f"a monthly budget for project {project}",
        have="none",
        hint=f"ground budget set {project} 100",
    )


def reserve(budget: Budget, amount_microusd: int, purpose: str = "this run") -> Budget | Refused:
    """The budget with the amount held, or why not. ValueError when the amount is negative."""
    if amount_microusd < 0:
        raise ValueError(f"can't hold a negative amount: {amount_microusd}")
    left = left_microusd(budget)
    if amount_microusd > left:
        return _over_budget(budget, amount_microusd, left, purpose)
    held = replace(budget, held_microusd=budget.held_microusd + amount_microusd)
    assert amount_microusd == 0 or held.held_microusd + held.posted_microusd <= held.limit_microusd
    return held


def _over_budget(budget: Budget, amount_microusd: int, left: int, purpose: str) -> Refused:
    limit = budget.held_microusd + budget.posted_microusd + amount_microusd
    # Whole dollars upwards, so that the command in the hint is short and enough.
    enough = -(-limit // MICROUSD_PER_USD)
    lower = f"lower its cost to at most {exact_usd(left)}, or raise" if left else "raise"
    return Refused(
        rule="budget",
        need=f"up to {format_usd(amount_microusd)} for {purpose}",
        have=(
            f"{format_usd(left)} left this month in project {budget.project} "
            f"({format_usd(budget.limit_microusd)} limit, {format_usd(budget.posted_microusd)} spent, "
            f"{format_usd(budget.held_microusd)} held)"
        ),
        hint=f"{lower} the budget: ground budget set {budget.project} {enough}",
    )


def grow(budget: Budget, hold: Hold, amount_microusd: int) -> tuple[Budget, Hold]:
    """Adds up to `amount_microusd` to a pending hold: as much of it as is left in the budget."""
    _same_budget(budget, hold)
    if hold.status is not HoldStatus.PENDING:
        raise ValueError(f"hold {hold.id} is {hold.status.value}; only a pending one grows")
    # What was spent beyond the hold has already been taken from the budget: it must be covered before anything remains.
    before = hold.remaining_microusd
    overrun = max(0, hold.posted_microusd - hold.amount_microusd)
    added = min(max(0, amount_microusd), left_microusd(budget))
    grown = replace(hold, amount_microusd=hold.amount_microusd + (overrun + added if added else 0))
    assert grown.remaining_microusd - before == added
    return replace(budget, held_microusd=budget.held_microusd + added), grown


def slice_missing_microusd(budget: Budget, held_microusd: int, slice_microusd: int, dearest_microusd: int = 0) -> int:
    """What a hold that is kept filled ahead of spending lacks, at most what is left.

    It takes at most a quarter of what there is, so that runs find money too; of the last tenth of a slice it takes
    all, so that a small rest can still be spent. A slice has room for a few of the dearest request there may be, and
    one of them may take all there is: what is never held ahead is never served.
    """
    left = left_microusd(budget)
    there = left + held_microusd
    wanted = max(slice_microusd, _DEAREST_AT_ONCE * dearest_microusd)
    target = min(wanted, max(there // 4, min(there, max(slice_microusd // 10, dearest_microusd))))
    return min(left, max(0, target - held_microusd))


def post(budget: Budget, hold: Hold | None, amount_microusd: int) -> Posting:
    """Turns held money into spent money. What the hold can't cover is taken from the budget, and said.

    A charge after its hold was closed is all overrun. ValueError when the amount is negative.
    """
    if amount_microusd < 0:
        raise ValueError(f"can't post a negative amount: {amount_microusd}")
    covered = 0
    if hold is not None:
        _same_budget(budget, hold)
        covered = min(amount_microusd, hold.remaining_microusd)
        status = HoldStatus.POSTED if hold.status is HoldStatus.VOIDED and amount_microusd else hold.status
        hold = replace(hold, posted_microusd=hold.posted_microusd + amount_microusd, status=status)
    charged = replace(
        budget,
        held_microusd=budget.held_microusd - covered,
        posted_microusd=budget.posted_microusd + amount_microusd,
    )
    assert charged.held_microusd >= 0, f"{budget.id} holds less than its holds remain"
    overrun = amount_microusd - covered if hold is not None else 0
    return Posting(budget=charged, hold=hold, overrun_microusd=overrun)


def release(budget: Budget, hold: Hold, now: datetime) -> tuple[Budget, Hold]:
    """Closes a hold: what remains of it is free again. Closing twice changes nothing."""
    _same_budget(budget, hold)
    if hold.status is not HoldStatus.PENDING:
        return budget, hold
    freed = replace(budget, held_microusd=budget.held_microusd - hold.remaining_microusd)
    assert freed.held_microusd >= 0, f"{budget.id} holds less than its holds remain"
    status = HoldStatus.POSTED if hold.posted_microusd else HoldStatus.VOIDED
    return freed, replace(hold, status=status, closed_at=now)


def due_actions(budget: Budget) -> tuple[int, ...]:
    """The thresholds that spending has crossed and that were not acted on yet, lowest first."""
    return tuple(percent for percent in crossed_percent(budget) if percent not in budget.fired_percent)


def crossed_percent(budget: Budget) -> tuple[int, ...]:
    """The thresholds at or below what was spent. Without spending nothing is crossed, whatever the limit."""
    if budget.posted_microusd == 0:
        return ()
    spent = budget.posted_microusd * 100
    return tuple(percent for percent in budget.thresholds_percent if spent >= percent * budget.limit_microusd)


def relimited(budget: Budget, limit_microusd: int, thresholds_percent: tuple[int, ...]) -> Budget:
    """The same month under a new limit. Thresholds that are no longer crossed may fire again."""
    changed = replace(budget, limit_microusd=limit_microusd, thresholds_percent=thresholds_percent)
    crossed = crossed_percent(changed)
    return replace(changed, fired_percent=tuple(p for p in budget.fired_percent if p in crossed))


def checked_limit(limit_microusd: int | None) -> int | None:
    """A monthly limit of $0 to $1,000,000,000, or None for no budget. Raises InvalidInput."""
    if limit_microusd is not None and not 0 <= limit_microusd <= _MONTHLY_LIMIT_MICROUSD_MAX:
        top = format_usd(_MONTHLY_LIMIT_MICROUSD_MAX)
        raise InvalidInput(f"a monthly limit is $0 to {top}, not {format_usd(limit_microusd)}")
    return limit_microusd


def checked_thresholds(percents: tuple[int, ...]) -> tuple[int, ...]:
    """Thresholds sorted, each once. Raises InvalidInput outside 1 to 1000 percent."""
    wrong = [percent for percent in percents if not 1 <= percent <= _THRESHOLD_PERCENT_MAX]
    if wrong:
        raise InvalidInput(f"a threshold is 1 to {_THRESHOLD_PERCENT_MAX} percent, not {wrong[0]}", "such as 50,80,100")
    return tuple(sorted(set(percents)))


def _same_budget(budget: Budget, hold: Hold) -> None:
    assert hold.budget_id == budget.id, f"hold {hold.id} belongs to {hold.budget_id}, not {budget.id}"
