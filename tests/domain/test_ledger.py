"""Compute becomes money in slices that add up to the whole."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain import ledger
from groundplane.domain.ledger import NO_GROUP, UsageRecord
from groundplane.domain.run import Attempt, Run
from groundplane.domain.spec import JobSpec, Metadata, Resources
from groundplane.units import cost_microusd

START = datetime(2026, 11, 20, 12, tzinfo=UTC)
SPEC = JobSpec(
    metadata=Metadata(name="tiny", project="vision", owner="ana", cost_center="r&d"),
    command=("true",),
    resources=Resources(cpus=1, memory_bytes=1),
    end_date=START,
    max_cost_microusd=1,
    max_duration_s=1,
)
RUN = Run(
    id="run-1",
    name="tiny",
    project="vision",
    owner="ana",
    cost_center="r&d",
    spec=SPEC,
    spec_digest="",
    plan_id="plan-1",
    hold_id="hold-1",
    pool="local",
    price_microusd_per_hour=100_000,
    created_by="ana",
    created_at=START,
    end_date=START,
    due_at=None,
)
ATTEMPT = Attempt(id="attempt-1", run_id="run-1", number=1, pool="local", created_at=START, started_at=START)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_an_hour_costs_the_hourly_price() -> None:
    entry = ledger.compute_entry(RUN, ATTEMPT, since=START, until=at(3600), now=at(3601))
    assert (entry.amount_microusd, entry.quantity, entry.kind) == (100_000, 3600, "compute")
    assert (entry.project, entry.owner, entry.cost_center, entry.run_id) == ("vision", "ana", "r&d", "run-1")
    assert (entry.hold_id, entry.occurred_at, entry.posted_at) == ("hold-1", START, at(3601))


def test_every_node_is_paid() -> None:
    run = replace(RUN, spec=replace(SPEC, resources=replace(SPEC.resources, nodes=8)))
    entry = ledger.compute_entry(run, ATTEMPT, since=START, until=at(3600), now=START)
    assert (entry.amount_microusd, entry.quantity) == (800_000, 28_800)


@given(
    price=st.integers(0, 10**9),
    nodes=st.integers(1, 64),
    milliseconds=st.lists(st.integers(0, 10**8), min_size=1, max_size=40),
)
def test_slices_add_up_to_the_whole_to_the_micro_dollar(price: int, nodes: int, milliseconds: list[int]) -> None:
    run = replace(
        RUN, price_microusd_per_hour=price, spec=replace(SPEC, resources=replace(SPEC.resources, nodes=nodes))
    )
    marks = [START, *(START + timedelta(milliseconds=ms) for ms in sorted(milliseconds))]
    slices = [
        ledger.compute_entry(run, ATTEMPT, since=since, until=until, now=START) for since, until in pairwise(marks)
    ]
    total_s = (marks[-1] - START).total_seconds()
    assert sum(entry.amount_microusd for entry in slices) == cost_microusd(price, total_s, nodes)
    assert sum(entry.quantity for entry in slices) == int(round(total_s * 1000) * nodes // 1000)
    assert all(entry.amount_microusd >= 0 and entry.quantity >= 0 for entry in slices)


def test_billed_every_second_a_run_costs_no_more_than_billed_once() -> None:
    whole = ledger.compute_entry(RUN, ATTEMPT, since=START, until=at(1000), now=START)
    seconds = [ledger.compute_entry(RUN, ATTEMPT, since=at(n), until=at(n + 1), now=START) for n in range(1000)]
    assert sum(entry.amount_microusd for entry in seconds) == whole.amount_microusd == 27_778
    assert len({entry.id for entry in seconds}) == 1000


def test_a_slice_is_billed_once_whatever_its_end() -> None:
    first = ledger.compute_entry(RUN, ATTEMPT, since=at(5), until=at(6), now=START)
    again = ledger.compute_entry(RUN, ATTEMPT, since=at(5), until=at(9), now=START)
    assert first.id == again.id
    assert (
        first.id != ledger.compute_entry(RUN, replace(ATTEMPT, id="attempt-2"), since=at(5), until=at(6), now=START).id
    )


def test_time_before_the_start_costs_nothing() -> None:
    """A clock set back can make a slice begin before the attempt did."""
    entry = ledger.compute_entry(RUN, ATTEMPT, since=at(-3600), until=at(3600), now=START)
    assert entry.amount_microusd == 100_000


def test_a_slice_that_ends_before_it_begins_is_a_defect() -> None:
    with pytest.raises(ValueError, match="ends before"):
        ledger.compute_entry(RUN, ATTEMPT, since=at(5), until=at(4), now=START)
    with pytest.raises(ValueError, match="has not started"):
        ledger.compute_entry(RUN, replace(ATTEMPT, started_at=None), since=START, until=at(4), now=START)


def test_a_request_is_charged_to_the_key_that_made_it() -> None:
    record = UsageRecord(
        id="req-1",
        key_id="key-1",
        project="vision",
        model="tiny",
        endpoint="tiny",
        revision=3,
        status=200,
        prompt_tokens=10,
        completion_tokens=5,
        cached_tokens=4,
        amount_microusd=7,
        estimated=False,
        ttft_ms=1.0,
        duration_ms=2.0,
        started_at=START,
    )
    entry = ledger.token_entry(record, owner="bo", cost_center="r&d", hold_id="hold-9", now=at(1))
    assert (entry.id, entry.quantity, entry.amount_microusd) == ("tokens-req-1", 15, 7)
    assert (entry.owner, entry.key_id, entry.model, entry.price) == ("bo", "key-1", "tiny", "tiny revision 3")


def test_a_report_separates_training_from_what_a_request_costs() -> None:
    rows = ledger.cost_rows(
        {
            ("tiny", "compute", True): 3_000_000,
            ("tiny", "tokens", True): 1_000_000,
            ("", "compute", False): 9_000_000,
        },
        {"tiny": {"prompt_tokens": 10, "completion_tokens": 5, "requests": 2000}},
    )
    assert [(row.group, row.total_microusd, row.usd_per_1000_requests) for row in rows] == [
        (NO_GROUP, 9_000_000, None),
        ("tiny", 4_000_000, 2.0),
    ]
