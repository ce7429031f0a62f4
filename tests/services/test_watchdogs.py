"""Watchdogs over a simulated fleet: storms kill nothing, hangs are named, idlers are told of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from groundplane.adapters.artifacts import memory_store
from groundplane.adapters.executors.memory import MemoryExecutor, Script
from groundplane.adapters.model_files import FolderModelFiles
from groundplane.adapters.notify import MemoryNotifier
from groundplane.adapters.prices import BookPriceBook
from groundplane.adapters.provenance import MachineProvenance
from groundplane.adapters.run_files import HomeRunFiles
from groundplane.adapters.signing import FileSigner
from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.system import RandomIds
from groundplane.adapters.usage_log import FolderUsageLog
from groundplane.domain.ledger import LedgerEntry
from groundplane.domain.order import Order
from groundplane.domain.planning.plan import Offer
from groundplane.domain.run import Attempt, EndReason, FoundCheckpoint, Run, RunStatus
from groundplane.identity import Actor, Role
from groundplane.services.access import Access
from groundplane.services.approvals import Approvals
from groundplane.services.cordons import Cordons
from groundplane.services.costs import Costs
from groundplane.services.models import Models
from groundplane.services.plans import Plans
from groundplane.services.queue import Queue
from groundplane.services.reconcile import Reconcile
from groundplane.services.runs import Runs
from groundplane.services.watchdogs import Watchdogs

ADMIN = Actor(name="ops", role=Role.ADMIN)
START = datetime(2026, 3, 2, 19, 0, tzinfo=UTC)
JOB = """\
apiVersion: groundplane/v1
kind: Job
metadata: {{name: train-{number}, project: vision, owner: ana, cost_center: r1}}
spec:
  command: [python, train.py]
  pool: lab
  resources: {{cpus: 8, memory: 1GiB, nodes: {nodes}{fewer}}}
  end_date: 2d
  max_cost: $5000
  max_duration: 20h
  control_plane_gone_limit: 5m
  hang_limit: 5m
  retry: {{max_attempts: 3, backoff: 1s}}
