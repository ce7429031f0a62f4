"""Filter, rank, price, verdict: the figures, and what holds for every set of offers."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.domain.hardware import Hardware
from groundplane.domain.planning import plan as planning
from groundplane.domain.planning.plan import Offer, PlanStatus, Verdict
from groundplane.domain.spec import JobSpec, Metadata, Resources
from groundplane.errors import Refused
from groundplane.units import cost_microusd

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
GIB = 2**30
NOTHING_KNOWN = Hardware()

JOB = JobSpec(
    metadata=Metadata(name="tiny", project="default", owner="ana", cost_center="research"),
    command=("true",),
    resources=Resources(cpus=2, memory_bytes=2 * GIB),
    end_date=NOW + timedelta(days=7),
    max_cost_microusd=500_000,
    max_duration_s=1800,
)
NODE = Offer(
    pool="local",
    node_type="this-machine",
    cpus=4,
    memory_bytes=8 * GIB,
    disk_free_bytes=100 * GIB,
    accelerators=0,
    accelerator="",
    price_microusd_per_hour=100_000,
    price_as_of=date(2026, 11, 1),
    price_source="set by the operator",
)
GPU_NODE = replace(
    NODE, node_type="gpu", accelerators=8, accelerator="NVIDIA A100-SXM4-80GB", cpus=96, memory_bytes=900 * GIB
)


def needing(**changed: object) -> JobSpec:
    return replace(JOB, resources=replace(JOB.resources, **changed))


def reasons(spec: JobSpec, offer: Offer) -> list[str]:
    return [f"{reason} | {reason.hint}" for reason in planning.fit(spec.resources, spec.pool, offer, NOTHING_KNOWN)]


def planned(spec: JobSpec, *offers: Offer, verdicts: tuple[Verdict, ...] = ()) -> planning.Plan:
    ranking = planning.rank(spec, offers, NOTHING_KNOWN)
    return planning.seal(spec, ranking, verdicts, id="plan-1", created_by="ana", now=NOW)


# ---------------------------------------------------------------- fit


def test_an_offer_that_fits_has_nothing_against_it():
    assert reasons(JOB, NODE) == []


def test_an_offer_that_does_not_fit_says_each_number():
    spec = needing(cpus=8, memory_bytes=16 * GIB, disk_bytes=200 * GIB, accelerators=1, accelerator="h100", nodes=2)
    assert reasons(spec, NODE) == [
        "cpus: needs 8 CPUs, has 4 | lower resources.cpus to 4",
        "memory: needs 16.0 GiB memory, has 8.0 GiB | lower resources.memory to 8GiB",
        "disk: needs 200.0 GiB disk, has 100.0 GiB | lower resources.disk to 100GiB",
        "accelerators: needs 1 × h100, has none | choose a pool with accelerators",
        "nodes: needs 2 nodes, has 1 | lower resources.nodes to 1",
    ]


def test_another_pools_offer_is_rejected_for_its_pool_alone():
    assert reasons(needing(cpus=99), replace(NODE, pool="cloud")) == [
        "pool: needs pool local, has pool cloud | set pool: cloud to use it"
    ]


def test_one_byte_too_few_is_shown_in_bytes():
    (only,) = reasons(needing(memory_bytes=8 * GIB + 1), NODE)
    assert only.startswith("memory: needs 8,589,934,593 bytes memory, has 8,589,934,592 bytes")


@pytest.mark.parametrize(
    ("asked", "fits"),
    [("", True), ("a100", True), ("A100-80GB", True), ("a100-sxm-80gb", True), ("a100-40gb", False), ("h100", False)],
)
def test_a_family_name_is_met_by_its_members(asked: str, fits: bool):
    assert (reasons(needing(accelerators=8, accelerator=asked), GPU_NODE) == []) is fits


def test_more_accelerators_than_a_node_has_suggests_more_nodes():
    assert reasons(needing(accelerators=16), GPU_NODE) == [
        "accelerators: needs 16 × accelerator, has 8 × NVIDIA A100-SXM4-80GB | spread it over more nodes"
    ]


# ---------------------------------------------------------------- the sum


@pytest.mark.parametrize(
    ("price_microusd", "nodes", "seconds", "sum_written_out"),
    [
        (100_000, 1, 1800, "$0.10/h × 1 node × 0.50 h = $0.05"),
        # Two eight-accelerator nodes for an hour and a half.
        (27_200_000, 2, 5400, "$27.20/h × 2 nodes × 1.50 h = $81.60"),
        # A forgotten weekend: eight nodes for sixty hours.
        (27_200_000, 8, 60 * 3600, "$27.20/h × 8 nodes × 60.00 h = $13,056.00"),
        (3_673_000, 4, 24 * 21 * 3600, "$3.673/h × 4 nodes × 504.00 h = $7,404.768"),
        (100_000, 1, 100, "$0.10/h × 1 node × 100 s ÷ 3,600 s/h = $0.002778"),
        (0, 1, 3600, "$0.00/h × 1 node × 1.00 h = $0.00"),
        (27_200_000, 2, 5400, "$27.20/h × 2 nodes × 1.50 h = $81.60"),
    ],
)
def test_the_worst_case_is_written_out_as_a_sum(price_microusd: int, nodes: int, seconds: int, sum_written_out: str):
    spec = replace(needing(nodes=nodes), max_duration_s=seconds)
    plan = planned(spec, replace(NODE, price_microusd_per_hour=price_microusd, nodes=nodes))
    assert plan.arithmetic == sum_written_out
    assert plan.worst_case_microusd == cost_microusd(price_microusd, seconds, nodes)


def test_the_longest_affordable_duration_is_exact_to_the_second():
    spec = replace(JOB, max_cost_microusd=10_000, max_duration_s=86_400)
    longest_s = planning.longest_s(spec, NODE)
    assert longest_s == 360
    assert cost_microusd(NODE.price_microusd_per_hour, longest_s) <= 10_000
    assert cost_microusd(NODE.price_microusd_per_hour, longest_s + 1) > 10_000
    assert planning.longest_s(spec, replace(NODE, price_microusd_per_hour=0)) == 86_400
    assert planning.compact_duration(93_784) == "1d2h3m4s"


# ---------------------------------------------------------------- rank and seal


def test_the_cheapest_fitting_offer_is_chosen_and_the_rest_are_shown():
    cheap, dear = replace(NODE, node_type="b"), replace(NODE, node_type="a", price_microusd_per_hour=200_000)
    small = replace(NODE, node_type="small", cpus=1, price_microusd_per_hour=1)
    elsewhere = replace(NODE, pool="cloud", node_type="c")
    plan = planned(JOB, dear, elsewhere, small, cheap)
    assert plan.offer == cheap
    assert [quote.offer for quote in plan.alternatives] == [dear]
    assert [(item.pool, item.node_type, item.reasons[0].rule) for item in plan.rejected] == [
        ("local", "small", "cpus"),
        ("cloud", "c", "pool"),
    ]
    assert plan.status is PlanStatus.READY


def test_among_equal_prices_the_smaller_node_is_taken():
    big = replace(NODE, node_type="a-big", memory_bytes=64 * GIB)
    assert planned(JOB, big, NODE).offer == NODE


def test_without_a_fitting_offer_the_plan_is_refused():
    plan = planned(needing(cpus=64), NODE)
    assert (plan.offer, plan.status, plan.worst_case_microusd) == (None, PlanStatus.REFUSED, 0)


def test_a_refusing_verdict_refuses_the_plan_and_a_warning_does_not():
    no = Verdict(rule="x", why="y", refused=Refused(rule="x", need="1", have="0", hint="z"))
    assert planned(JOB, NODE, verdicts=(no,)).status is PlanStatus.REFUSED
    assert (
        planned(JOB, NODE, verdicts=(Verdict(rule="x", why="y", refused=None, warning="w"),)).status is PlanStatus.READY
    )


def test_the_hash_is_bound_to_spec_offer_price_and_verdicts_but_not_to_free_disk():
    first = planned(JOB, NODE).hash
    assert first == planned(JOB, replace(NODE, disk_free_bytes=50 * GIB)).hash
    changed = {
        planned(replace(JOB, max_duration_s=1801), NODE).hash,
        planned(JOB, replace(NODE, price_microusd_per_hour=100_001)).hash,
        planned(JOB, replace(NODE, price_as_of=date(2026, 11, 2))).hash,
        planned(JOB, replace(NODE, node_type="other")).hash,
        planned(JOB, NODE, verdicts=(Verdict(rule="x", why="y", refused=None),)).hash,
    }
    assert len(changed | {first}) == 6


# ---------------------------------------------------------------- the world changed


def changed(plan: planning.Plan, *offers: Offer, verdicts: tuple[Verdict, ...] = ()) -> list[str]:
    assert plan.offer is not None
    here = [offer for offer in offers if planning.same_place(offer, plan.offer)]
    return [str(item) for item in planning.changes(plan, planning.rank(JOB, here, NOTHING_KNOWN), verdicts)]


def test_an_unchanged_world_changes_nothing():
    assert changed(planned(JOB, NODE), replace(NODE, disk_free_bytes=GIB)) == []


def test_a_cheaper_newcomer_is_no_reason_to_refuse():
    assert changed(planned(JOB, NODE), NODE, replace(NODE, node_type="new", price_microusd_per_hour=1)) == []


def test_a_changed_price_is_named_with_both_dates():
    later = replace(NODE, price_microusd_per_hour=120_000, price_as_of=date(2026, 11, 20))
    assert changed(planned(JOB, NODE), later) == [
        "price-unchanged: needs $0.10/h (2026-11-01), has $0.12/h (2026-11-20)"
    ]


def test_a_node_that_went_away_or_shrank_is_named():
    assert changed(planned(JOB, NODE)) == ["offer-still-there: needs local/this-machine, has it is no longer offered"]
    assert changed(planned(JOB, NODE), replace(NODE, memory_bytes=GIB)) == [
        "offer-still-fits: needs 2.0 GiB memory on local/this-machine, has memory 1.0 GiB"
    ]


def test_a_lost_accelerator_is_named_even_when_the_spec_needs_none():
    plan = planned(JOB, replace(NODE, accelerators=1, accelerator="l4"))
    assert changed(plan, NODE) == ["node-unchanged: needs this-machine with 1 × l4, has 0 × no accelerator"]


def test_a_rule_that_refuses_only_now_is_a_change_and_one_that_did_before_is_not():
    no = Verdict(rule="end-date-ahead", why="y", refused=Refused(rule="end-date-ahead", need="1", have="0", hint="z"))
    assert changed(planned(JOB, NODE), NODE, verdicts=(no,)) == ["end-date-ahead: needs 1, has 0"]
    assert changed(planned(JOB, NODE, verdicts=(no,)), NODE, verdicts=(no,)) == []


# ---------------------------------------------------------------- properties

_offers = st.builds(
    Offer,
    pool=st.sampled_from(["local", "cloud"]),
    node_type=st.sampled_from("abcdef"),
    cpus=st.integers(1, 8).map(float),
    memory_bytes=st.integers(GIB, 16 * GIB),
    disk_free_bytes=st.integers(0, 16 * GIB),
    accelerators=st.integers(0, 2),
    accelerator=st.sampled_from(["l4", "a100-80gb"]),
    price_microusd_per_hour=st.integers(0, 10**9),
    price_as_of=st.just(date(2026, 11, 1)),
    price_source=st.just("x"),
    nodes=st.integers(1, 4),
)
_needs = st.builds(
    Resources,
    cpus=st.integers(1, 8).map(float),
    memory_bytes=st.integers(GIB, 16 * GIB),
    disk_bytes=st.integers(0, 16 * GIB),
    accelerators=st.integers(0, 2),
    accelerator=st.sampled_from(["", "l4", "a100"]),
    nodes=st.integers(1, 4),
)
_specs = st.builds(lambda need, s: replace(JOB, resources=need, max_duration_s=s), _needs, st.integers(1, 10**7))


@settings(deadline=None)
@given(spec=_specs, offer=_offers, more=st.integers(0, GIB))
def test_more_of_anything_never_makes_a_fitting_offer_unfit(spec: JobSpec, offer: Offer, more: int):
    bigger = replace(
        offer,
        cpus=offer.cpus + more,
        memory_bytes=offer.memory_bytes + more,
        disk_free_bytes=offer.disk_free_bytes + more,
        accelerators=offer.accelerators + (more if offer.accelerators else 0),
        nodes=offer.nodes + more,
    )
    before = {reason.rule for reason in planning.fit(spec.resources, spec.pool, offer, NOTHING_KNOWN)}
    after = {reason.rule for reason in planning.fit(spec.resources, spec.pool, bigger, NOTHING_KNOWN)}
    # A node with enough accelerators may now show that they are of the wrong kind.
    assert after - before <= ({"accelerator"} if "accelerators" in before else set())


@settings(deadline=None)
@given(spec=_specs, offers=st.lists(_offers, max_size=1 + planning.MAX_ALTERNATIVES))
def test_every_offer_is_ranked_or_rejected_and_the_cheaper_never_below(spec: JobSpec, offers: list[Offer]):
    ranking = planning.rank(spec, offers, NOTHING_KNOWN)
    assert len(ranking.quotes) + len(ranking.rejected) == len(offers)
    costs = [quote.worst_case_microusd for quote in ranking.quotes]
    assert costs == sorted(costs)
    prices = [quote.offer.price_microusd_per_hour for quote in ranking.quotes]
    assert all(cost >= 0 for cost in costs)
    for quote in ranking.quotes:
        assert quote.worst_case_microusd == cost_microusd(
            quote.offer.price_microusd_per_hour, spec.max_duration_s, spec.resources.nodes
        )
        cheaper = replace(quote.offer, price_microusd_per_hour=max(0, quote.offer.price_microusd_per_hour - 10_000))
        again = planning.rank(spec, [*offers, cheaper], NOTHING_KNOWN)
        positions = [item.offer for item in again.quotes]
        assert quote.offer not in positions or positions.index(cheaper) <= positions.index(quote.offer)
    assert len(prices) == len(costs)


@settings(deadline=None)
@given(spec=_specs, offers=st.lists(_offers, max_size=12))
def test_the_order_offers_come_in_does_not_matter(spec: JobSpec, offers: list[Offer]):
    assert planned(spec, *offers).hash == planned(spec, *reversed(offers)).hash
