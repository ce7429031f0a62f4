"""A run's life through the real services: every crash point, stop, loss, clock jump; nothing lost, nothing doubled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
from groundplane.domain.budget import Budget, Hold, HoldStatus
from groundplane.domain.ledger import LedgerEntry
from groundplane.domain.model import ModelVersion
from groundplane.domain.order import Order
from groundplane.domain.provenance.circumstances import AttemptCircumstances
from groundplane.domain.provenance.envelope import open_envelope
from groundplane.domain.run import Attempt, EndReason, FoundCheckpoint, Observation, Run, RunStatus
from groundplane.errors import Conflict, Refusal
from groundplane.identity import Actor, Role
from groundplane.ports import Store, Tx
from groundplane.services.access import Access
from groundplane.services.approvals import Approvals
from groundplane.services.costs import Costs
from groundplane.services.models import Models
from groundplane.services.plans import Plans
from groundplane.services.queue import Queue
from groundplane.services.reconcile import Reconcile
from groundplane.services.runs import Runs

ADMIN = Actor(name="ops", role=Role.ADMIN)
START = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
JOB = """\
apiVersion: groundplane/v1
kind: Job
metadata: {name: train, project: vision, owner: ana, cost_center: r1}
spec:
  command: [python, train.py]
  pool: local
  resources: {cpus: 1, memory: 1GiB}
  end_date: 2d
  max_cost: $1
  max_duration: 1h
  retry: {max_attempts: 3, backoff: 1s}
"""


class Clock:
    """Goes on when told."""

    def __init__(self) -> None:
        self.moment = START

    def now(self) -> datetime:
        return self.moment

    def pass_s(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


class CrashError(Exception):
    """The control plane dies here."""


class CrashingStore:
    """A real store, the one in memory unless another is given, dying before or after the n-th commit."""

    def __init__(self, inner: Store | None = None) -> None:
        self.inner = inner or MemoryStore()
        self.crash_at: int | None = None
        self.after_commit = False
        self.commits = 0

    @property
    def writes(self) -> int:
        return self.inner.writes

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        self.commits += 1
        dies = self.crash_at is not None and self.commits >= self.crash_at
        if dies:
            self.crash_at = None
        async with self.inner.transaction() as tx:
            yield tx
            if dies and not self.after_commit:
                raise CrashError
        if dies:
            raise CrashError

    def events(self) -> AsyncIterator[object]:
        return self.inner.events()

    async def close(self) -> None:
        await self.inner.close()


@dataclass
class Plane:
    """One control plane over the memory pool."""

    store: CrashingStore
    clock: Clock
    executor: MemoryExecutor
    orders: list[str]
    sent: dict[str, Order]
    access: Access
    plans: Plans
    costs: Costs
    runs: Runs
    reconcile: Reconcile
    queue: Queue

    async def submit(self, text: str = JOB) -> str:
        (plan,) = await self.plans.plan(ADMIN, text)
        return (await self.runs.submit(ADMIN, plan.id)).id

    async def step(self) -> None:
        """What the runs' loop does once. A lease of a dead worker has been given back at the restart."""
        await self.reconcile_all()
        await self.queue.step()

    async def reconcile_all(self) -> None:
        async with self.store.transaction() as tx:
            claimed = await tx.claim(Run, now=self.clock.now(), owner="w", lease_s=30, limit=10)
        await self.reconcile.step(claimed)

    async def run_to_end(self, run_id: str, *, steps: int = 400) -> Run:
        for _ in range(steps):
            run = await self.runs.get(ADMIN, run_id)
            if run.status.is_over:
                return run
            await self.step()
            self.clock.pass_s(15)
        raise AssertionError(f"{run_id} is {run.status} after {steps} steps")

    async def balances(self) -> None:
        """Every hold closed; the budget's posted money is the ledger's; nothing held."""
        async with self.store.inner.transaction() as tx:
            budgets = await tx.find(Budget)
            holds = await tx.find(Hold)
            spent = (await tx.total(LedgerEntry, "amount_microusd")).get((), 0)
        assert [hold.status for hold in holds if hold.status is HoldStatus.PENDING] == []
        assert sum(budget.held_microusd for budget in budgets) == 0
        assert sum(budget.posted_microusd for budget in budgets) == spent