"""


class Clock:
    def __init__(self) -> None:
        self.moment = START

    def now(self) -> datetime:
        return self.moment

    def pass_s(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@dataclass
class Plane:
    store: MemoryStore
    clock: Clock
    executor: MemoryExecutor
    notifier: MemoryNotifier
    plans: Plans
    runs: Runs
    reconcile: Reconcile
    queue: Queue
    watchdogs: Watchdogs
    cordons: Cordons

    async def submit(self, number: int = 0, nodes: int = 1, fewer: str = "") -> str:
        (plan,) = await self.plans.plan(ADMIN, JOB.format(number=number, nodes=nodes, fewer=fewer))
        return (await self.runs.submit(ADMIN, plan.id)).id

    async def step(self, seconds: float = 0) -> None:
        self.clock.pass_s(seconds)
        await self.watchdogs.watch()
        for _ in range(4):
            async with self.store.transaction() as tx:
                claimed = await tx.claim(Run, now=self.clock.now(), owner="w", lease_s=30, limit=100)
            await self.reconcile.step(claimed)
            await self.queue.step()
            self.clock.pass_s(2)

    async def attempts(self) -> list[Attempt]:
        async with self.store.transaction() as tx:
            return await tx.find(Attempt, {}, order="created_at")

    async def actions(self) -> list[str]:
        return [event.action async for event in self.store.events()]


async def plane_of(folder: Path, play: Callable[[Order], Script], nodes: int = 20) -> Plane:
    store, clock, ids, notifier = MemoryStore(), Clock(), RandomIds(), MemoryNotifier()
    offer = Offer(
        pool="lab", node_type="simulated", cpus=8.0, memory_bytes=32 * 2**30, disk_free_bytes=2**40, accelerators=0,
        accelerator="", price_microusd_per_hour=4_000_000, price_as_of=START.date(), price_source="test", nodes=nodes,
    )  # fmt: skip
    executor = MemoryExecutor(clock, play=play, pool="lab", offers=[offer])
    pools = {"lab": executor}
    costs = Costs(
        store=store, clock=clock, ids=ids, usage_log=FolderUsageLog(folder / "wal"), gateway_slice_microusd=1,
        notify=notifier,
    )  # fmt: skip
    approvals = Approvals(store=store, clock=clock, notify=notifier, validity_s=3600, four_eyes=True)
    prices = BookPriceBook(local_price_microusd_per_hour=1, as_of=START.date())
    plans = Plans(store=store, clock=clock, ids=ids, executors=pools, prices=prices, approvals=approvals)
    runs = Runs(
        store=store, clock=clock, ids=ids, plans=plans, approvals=approvals, costs=costs, executors=pools,
        wake=lambda: None,
    )  # fmt: skip
    models = Models(
        store=store, clock=clock, blobs=memory_store(), signer=FileSigner(folder / "keys"), files=FolderModelFiles(),
        provenance=MachineProvenance(),
    )  # fmt: skip
    cordons = Cordons(store=store, clock=clock)
    watchdogs = Watchdogs(store=store, clock=clock, executors=pools, cordons=cordons, notify=notifier)
    reconcile = Reconcile(
        store=store, clock=clock, executors=pools, costs=costs, models=models, files=HomeRunFiles(folder), period_s=2,
        watchdogs=watchdogs,
    )  # fmt: skip
    queue = Queue(store=store, clock=clock, executors=pools)
    await Access(store=store, clock=clock, ids=ids).create_project(
        ADMIN, name="vision", owner="ana", cost_center="r1", monthly_limit_microusd=10**11, thresholds_percent=(100,),
        reason="test",
    )  # fmt: skip
    return Plane(store, clock, executor, notifier, plans, runs, reconcile, queue, watchdogs, cordons)


def forever(order: Order) -> Script:
    return Script(ends_after_s=None, checkpoints=((60, FoundCheckpoint(step=10, path="/c/10", size_bytes=1)),))


async def test_a_storm_over_twenty_nodes_kills_nothing_and_what_is_still_silent_after_it_is_given_up(
    tmp_path: Path,
) -> None:
    plane = await plane_of(tmp_path, forever)
    for number in range(20):
        await plane.submit(number)
    for _ in range(4):
        await plane.step(30)
    assert len(await plane.attempts()) == 20
    fell = [f"lab-{index}" for index in range(8)]
    plane.executor.silent = dict.fromkeys(fell, plane.clock.now())
    for _ in range(10):
        await plane.step(1800)  # five hours: every dead-man timer is long over
    assert all(each.end_reason is None for each in await plane.attempts())
    assert plane.watchdogs.braked()
    for name in fell[1:]:
        del plane.executor.silent[name]
    await plane.step(5)
    assert plane.watchdogs.braked()  # they come back one after the other
    assert all(each.end_reason is None for each in await plane.attempts())
    for _ in range(8):
        await plane.step(30)
    lost = [each for each in await plane.attempts() if each.end_reason is not None]
    assert [(each.node, each.end_reason) for each in lost] == [("lab-0", EndReason.NODE_LOST)]
    assert (await plane.actions()).count("fleet.storm") == 1
    assert any(notice.kind == "fleet.storm" for notice in plane.notifier.sent)


async def test_two_silent_nodes_of_twenty_are_no_storm(tmp_path: Path) -> None:
    plane = await plane_of(tmp_path, forever)
    for number in range(5):
        await plane.submit(number)
    for _ in range(4):
        await plane.step(30)
    plane.executor.silent = dict.fromkeys(["lab-0", "lab-1"], plane.clock.now())
    for _ in range(20):
        await plane.step(30)
    assert sorted(each.node for each in await plane.attempts() if each.end_reason) == ["lab-0", "lab-1"]
    assert not plane.watchdogs.braked()


def hangs_once(order: Order) -> Script:
    found = ((60.0, FoundCheckpoint(step=10, path="/c/10", size_bytes=1)),)
    if order.number == 1:
        return Script(ends_after_s=None, checkpoints=found, hangs_after_s=300, cut_off=3)
    return Script(ends_after_s=60)


async def test_a_hung_gang_of_four_names_its_node_and_goes_on_with_three_from_its_checkpoint(tmp_path: Path) -> None:
    plane = await plane_of(tmp_path, hangs_once, nodes=4)
    run_id = await plane.submit(nodes=4, fewer=", nodes_min: 3")
    began = plane.clock.now()
    for _ in range(60):
        await plane.step(8)
        run = await plane.runs.get(ADMIN, run_id)
        if run.attempt == 2:
            break
    assert (plane.clock.now() - began) < timedelta(minutes=10)
    assert list(await plane.cordons.of_pool("lab")) == ["lab-3"]
    for _ in range(10):
        await plane.step(10)
    first, second = await plane.attempts()
    assert first.end_reason is EndReason.HUNG
    assert "lab-3 (rank 3) can't be reached by 3 of the 3 others" in first.message
    assert (second.node, second.nodes, second.resumed_from_step) == ("lab-0,lab-1,lab-2", 3, 10)
    assert (await plane.runs.get(ADMIN, run_id)).status is RunStatus.SUCCEEDED
    async with plane.store.transaction() as tx:
        entries = await tx.find(LedgerEntry, {"run_id": run_id})
    assert second.started_at is not None
    assert second.ended_at is not None
    billed = sum(each.amount_microusd for each in entries if each.occurred_at >= second.started_at)
    seconds = (second.ended_at - second.started_at).total_seconds()
    assert billed == pytest.approx(3 * 4_000_000 * seconds / 3600, rel=0.001)  # three nodes are paid for, not four


async def test_a_hung_gang_that_needs_all_its_nodes_waits_for_them(tmp_path: Path) -> None:
    plane = await plane_of(tmp_path, hangs_once, nodes=4)
    run_id = await plane.submit(nodes=4)
    for _ in range(60):
        await plane.step(10)
    assert (await plane.runs.get(ADMIN, run_id)).status is RunStatus.PENDING


async def test_a_gang_that_lost_a_node_stops_its_other_members_and_goes_on_with_three(tmp_path: Path) -> None:
    plane = await plane_of(tmp_path, forever, nodes=4)
    await plane.submit(nodes=4, fewer=", nodes_min: 3")
    for _ in range(4):
        await plane.step(30)
    plane.executor.silent = {"lab-1": plane.clock.now()}
    for _ in range(20):
        await plane.step(30)
    first, second = await plane.attempts()
    assert first.end_reason is EndReason.NODE_LOST
    assert (second.node, second.nodes, second.resumed_from_step) == ("lab-0,lab-2,lab-3", 3, 10)
    plane.executor.silent = {}
    seen = (await plane.executor.observe([first.id]))[first.id]
    assert (seen.state, seen.end_reason) == ("ended", EndReason.NODE_LOST)


async def test_an_idle_runs_owner_is_told_once_in_dollars(tmp_path: Path) -> None:
    plane = await plane_of(tmp_path, lambda order: Script(ends_after_s=None, idle_after_s=60), nodes=2)
    run_id = await plane.submit(nodes=2)
    for _ in range(12):
        await plane.step(600)
    told = [notice for notice in plane.notifier.sent if notice.kind == "run.idle"]
    assert len(told) == 1
    assert "at $8.00 an hour" in told[0].text
    lines = (await plane.runs.explain(ADMIN, run_id)).lines
    assert any(line.startswith("idle since") and "$14." in line for line in lines), lines
    assert (await plane.actions()).count("run.idle") == 1
