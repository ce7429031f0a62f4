"""What a workload costs here or there: the sums done again by hand, and what must hold for every workload."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.adapters.catalog_files import load_catalogue
from groundplane.domain.catalogue.entries import ProvisionedPrice, ProvisionedUnits, TokenListPrice
from groundplane.domain.planning.compare import (
    Option,
    Workload,
    buyable,
    cheapest_first,
    provisioned_options,
    replica_capacity,
    self_hosted_option,
    token_options,
)
from groundplane.domain.sizing.memory import Serving
from groundplane.domain.sizing.parallelism import fabric_of
from groundplane.errors import InvalidInput

CATALOGUE = load_catalogue()
USD = 1_000_000
PRICE = TokenListPrice(
    id="gpt-x",
    provider="azure",
    mode="chat",
    prompt_microusd_per_million=2_500_000,
    completion_microusd_per_million=10 * USD,
    cached_microusd_per_million=1_250_000,
    batch_discount=0.5,
    context=128_000,
    as_of="2026-08-01",
    sources=("list",),
    estimated=False,
)
UNITS = ProvisionedUnits(
    model="gpt-x",
    prompt_tokens_per_minute=2_500,
    completion_weight=4,
    minimum={"global": 15},
    step={"global": 5},
    as_of="2026-05-21",
    sources=("page",),
    estimated=False,
)
UNIT_PRICE = ProvisionedPrice(
    deployment="global",
    microusd_per_unit_hour=1 * USD,
    microusd_per_unit_month=260 * USD,
    microusd_per_unit_year=2_652 * USD,
    as_of="2026-07-07",
    sources=("calculator",),
    estimated=False,
)
STEADY = Workload(requests_per_minute=60, prompt_tokens=1_000, completion_tokens=200)


def test_a_month_by_the_token_is_its_tokens_at_list_price():
    standard, batch = token_options(STEADY, PRICE)
    assert STEADY.requests == 60 * 60 * 730 == 2_628_000
    # 2,628M prompt tokens at $2.50 and 525.6M completion tokens at $10.
    assert standard.microusd_per_month == (6_570 + 5_256) * USD
    assert standard.microusd_per_1000_requests == 4_500_000
    assert batch.microusd_per_month * 2 == standard.microusd_per_month
    assert "24 hours" in batch.notes[0]
    assert standard.price_as_of == "2026-08-01"


def test_cached_tokens_cost_their_own_price_and_the_full_one_where_there_is_none():
    half = replace(STEADY, cached_share=0.5)
    assert token_options(half, PRICE)[0].microusd_per_month == (3_285 + 1_642.5 + 5_256) * USD
    without = replace(PRICE, cached_microusd_per_million=None, batch_discount=0.0)
    (only,) = token_options(half, without)
    assert only.microusd_per_month == token_options(STEADY, PRICE)[0].microusd_per_month


def test_units_are_sized_for_the_peak_in_the_steps_they_are_sold_in():
    load = replace(STEADY, peak_factor=2)
    peak = provisioned_options(load, UNITS, UNIT_PRICE, PRICE)[0]
    # 1,000 + 4 × 200 = 1,800 tokens, 120 a minute ÷ 2,500 = 86.4 units, in steps of 5 from 15: 90.
    assert peak.what == "90 provisioned units reserved for a month, sized for the peak"
    assert peak.microusd_per_month == 90 * 260 * USD
    assert any("= 86.4 units" in line for line in peak.lines)
    assert peak.utilisation == pytest.approx(60 * 1_800 / (90 * 2_500))
    # All that 90 units carry in a month costs 225,000 ÷ 1,800 × 60 × 730 × $0.0045 by the token.
    assert peak.break_even == pytest.approx(90 * 260 / (125 * 60 * 730 * 0.0045))
    assert peak.price_as_of == "2026-05-21"


def test_fewer_units_spill_the_peak_over_to_the_standard_price():
    load = replace(STEADY, peak_factor=5)
    peak, spilled, year, spilled_year = provisioned_options(load, UNITS, UNIT_PRICE, PRICE)
    assert spilled.microusd_per_month < peak.microusd_per_month
    assert "spilled over" in spilled.what
    assert any(line.startswith("spillover:") for line in spilled.lines)
    assert year.microusd_per_month == peak.microusd_per_month * 2_652 // (12 * 260)
    assert spilled_year.microusd_per_month < spilled.microusd_per_month


def test_a_year_is_offered_only_where_it_is_cheaper_than_twelve_months():
    def terms(**prices: int | None) -> list[str]:
        found = provisioned_options(STEADY, UNITS, replace(UNIT_PRICE, **prices), PRICE)
        return sorted({option.what.split(" units ")[1].split(",")[0] for option in found})

    assert terms() == ["reserved for a month", "reserved for a year"]
    assert terms(microusd_per_unit_year=12 * 260 * USD) == ["reserved for a month"]
    assert terms(microusd_per_unit_month=None, microusd_per_unit_year=None) == ["hourly"]


def test_units_that_are_not_sold_or_have_no_weight_are_no_option():
    assert provisioned_options(STEADY, replace(UNITS, completion_weight=None), UNIT_PRICE, PRICE) == ()
    assert provisioned_options(STEADY, UNITS, replace(UNIT_PRICE, deployment="regional"), PRICE) == ()


def own(load: Workload, hosted: int | None = 10**9) -> Option:
    shape = CATALOGUE.model("llama-3.1-8b")
    card = CATALOGUE.hardware.accelerator("nvidia-a100-80gb-pcie")
    assert shape is not None
    assert card is not None
    machine = next(each for each in CATALOGUE.hardware.instance_types if each.name == "Standard_NC24ads_A100_v4")
    fabric = fabric_of(card, CATALOGUE.links["pcie4"], CATALOGUE.links["ib-ndr"], 1)
    capacity = replica_capacity(load, shape, Serving(), card, fabric, CATALOGUE.efficiencies)
    assert capacity is not None
    option = self_hosted_option(load, shape, capacity, machine, hosted)
    assert option is not None
    return option


def test_own_cards_are_counted_for_the_peak_and_paid_by_the_hour():
    option = own(STEADY)
    assert option.microusd_per_month == 3_673_000 * 730
    assert option.what.startswith("1 × Standard_NC24ads_A100_v4")
    # Used at that share, the machine would cost what the hosted price asks for the same requests.
    assert option.break_even is not None
    assert option.utilisation is not None
    assert option.break_even / option.utilisation == pytest.approx(option.microusd_per_month / 10**9)
    assert own(STEADY, None).break_even is None


def test_cards_that_are_off_at_night_cost_less_and_always_on_does_not():
    office = replace(STEADY, hours_per_day=8.0)
    assert own(office).microusd_per_month * 3 == pytest.approx(own(STEADY).microusd_per_month, rel=1e-6)
    assert own(replace(office, always_on=True)).microusd_per_month == own(STEADY).microusd_per_month


def test_retired_and_unpriced_machines_are_not_offered():
    offered = buyable(CATALOGUE.hardware.instance_types, date(2026, 11, 21))
    assert offered
    assert all(each.price_microusd_per_hour and not each.is_retired(date(2026, 11, 21)) for each in offered)


def test_levels_keep_the_average():
    for factor, share in ((1, 0.1), (3, 0.1), (20, 0.1), (3, 0.0), (2, 1.0)):
        load = replace(STEADY, peak_factor=factor, peak_share=share)
        assert sum(part * each for part, each in load.levels) == pytest.approx(60)
        assert sum(part for part, _ in load.levels) == pytest.approx(1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("requests_per_minute", 0.0),
        ("requests_per_minute", float("nan")),
        ("prompt_tokens", 0),
        ("completion_tokens", -1),
        ("peak_factor", 0.5),
        ("hours_per_day", 25.0),
        ("cached_share", 1.5),
    ],
)
def test_a_workload_that_can_not_be_is_named_with_its_number(field: str, value: float):
    with pytest.raises(InvalidInput, match=field):
        replace(STEADY, **{field: value})


LOADS = st.builds(
    Workload,
    requests_per_minute=st.floats(0.01, 10_000),
    prompt_tokens=st.integers(1, 50_000),
    completion_tokens=st.integers(0, 8_000),
    peak_factor=st.floats(1, 50),
    peak_share=st.floats(0, 1),
    hours_per_day=st.floats(0.5, 24),
    cached_share=st.floats(0, 1),
)


@settings(max_examples=60, deadline=None)
@given(LOADS)
def test_worst_is_never_below_expected_and_the_cheapest_comes_first(load: Workload):
    options = [*token_options(load, PRICE), *provisioned_options(load, UNITS, UNIT_PRICE, PRICE)]
    if load.prompt_tokens + load.completion_tokens <= 8_192:
        options.append(own(load))
    ranked = cheapest_first(options)
    assert [o.microusd_per_month for o in ranked] == sorted(o.microusd_per_month for o in options)
    for option in options:
        assert option.worst_microusd_per_month >= option.microusd_per_month >= 0
        assert option.utilisation is None or 0 <= option.utilisation <= 1.0001
        assert option.break_even is None or option.break_even >= 0


@settings(max_examples=60, deadline=None)
@given(LOADS, st.floats(1, 5))
def test_more_requests_never_cost_less_by_the_token(load: Workload, times: float):
    more = replace(load, requests_per_minute=load.requests_per_minute * times)
    assert token_options(more, PRICE)[0].microusd_per_month >= token_options(load, PRICE)[0].microusd_per_month