async def a_plane(folder: Path, play: Callable[[Order], Script], inner: Store | None = None) -> Plane:
    store, clock, ids = CrashingStore(inner), Clock(), RandomIds()
    orders: list[str] = []
    sent: dict[str, Order] = {}

    def noted(order: Order) -> Script:
        orders.append(order.attempt_id)
        sent[order.attempt_id] = order
        return play(order)

    executor = MemoryExecutor(clock, play=noted, pool="local")
    files = HomeRunFiles(folder)
    prices = BookPriceBook(local_price_microusd_per_hour=360_000, as_of=START.date())
    costs = Costs(
        store=store,
        clock=clock,
        ids=ids,
        usage_log=FolderUsageLog(folder / "wal"),
        gateway_slice_microusd=1,
        notify=MemoryNotifier(),
    )
    approvals = Approvals(store=store, clock=clock, notify=MemoryNotifier(), validity_s=3600, four_eyes=True)
    pools = {"local": executor}
    plans = Plans(store=store, clock=clock, ids=ids, executors=pools, prices=prices, approvals=approvals)
    runs = Runs(
        store=store, clock=clock, ids=ids, plans=plans, approvals=approvals, costs=costs, executors=pools,
        wake=lambda: None,
    )  # fmt: skip
    models = Models(
        store=store,
        clock=clock,
        blobs=memory_store(),
        signer=FileSigner(folder / "keys"),
        files=FolderModelFiles(),
        provenance=MachineProvenance(),
    )
    reconcile = Reconcile(
        store=store,
        clock=clock,
        executors={"local": executor},
        costs=costs,
        models=models,
        files=files,
        period_s=2,
    )
    queue = Queue(store=store, clock=clock, executors={"local": executor})
    access = Access(store=store, clock=clock, ids=ids)
    await access.create_project(
        ADMIN,
        name="vision",
        owner="ana",
        cost_center="r1",
        monthly_limit_microusd=10_000_000,
        thresholds_percent=(50, 80, 100),
        reason="test",
    )
    return Plane(store, clock, executor, orders, sent, access, plans, costs, runs, reconcile, queue)


def steady(order: Order) -> Script:
    """Works for ten minutes, then succeeds."""
    return Script(ends_after_s=600)


def dies_once(order: Order) -> Script:
    """The first attempt is killed after five minutes, past a checkpoint; the second succeeds."""
    found = FoundCheckpoint(step=100, path="/c/100", size_bytes=1)
    if order.number == 1:
        return Script(checkpoints=((60, found),), ends_after_s=300, end_reason=EndReason.KILLED, exit_code=137)
    return Script(checkpoints=((0, found),), ends_after_s=300)


async def test_a_run_that_succeeds_costs_its_time_and_gives_back_the_rest(tmp_path: Path) -> None:
    plane = await a_plane(tmp_path, steady)
    run = await plane.run_to_end(await plane.submit())
    assert run.status is RunStatus.SUCCEEDED
    async with plane.store.transaction() as tx:
        spent = (await tx.total(LedgerEntry, "amount_microusd"))[()]
    assert spent == 60_000  # $0.36 an hour for ten minutes
    await plane.balances()


async def test_a_run_that_is_over_before_anybody_looks_has_still_run(tmp_path: Path) -> None:
    plane = await a_plane(tmp_path, lambda order: Script(ends_after_s=0))
    run_id = await plane.submit()
    run = await plane.run_to_end(run_id)
    (attempt,) = await plane.runs.attempts(ADMIN, run_id)
    assert run.started_at is not None and run.started_at == attempt.started_at


async def test_a_killed_attempt_is_followed_by_one_that_resumes(tmp_path: Path) -> None:
    plane = await a_plane(tmp_path, dies_once)
    run_id = await plane.submit()
    run = await plane.run_to_end(run_id)
    attempts = await plane.runs.attempts(ADMIN, run_id)
    assert run.status is RunStatus.SUCCEEDED
    assert [attempt.resumed_from_step for attempt in attempts] == [None, 100]
    assert [c.step for c in await plane.runs.checkpoints(ADMIN, run_id)] == [100]
    await plane.balances()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(crash_at=st.integers(1, 60), after_commit=st.booleans(), dies=st.booleans())
