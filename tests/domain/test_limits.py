"""Limits hold exactly, under any order of asking, settling and waiting, by any number of holders."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.domain.serving.limits import (
    MINUTE_NS,
    Account,
    Binding,
    Entry,
    Limit,
    Measure,
    Moment,
    Share,
    Spending,
    transact,
)

SECOND = 1_000_000_000


def at(now_ns: int, wall_s: float = 0.0) -> Moment:
    return Moment(now_ns, wall_s)


def limit(value: int, measure: Measure = Measure.REQUESTS, version: int = 0) -> Limit:
    return Limit("key", "key-1", measure, value, version=version)


def take(account: Account, of: Limit, units: int, now: Moment) -> Binding | int:
    """Asks for units and charges them at once; the slice handed out beyond them is given back."""
    told = transact([Entry(of, 0, 0, units)], [account], 1, now)
    if isinstance(told, Binding):
        return told
    transact([Entry(of, units, told[0] - units, 0)], [account], 1, now)
    return units


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 10**18))
def test_a_burst_admits_exactly_the_limit(value: int, now_ns: int) -> None:
    account, admitted = Account(value, at=now_ns), 0
    while not isinstance(take(account, limit(value), 1, at(now_ns)), Binding):
        admitted += 1
    assert admitted == value


@settings(deadline=None)
@given(st.integers(1, 500), st.lists(st.integers(0, 10 * SECOND), max_size=200))
def test_no_interval_gets_more_than_limit_plus_refill(value: int, pauses: list[int]) -> None:
    account, now, taken = Account(value), 0, 0
    for pause in pauses:
        now += pause
        while not isinstance(take(account, limit(value), 1, at(now)), Binding):
            taken += 1
        assert taken * MINUTE_NS <= value * (MINUTE_NS + now)


@settings(deadline=None)
@given(st.integers(1, 100_000), st.integers(0, 200_000), st.integers(1, 200_000))
def test_the_wait_is_the_truth_to_the_nanosecond(value: int, used: int, units: int) -> None:
    of = limit(value)

    def fresh() -> Account:
        return Account(value, level=min(used, value) * MINUTE_NS)

    wait = fresh().wait_ns(of, units, at(0))
    if units > value:
        assert wait is None
        return
    assert wait is not None
    if wait:
        assert isinstance(take(fresh(), of, units, at(wait - 1)), Binding)
    assert take(fresh(), of, units, at(wait)) == units


_STEP = st.tuples(st.integers(0, 3), st.integers(0, 20 * SECOND), st.integers(1, 400), st.integers(0, 400))


@settings(deadline=None)
@given(st.lists(_STEP, max_size=80), st.sampled_from([1000, 1_000_000]))
def test_what_holders_have_and_what_was_used_never_pass_the_limit(
    steps: list[tuple[int, int, int, int]], value: int
) -> None:
    """Four holders ask, settle less than they asked, and keep slices, in any order."""
    of, account, now = limit(value, Measure.TOKENS), Account(value), 0
    shares = [Share(of) for _ in range(4)]
    settled: list[tuple[int, int]] = []
    for holder, pause, ask, used in steps:
        now += pause
        share = shares[holder]
        if share.free < ask:
            told = transact([share.settlement(ask)], [account], 4, at(now))
            share.take_in(0 if isinstance(told, Binding) else told[0], ask)
        if share.free >= ask:
            spent = min(used, ask)
            share.free += -ask + ask - spent
            share.used += spent
            settled.append((now, spent))
        assert account.held == sum(one.held for one in shares)
        assert account.level + account.held * MINUTE_NS <= value * MINUTE_NS
        assert all(one.in_flight == 0 for one in shares)
    for start in {when for when, _ in settled}:
        for end in {when for when, _ in settled if when >= start}:
            spent = sum(units for when, units in settled if start <= when <= end)
            assert spent * MINUTE_NS <= value * (MINUTE_NS + end - start)


def test_more_than_reserved_is_a_debt_that_drains() -> None:
    of, account = limit(60), Account(60)
    share = Share(of)
    told = transact([share.settlement(10)], [account], 1, at(0))
    assert not isinstance(told, Binding)
    share.take_in(told[0], 10)
    share.free -= 10
    share.free += 10 - 120
    share.used += 120
    refused = transact([share.settlement(1)], [account], 1, at(0))
    assert isinstance(refused, Binding) and refused.retry_after_ns == MINUTE_NS + SECOND
    assert share.held == account.held == 0
    assert take(account, of, 1, at(MINUTE_NS + SECOND)) == 1


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    of, account = limit(1), Account(1, at=10 * MINUTE_NS)
    assert take(account, of, 1, at(10 * MINUTE_NS)) == 1
    assert isinstance(take(account, of, 1, at(0)), Binding)
    assert isinstance(take(account, of, 1, at(10 * MINUTE_NS)), Binding)
    assert take(account, of, 1, at(11 * MINUTE_NS)) == 1


def test_a_new_limit_keeps_what_was_used() -> None:
    account = Account(10)
    for _ in range(10):
        take(account, limit(10), 1, at(0))
    refused = take(account, limit(15), 6, at(0))
    assert isinstance(refused, Binding) and refused.left == 5


def test_tokens_per_day_begin_anew_at_midnight_utc() -> None:
    of, account = limit(100, Measure.TOKENS_DAY), Account(100)
    assert take(account, of, 100, at(0, 86_400 * 3 + 86_000)) == 100
    refused = take(account, of, 1, at(0, 86_400 * 3 + 86_399))
    assert isinstance(refused, Binding) and refused.retry_after_ns == SECOND + 1
    assert take(account, of, 100, at(0, 86_400 * 4)) == 100
    assert isinstance(take(account, of, 1, at(0, 86_400 * 3)), Binding), "a clock set back opens no new day"


def test_concurrent_requests_are_lent_not_used() -> None:
    of, account = limit(2, Measure.CONCURRENT), Account(2)
    share = Share(of)
    for _ in range(2):
        told = transact([share.settlement(1)], [account], 1, at(0))
        assert not isinstance(told, Binding)
        share.take_in(told[0], 1)
        share.free -= 1
    refused = transact([share.settlement(1)], [account], 1, at(0))
    assert isinstance(refused, Binding) and (refused.left, refused.retry_after_ns) == (0, SECOND)
    share.free += 1
    assert transact([share.settlement(1)], [account], 1, at(0)) == [1]


def test_all_limits_are_taken_or_none() -> None:
    ofs = [limit(2), limit(100, Measure.TOKENS), limit(1000, Measure.BUDGET)]
    accounts = [Account(one.value) for one in ofs]
    entries = [Entry(of, 0, 0, units) for of, units in zip(ofs, (1, 60, 400), strict=True)]
    assert transact(entries, accounts, 1, at(0)) == [1, 60, 400]
    refused = transact(entries, accounts, 1, at(0))
    assert isinstance(refused, Binding) and refused.limit.measure is Measure.TOKENS
    assert (refused.left, refused.requested) == (40, 60)
    poor = [Entry(of, 0, 0, units) for of, units in zip(ofs, (1, 1000, 601), strict=True)]
    refused = transact(poor, accounts, 1, at(0))
    assert isinstance(refused, Binding), "a spent budget is told first"
    assert (refused.limit.measure, refused.retry_after_ns) == (Measure.BUDGET, None)
    assert [account.held for account in accounts] == [1, 60, 400]


def test_the_longest_wait_is_told() -> None:
    ofs = [limit(1), limit(60, Measure.TOKENS)]
    accounts = [Account(1, level=MINUTE_NS), Account(60, level=60 * MINUTE_NS)]
    short = transact([Entry(ofs[0], 0, 0, 1), Entry(ofs[1], 0, 0, 1)], accounts, 1, at(0))
    assert isinstance(short, Binding) and (short.limit.measure, short.retry_after_ns) == (Measure.REQUESTS, MINUTE_NS)
    never = transact([Entry(ofs[0], 0, 0, 1), Entry(ofs[1], 0, 0, 61)], accounts, 1, at(0))
    assert isinstance(never, Binding) and (never.limit.measure, never.retry_after_ns) == (Measure.TOKENS, None)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=60), st.integers(0, 60))
def test_a_budget_counts_each_settlement_until_it_was_ingested(costs: list[tuple[int, int]], seen: int) -> None:
    """reserve ≥ spend: what is left never goes below zero, whatever part of it the control plane has seen."""
    total = 10_000
    account, spent = Account(total), []
    share = Share(limit(total, Measure.BUDGET, version=1), purse=Spending())
    assert share.purse is not None
    for seq, (a, b) in enumerate(costs, 1):
        worst, cost = max(a, b), min(a, b)
        if share.free < worst:
            told = transact([share.settlement(worst)], [account], 1, at(0))
            if isinstance(told, Binding):
                continue
            share.take_in(told[0], worst)
        share.free -= cost
        share.purse.spent(cost, seq)
        spent.append((seq, cost))
    known = sum(cost for seq, cost in spent if seq <= seen)
    share.purse.ingested(seen)
    share.limit = limit(total - known, Measure.BUDGET, version=2)
    transact([share.settlement(0)], [account], 1, at(0))
    assert account.left(Measure.BUDGET) == total - sum(cost for _, cost in spent) >= 0
    assert share.in_flight == 0 and account.held == share.held == share.unseen


def test_an_older_figure_does_not_replace_a_newer_budget() -> None:
    account = Account(100, version=1)
    transact([Entry(limit(50, Measure.BUDGET, version=3), 0, 0, 0)], [account], 1, at(0))
    transact([Entry(limit(100, Measure.BUDGET, version=2), 0, 0, 0)], [account], 1, at(0))
    assert account.value == 50


def test_a_long_absence_of_the_control_plane_is_kept_small_and_safe() -> None:
    spending = Spending()
    for seq in range(1, 50_001):
        spending.spent(1, seq)
    assert len(spending._settled) <= 8192 and spending.unseen == 50_000
    spending.ingested(30_000)
    assert 20_000 <= spending.unseen <= 30_000, "in doubt it counts twice, never not at all"
    spending.ingested(50_000)
    assert spending.unseen == 0 and spending.to_return == 50_000


def test_slices_are_a_small_part_of_plenty_and_nothing_of_little() -> None:
    plenty = Account(16_000_000)
    assert plenty.slice_for(Measure.TOKENS, 100, 4) == (16_000_000 - 100) // 64
    assert Account(1000).slice_for(Measure.TOKENS, 100, 4) == 0


def test_a_limit_of_zero_admits_nothing() -> None:
    refused = transact([Entry(limit(0), 0, 0, 1)], [Account(0)], 1, at(MINUTE_NS))
    assert isinstance(refused, Binding) and refused.retry_after_ns is None
    assert Share(limit(0)).standing(2 * MINUTE_NS) == (0, MINUTE_NS)
