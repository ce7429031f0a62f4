"""Limits hold exactly, under any order of asking, settling and waiting."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain.limits import MINUTE_NS, Ask, Limit, Meter, Purse, admit

SECOND = 1_000_000_000


def fits(meter: Meter, units: int, now_ns: int) -> bool:
    return meter.wait_ns(units, now_ns) == 0


@given(st.integers(1, 5000), st.integers(0, 10**18))
def test_a_burst_admits_exactly_the_limit(limit: int, now_ns: int) -> None:
    meter = Meter(limit, at_ns=now_ns)
    admitted = 0
    while fits(meter, 1, now_ns):
        meter.take(1)
        admitted += 1
    assert admitted == limit


@given(st.integers(1, 1000), st.lists(st.integers(0, 10 * SECOND), max_size=300))
def test_no_interval_gets_more_than_limit_plus_refill(limit: int, pauses: list[int]) -> None:
    meter, now, taken = Meter(limit), 0, 0
    for pause in pauses:
        now += pause
        while fits(meter, 1, now):
            meter.take(1)
            taken += 1
        assert taken * MINUTE_NS <= limit * (MINUTE_NS + now)


@given(st.integers(1, 100_000), st.integers(0, 200_000), st.integers(1, 200_000))
def test_the_wait_is_the_truth_to_the_nanosecond(limit: int, used: int, units: int) -> None:
    meter = Meter(limit, level=min(used, limit) * MINUTE_NS)
    wait = meter.wait_ns(units, 0)
    if units > limit:
        assert wait is None
        return
    assert wait is not None
    if wait:
        assert not fits(Meter(limit, level=meter.level), units, wait - 1)
    assert fits(Meter(limit, level=meter.level), units, wait)


@st.composite
def _steps(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """(pause, reserved, used at most reserved, finish after that many more steps)."""
    step = st.integers(1, 400).flatmap(
        lambda units: st.tuples(st.integers(0, 20 * SECOND), st.just(units), st.integers(0, units), st.integers(0, 30))
    )
    return draw(st.lists(step, max_size=80))


@given(_steps())
def test_settled_tokens_never_pass_the_limit_and_unused_ones_return(steps: list[tuple[int, int, int, int]]) -> None:
    limit = 1000
    meter, now = Meter(limit), 0
    running: list[tuple[int, int, int]] = []
    settled: list[tuple[int, int]] = []
    for index, (pause, reserved, used, after) in enumerate(steps):
        now += pause
        for one in [one for one in running if one[0] <= index]:
            running.remove(one)
            meter.settle(one[1], one[2], now)
            settled.append((now, one[2]))
        if fits(meter, reserved, now):
            meter.reserve(reserved)
            running.append((index + after, reserved, used))
        assert meter.reserved == sum(one[1] for one in running)
    for start in {at for at, _ in settled}:
        for end in {at for at, _ in settled if at >= start}:
            spent = sum(units for at, units in settled if start <= at <= end)
            assert spent * MINUTE_NS <= limit * (MINUTE_NS + end - start)


def test_more_than_reserved_is_a_debt_that_drains() -> None:
    meter = Meter(60)
    meter.reserve(10)
    meter.settle(10, 120, 0)
    assert meter.standing(0) == (0, 2 * MINUTE_NS)
    assert meter.wait_ns(1, 0) == MINUTE_NS + SECOND
    assert fits(meter, 1, MINUTE_NS + SECOND)


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    meter = Meter(1, at_ns=10 * MINUTE_NS)
    meter.take(1)
    assert not fits(meter, 1, 0)
    assert not fits(meter, 1, 10 * MINUTE_NS)
    assert fits(meter, 1, 11 * MINUTE_NS)


def test_a_new_limit_keeps_what_was_used() -> None:
    meter = Meter(10)
    for _ in range(10):
        meter.take(1)
    meter.change_limit(15, 0)
    assert meter.standing(0)[0] == 5


def test_all_limits_are_taken_or_none() -> None:
    requests, tokens, purse = Meter(2), Meter(100), Purse(1000)
    assert admit(requests, tokens, purse, Ask(60, 400), 0) is None
    before = (requests.level, tokens.reserved, purse.reserved)
    refused = admit(requests, tokens, purse, Ask(60, 400), 0)
    assert refused is not None and refused.limit is Limit.TOKENS
    assert (refused.limit_value, refused.left, refused.requested) == (100, 40, 60)
    assert refused.retry_after_ns == 12 * SECOND
    refused = admit(requests, tokens, purse, Ask(1, 601), 0)
    assert refused is not None and (refused.limit, refused.retry_after_ns) == (Limit.BUDGET, None)
    assert before == (requests.level, tokens.reserved, purse.reserved)


def test_the_longest_wait_is_told() -> None:
    requests, tokens = Meter(1), Meter(60)
    requests.take(1)
    tokens.take(60)
    short = admit(requests, tokens, Purse(10), Ask(1, 0), 0)
    assert short is not None and (short.limit, short.retry_after_ns) == (Limit.REQUESTS, MINUTE_NS)
    never = admit(requests, tokens, Purse(10), Ask(61, 0), 0)
    assert never is not None and (never.limit, never.retry_after_ns) == (Limit.TOKENS, None)


def test_no_budget_admits_nothing() -> None:
    refused = admit(None, None, Purse(None), Ask(1, 0), 0)
    assert refused is not None and refused.limit is Limit.BUDGET


def test_limits_that_are_not_set_do_not_bind() -> None:
    assert admit(None, None, Purse(0), Ask(10**9, 0), 0) is None


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=60), st.integers(0, 60))
def test_a_purse_counts_each_settlement_until_it_was_ingested(costs: list[tuple[int, int]], seen: int) -> None:
    """reserve ≥ spend: what is left never goes below zero, whatever part of it the control plane has seen."""
    total = 10_000
    purse, spent = Purse(total), []
    for seq, (a, b) in enumerate(costs, 1):
        reserved, cost = max(a, b), min(a, b)
        if reserved > purse.left:
            continue
        purse.reserve(reserved)
        purse.settle(reserved, cost, seq)
        spent.append((seq, cost))
    known = sum(cost for seq, cost in spent if seq <= seen)
    purse.restate(total - known, seen)
    assert purse.left == total - sum(cost for _, cost in spent) >= 0
    assert purse.reserved == 0


def test_a_long_absence_of_the_control_plane_is_kept_small_and_safe() -> None:
    purse = Purse(10**9)
    for seq in range(1, 50_001):
        purse.settle(0, 1, seq)
    assert len(purse._settled) <= 8192 and purse.unseen == 50_000
    purse.restate(10**9 - 30_000, 30_000)
    assert 10**9 - 60_000 <= purse.left <= 10**9 - 50_000, "in doubt it counts twice, never not at all"
    purse.restate(10**9 - 50_000, 50_000)
    assert purse.left == 10**9 - 50_000


def test_a_limit_of_zero_admits_nothing() -> None:
    meter = Meter(0)
    assert meter.wait_ns(1, MINUTE_NS) is None
    assert meter.standing(2 * MINUTE_NS) == (0, MINUTE_NS)
