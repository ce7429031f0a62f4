"""Every way to buy the work: what holds for all specs and offers, and the figures of spot, terms, data and quota."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.adapters.catalog_files import load_catalogue
from groundplane.domain.planning import plan as planning
from groundplane.domain.planning import quota_check, storage_check
from groundplane.domain.planning.checks import CHECKS
from groundplane.domain.planning.choices import Judge, Market, cloud_offers
from groundplane.domain.planning.outlook import Choice, Purchase
from groundplane.domain.planning.plan import Offer
from groundplane.domain.planning.recon import CloudView, Quota, SkuRow, Wanted, survey
from groundplane.domain.planning.work import Meter, Work, work_of
from groundplane.domain.spec import DataSource, JobSpec, Metadata, Resources, TrainingNeed
from groundplane.errors import Refused
from groundplane.units import cost_microusd

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
GIB = 2**30
CATALOGUE = load_catalogue()
METER = Meter(CATALOGUE)
ROWS = survey(CATALOGUE.hardware, (), Wanted(include_retired=True), NOW.date()).rows

JOB = JobSpec(
    metadata=Metadata(name="tiny", project="default", owner="ana", cost_center="research"),
    command=("true",),
    resources=Resources(cpus=4, memory_bytes=64 * GIB, accelerators=1),
    end_date=NOW + timedelta(days=30),
    max_cost_microusd=10**12,
    max_duration_s=5 * 86_400,
)
NODE = Offer(
    pool="gpu", node_type="node", cpus=96, memory_bytes=900 * GIB, disk_free_bytes=2**42, accelerators=8,
    accelerator="nvidia-a100-80gb-sxm4", price_microusd_per_hour=10_000_000, price_as_of=date(2026, 11, 1),
    price_source="test", nodes=64,
)  # fmt: skip


def judge(spec: JobSpec, *pools: Offer, rows: tuple[SkuRow, ...] = ROWS) -> tuple[Judge, list[Offer]]:
    market = Market(pools=pools, rows=rows, terms=CATALOGUE.purchase_terms, registered=frozenset({"local"}))
    work = work_of(spec, CATALOGUE)
    assert not isinstance(work, Refused), work
    made = Judge(spec, market, CATALOGUE, METER, work, now=NOW, stale_days=30)
    return made, [*pools, *cloud_offers(market, spec.resources)]


def choices(spec: JobSpec, *pools: Offer) -> tuple[Choice, ...]:
    made, offers = judge(spec, *pools)
    return made.choices(offers, None)[0]


needs = st.builds(
    TrainingNeed,
    params=st.sampled_from([30_000_000, 10**9, 7 * 10**9, 70 * 10**9]),
    method=st.sampled_from(["full", "lora", "qlora"]),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
    batch=st.integers(1, 8),
    gradient_checkpointing=st.booleans(),
    tokens=st.sampled_from([0, 10**6, 10**9]),
    epochs=st.sampled_from([0.5, 1.0, 3.0]),
)
specs = st.builds(
    lambda training, cpus, gib, accelerators, nodes, hours, rate, every_s: replace(
        JOB,
        training=training,
        resources=Resources(cpus=cpus, memory_bytes=gib * GIB, accelerators=accelerators, nodes=nodes),
        max_duration_s=hours * 3600,
        interruptions_per_day=rate,
        checkpoint_every_s=every_s,
    ),
    st.none() | needs,
    st.sampled_from([1, 8, 64]),
    st.sampled_from([1, 64, 512]),
    st.sampled_from([0, 1, 8]),
    st.sampled_from([1, 2, 8]),
    st.sampled_from([1, 24, 240]),
    st.none() | st.sampled_from([0.0, 1.0, 40.0]),
    st.none() | st.sampled_from([60, 7_200]),
)


# ---------------------------------------------------------------- what always holds


@settings(max_examples=10, deadline=None)
@given(specs)
def test_the_worst_case_is_never_below_what_is_expected_and_sums_add_up(spec: JobSpec) -> None:
    for each in choices(spec, NODE):
        assert 0 <= each.expected_microusd <= each.worst_case_microusd
        seconds = 8_760 * 3600 if each.purchase is Purchase.RESERVED else round(each.hours * 3600)
        assert each.expected_microusd == -(-each.price_microusd_per_hour * each.nodes * seconds // 3600)
        assert each.idle_weekend_microusd == each.price_microusd_per_hour * 60 * each.nodes
        assert each.fits is not bool(each.reasons)


@settings(max_examples=10, deadline=None)
@given(specs)
def test_the_cheapest_fitting_choice_comes_first_and_misfits_last(spec: JobSpec) -> None:
    found = choices(spec, NODE)
    fitting = [each.expected_microusd for each in found if each.fits]
    assert fitting == sorted(fitting)
    assert [each.fits for each in found] == sorted((each.fits for each in found), reverse=True)


@settings(max_examples=20, deadline=None)
@given(specs, st.sampled_from(["cpus", "memory_bytes", "disk_free_bytes", "nodes"]), st.integers(1, 8))
def test_more_of_anything_never_makes_a_fitting_offer_unfit(spec: JobSpec, what: str, times: int) -> None:
    made, _ = judge(spec, NODE)
    bigger = replace(NODE, **{what: getattr(NODE, what) * times})
    if made.choice(NODE).fits:
        assert made.choice(bigger).fits


@settings(max_examples=20, deadline=None)
@given(specs)
def test_more_memory_on_the_card_never_makes_it_unfit(spec: JobSpec) -> None:
    small, big = (replace(NODE, accelerator=f"nvidia-a100-{size}gb-sxm4") for size in (40, 80))
    made, _ = judge(spec, small, big)
    if made.choice(small).fits:
        assert made.choice(big).fits


@settings(max_examples=20, deadline=None)
@given(specs, st.integers(0, 9_999_999))
def test_a_cheaper_equal_offer_is_never_ranked_below(spec: JobSpec, price: int) -> None:
    cheaper = replace(NODE, node_type="same", price_microusd_per_hour=price)
    made, _ = judge(spec, NODE, cheaper)
    order = [each.node_type for each in made.choices([NODE, cheaper], None)[0]]
    assert order == ["same", "node"]
    ranking = planning.rank(replace(spec, pool="gpu"), [NODE, cheaper], CATALOGUE.hardware, also=made)
    assert [quote.offer.node_type for quote in ranking.quotes] in ([], ["same", "node"])


@settings(max_examples=30, deadline=None)
@given(needs)
def test_memory_on_each_card_is_the_sum_of_its_lines(need: TrainingNeed) -> None:
    work = work_of(replace(JOB, training=need), CATALOGUE)
    assert isinstance(work, Work)
    fit = METER.on(work, accelerator=NODE.accelerator, accelerators=8, cpus=96, nodes=1)
    assert fit.report is not None
    assert sum(line.size_bytes for line in fit.report.lines) == fit.report.per_card_bytes


# ---------------------------------------------------------------- the clouds' terms


def test_spot_that_is_taken_away_faster_than_it_works_is_no_choice() -> None:
    need = TrainingNeed(model="llama-3.1-8b", method="lora", tokens=10**8)
    spec = replace(JOB, training=need, interruptions_per_day=30, checkpoint_every_s=7_200)
    spots = [each for each in choices(spec) if each.purchase is Purchase.SPOT]
    assert spots and not any(each.fits for each in spots)
    assert {reason.rule for each in spots for reason in each.reasons} >= {"interruptions"}


def test_a_term_pays_from_its_price_over_the_list_price() -> None:
    found = [each for each in choices(JOB) if each.purchase is Purchase.RESERVED]
    assert found
    for each in found:
        listed = next(r for r in ROWS if f"{r.cloud} {r.region}" == each.place and r.name == each.node_type)
        assert listed.price_microusd_per_hour is not None
        pays = each.price_microusd_per_hour * 8_760 / listed.price_microusd_per_hour
        assert any(f"it pays from {-int(-pays // 1):,} h" in note for note in each.notes), (each.notes, pays)
        assert each.worst_case_microusd == cost_microusd(each.price_microusd_per_hour, 8_760 * 3600)


def test_shares_of_a_card_and_machines_without_a_price_are_no_offers() -> None:
    _, offers = judge(JOB)
    assert all(offer.price_microusd_per_hour > 0 for offer in offers)
    assert not [offer for offer in offers if offer.node_type == "Standard_NV6ads_A10_v5"]
    assert not [offer for offer in offers if offer.node_type == "Standard_NC6s_v3"]
    named = replace(JOB, resources=replace(JOB.resources, instance_type="NC6s_v3"))
    made, offers = judge(named)
    (retired, *_) = [offer for offer in offers if offer.node_type == "Standard_NC6s_v3"]
    assert [reason.rule for reason in made.reasons(retired)] == ["retired"]


def test_a_small_model_may_be_trained_on_processors_and_a_big_one_not() -> None:
    node = replace(NODE, accelerators=0, accelerator="", cpus=64)
    for params, rules in ((30_000_000, []), (8 * 10**9, ["gpu-work"])):
        spec = replace(
            JOB, training=TrainingNeed(params=params, tokens=10**7), resources=Resources(cpus=8, memory_bytes=64 * GIB)
        )
        made, _ = judge(spec, node)
        assert [reason.rule for reason in made.reasons(node)] == rules


# ---------------------------------------------------------------- quota and data


def azure(*quotas: Quota, region: str = "eastus") -> CloudView:
    return CloudView(cloud="azure", region=region, source="az", read_at=NOW, quotas=quotas)


def limit(used: float | None, most: float | None, region: str = "eastus", family: str = "StandardNCADSA100v4Family"):
    return Quota(cloud="azure", region=region, family=family, unit="vCPU", used=used, limit=most)


def a100(*views: CloudView) -> SkuRow:
    rows = survey(CATALOGUE.hardware, views, Wanted(sku="NC24ads_A100_v4"), NOW.date()).rows
    return rows[0]


@pytest.mark.parametrize(
    ("used", "most", "nodes", "words", "short", "lead"),
    [
        (96, 96, 1, "96 of 96 vCPU used", True, (24, 72)),
        (0, 96, 4, "0 of 96 vCPU used", False, (0, 0)),
        (0, 96, 5, "0 of 96 vCPU used", True, (24, 72)),
        (None, 96, 1, "unknown", False, None),
    ],
)
def test_quota_is_held_against_all_nodes(
    used: float | None, most: float, nodes: int, words: str, short: bool, lead: tuple[int, int] | None
) -> None:
    room = quota_check.room_for(a100(azure(limit(used, most))), nodes, spot=False)
    assert (room.words, room.short, room.lead_time_h) == (words, short, lead)


def test_a_regions_total_binds_when_it_is_tighter() -> None:
    row = a100(azure(limit(0, 96), limit(340, 350, family="cores")))
    room = quota_check.room_for(row, 1, spot=False)
    assert room.short and room.words == "340 of 350 vCPU used"
    assert quota_check.room_for(row, 1, spot=True).known is False


def test_a_missing_quota_source_is_unknown_and_not_zero() -> None:
    room = quota_check.room_for(a100(), 1, spot=False)
    assert not room.known and not room.short and room.lead_time_h is None


def test_a_request_is_told_the_named_familys_quota_or_the_roomiest() -> None:
    views = [azure(limit(96, 96), limit(0, 40, family="StandardNCadsH100v5Family"))]
    rows = survey(CATALOGUE.hardware, views, Wanted(), NOW.date()).rows
    (named,) = quota_check.as_facts(rows, ["NC24ads_A100_v4"])
    assert (named.left, named.family, named.unit) == (0, "StandardNCADSA100v4Family", "vCPU")
    (roomiest,) = quota_check.as_facts(rows)
    assert (roomiest.left, roomiest.family) == (40, "StandardNCadsH100v5Family")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10**14), st.integers(1, 20), st.integers(10**6, 10**10), st.integers(60, 10**6))
def test_data_is_refused_exactly_when_it_can_not_be_read_in_time(
    size: int, passes: int, speed: int, have_s: int
) -> None:
    source = DataSource(name="d", path="/d", size_bytes=size, passes=passes, bytes_per_s=speed)
    spec = replace(JOB, data=(source,), max_duration_s=have_s)
    (reading,), wrong = storage_check.readings(spec, CATALOGUE.storage)
    refused = storage_check.too_slow(spec, (reading,), CATALOGUE.storage)
    assert not wrong
    assert bool(refused) is (size * passes / speed > have_s)
    assert bool(storage_check.staging(spec, (reading,), CATALOGUE.storage, None)) is bool(refused)
    faster = replace(spec, data=(replace(source, bytes_per_s=speed * 2),))
    (again,), _ = storage_check.readings(faster, CATALOGUE.storage)
    assert again.total_s < reading.total_s


def test_a_tier_gives_by_its_size_and_an_unknown_one_is_named() -> None:
    tier = DataSource(name="d", path="/d", size_bytes=2 * 10**12, tier="az-amlfs-500")
    (reading,), _ = storage_check.readings(replace(JOB, data=(tier,)), CATALOGUE.storage)
    assert reading.bytes_per_s == pytest.approx(500e6 * 2e12 / 2**40)
    _, (wrong,) = storage_check.readings(replace(JOB, data=(replace(tier, tier="az-blob-hott"),)), CATALOGUE.storage)
    assert wrong.hint.startswith("did you mean az-blob-hot")


def test_the_guide_names_every_check() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "planning.md").read_text(encoding="utf-8")
    assert [check.id for check in CHECKS if f"`{check.id}`" not in guide] == []
