"""Budgets and holds: what is held plus what is spent, whatever happens in whatever order."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain import budget as money
from groundplane.domain.budget import Budget, Hold, HoldStatus
from groundplane.errors import InvalidInput, Refused

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
USD = 1_000_000
BUDGET = Budget(id="vision:2026-11", project="vision", period="2026-11", limit_microusd=200 * USD)


def a_hold(amount_microusd: int, **changes: object) -> Hold:
    hold = Hold(
        id="hold-1",
        budget_id=BUDGET.id,
        project="vision",
        subject="run/run-1",
        amount_microusd=amount_microusd,
        created_at=NOW,
    )
    return replace(hold, **changes)  # type: ignore[arg-type]


def test_a_reservation_is_held() -> None:
    reserved = money.reserve(BUDGET, 200 * USD)
    assert reserved == replace(BUDGET, held_microusd=200 * USD)


def test_more_than_is_left_is_refused_with_the_numbers_and_two_ways_on() -> None:
    spent = replace(BUDGET, held_microusd=30 * USD, posted_microusd=50 * USD)
    assert money.reserve(spent, 214_400_000) == Refused(
        rule="budget",
        need="up to $214.40 for this run",
        have="$120.00 left this month in project vision ($200.00 limit, $50.00 spent, $30.00 held)",
        hint="lower its cost to at most $120.00, or raise the budget: ground budget set vision 295",
    )


def test_nobody_is_told_to_lower_a_cost_to_nothing() -> None:
    refused = money.reserve(replace(BUDGET, posted_microusd=200 * USD), USD)
    assert isinstance(refused, Refused)
    assert refused.hint == "raise the budget: ground budget set vision 201"


def test_the_budget_the_hint_names_is_enough() -> None:
    spent = replace(BUDGET, held_microusd=30 * USD + 1, posted_microusd=50 * USD)
    refused = money.reserve(spent, 200 * USD)
    assert isinstance(refused, Refused)
    raised = replace(spent, limit_microusd=int(refused.hint.rsplit(" ", 1)[1]) * USD)
    assert isinstance(money.reserve(raised, 200 * USD), Budget)


def test_a_free_run_is_admitted_when_nothing_is_left() -> None:
    assert money.reserve(replace(BUDGET, posted_microusd=300 * USD), 0) == replace(BUDGET, posted_microusd=300 * USD)


def test_negative_amounts_are_defects() -> None:
    with pytest.raises(ValueError):
        money.reserve(BUDGET, -1)
    with pytest.raises(ValueError):
        money.post(BUDGET, None, -1)


def test_spending_moves_money_from_held_to_posted() -> None:
    posting = money.post(replace(BUDGET, held_microusd=10), a_hold(10), 4)
    assert (posting.budget.held_microusd, posting.budget.posted_microusd, posting.overrun_microusd) == (6, 4, 0)
    assert posting.hold is not None and posting.hold.remaining_microusd == 6


def test_what_a_hold_cant_cover_is_posted_all_the_same_and_said() -> None:
    posting = money.post(replace(BUDGET, limit_microusd=10, held_microusd=10), a_hold(10), 13)
    assert (posting.budget.held_microusd, posting.budget.posted_microusd, posting.overrun_microusd) == (0, 13, 3)
    assert posting.hold is not None
    assert (posting.hold.posted_microusd, posting.hold.remaining_microusd) == (13, 0)


def test_closing_frees_the_remainder_once() -> None:
    budget, hold = money.release(
        replace(BUDGET, held_microusd=10, posted_microusd=4), a_hold(10, posted_microusd=4), NOW
    )
    assert (budget.held_microusd, hold.status, hold.closed_at) == (4, HoldStatus.POSTED, NOW)
    assert money.release(budget, hold, NOW + timedelta(hours=1)) == (budget, hold)


def test_a_hold_nothing_was_spent_from_is_voided_until_a_late_charge_comes() -> None:
    budget, hold = money.release(replace(BUDGET, held_microusd=10), a_hold(10), NOW)
    assert (budget.held_microusd, hold.status) == (0, HoldStatus.VOIDED)
    late = money.post(budget, hold, 3)
    assert late.hold is not None and late.hold.status is HoldStatus.POSTED
    assert (late.budget.held_microusd, late.budget.posted_microusd, late.overrun_microusd) == (0, 3, 3)


def test_a_hold_grows_by_what_is_left() -> None:
    budget, hold = money.grow(replace(BUDGET, limit_microusd=14, held_microusd=10), a_hold(10), 100)
    assert (budget.held_microusd, hold.remaining_microusd) == (14, 14)


def test_an_overrun_is_covered_before_a_hold_has_anything_again() -> None:
    overrun = a_hold(10, posted_microusd=13)
    budget, hold = money.grow(replace(BUDGET, posted_microusd=13), overrun, 5)
    assert (budget.held_microusd, hold.remaining_microusd, hold.amount_microusd) == (5, 5, 18)


def test_a_closed_hold_does_not_grow() -> None:
    with pytest.raises(ValueError, match="only a pending one"):
        money.grow(BUDGET, a_hold(10, status=HoldStatus.VOIDED), 1)


@pytest.mark.parametrize(
    ("spent", "fired", "due"),
    [
        (0, (), ()),
        (99, (), ()),
        (100, (), (50,)),
        (170, (50,), (80,)),
        (250, (), (50, 80, 100)),
        (250, (50, 80, 100), ()),
    ],
)
def test_each_threshold_is_due_once(spent: int, fired: tuple[int, ...], due: tuple[int, ...]) -> None:
    assert money.due_actions(replace(BUDGET, posted_microusd=spent * USD, fired_percent=fired)) == due


def test_an_unspent_budget_of_nothing_crosses_nothing() -> None:
    assert money.due_actions(replace(BUDGET, limit_microusd=0)) == ()
    assert money.due_actions(replace(BUDGET, limit_microusd=0, posted_microusd=1)) == (50, 80, 100)


def test_a_raised_limit_lets_thresholds_fire_again() -> None:
    fired = replace(BUDGET, posted_microusd=170 * USD, fired_percent=(50, 80))
    assert money.relimited(fired, 300 * USD, (50, 80, 100)).fired_percent == (50,)
    assert money.relimited(fired, 400 * USD, (50, 80, 100)).fired_percent == ()


def test_a_month_is_a_utc_month() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert money.budget_id("vision", datetime(2026, 12, 1, 8, 59, tzinfo=tokyo)) == "vision:2026-11"
    assert money.budget_id("vision", datetime(2026, 12, 1, 9, 0, tzinfo=tokyo)) == "vision:2026-12"


def test_limits_and_thresholds_are_checked() -> None:
    assert money.checked_thresholds((100, 50, 50)) == (50, 100)
    for wrong in ((0,), (1001,), (-5, 50)):
        with pytest.raises(InvalidInput):
            money.checked_thresholds(wrong)
    assert money.checked_limit(None) is None and money.checked_limit(0) == 0
    for wrong_limit in (-1, 10**16):
        with pytest.raises(InvalidInput):
            money.checked_limit(wrong_limit)


ACTS = st.lists(
    st.tuples(st.sampled_from(["reserve", "post", "release", "grow", "charge"]), st.integers(0, 4), st.integers(0, 60)),
    max_size=60,
)


@given(acts=ACTS, limit=st.integers(0, 150))
def test_held_and_posted_are_always_the_sums_of_their_parts(acts: list[tuple[str, int, int]], limit: int) -> None:
    budget = replace(BUDGET, limit_microusd=limit)
    holds: list[Hold] = []
    charged = 0
    for act, which, amount in acts:
        if act == "reserve":
            reserved = money.reserve(budget, amount)
            room = limit - budget.held_microusd - budget.posted_microusd
            assert isinstance(reserved, Refused) == (amount > max(0, room))
            if isinstance(reserved, Budget):
                budget = reserved
                holds.append(a_hold(amount, id=f"hold-{len(holds)}"))
        elif act == "charge":
            budget, charged = money.post(budget, None, amount).budget, charged + amount
        elif which < len(holds):
            if act == "post":
                posting = money.post(budget, holds[which], amount)
                assert posting.hold is not None
                budget, holds[which], charged = posting.budget, posting.hold, charged + amount
            elif act == "release":
                budget, holds[which] = money.release(budget, holds[which], NOW)
            elif holds[which].status is HoldStatus.PENDING:
                before = money.left_microusd(budget)
                budget, holds[which] = money.grow(budget, holds[which], amount)
                assert money.left_microusd(budget) == before - min(amount, before)
        assert budget.held_microusd == sum(hold.remaining_microusd for hold in holds)
        assert budget.posted_microusd == charged
        assert budget.held_microusd >= 0
