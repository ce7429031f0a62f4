"""Confidence intervals: against published values, and what must hold of any of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain.statistics import Sample, difference, quantile, wilson

counts = st.integers(1, 400).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials)))


def counted(successes: int, trials: int) -> Sample:
    return Sample(successes=successes, trials=trials)


def test_wilson_gives_the_published_interval() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3: 81 of 263.
    low, high = wilson(81, 263, 0.95)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert tuple(round(edge, 4) for edge in wilson(0, 20, 0.95)) == (0.0, 0.1611)


def test_the_difference_of_shares_gives_the_published_interval() -> None:
    # Newcombe 1998, "Interval estimation for the difference", table II, method 10: 56/70 − 48/80.
    low, high = difference(counted(56, 70), counted(48, 80), 0.95)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


@given(counts, counts)
def test_the_difference_holds_what_was_seen_and_turns_with_its_sides(
    new: tuple[int, int], old: tuple[int, int]
) -> None:
    low, high = difference(counted(*new), counted(*old), 0.95)
    seen = new[0] / new[1] - old[0] / old[1]
    assert low - 1e-12 <= seen <= high + 1e-12
    turned = difference(counted(*old), counted(*new), 0.95)
    assert turned == pytest.approx((-high, -low))


def test_more_examples_make_the_interval_narrower() -> None:
    few, many = (difference(counted(9 * n, 10 * n), counted(8 * n, 10 * n), 0.95) for n in (2, 200))
    assert many[1] - many[0] < (few[1] - few[0]) / 5


def test_resampling_is_the_same_every_time_and_near_the_normal_interval() -> None:
    new = Sample(values=tuple(0.5 + (i * 37 % 100) / 200 for i in range(150)))
    old = Sample(values=tuple(0.4 + (i * 53 % 100) / 200 for i in range(150)))
    first, second = difference(new, old, 0.95), difference(new, old, 0.95)
    assert first == second
    doubled = (Sample(values=new.values * 2), Sample(values=old.values * 2))
    normal = difference(*doubled, 0.95)
    assert first[0] == pytest.approx(0.1 - (0.1 - normal[0]) * 2**0.5, abs=0.01)


def test_counts_and_the_scores_they_stand_for_agree() -> None:
    scores = Sample(values=(1.0,) * 180 + (0.0,) * 20)
    low, high = difference(scores, counted(150, 200), 0.95)
    exact = difference(counted(180, 200), counted(150, 200), 0.95)
    assert (low, high) == pytest.approx(exact, abs=0.01)


def test_a_quantile_is_a_value_that_was_measured() -> None:
    assert quantile([5, 1, 2, 3, 4], 0.95) == 5
    assert quantile(list(range(1, 101)), 0.95) == 95
    assert quantile([7.0], 0.5) == 7.0
    with pytest.raises(ValueError, match="of 0 values"):
        quantile([], 0.5)


def test_nothing_is_told_from_nothing() -> None:
    assert not Sample().usable
    assert not Sample(values=(0.5,)).usable
    assert not counted(0, 0).usable
    assert Sample().mean is None
    with pytest.raises(ValueError, match="no share"):
        wilson(3, 2, 0.95)
