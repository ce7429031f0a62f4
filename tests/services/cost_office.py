"""The costs service with all it stands on, its rows, and the check of its books."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from groundplane.adapters.notify import MemoryNotifier
from groundplane.adapters.system import RandomIds
from groundplane.domain.access import Key, Project
from groundplane.domain.budget import Budget, Hold
from groundplane.domain.ledger import LedgerEntry, UsageRecord
from groundplane.errors import Refused
from groundplane.identity import Actor, Role
from groundplane.ports import Store
from groundplane.services.costs import Costs

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, 0, 0, tzinfo=UTC)
ADMIN = Actor(name="ops", role=Role.ADMIN)
SLICE = 100


class FixedClock:
    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> datetime:
        return self.time


class ListUsageLog:
    """A usage log as the port describes it: what was read comes again until it is acknowledged."""

    def __init__(self) -> None:
        self.records: list[UsageRecord] = []
        self.dies_before_acknowledging = False

    async def read(self, limit: int) -> list[UsageRecord]:
        return self.records[:limit]

    async def acknowledge(self, count: int) -> None:
        if self.dies_before_acknowledging:
            raise ConnectionResetError
        del self.records[:count]

    async def ingested(self) -> dict[str, int]:
        return {}


class Office:
    """The costs service with all it stands on."""

    def __init__(self, store: Store) -> None:
        self.store, self.clock, self.log, self.notify = store, FixedClock(), ListUsageLog(), MemoryNotifier()
        self.ids = RandomIds(self.clock)
        self.costs = self.fresh()

    def fresh(self) -> Costs:
        """The service as after a restart."""
        return Costs(
            store=self.store,
            clock=self.clock,
            ids=self.ids,
            usage_log=self.log,
            gateway_slice_microusd=SLICE,
            notify=self.notify,
        )

    async def project(self, id: str = "vision", limit: int | None = 1000, key: bool = True) -> None:
        await self.add(Project(id=id, owner="ana", cost_center="r&d", monthly_limit_microusd=limit, created_at=NOW))
        if key:
            await self.add(
                Key(
                    id=f"key-{id}",
                    name="app",
                    project=id,
                    owner="bo",
                    role=Role.CALLER,
                    secret_sha256=id,
                    created_at=NOW,
                )
            )

    async def add(self, *rows: Any) -> None:
        async with self.store.transaction() as tx:
            for row in rows:
                await tx.insert(row)

    async def hold(self, amount: int, subject: str | None = None, project: str = "vision") -> Hold | Refused:
        async with self.store.transaction() as tx:
            return await self.costs.hold(
                tx, project=project, subject=subject or self.ids.new("run"), amount_microusd=amount
            )

    async def held(self, amount: int) -> Hold:
        hold = await self.hold(amount)
        assert isinstance(hold, Hold)
        return hold

    async def post(self, entry: LedgerEntry) -> bool:
        async with self.store.transaction() as tx:
            return await self.costs.post(tx, entry)

    async def close(self, hold: Hold) -> Hold:
        async with self.store.transaction() as tx:
            return await self.costs.close(tx, hold.id)

    async def all(self, kind: type[Any]) -> list[Any]:
        async with self.store.transaction() as tx:
            return await tx.find(kind)

    async def month(self, id: str = "vision:2026-11") -> tuple[int, int]:
        """(held, posted)."""
        async with self.store.transaction() as tx:
            budget = await tx.get(Budget, id)
        assert budget is not None
        return budget.held_microusd, budget.posted_microusd

    async def check_the_books(self) -> None:
        """What must be true at any time: budgets are the sums of their holds and entries."""
        holds = {hold.id: hold for hold in await self.all(Hold)}
        entries: Sequence[LedgerEntry] = await self.all(LedgerEntry)
        for budget in await self.all(Budget):
            mine = [hold for hold in holds.values() if hold.budget_id == budget.id]
            assert budget.held_microusd == sum(hold.remaining_microusd for hold in mine)
            posted = sum(
                entry.amount_microusd
                for entry in entries
                if (holds[entry.hold_id].budget_id if entry.hold_id else _budget_id(entry)) == budget.id
            )
            assert budget.posted_microusd == posted
            for hold in mine:
                assert hold.posted_microusd == sum(e.amount_microusd for e in entries if e.hold_id == hold.id)
        assert sum(e.amount_microusd for e in entries if e.kind == "tokens") == sum(
            record.amount_microusd for record in await self.all(UsageRecord)
        )


def _budget_id(entry: LedgerEntry) -> str:
    return f"{entry.project}:{entry.occurred_at:%Y-%m}"


def an_entry(id: str, amount: int, hold: Hold | None = None, **changes: Any) -> LedgerEntry:
    entry = LedgerEntry(
        id=id,
        kind="compute",
        project="vision",
        owner="ana",
        cost_center="r&d",
        quantity=1,
        amount_microusd=amount,
        price="$1",
        hold_id=hold.id if hold else "",
        occurred_at=NOW,
        posted_at=NOW,
    )
    return replace(entry, **changes)


def a_request(id: str, amount: int = 7, **changes: Any) -> UsageRecord:
    record = UsageRecord(
        id=id,
        key_id="key-vision",
        project="vision",
        model="tiny",
        endpoint="tiny",
        revision=1,
        status=200,
        prompt_tokens=10,
        completion_tokens=5,
        cached_tokens=2,
        amount_microusd=amount,
        estimated=False,
        ttft_ms=1.0,
        duration_ms=2.0,
        started_at=NOW,
    )
    return replace(record, **changes)
