"""Money over real stores: limits under concurrency, each request once, months, reports."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundplane.adapters.notify import MemoryNotifier
from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.system import RandomIds
from groundplane.audit import Event, EventDraft
from groundplane.domain.access import Key, Project
from groundplane.domain.budget import Budget, Hold, HoldStatus
from groundplane.domain.ledger import LedgerEntry, UsageRecord
from groundplane.errors import InvalidInput, NotFound, Refused, Unavailable
from groundplane.identity import Actor, Role
from groundplane.ports import Notice, Store
from groundplane.services.audit_trail import AuditTrail
from groundplane.services.costs import Costs

ADMIN = Actor(name="ops", role=Role.ADMIN)
ANA = Actor(name="ana", role=Role.MEMBER, project="vision")
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, 0, 0, tzinfo=UTC)
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


@pytest.fixture
def office(store: Store) -> Office:
    return Office(store)


@pytest.fixture
def memory_office() -> Office:
    return Office(MemoryStore())


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


# ---------------------------------------------------------------- holds


async def test_of_fifty_concurrent_submissions_exactly_the_ten_that_fit_are_admitted(office: Office) -> None:
    await office.project(limit=1000)

    async def submit(number: int) -> bool:
        async with office.store.transaction() as tx:
            hold = await office.costs.hold(tx, project="vision", subject=f"run/{number}", amount_microusd=100)
            if isinstance(hold, Refused):
                return False
            await tx.append_event(
                EventDraft(at=NOW, actor="ana", action="run.submit", object_kind="run", object_id=str(number))
            )
            return True

    admitted = await asyncio.gather(*(submit(number) for number in range(50)))
    assert sum(admitted) == 10
    assert await office.month() == (1000, 0)
    assert await AuditTrail(store=office.store).verify() == (10, None)
    await office.check_the_books()


async def test_concurrent_submissions_of_many_projects_do_not_disturb_each_other(office: Office) -> None:
    for name in ("a", "b", "c"):
        await office.project(name, limit=400, key=False)
    results = await asyncio.gather(*(office.hold(100, project=name) for _ in range(8) for name in ("a", "b", "c")))
    admitted = [result.project for result in results if isinstance(result, Hold)]
    assert {name: admitted.count(name) for name in ("a", "b", "c")} == {"a": 4, "b": 4, "c": 4}


async def test_a_project_without_a_budget_is_admitted_nothing(office: Office) -> None:
    await office.project(limit=None)
    for project in ("vision", "nobody"):
        refused = await office.hold(0, project=project)
        assert isinstance(refused, Refused)
        assert refused.hint == f"ground budget set {project} --monthly $100"
    with pytest.raises(NotFound, match="no budget"):
        await office.costs.budget(ADMIN, "vision")


async def test_a_refused_hold_leaves_nothing_behind(office: Office) -> None:
    await office.project(limit=100)
    refused = await office.hold(101)
    assert isinstance(refused, Refused) and refused.rule == "budget"
    assert await office.all(Hold) == []
    assert await office.month() == (0, 0)


async def test_a_charge_is_posted_once(office: Office) -> None:
    await office.project()
    hold = await office.held(100)
    assert await office.post(an_entry("e-1", 30, hold))
    assert not await office.post(an_entry("e-1", 30, hold))
    again = await asyncio.gather(*(office.post(an_entry("e-2", 5, hold)) for _ in range(10)))
    assert sum(again) == 1
    assert await office.month() == (65, 35)
    await office.check_the_books()


async def test_closing_frees_what_remains(office: Office) -> None:
    await office.project()
    hold = await office.held(100)
    await office.post(an_entry("e-1", 30, hold))
    closed = await office.close(hold)
    assert (closed.status, closed.closed_at) == (HoldStatus.POSTED, NOW)
    assert await office.month() == (0, 30)
    assert await office.close(hold) == closed
    assert (await office.close(await office.held(10))).status is HoldStatus.VOIDED
    with pytest.raises(NotFound):
        await office.close(replace(hold, id="hold-0"))


async def test_what_exceeds_its_hold_is_taken_from_the_budget_and_said(office: Office) -> None:
    await office.project(limit=100)
    hold = await office.held(100)
    await office.post(an_entry("e-1", 130, hold))
    assert await office.month() == (0, 130)
    (event,) = await office.all(Event)
    assert (event.action, event.object_id) == ("hold.overrun", hold.id)
    assert event.after["taken_from_budget_microusd"] == 30
    assert isinstance(await office.hold(1), Refused)
    await office.check_the_books()


async def test_a_charge_after_its_hold_was_closed_still_counts(office: Office) -> None:
    await office.project()
    hold = await office.held(100)
    await office.close(hold)
    await office.post(an_entry("e-1", 40, hold))
    assert await office.month() == (0, 40)
    await office.check_the_books()


async def test_a_charge_of_a_project_without_a_budget_is_written_down(office: Office) -> None:
    await office.project(limit=None)
    assert await office.post(an_entry("e-1", 40))
    assert await office.month() == (0, 40)
    await office.costs.set_budget(ADMIN, project="vision", monthly_limit_microusd=100, reason="late")
    assert isinstance(await office.hold(61), Refused)
    assert isinstance(await office.hold(60), Hold)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    acts=st.lists(
        st.tuples(
            st.sampled_from(["hold", "post", "repost", "close", "charge", "request", "top-up", "month", "back"]),
            st.integers(0, 3),
            st.integers(0, 90),
        ),
        max_size=25,
    )
)
async def test_the_books_balance_after_any_sequence(acts: list[tuple[str, int, int]]) -> None:
    office = Office(MemoryStore())
    await office.project(limit=250)
    holds: list[Hold] = []
    for number, (act, which, amount) in enumerate(acts):
        match act:
            case "hold":
                hold = await office.hold(amount)
                holds += [hold] if isinstance(hold, Hold) else []
            case "post" | "repost" if which < len(holds):
                name = "repeated" if act == "repost" else f"e-{number}"
                await office.post(an_entry(name, amount, holds[which], occurred_at=office.clock.time))
            case "close" if which < len(holds):
                await office.close(holds[which])
            case "charge":
                await office.post(an_entry(f"c-{number}", amount, occurred_at=office.clock.time))
            case "request":
                office.log.records.append(a_request(f"r-{which}", amount, started_at=office.clock.time))
                await office.costs.ingest()
            case "top-up":
                await office.costs.top_up_gateway()
            case "month":
                office.clock.time += timedelta(days=20)
            case "back":
                office.clock.time -= timedelta(days=15)
        await office.check_the_books()


# ---------------------------------------------------------------- budgets


async def test_the_months_budget_is_made_when_first_asked_for(office: Office) -> None:
    await office.project(limit=500)
    budgets = await asyncio.gather(*(office.costs.budget(ANA, "vision") for _ in range(10)))
    assert {budget.limit_microusd for budget in budgets} == {500}
    assert [budget.id for budget in await office.all(Budget)] == ["vision:2026-11"]


async def test_a_new_month_begins_with_the_whole_limit(office: Office) -> None:
    await office.project(limit=100)
    hold = await office.held(100)
    office.clock.time = DECEMBER - timedelta(microseconds=1)
    assert isinstance(await office.hold(1), Refused)
    office.clock.time = DECEMBER
    assert isinstance(await office.hold(100), Hold)
    # What was admitted in November is paid by November, though it was spent in December.
    await office.post(an_entry("e-1", 60, hold, occurred_at=DECEMBER))
    assert (await office.month(), await office.month("vision:2026-12")) == ((40, 60), (100, 0))
    await office.check_the_books()


async def test_a_clock_set_back_neither_loses_nor_doubles_money(office: Office) -> None:
    await office.project(limit=100)
    office.clock.time = DECEMBER
    hold = await office.held(100)
    office.clock.time = NOW
    assert isinstance(await office.hold(100), Hold)  # November has its own limit
    await office.post(an_entry("e-1", 60, hold, occurred_at=NOW))
    assert (await office.month("vision:2026-12"), await office.month()) == ((40, 60), (100, 0))
    assert (await office.close(hold)).status is HoldStatus.POSTED
    await office.check_the_books()


async def test_a_changed_limit_counts_at_once_and_is_on_the_trail(office: Office) -> None:
    await office.project(limit=100)
    await office.held(80)
    changed = await office.costs.set_budget(
        ADMIN, project="vision", monthly_limit_microusd=50, thresholds_percent=(90,), reason="cuts"
    )
    assert (changed.limit_microusd, changed.held_microusd, changed.thresholds_percent) == (50, 80, (90,))
    assert isinstance(await office.hold(1), Refused)
    (event,) = await office.all(Event)
    assert (event.actor, event.action, event.reason) == ("ops", "budget.set", "cuts")
    assert event.before["monthly_limit"] == "$0.0001" and event.after["thresholds_percent"] == [90]


async def test_a_limit_changed_while_many_submit_is_never_passed(office: Office) -> None:
    await office.project(limit=0)

    async def raise_it() -> None:
        await office.costs.set_budget(ADMIN, project="vision", monthly_limit_microusd=500)

    results = await asyncio.gather(raise_it(), *(office.hold(100) for _ in range(20)))
    held = sum(result.amount_microusd for result in results if isinstance(result, Hold))
    assert held <= 500 and await office.month() == (held, 0)


async def test_a_budget_can_be_taken_away(office: Office) -> None:
    await office.project(limit=100)
    await office.costs.budget(ADMIN, "vision")
    await office.costs.set_budget(ADMIN, project="vision", monthly_limit_microusd=None)
    assert isinstance(await office.hold(1), Refused)
    with pytest.raises(NotFound):
        await office.costs.budget(ADMIN, "vision")


async def test_other_projects_money_is_not_seen(office: Office) -> None:
    await office.project("other", limit=100)
    for ask in (
        office.costs.budget(ANA, "other"),
        office.costs.set_budget(ANA, project="other", monthly_limit_microusd=1),
        office.costs.holds(ANA, "other"),
    ):
        with pytest.raises(NotFound):
            await ask
    await office.hold(5, project="other")
    assert await office.costs.holds(ANA) == []
    assert len(await office.costs.holds(ADMIN)) == 1


async def test_each_threshold_tells_people_once(office: Office) -> None:
    await office.project(limit=100)
    await office.post(an_entry("e-1", 85))
    assert [notice.title for notice in await office.costs.budget_actions()] == [
        "project vision has spent 50% of its budget for 2026-11: $0.000085 of $0.0001",
        "project vision has spent 80% of its budget for 2026-11: $0.000085 of $0.0001",
    ]
    assert await office.costs.budget_actions() == []
    await office.post(an_entry("e-2", 15))
    again = await asyncio.gather(*(office.fresh().budget_actions() for _ in range(5)))
    assert sum(len(notices) for notices in again) == 1
    assert len(office.notify.sent) == 3
    events = [event for event in await office.all(Event) if event.action == "budget.threshold"]
    assert [event.after["percent"] for event in events] == [50, 80, 100]


async def test_a_notice_that_could_not_be_sent_is_sent_by_the_next_call(
    memory_office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = memory_office
    await office.project(limit=100)
    await office.post(an_entry("e-1", 100))

    async def refuse(notice: Notice) -> None:
        raise Unavailable("no connection to the mail server")

    with monkeypatch.context() as patch:
        patch.setattr(office.notify, "send", refuse)
        with pytest.raises(Unavailable):
            await office.costs.budget_actions()
    assert len(await office.costs.budget_actions()) == 3


# ---------------------------------------------------------------- the gateway's money


async def remaining(office: Office) -> int | None:
    return (await office.costs.gateway_budgets()).get("vision")


async def test_the_gateway_has_a_slice_while_there_is_money(office: Office) -> None:
    await office.project(limit=250)
    assert await remaining(office) == 0
    await office.costs.top_up_gateway()
    assert await remaining(office) == SLICE
    assert await office.month() == (100, 0)
    office.log.records = [a_request("r-1", 60)]
    await office.costs.ingest()
    assert await remaining(office) == 40
    await office.costs.top_up_gateway()
    assert (await remaining(office), await office.month()) == (SLICE, (100, 60))
    for number in range(2, 5):
        office.log.records = [a_request(f"r-{number}", 60)]
        await office.costs.ingest()
        await office.costs.top_up_gateway()
        held, posted = await office.month()
        assert held + posted <= 250
        await office.check_the_books()
    assert (await remaining(office), await office.month()) == (10, (10, 240))
    (hold,) = await office.all(Hold)
    assert (hold.subject, hold.amount_microusd) == ("gateway/vision", 250)


async def test_top_up_writes_nothing_when_nothing_is_to_be_done(office: Office) -> None:
    await office.project(limit=250)
    await office.costs.top_up_gateway()
    before = (await office.all(Hold), await office.all(Budget), await office.all(Event))
    await office.costs.top_up_gateway()
    assert (await office.all(Hold), await office.all(Budget), await office.all(Event)) == before


async def test_runs_and_gateway_together_never_pass_the_limit(office: Office) -> None:
    await office.project(limit=450)
    await asyncio.gather(*(office.fresh().top_up_gateway() for _ in range(3)), *(office.hold(100) for _ in range(10)))
    held, _ = await office.month()
    assert held in (400, 450)
    pending = [hold for hold in await office.all(Hold) if hold.subject == "gateway/vision"]
    assert len(pending) <= 1
    await office.check_the_books()


async def test_only_projects_with_active_keys_and_a_budget_have_gateway_money(office: Office) -> None:
    await office.project("no-key", limit=100, key=False)
    await office.project("no-budget", limit=None)
    await office.project("expired", limit=100)
    async with office.store.transaction() as tx:
        key = await tx.get(Key, "key-expired")
        assert key is not None
        await tx.update(replace(key, expires_at=NOW))
    await office.costs.top_up_gateway()
    assert await office.costs.gateway_budgets() == {}
    assert await office.all(Hold) == []


async def test_a_project_whose_last_key_ends_gets_its_money_back(office: Office) -> None:
    await office.project(limit=100)
    await office.costs.top_up_gateway()
    async with office.store.transaction() as tx:
        key = await tx.get(Key, "key-vision")
        assert key is not None
        await tx.update(replace(key, revoked_at=NOW))
    await office.costs.top_up_gateway()
    assert await office.month() == (0, 0)
    assert await office.costs.gateway_budgets() == {}
    assert [event.action for event in await office.all(Event)] == ["hold.open", "hold.close"]
    office.log.records = [a_request("r-late", 9)]  # answered before the key ended, told afterwards
    await office.costs.ingest()
    assert await office.month() == (0, 9)
    await office.check_the_books()


async def test_a_new_month_gives_the_gateway_a_new_hold(office: Office) -> None:
    await office.project(limit=250)
    await office.costs.top_up_gateway()
    office.clock.time = DECEMBER
    await office.costs.top_up_gateway()
    assert (await office.month(), await office.month("vision:2026-12")) == ((0, 0), (100, 0))
    assert await remaining(office) == SLICE
    office.log.records = [a_request("r-1", 9, started_at=NOW)]
    await office.costs.ingest()
    await office.check_the_books()


async def test_a_request_is_charged_once_though_it_is_read_again(office: Office) -> None:
    await office.project(limit=1000)
    await office.costs.top_up_gateway()
    office.log.records = [a_request(f"r-{number}") for number in range(5)]
    office.log.dies_before_acknowledging = True
    with pytest.raises(ConnectionResetError):
        await office.costs.ingest()
    office.log.dies_before_acknowledging = False
    office.log.records += [a_request("r-2"), a_request("r-5"), a_request("r-5")]
    while await office.fresh().ingest(limit=3):
        pass
    assert len(await office.all(UsageRecord)) == len(await office.all(LedgerEntry)) == 6
    assert await office.month() == (100 - 42, 42)
    await office.check_the_books()


async def test_two_readers_of_one_log_charge_each_request_once(office: Office) -> None:
    await office.project(limit=10_000)
    office.log.records = [a_request(f"r-{number}") for number in range(40)]
    copies = [Office(office.store) for _ in range(3)]
    for copy in copies:
        copy.log.records = list(office.log.records)
    await asyncio.gather(*(copy.costs.ingest() for copy in copies))
    assert await office.month() == (0, 280)
    await office.check_the_books()


async def test_failed_requests_are_known_and_cost_what_they_cost(office: Office) -> None:
    await office.project(limit=1000)
    office.log.records = [
        a_request("r-1", 0, status=429, prompt_tokens=0, completion_tokens=0),
        a_request("r-2", 3, status=502),
        a_request("r-3", 0),
    ]
    assert await office.costs.ingest() == 3
    assert [entry.id for entry in await office.all(LedgerEntry)] == ["tokens-r-2", "tokens-r-3"]
    (row,) = await office.costs.report(ADMIN, by="project", since=NOW, until=DECEMBER)
    assert (row.requests, row.tokens_microusd) == (1, 3)


async def test_usage_of_an_unknown_key_is_charged_to_its_project(office: Office) -> None:
    await office.project(limit=1000)
    office.log.records = [a_request("r-1", key_id="key-gone"), a_request("r-2", project="gone", key_id="key-gone")]
    await office.costs.ingest()
    owners = {entry.project: (entry.owner, entry.cost_center) for entry in await office.all(LedgerEntry)}
    assert owners == {"vision": ("ana", "r&d"), "gone": ("unknown", "unknown")}
    await office.check_the_books()


# ---------------------------------------------------------------- reports


async def test_costs_are_grouped_by_what_is_asked(office: Office) -> None:
    await office.project(limit=10**9)
    await office.project("search", limit=10**9)
    await office.post(an_entry("c-1", 1000, run_id="run-1"))
    await office.post(an_entry("c-2", 500, run_id="run-2", endpoint="tiny", model="tiny"))
    await office.post(an_entry("c-3", 10**6, occurred_at=DECEMBER))
    office.log.records = [
        a_request("r-1", 100),
        a_request("r-2", 200, project="search", key_id="key-search"),
        a_request("r-3", 50, started_at=DECEMBER),
    ]
    await office.costs.ingest()

    async def report(by: str, actor: Actor = ADMIN) -> dict[str, tuple[int, int, int]]:
        rows = await office.costs.report(actor, by=by, since=NOW, until=DECEMBER)
        assert [row.total_microusd for row in rows] == sorted((row.total_microusd for row in rows), reverse=True)
        return {row.group: (row.compute_microusd, row.tokens_microusd, row.requests) for row in rows}

    assert await report("project") == {"vision": (1500, 100, 1), "search": (0, 200, 1)}
    assert await report("model") == {"tiny": (500, 300, 2), "(none)": (1000, 0, 0)}
    assert await report("run") == {"run-1": (1000, 0, 0), "run-2": (500, 0, 0), "(none)": (0, 300, 2)}
    assert await report("key") == {"(none)": (1500, 0, 0), "key-vision": (0, 100, 1), "key-search": (0, 200, 1)}
    assert await report("owner") == {"ana": (1500, 0, 0), "bo": (0, 300, 2)}
    assert await report("cost_center") == {"r&d": (1500, 300, 2)}
    assert await report("project", ANA) == {"vision": (1500, 100, 1)}
    (tiny,) = [
        row for row in await office.costs.report(ADMIN, by="model", since=NOW, until=DECEMBER) if row.group == "tiny"
    ]
    assert (tiny.prompt_tokens, tiny.completion_tokens, tiny.cached_tokens) == (20, 10, 4)
    assert tiny.usd_per_1000_requests == 0.4


async def test_a_report_that_makes_no_sense_is_refused(memory_office: Office) -> None:
    with pytest.raises(InvalidInput, match="can't be grouped by 'colour'") as failure:
        await memory_office.costs.report(ADMIN, by="colour", since=NOW, until=DECEMBER)
    assert "cost_center" in failure.value.hint
    with pytest.raises(InvalidInput, match="is empty"):
        await memory_office.costs.report(ADMIN, by="run", since=NOW, until=NOW)
