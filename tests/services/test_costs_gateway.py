"""The gateway's money: reserved in slices ahead of use, never over the limit, each request charged once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.services.cost_office import ADMIN, DECEMBER, NOW, SLICE, Office, a_request

from groundplane.audit import Event
from groundplane.domain.access import Key
from groundplane.domain.budget import Budget, Hold
from groundplane.domain.ledger import LedgerEntry, UsageRecord
from groundplane.ports import Store


@pytest.fixture
def office(store: Store) -> Office:
    return Office(store)


async def remaining(office: Office) -> int | None:
    return (await office.costs.gateway_budgets()).get("vision")


async def test_the_gateway_has_a_slice_while_there_is_money(office: Office) -> None:
    await office.project(limit=1000)
    assert await remaining(office) == 0
    await office.costs.top_up_gateway()
    assert (await remaining(office), await office.month()) == (SLICE, (SLICE, 0))
    office.log.records = [a_request("r-0", 60)]
    await office.costs.ingest()
    assert await remaining(office) == 40
    await office.costs.top_up_gateway()
    assert (await remaining(office), await office.month()) == (SLICE, (SLICE, 60))
    (hold,) = await office.all(Hold)
    assert (hold.subject, hold.amount_microusd) == ("gateway/vision", 160)


async def test_the_gateway_can_spend_a_budget_to_the_last_micro_dollar_and_no_further(office: Office) -> None:
    await office.project(limit=1000)
    for number in range(100):
        await office.costs.top_up_gateway()
        held, posted = await office.month()
        assert held + posted <= 1000
        left = await remaining(office)
        if not left:
            break
        office.log.records = [a_request(f"r-{number}", min(60, left))]
        await office.costs.ingest()
    assert await office.month() == (0, 1000)
    await office.check_the_books()


async def test_the_gateway_leaves_money_for_runs(office: Office) -> None:
    await office.project(limit=SLICE)
    await office.costs.top_up_gateway()
    assert await remaining(office) == SLICE // 4
    assert isinstance(await office.hold(SLICE * 3 // 4), Hold)


@pytest.mark.parametrize(
    ("limit", "dearest", "held"),
    [
        (100 * SLICE, SLICE // 10, SLICE),
        (100 * SLICE, 3 * SLICE, 12 * SLICE),
        (20 * SLICE, 3 * SLICE, 5 * SLICE),
        (4 * SLICE, 3 * SLICE, 3 * SLICE),
        (2 * SLICE, 3 * SLICE, 2 * SLICE),
    ],
)
async def test_what_is_held_ahead_has_room_for_the_dearest_request(
    office: Office, limit: int, dearest: int, held: int
) -> None:
    await office.project(limit=limit)
    await office.costs.top_up_gateway({"vision": dearest, "speech": 10**9})
    assert await remaining(office) == held


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
    assert 300 <= held <= 450
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
    await office.project(limit=1000)
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
