"""How many admissions a second the store takes: each one transaction of a hold, a run-like row and an audit event.

python bench/store_rows.py                          # SQLite in a temporary folder (real fsync)
python bench/store_rows.py postgresql://user@host/empty_database
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime

from groundplane.adapters.notify import MemoryNotifier
from groundplane.adapters.store.sql import SqlStore
from groundplane.adapters.system import RandomIds, SystemClock
from groundplane.audit import EventDraft
from groundplane.domain.access import Project
from groundplane.domain.ledger import UsageRecord
from groundplane.domain.planning.plan import Plan, PlanStatus
from groundplane.errors import Refused
from groundplane.ports import Store
from groundplane.services.audit_trail import AuditTrail
from groundplane.services.costs import Costs

PROJECTS = 8
ADMISSIONS = 600
RECORDS = 10_000
ROUNDS = 3


class ListUsageLog:
    """Settled requests, as the gateway's log would give them."""

    def __init__(self, records: list[UsageRecord]) -> None:
        self._records = records

    async def read(self, limit: int) -> list[UsageRecord]:
        return self._records[:limit]

    async def acknowledge(self, count: int) -> None:
        del self._records[:count]

    async def ingested(self) -> dict[str, int]:
        return {}


async def admissions(store: Store, costs: Costs, ids: RandomIds, workers: int) -> float:
    """Admissions per second, by `workers` at a time on eight projects."""

    async def admit(number: int) -> None:
        project, now = f"team-{number % PROJECTS}", datetime.now(UTC)
        async with store.transaction() as tx:
            run_id = ids.new("run")
            hold = await costs.hold(tx, project=project, subject=f"run/{run_id}", amount_microusd=1)
            assert not isinstance(hold, Refused), hold
            await tx.insert(_row(ids.new("plan"), project, now))
            await tx.append_event(
                EventDraft(at=now, actor="bench", action="run.submit", object_kind="run", object_id=run_id)
            )

    async def worker(first: int) -> None:
        for number in range(first, ADMISSIONS, workers):
            await admit(number)

    started = time.perf_counter()
    await asyncio.gather(*(worker(first) for first in range(workers)))
    return ADMISSIONS / (time.perf_counter() - started)


def _row(id: str, project: str, now: datetime) -> Plan:
    return Plan(
        id=id,
        project=project,
        owner="bench",
        kind="Job",
        spec_digest="",
        offer=None,
        max_duration_s=60,
        worst_case_microusd=1,
        arithmetic="",
        verdicts=(),
        status=PlanStatus.READY,
        hash="",
        created_by="bench",
        created_at=now,
    )


def _record(id: str, number: int) -> UsageRecord:
    return UsageRecord(
        id=id,
        key_id="key-1",
        project=f"team-{number % PROJECTS}",
        model="tiny",
        endpoint="tiny",
        revision=1,
        status=200,
        prompt_tokens=100,
        completion_tokens=20,
        cached_tokens=0,
        amount_microusd=1,
        estimated=False,
        ttft_ms=20.0,
        duration_ms=100.0,
        started_at=datetime.now(UTC),
    )


async def main(url: str) -> None:
    store, ids = await SqlStore.open(url), RandomIds()
    usage_log = ListUsageLog([])
    costs = Costs(
        store=store,
        clock=SystemClock(),
        ids=ids,
        usage_log=usage_log,
        gateway_slice_microusd=1,
        notify=MemoryNotifier(),
    )
    async with store.transaction() as tx:
        for number in range(PROJECTS):
            row = Project(id=f"team-{number}", owner="b", cost_center="b", created_at=datetime.now(UTC))
            await tx.insert_once(Project(**{**_fields(row), "monthly_limit_microusd": 10**12}))
    for workers in (1, 16):
        rates = [await admissions(store, costs, ids, workers) for _ in range(ROUNDS)]
        print(f"{workers:2} at a time: {statistics.median(rates):8.0f} admissions/s (median of {ROUNDS})")
    usage_log._records = [_record(ids.new("req"), number) for number in range(RECORDS)]
    started = time.perf_counter()
    while await costs.ingest():
        pass
    print(f"ingest:       {RECORDS / (time.perf_counter() - started):8.0f} usage records/s")
    started = time.perf_counter()
    events, broken = await AuditTrail(store=store).verify()
    assert broken is None, broken
    print(f"audit verify: {events / (time.perf_counter() - started):8.0f} events/s")
    await store.close()


def _fields(row: Project) -> dict[str, object]:
    return {name: getattr(row, name) for name in Project.__slots__}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(main(f"sqlite:///{folder}/bench.db"))
