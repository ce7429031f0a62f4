"""Approvals over every store: asked, given, refused, raced, expired, told; and the gate that runs pass through."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ManualClock

from groundplane.adapters.executors.memory import MemoryExecutor
from groundplane.adapters.notify import MemoryNotifier
from groundplane.adapters.prices import BookPriceBook
from groundplane.adapters.system import RandomIds
from groundplane.adapters.usage_log import FolderUsageLog
from groundplane.audit import Event
from groundplane.domain.access import SelfService
from groundplane.domain.approval import Approval, ApprovalStatus
from groundplane.domain.planning.plan import Offer, Plan, PlanStatus
from groundplane.domain.run import Run
from groundplane.errors import ApprovalNeeded, Conflict, GroundError, InvalidInput, NotFound, Refusal, Unavailable
from groundplane.identity import Actor, Role
from groundplane.ports import Notice, Store
from groundplane.services.access import Access
from groundplane.services.approvals import Approvals
from groundplane.services.costs import Costs
from groundplane.services.plans import Plans
from groundplane.services.runs import Runs

USD = 1_000_000
VALIDITY_S = 72 * 3600
ADMIN = Actor(name="ops", role=Role.ADMIN)
ANA = Actor(name="ana", role=Role.MEMBER, project="vision")
LEA = Actor(name="lea", role=Role.LEAD, project="vision")
MAX = Actor(name="max", role=Role.OPERATOR)
FAR = Actor(name="far", role=Role.LEAD, project="other")

JOB = """\
apiVersion: groundplane/v1
kind: Job
metadata: {name: llm, project: vision, owner: bo, cost_center: r1}
spec:
  command: [python, train.py]
  resources: {cpus: 8, memory: 64GiB, accelerators: 8}
  end_date: 7d
  max_cost: $900
  max_duration: 10h
