"""What the overview says needs somebody."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from groundplane.console.attention import notices
from groundplane.domain.access import Exposure
from groundplane.domain.approval import Approval
from groundplane.domain.budget import Budget
from groundplane.domain.run import Run, RunStatus
from groundplane.domain.spec import JobSpec, Metadata, Resources
from groundplane.wire.system import FailingLoop

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
RUN = Run(
    id="run-1",
    name="train",
    project="vision",
    owner="dana",
    cost_center="cc-1",
    spec=JobSpec(
        metadata=Metadata(name="train", project="vision", owner="dana", cost_center="cc-1"),
        command=("true",),
        resources=Resources(cpus=1, memory_bytes=2**30),
        end_date=NOW + timedelta(days=9),
        max_cost_microusd=1,
        max_duration_s=60,
    ),
    spec_digest="",
    plan_id="",
    hold_id="",
    pool="local",
    price_microusd_per_hour=0,
    created_by="dana",
    created_at=NOW - timedelta(days=3),
    end_date=NOW + timedelta(days=9),
    due_at=None,
)
BUDGET = Budget(id="vision:2026-11", project="vision", period="2026-11", limit_microusd=100_000_000)


def said(**records: object) -> list[tuple[str, str]]:
    nothing: dict[str, object] = {"runs": (), "endpoints": (), "budgets": (), "exposures": ()}
    return [(each.level, each.text) for each in notices(**(nothing | records), now=NOW)]  # type: ignore[arg-type]


def test_work_that_fails_again_and_again_is_told_with_since_when_and_the_error() -> None:
    failing = FailingLoop(name="runs", since=NOW, failures=7, error="disk I/O error")
    since = f"{NOW:%Y-%m-%d %H:%M} UTC"
    assert said(failing=[failing]) == [
        ("bad", f"the control plane's work on runs has failed since {since}, 7 times: disk I/O error")
    ]


def test_nothing_needs_anybody_when_all_is_well() -> None:
    assert said(runs=[RUN], budgets=[BUDGET]) == []


def test_a_run_that_failed_today_is_named_with_its_reason_and_forgotten_after_a_day() -> None:
    failed = replace(RUN, status=RunStatus.FAILED, message="exit status 3", ended_at=NOW - timedelta(hours=23))
    assert said(runs=[failed]) == [("bad", "train failed: exit status 3")]
    assert said(runs=[replace(failed, ended_at=NOW - timedelta(hours=25))]) == []


def test_a_budget_is_named_from_80_percent_on_holds_included() -> None:
    tight = replace(BUDGET, posted_microusd=50_000_000, held_microusd=30_000_000)
    assert said(budgets=[replace(tight, held_microusd=29_999_999)]) == []
    assert said(budgets=[tight]) == [("warn", "vision has $20.00 left of $100.00 this month")]


def test_a_spent_budget_is_worse_than_an_exposure_that_ends_soon() -> None:
    spent = replace(BUDGET, posted_microusd=100_000_000)
    door = Exposure(id="10.0.0.4:4710", owner="kim", reason="trial", created_at=NOW, expires_at=NOW + timedelta(days=2))
    assert said(budgets=[spent], exposures=[door]) == [
        ("bad", "vision has nothing left of $100.00 this month: nothing more is admitted"),
        ("warn", "10.0.0.4:4710 is exposed until 2026-11-23"),
    ]


def test_a_run_in_its_last_hour_is_named() -> None:
    ending = replace(RUN, status=RunStatus.RUNNING, end_date=NOW + timedelta(minutes=30))
    assert said(runs=[ending]) == [("warn", "train is stopped on its end date, 2026-11-21")]


def test_what_waits_for_a_yes_is_told_the_most_urgent_first() -> None:
    later = Approval(
        id="plan-1", project="vision", kind="job", name="llm", owner="dana", created_by="ana", plan_hash="h",
        worst_case_microusd=620_000_000, reasons=("r",), needed=1, four_eyes=True, validity_s=7200,
        requested_at=NOW, expires_at=NOW + timedelta(hours=2),
    )  # fmt: skip
    sooner = replace(later, id="plan-2", expires_at=NOW + timedelta(hours=1))
    told = notices(runs=[], endpoints=[], budgets=[], exposures=[], approvals=[later, sooner], now=NOW)
    assert [notice.href for notice in told] == ["/console/approvals/plan-2", "/console/approvals/plan-1"]
    assert told[1].text == "job llm of vision waits for a yes to $620.00 for 2h more"