async def test_a_crash_at_any_commit_loses_and_doubles_nothing(
    tmp_path_factory: pytest.TempPathFactory, crash_at: int, after_commit: bool, dies: bool
) -> None:
    plane = await a_plane(tmp_path_factory.mktemp("crash"), dies_once if dies else steady)
    run_id = await plane.submit()
    plane.store.commits, plane.store.crash_at, plane.store.after_commit = 0, crash_at, after_commit
    try:
        await plane.run_to_end(run_id)
    except CrashError:
        async with plane.store.transaction() as tx:  # the restart gives the dead process's leases back
            for row in await tx.find(Run, {"lease_owner": "w"}):
                await tx.update(replace(row, lease_owner="", lease_expires_at=None))
    run = await plane.run_to_end(run_id)
    attempts = await plane.runs.attempts(ADMIN, run_id)
    assert run.status is RunStatus.SUCCEEDED
    assert len(plane.orders) == len(set(plane.orders)), "an attempt is played once"
    assert [attempt.number for attempt in attempts] == list(range(1, len(attempts) + 1))
    assert len(attempts) == (2 if dies else 1), "a crash of ours costs no attempt"
    await plane.balances()


async def test_a_stop_that_comes_while_a_run_is_reconciled_is_not_lost(tmp_path: Path) -> None:
    plane = await a_plane(tmp_path, steady)
    run_id = await plane.submit()
    await plane.step()
    async with plane.store.transaction() as tx:
        plane.clock.pass_s(5)
        claimed = await tx.claim(Run, now=plane.clock.now(), owner="w", lease_s=30, limit=10)
    await plane.runs.stop(ADMIN, run_id, "enough")
    await plane.reconcile.step(claimed)  # its commit fails: the row moved on
    run = await plane.run_to_end(run_id)
    assert (run.status, run.end_reason) == (RunStatus.STOPPED, EndReason.STOPPED_BY_USER)
    await plane.balances()


async def test_an_unreachable_pool_ends_nothing_and_starts_nothing_twice(tmp_path: Path) -> None:
    plane = await a_plane(tmp_path, steady)
    run_id = await plane.submit()
    await plane.step()
    plane.executor.reachable = False
    for _ in range(20):
        plane.clock.pass_s(10)
        await plane.step()
    assert (await plane.runs.get(ADMIN, run_id)).status in {RunStatus.STARTING, RunStatus.RUNNING}
    plane.executor.reachable = True
    run = await plane.run_to_end(run_id)
    assert run.status is RunStatus.SUCCEEDED
    assert len(plane.orders) == 1
    await plane.balances()


async def test_a_member_of_a_gang_that_starts_later_changes_no_time_that_is_billed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = await a_plane(tmp_path, steady)
    run_id = await plane.submit()
    await plane.step()
    observe = plane.executor.observe

    async def later(attempt_ids: Sequence[str]) -> dict[str, Observation]:
        """After two minutes the last of the gang has begun, too: of all it is the latest start that is told."""
        seen = await observe(attempt_ids)
        if plane.clock.now() < START + timedelta(seconds=120):
            return seen
        return {name: replace(each, started_at=START + timedelta(seconds=110)) for name, each in seen.items()}

    monkeypatch.setattr(plane.executor, "observe", later)
    await plane.run_to_end(run_id)
    (attempt,) = await plane.runs.attempts(ADMIN, run_id)
    async with plane.store.transaction() as tx:
        spent = (await tx.total(LedgerEntry, "amount_microusd"))[()]
    assert attempt.started_at is not None and attempt.billed_until is not None
    assert spent == 100 * (attempt.billed_until - attempt.started_at).total_seconds()
    await plane.balances()


async def test_a_clock_set_back_bills_nothing_negative_and_ends_well(tmp_path: Path) -> None:
    plane = await a_plane(tmp_path, steady)
    run_id = await plane.submit()
    for _ in range(5):
        await plane.step()
        plane.clock.pass_s(61)
    plane.clock.pass_s(-7200)
    for _ in range(5):
        await plane.step()
        plane.clock.pass_s(61)
    plane.clock.pass_s(7200)
    run = await plane.run_to_end(run_id, steps=4000)
    assert run.status is RunStatus.SUCCEEDED
    async with plane.store.transaction() as tx:
        entries = await tx.find(LedgerEntry)
    assert all(entry.amount_microusd >= 0 for entry in entries)
    await plane.balances()


