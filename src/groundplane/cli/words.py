"""Records turned into the words that several commands print. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from groundplane.cli.render import Table, Usd
from groundplane.units import format_count, format_duration

if TYPE_CHECKING:
    from groundplane.domain.endpoint import Endpoint
    from groundplane.domain.run import Run

counted = format_count


def moment(value: datetime | None) -> str:
    """`2026-12-01 18:00:00Z`, to the second."""
    return f"{value:%Y-%m-%d %H:%M:%S}Z" if value is not None else "-"


def age(since: datetime | None, now: datetime) -> str:
    """How long ago; a clock set back gives 0s, not nonsense."""
    return format_duration(max(0.0, (now - since).total_seconds())) if since is not None else "-"


def run_time(run: Run, now: datetime) -> str:
    """How long it has been running, or ran."""
    return age(run.started_at, run.ended_at or now)


def runs_table(runs: Sequence[Run], now: datetime) -> Table:
    rows = [
        (
            run.id,
            run.name,
            run.project,
            run.status.value,
            str(run.attempt),
            age(run.created_at, now),
            run_time(run, now),
            Usd(run.spec.max_cost_microusd),
            run.end_reason.value if run.end_reason else (run.message or "-"),
        )
        for run in runs
    ]
    return Table(
        ("RUN", "NAME", "PROJECT", "STATUS", "TRY", "AGE", "RAN", "MAX COST", "REASON"),
        rows,
        right=frozenset({"TRY", "MAX COST"}),
        empty="no runs; ground apply -f SPEC starts one",
    )


def endpoints_table(endpoints: Sequence[Endpoint], now: datetime) -> Table:
    rows = [
        (
            endpoint.id,
            endpoint.project,
            endpoint.model_version,
            str(endpoint.revision),
            endpoint.status.value,
            endpoint.run_id,
            age(endpoint.created_at, now),
            moment(endpoint.end_date),
            endpoint.message or "-",
        )
        for endpoint in endpoints
    ]
    return Table(
        ("ENDPOINT", "PROJECT", "MODEL", "REV", "STATUS", "RUN", "AGE", "ENDS", "MESSAGE"),
        rows,
        right=frozenset({"REV"}),
        empty="no endpoints; ground apply -f ENDPOINT.yaml deploys one",
    )