"""
SMALL = JOB.replace("accelerators: 8", "accelerators: 1")


class EightCards(MemoryExecutor):
    """A pool in memory: one node with eight cards."""

    async def offers(self) -> Sequence[Offer]:
        (node,) = await super().offers()
        cards = {"accelerators": 8, "accelerator": "nvidia-h100-80gb"}
        return [replace(node, cpus=96, memory_bytes=2**40, **cards)]


class DeafNotifier(MemoryNotifier):
    """Does not answer while `deaf`."""

    deaf = False

    async def send(self, notice: Notice) -> None:
        if self.deaf:
            raise Unavailable("nobody answers")
        await super().send(notice)


class World:
    """Plans, runs and approvals over one store, with a project whose people are ana, bo, lea and max."""

    def __init__(self, store: Store, clock: ManualClock, folder: Path) -> None:
        self.store, self.clock, self.notify = store, clock, DeafNotifier()
        self.ids = RandomIds(clock)
        self.pool = {"local": EightCards(clock, pool="local")}
        self.costs = Costs(
            store=store, clock=clock, ids=self.ids, usage_log=FolderUsageLog(folder / "wal"),
            gateway_slice_microusd=1, notify=self.notify,
        )  # fmt: skip
        self.access = Access(store=store, clock=clock, ids=self.ids)
        self.with_price(6 * USD)

    def with_price(self, microusd: int, *, four_eyes: bool = True) -> None:
        self.approvals = Approvals(
            store=self.store, clock=self.clock, notify=self.notify, validity_s=VALIDITY_S, four_eyes=four_eyes
        )
        prices = BookPriceBook(local_price_microusd_per_hour=microusd, as_of=self.clock.now().date())
        self.plans = Plans(
            store=self.store, clock=self.clock, ids=self.ids, executors=self.pool, prices=prices,
            approvals=self.approvals,
        )  # fmt: skip
        self.runs = Runs(
            store=self.store, clock=self.clock, ids=self.ids, plans=self.plans, approvals=self.approvals,
            costs=self.costs, executors=self.pool, wake=lambda: None,
        )  # fmt: skip

    async def set_up(self) -> None:
        await self.access.create_project(
            ADMIN, name="vision", owner="bo", cost_center="r1", monthly_limit_microusd=5_000 * USD
        )
        for name, role in (("ana", Role.MEMBER), ("lea", Role.LEAD), ("max", Role.OPERATOR)):
            await self.access.create_key(ADMIN, name="k", project="vision", owner=name, role=role)

    async def planned(self, text: str = JOB, actor: Actor = ANA) -> Plan:
        (plan,) = await self.plans.plan(actor, text)
        return plan

    async def plan(self, plan_id: str) -> Plan:
        return await self.plans.get(ADMIN, plan_id)

    async def events(self, plan: Plan) -> list[Event]:
        async with self.store.transaction() as tx:
            return await tx.find(Event, {"object_id": plan.id})

    async def look(self) -> list[str]:
        """What the loop does once; returns the kinds of the notices that went out."""
        before = len(self.notify.sent)
        async with self.store.transaction() as tx:
            due = await tx.claim(Approval, now=self.clock.now(), owner="w", lease_s=30, limit=10)
        for approval in due:
            await self.approvals.step(approval)
        return [notice.kind for notice in self.notify.sent[before:]]


@pytest.fixture
async def world(store: Store, clock: ManualClock) -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        made = World(store, clock, Path(folder))
        await made.set_up()
        yield made


async def refused(attempt: Any) -> Refusal:
    with pytest.raises(Refusal) as told:
        await attempt
    return told.value


# ---------------------------------------------------------------- asked, given, applied


async def test_eight_cards_wait_for_a_yes_and_then_run(world: World) -> None:
    plan = await world.planned()
    assert plan.status is PlanStatus.NEEDS_APPROVAL
    (asks,) = [verdict for verdict in plan.verdicts if verdict.approval]
    assert asks.approval == "8 accelerators; project vision takes up to 4 without approval"
    waiting = await refused(world.runs.submit(ANA, plan.id))
    assert type(waiting) is ApprovalNeeded and waiting.exit_code == 10
    assert waiting.hint == f"ground approve {plan.id}: lea, max may; then ground apply {plan.id}"

    given = await world.approvals.approve(LEA, plan.id, comment="for the release", seen_hash=plan.hash[:16])
    assert given.status is ApprovalStatus.APPROVED and (await world.plan(plan.id)).status is PlanStatus.APPROVED
    assert await world.approvals.approve(LEA, plan.id) == given
    run = await world.runs.submit(ANA, plan.id)
    assert run.plan_id == plan.id
    after = await world.plan(plan.id)
    assert (after.status, after.applied_to) == (PlanStatus.APPLIED, run.id)
    approval, _ = await world.approvals.get(ANA, plan.id)
    assert approval.status is ApprovalStatus.APPLIED and approval.due_at is None
    assert "plan-applied-once" in str(await refused(world.runs.submit(ANA, plan.id)))
    events = await world.events(plan)
    assert [event.action for event in events] == ["plan.create", "plan.approve"]
    assert events[0].after["approval"] == ["self-service-accelerators"]
    assert (events[1].actor, events[1].reason, events[1].after["hash"]) == ("lea", "for the release", plan.hash)


async def test_small_work_asks_nobody(world: World) -> None:
    plan = await world.planned(SMALL)
    assert plan.status is PlanStatus.READY
    with pytest.raises(NotFound):
        await world.approvals.get(ANA, plan.id)
    assert "is ready" in str(await refused(world.approvals.approve(LEA, plan.id)))
    await world.runs.submit(ANA, plan.id)


async def test_nobody_agrees_to_their_own_or_to_what_they_do_not_see(world: World) -> None:
    by_lead = await world.planned(actor=LEA)
    assert (await refused(world.approvals.approve(LEA, by_lead.id))).refusals[0].rule == "four-eyes"
    owner = Actor(name="BO", role=Role.OPERATOR)
    assert (await refused(world.approvals.approve(owner, by_lead.id))).refusals[0].rule == "four-eyes"
    for attempt in (world.approvals.approve(FAR, by_lead.id), world.approvals.get(FAR, by_lead.id)):
        with pytest.raises(NotFound):
            await attempt
    assert await world.approvals.approvals(FAR) == []
    assert [asked.id for asked in await world.approvals.approvals(MAX, status="waiting")] == [by_lead.id]
    assert (await world.plan(by_lead.id)).status is PlanStatus.NEEDS_APPROVAL


async def test_where_four_eyes_are_off_one_person_is_enough(world: World) -> None:
    world.with_price(6 * USD, four_eyes=False)
    plan = await world.planned(actor=ADMIN)
    approval, _ = await world.approvals.get(ADMIN, plan.id)
    assert not approval.four_eyes
    await world.approvals.approve(ADMIN, plan.id)
    await world.runs.submit(ADMIN, plan.id)


async def test_a_no_is_final_even_after_a_yes(world: World) -> None:
    plan = await world.planned()
    await world.approvals.approve(LEA, plan.id)
    with pytest.raises(InvalidInput, match="reason"):
        await world.approvals.reject(MAX, plan.id, "  ")
    await world.approvals.reject(MAX, plan.id, "wait for Monday")
    assert (await world.plan(plan.id)).status is PlanStatus.REJECTED
    told = await refused(world.runs.submit(ANA, plan.id))
    assert type(told) is Refusal and told.refusals[0].have == "rejected by max: wait for Monday"
    assert "rejected by max" in str(await refused(world.approvals.approve(LEA, plan.id)))
    assert (await world.events(plan))[-1].reason == "wait for Monday"


async def test_dear_plans_need_two_people(world: World) -> None:
    limits = SelfService(plan_max_microusd=10 * USD, second_threshold_microusd=50 * USD)
    await world.approvals.set_limits(ADMIN, "vision", limits)
    plan = await world.planned(SMALL)
    first = await world.approvals.approve(LEA, plan.id)
    assert (first.status, first.needed) == (ApprovalStatus.WAITING, 2)
    assert (await refused(world.runs.submit(ANA, plan.id))).refusals[0].have == "1 (lea)"
    await world.approvals.approve(MAX, plan.id)
    await world.runs.submit(ANA, plan.id)


# ---------------------------------------------------------------- the world changes


async def test_another_price_makes_the_approval_useless_and_is_shown(world: World) -> None:
    plan = await world.planned()
    await world.approvals.approve(LEA, plan.id)
    world.with_price(7 * USD)
    told = await refused(world.runs.submit(ANA, plan.id))
    assert [reason.rule for reason in told.refusals] == ["price-unchanged", "approval-carries-over"]
    assert "$6.00/h" in told.refusals[0].need and "$7.00/h" in told.refusals[0].have
    again = await world.planned()
    assert again.hash != plan.hash and again.status is PlanStatus.NEEDS_APPROVAL
    assert type(await refused(world.runs.submit(ANA, again.id))) is ApprovalNeeded


async def test_limits_lowered_after_planning_are_noticed_when_it_is_applied(world: World) -> None:
    plan = await world.planned(SMALL)
    changed = await world.approvals.set_limits(ADMIN, "vision", SelfService(accelerators_max=0), "no cards left")
    assert changed.self_service.accelerators_max == 0
    told = await refused(world.runs.submit(ANA, plan.id))
    assert told.refusals[0].rule == "self-service-accelerators" and "plan again" in told.hint
    async with world.store.transaction() as tx:
        (event,) = await tx.find(Event, {"object_id": "vision", "action": "project.set"})
    assert (event.reason, event.before["accelerators_max"], event.after["accelerators_max"]) == ("no cards left", 4, 0)
    with pytest.raises(NotFound):
        await world.approvals.set_limits(FAR, "vision", SelfService())


async def test_many_small_plans_are_a_large_one(world: World) -> None:
    """A plan of $60 each, at most $150 a month: two begin, however they race; the third asks."""
    await world.approvals.set_limits(ADMIN, "vision", SelfService(month_max_microusd=150 * USD))
    plans = [await world.planned(SMALL) for _ in range(3)]
    assert [plan.status for plan in plans] == [PlanStatus.READY] * 3
    outcomes = await asyncio.gather(*(world.runs.submit(ANA, plan.id) for plan in plans), return_exceptions=True)
    assert sum(isinstance(outcome, Run) for outcome in outcomes) == 2, outcomes
    (over,) = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    assert over.refusals[0].rule == "self-service-month"
    assert over.refusals[0].have.startswith("$120.00 held, spent and waiting this month and up to $60.00 more")
    fourth = await world.planned(SMALL)
    assert fourth.status is PlanStatus.NEEDS_APPROVAL
    await world.approvals.approve(LEA, fourth.id)
    await world.runs.submit(ANA, fourth.id)
    assert (await world.costs.budget(ADMIN, "vision")).held_microusd == 180 * USD


# ---------------------------------------------------------------- at the same time


async def test_two_people_at_once_both_count_or_the_second_is_told(world: World) -> None:
    plan = await world.planned()
    outcomes = await asyncio.gather(
        world.approvals.approve(LEA, plan.id), world.approvals.approve(MAX, plan.id), return_exceptions=True
    )
    given = [outcome for outcome in outcomes if isinstance(outcome, Approval)]
    (late,) = [outcome for outcome in outcomes if isinstance(outcome, GroundError)]
    assert len(given) == 1 and f"approved by {given[0].votes[0].by}" in str(late)

    await world.approvals.set_limits(ADMIN, "vision", SelfService(second_threshold_microusd=0))
    dear = await world.planned()
    await asyncio.gather(world.approvals.approve(LEA, dear.id), world.approvals.approve(MAX, dear.id))
    approval, _ = await world.approvals.get(ANA, dear.id)
    assert approval.status is ApprovalStatus.APPROVED and {vote.by for vote in approval.votes} == {"lea", "max"}


async def test_yes_no_and_apply_at_once_never_run_what_was_not_approved(world: World) -> None:
    for _ in range(4):
        plan = await world.planned()
        outcomes = await asyncio.gather(
            world.runs.submit(ANA, plan.id),
            world.approvals.approve(LEA, plan.id),
            world.approvals.reject(MAX, plan.id, "no"),
            world.runs.submit(ANA, plan.id),
            return_exceptions=True,
        )
        assert all(isinstance(o, Refusal | Conflict) for o in outcomes if isinstance(o, BaseException))
        after, (approval, _) = await world.plan(plan.id), await world.approvals.get(ADMIN, plan.id)
        runs = [run for run in await world.runs.runs(ADMIN) if run.plan_id == plan.id]
        assert len(runs) == (1 if after.status is PlanStatus.APPLIED else 0)
        assert (after.status, approval.status) in {
            (PlanStatus.APPLIED, ApprovalStatus.APPLIED),
            (PlanStatus.REJECTED, ApprovalStatus.REJECTED),
        }
        assert not runs or {vote.by for vote in approval.votes} == {"lea"}


# ---------------------------------------------------------------- time, and telling people


async def test_a_question_ends_by_itself_and_everybody_is_told_once(world: World) -> None:
    plan = await world.planned()
    assert await world.look() == ["approval.needed"]
    assert await world.look() == []
    world.clock.advance(VALIDITY_S - 3600)
    assert await world.look() == ["approval.expiring"]
    world.clock.advance(3600)
    assert "it expired at" in str(await refused(world.approvals.approve(LEA, plan.id)))
    assert (await refused(world.runs.submit(ANA, plan.id))).refusals[0].rule == "approval-expired"
    assert [a.status for a in await world.approvals.approvals(ANA, status="expired")] == []
    assert await world.look() == ["approval.expired"]
    assert await world.look() == []
    assert (await world.plan(plan.id)).status is PlanStatus.EXPIRED
    assert (await world.events(plan))[-1].action == "plan.expire"
    assert await world.approvals.approvals(ANA, status="open") == []


async def test_an_approval_that_is_not_used_ends_too(world: World) -> None:
    plan = await world.planned()
    world.clock.advance(VALIDITY_S - 60)
    await world.approvals.approve(LEA, plan.id)
    assert await world.look() == ["approval.given"]
    world.clock.advance(VALIDITY_S - 60)
    await world.look()
    world.clock.advance(60)
    assert (await refused(world.runs.submit(ANA, plan.id))).refusals[0].rule == "approval-expired"
    assert await world.look() == ["approval.expired"]
    assert "approved by lea, was not applied in time" in world.notify.sent[-1].title


async def test_a_notice_that_did_not_arrive_is_sent_again(world: World) -> None:
    plan = await world.planned()
    world.notify.deaf = True
    with pytest.raises(Unavailable):
        await world.look()
    world.notify.deaf = False
    assert await world.look() == []  # still leased
    world.clock.advance(31)
    assert await world.look() == ["approval.needed"]
    assert plan.id in world.notify.sent[-1].title and "lea, max may" in world.notify.sent[-1].text


async def test_a_yes_while_somebody_is_being_told_wins(world: World) -> None:
    plan = await world.planned()
    async with world.store.transaction() as tx:
        (claimed,) = await tx.claim(Approval, now=world.clock.now(), owner="w", lease_s=30, limit=10)
    await world.approvals.approve(LEA, plan.id)
    with pytest.raises(Conflict):
        await world.approvals.step(claimed)
    assert await world.look() == ["approval.given"]


async def test_counts_and_waits_are_tallied_per_project(world: World) -> None:
    await world.planned(actor=MAX)
    plan = await world.planned()
    world.clock.advance(90)
    await world.approvals.approve(LEA, plan.id)
    tallies = await world.approvals.tallies(ANA)
    assert tallies["vision"].by_status == {"waiting": 1, "approved": 1}
    assert tallies["vision"].approved_after_s == 90
    assert await world.approvals.tallies(FAR) == {}


async def test_planning_anew_replaces_the_question_that_nobody_answered(world: World) -> None:
    first = await world.planned()
    answered = await world.planned(JOB.replace("name: llm", "name: other"))
    await world.approvals.approve(LEA, answered.id)
    theirs = await world.planned(actor=MAX)
    second = await world.planned()
    await world.planned(JOB.replace("name: llm", "name: other"))
    assert (await world.plan(first.id)).status is PlanStatus.EXPIRED
    assert (await world.plan(answered.id)).status is PlanStatus.APPROVED
    told = await refused(world.runs.submit(ANA, first.id))
    assert told.refusals[0].have == f"replaced by {second.id}"
    event = (await world.events(first))[-1]
    assert (event.action, event.actor, event.reason) == ("plan.expire", "ana", f"replaced by {second.id}")
    waiting = {asked.id for asked in await world.approvals.approvals(MAX, status="waiting")}
    assert first.id not in waiting and {theirs.id, second.id} <= waiting


async def test_planning_anew_does_not_use_up_the_month(world: World) -> None:
    await world.approvals.set_limits(ADMIN, "vision", SelfService(month_max_microusd=150 * USD))
    for _ in range(4):
        plan = await world.planned()
        assert [verdict.rule for verdict in plan.verdicts if verdict.approval] == ["self-service-accelerators"]
    theirs = await world.planned(JOB.replace("max_duration: 10h", "max_duration: 20h"), actor=MAX)
    month = next(verdict for verdict in theirs.verdicts if verdict.rule == "self-service-month")
    assert month.approval.startswith("$60.00 held, spent and waiting this month and up to $120.00 more")


async def test_an_unknown_status_and_an_unknown_plan_are_told(world: World) -> None:
    with pytest.raises(InvalidInput, match="unknown approval status 'maybe'"):
        await world.approvals.approvals(ANA, status="maybe")
    for attempt in (world.approvals.approve(MAX, "plan-x"), world.approvals.reject(MAX, "plan-x", "r")):
        with pytest.raises(NotFound):
            await attempt
    assert timedelta(seconds=VALIDITY_S).days == 3