async def test_a_declared_output_that_may_not_enter_fails_the_run_and_says_why(tmp_path: Path) -> None:
    plane = await a_plane(tmp_path, steady)
    run_id = await plane.submit(JOB + "  outputs: {models: [{name: m, path: ., license: MIT, framework: jax}]}\n")
    (tmp_path / "runs" / run_id / "output").mkdir(parents=True)
    (tmp_path / "runs" / run_id / "output" / "model.pkl").write_bytes(b"\x80\x04N.")
    run = await plane.run_to_end(run_id)
    assert (run.status, run.end_reason) == (RunStatus.FAILED, EndReason.OUTPUT_REFUSED)
    assert "pickle" in run.message
    await plane.balances()


async def test_what_a_runner_saw_before_the_start_is_what_the_certificate_states(tmp_path: Path) -> None:
    code = {"commit": "c" * 40, "dirty": False, "repository": ""}
    drivers = [{"name": "linux kernel", "version": "6"}]
    seen = {"observed_at": "now", "code": code, "hardware": {"cpu": "x", "drivers": drivers}, "unknown": [["x", "y"]]}
    plane = await a_plane(tmp_path, lambda _: Script(ends_after_s=5.0, seen=(seen,)))
    run_id = await plane.submit(JOB + "  outputs: {models: [{name: m, path: ., license: MIT, sla: best effort}]}\n")
    output = tmp_path / "runs" / run_id / "output"
    output.mkdir(parents=True)
    (output / "config.json").write_text("{}")
    (output / "params.json").write_text('{"lr": 0.1}')
    run = await plane.run_to_end(run_id)
    assert run.status is RunStatus.SUCCEEDED and plane.sent[f"{run_id}-1"].observe
    async with plane.store.transaction() as tx:
        (kept,) = await tx.find(AttemptCircumstances)
        (version,) = await tx.find(ModelVersion)
    assert kept.id == f"{run_id}-1" and kept.members == (seen,)
    said: Any = open_envelope(version.certificate).statement["predicate"]
    assert (said["code"], said["hardware"]["drivers"]) == (code, drivers)
    assert said["observed"] == "before the command of attempt 1 started, now"
    assert (said["hyperparameters"], said["sla"]) == ({"lr": "0.1"}, "best effort")
    assert {"fact": "x", "why": "y"} in said["unknown"]


async def test_attempts_run_out(tmp_path: Path) -> None:
    plane = await a_plane(tmp_path, lambda order: Script(ends_after_s=10, end_reason=EndReason.KILLED, exit_code=137))
    run_id = await plane.submit()
    run = await plane.run_to_end(run_id)
    assert run.status is RunStatus.FAILED
    assert len(await plane.runs.attempts(ADMIN, run_id)) == 3
    assert "3 of 3" in run.message
    await plane.balances()


async def test_the_end_date_stops_a_run_before_and_during_its_attempt(tmp_path: Path) -> None:
    plane = await a_plane(tmp_path, lambda order: Script(ends_after_s=None))
    waiting, working = await plane.submit(), None
    plane.clock.pass_s(3 * 86400)
    run = await plane.run_to_end(waiting)
    assert (run.status, run.attempt) == (RunStatus.STOPPED, 0)
    working = await plane.submit()
    await plane.step()
    plane.clock.pass_s(3 * 86400)
    run = await plane.run_to_end(working)
    assert run.end_reason in {EndReason.END_DATE, EndReason.MAX_DURATION}
    await plane.balances()


async def test_a_plan_taken_twice_at_once_becomes_one_run(tmp_path: Path) -> None:
    plane = await a_plane(tmp_path, steady)
    (plan,) = await plane.plans.plan(ADMIN, JOB)
    await plane.runs.submit(ADMIN, plan.id)
    with pytest.raises((Refusal, Conflict)):
        await plane.runs.submit(ADMIN, plan.id)
    async with plane.store.transaction() as tx:
        assert len(await tx.find(Run)) == 1
        assert len(await tx.find(Attempt)) == 0
