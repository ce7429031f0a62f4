"""What on the overview needs somebody: pure rules over the records that the page shows anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from groundplane.domain.access import Exposure
from groundplane.domain.approval import Approval
from groundplane.domain.budget import Budget
from groundplane.domain.endpoint import Endpoint, EndpointStatus
from groundplane.domain.evaluation import Evaluation
from groundplane.domain.run import Run, RunStatus
from groundplane.units import format_duration, format_usd
from groundplane.wire.system import FailingLoop

RECENT = timedelta(hours=24)
SOON = timedelta(days=3)
TIGHT_PERCENT = 80


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to look at. `level` is `bad` or `warn`."""

    level: str
    text: str
    href: str


def notices(
    *,
    runs: Sequence[Run],
    endpoints: Sequence[Endpoint],
    budgets: Sequence[Budget],
    exposures: Sequence[Exposure],
    approvals: Sequence[Approval] = (),
    evaluations: Sequence[Evaluation] = (),
    policy_problem: str = "",
    failing: Sequence[FailingLoop] = (),
    now: datetime,
) -> list[Notice]:
    """What failed within a day, what waits for a yes, what money is nearly out, what ends soon; the worst first."""
    found = [
        *_policy(policy_problem),
        *(Notice("bad", _failing(each), "/console") for each in failing),
        *_failures(runs, endpoints, now),
        *_quality(evaluations),
        *_waiting(approvals, now),
        *_money(budgets),
        *_endings(runs, endpoints, exposures, now),
    ]
    return sorted(found, key=lambda notice: notice.level != "bad")


def _policy(problem: str) -> list[Notice]:
    return [Notice("bad", f"the policy files are not in force: {problem}", "/console/policy")] if problem else []


def _failing(loop: FailingLoop) -> str:
    times = f"{loop.failures} times" if loop.failures > 1 else "once"
    told = f": {loop.error}" if loop.error else ""
    return f"the control plane's work on {loop.name} has failed since {loop.since:%Y-%m-%d %H:%M} UTC, {times}{told}"


def _failures(runs: Sequence[Run], endpoints: Sequence[Endpoint], now: datetime) -> list[Notice]:
    failed = [
        Notice("bad", f"{run.name} failed: {run.message or run.end_reason}", f"/console/runs/{run.id}")
        for run in runs
        if run.status is RunStatus.FAILED and run.ended_at is not None and now - run.ended_at <= RECENT
    ]
    down = [
        Notice("bad", f"endpoint {endpoint.id} failed: {endpoint.message}", f"/console/endpoints/{endpoint.id}")
        for endpoint in endpoints
        if endpoint.status is EndpointStatus.FAILED
    ]
    return failed + down


def _quality(evaluations: Sequence[Evaluation]) -> list[Notice]:
    """What the newest evaluation of each name has raised."""
    return [
        Notice("bad", alarm.title, f"/console/evaluations/{each.id}") for each in evaluations for alarm in each.alarms
    ]


def _waiting(approvals: Sequence[Approval], now: datetime) -> list[Notice]:
    """The one that ends first, first: approvals come newest first."""
    return [
        Notice(
            "warn",
            f"{asked.kind} {asked.name} of {asked.project} waits for a yes to {format_usd(asked.worst_case_microusd)}"
            f" for {format_duration(max(0.0, (asked.expires_at - now).total_seconds()))} more",
            f"/console/approvals/{asked.id}",
        )
        for asked in sorted(approvals, key=lambda asked: asked.expires_at)
    ]


def _money(budgets: Sequence[Budget]) -> list[Notice]:
    found = []
    for budget in budgets:
        taken = budget.posted_microusd + budget.held_microusd
        if taken >= budget.limit_microusd:
            limit = format_usd(budget.limit_microusd)
            text = f"{budget.project} has nothing left of {limit} this month: nothing more is admitted"
            found.append(Notice("bad", text, "/console/costs"))
        elif taken * 100 >= budget.limit_microusd * TIGHT_PERCENT:
            left = format_usd(budget.limit_microusd - taken)
            text = f"{budget.project} has {left} left of {format_usd(budget.limit_microusd)} this month"
            found.append(Notice("warn", text, "/console/costs"))
    return found


def _endings(
    runs: Sequence[Run], endpoints: Sequence[Endpoint], exposures: Sequence[Exposure], now: datetime
) -> list[Notice]:
    open_doors = [
        Notice("bad", f"the exposure of {exposure.id} ended on {exposure.expires_at:%Y-%m-%d}", "/console/keys#exposed")
        if exposure.expires_at <= now
        else Notice("warn", f"{exposure.id} is exposed until {exposure.expires_at:%Y-%m-%d}", "/console/keys#exposed")
        for exposure in exposures
        if exposure.expires_at <= now + SOON
    ]
    ending = [
        Notice("warn", f"{run.name} is stopped on its end date, {run.end_date:%Y-%m-%d}", f"/console/runs/{run.id}")
        for run in runs
        if not run.status.is_over and not run.endpoint and run.end_date <= now + timedelta(hours=1)
    ]
    serving = [
        Notice(
            "warn",
            f"endpoint {endpoint.id} is stopped on its end date, {endpoint.end_date:%Y-%m-%d}",
            f"/console/endpoints/{endpoint.id}",
        )
        for endpoint in endpoints
        if endpoint.status is EndpointStatus.READY and endpoint.end_date <= now + SOON
    ]
    return open_doors + ending + serving
