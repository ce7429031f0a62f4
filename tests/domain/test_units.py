"""Money, bytes and durations, as people write them and as nobody should."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.units import (
    cost_microusd,
    format_bytes,
    format_count,
    format_duration,
    format_usd,
    parse_bytes,
    parse_duration_s,
    parse_usd,
    usd_decimals,
)


@pytest.mark.parametrize(
    ("written", "microusd"),
    [
        ("$1,234.50", 1_234_500_000),
        ("0.5", 500_000),
        (12, 12_000_000),
        ("USD 3", 3_000_000),
        (".25", 250_000),
        ("$0", 0),
    ],
)
def test_money_is_read_exactly(written: str | int, microusd: int):
    assert parse_usd(written) == microusd


@pytest.mark.parametrize(
    "written", ["", "$", "free", "-3", "1e999999999", "9" * 5_000, "1_000", "١٢", "inf", "nan", "0.0000001", "1.2.3"]
)
def test_what_is_no_money_is_refused_at_once(written: str):
    with pytest.raises(ValueError, match=r"no amount|at least|finer"):
        parse_usd(written)


@given(st.integers(0, 10**15))
def test_an_amount_of_whole_cents_survives_being_shown(cents: int):
    assert parse_usd(format_usd(cents * 10_000)) == cents * 10_000


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1))
def test_in_a_column_nothing_that_is_something_is_shown_as_nothing(amounts: list[int]):
    shown = [format_usd(amount, usd_decimals(amounts)) for amount in amounts]
    assert all(any(digit in text for digit in "123456789") == bool(a) for a, text in zip(amounts, shown, strict=True))
    assert len({len(text.partition(".")[2]) for text in shown}) == 1


def test_prices_in_a_column_are_exact():
    prices = [3_673_000, 100_000, 27_200_000]
    assert [format_usd(p, usd_decimals(prices, exact=True)) for p in prices] == ["$3.673", "$0.100", "$27.200"]
    assert usd_decimals([]) == usd_decimals(prices) == 2


@pytest.mark.parametrize(
    ("amount", "shown"), [(8_234, "$0.0082"), (10_450, "$0.01"), (17, "$0.000017"), (5, "$0.000005")]
)
def test_estimates_in_a_column_show_two_digits_of_the_finest(amount: int, shown: str):
    assert format_usd(amount, usd_decimals([amount, 4_281_888_000], rough=True)) == shown


@given(st.integers(0, 10**10))
def test_a_bill_is_never_less_than_its_exact_price(price: int):
    for seconds in (0.001, 1, 59.5, 3_600):
        cost = cost_microusd(price, seconds, 3)
        assert cost * 3_600_000 >= price * round(seconds * 1000) * 3
        assert (cost - 1) * 3_600_000 < price * round(seconds * 1000) * 3


@pytest.mark.parametrize(
    ("written", "count"), [("16GiB", 16 * 2**30), ("16gi", 16 * 2**30), ("500MB", 500 * 10**6), ("1.5K", 1_536), (7, 7)]
)
def test_sizes_are_read_in_both_kinds_of_units(written: str | int, count: int):
    assert parse_bytes(written) == count


@pytest.mark.parametrize("written", ["", "-1", "1 GiB 2", "many", "1e3", "0x10", "1GiBs"])
def test_what_is_no_size_is_refused(written: str):
    with pytest.raises(ValueError, match="no size"):
        parse_bytes(written)


def test_sizes_and_durations_are_shown_for_people():
    assert [format_bytes(count) for count in (0, 1_023, 4 * 2**20, 2**50)] == ["0 B", "1023 B", "4.0 MiB", "1.0 PiB"]
    assert [format_duration(s) for s in (0, 42, 5_400, 273_600)] == ["0s", "42s", "1h 30m", "3d 4h"]


def test_one_of_a_thing_is_not_several():
    shown = [format_count(count, "CPU") for count in (0, 0.5, 1, 1.0, 1.5, 2, 12_000)]
    assert shown == ["0 CPUs", "0.5 CPUs", "1 CPU", "1 CPU", "1.5 CPUs", "2 CPUs", "12,000 CPUs"]


@pytest.mark.parametrize(
    ("written", "seconds"), [("1h30m", 5_400), ("90s", 90), ("2d", 172_800), (45, 45), ("0.5h", 1_800)]
)
def test_durations_are_read_as_written(written: str | int, seconds: int):
    assert parse_duration_s(written) == seconds


@pytest.mark.parametrize("written", ["", "-1s", "soon", "1:30", "1h 30m x", "1e3s"])
def test_what_is_no_duration_is_refused(written: str):
    with pytest.raises(ValueError, match="no duration"):
        parse_duration_s(written)
