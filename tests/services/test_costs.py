"""Money over real stores: limits under concurrency, each request once, months, reports."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.services.cost_office import ADMIN, DECEMBER, NOW, Office, a_request, an_entry

from groundplane.adapters.store.memory import MemoryStore
from groundplane.audit import Event, EventDraft
from groundplane.domain.budget import Budget, Hold, HoldStatus
from groundplane.errors import InvalidInput, NotFound, Refused, Unavailable
from groundplane.identity import Actor, Role
from groundplane.ports import Notice, Store
from groundplane.services.audit_trail import AuditTrail

ANA = Actor(name="ana", role=Role.MEMBER, project="vision")


@pytest.fixture
def office(store: Store) -> Office:
    return Office(store)


@pytest.fixture
def memory_office() -> Office:
    return Office(MemoryStore())


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
        assert refused.hint == f"ground budget set {project} 100"
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
