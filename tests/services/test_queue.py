"""The queue made durable: gangs, cordons, preemption and crashes through the real services, on each of the stores."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.services.test_reconcile import ADMIN, START, CrashError, Plane, a_plane

from groundplane.adapters.executors.memory import MemoryExecutor, Script
from groundplane.domain.node import Cordon
from groundplane.domain.order import Order
from groundplane.domain.planning.plan import Offer
from groundplane.domain.queue import ProjectQuota, QueueEntry, QueueState, Stage
from groundplane.domain.run import Attempt, EndReason, FoundCheckpoint, Run, RunStatus
from groundplane.domain.scheduling.scheduler import schedule
from groundplane.domain.scheduling.state import Start
from groundplane.errors import InvalidInput, Refusal
from groundplane.ports import Store
from groundplane.services.queue import Queue
from groundplane.services.standing import Standing

GANG = """\
apiVersion: groundplane/v1
kind: Job
metadata: {name: gang, project: vision, owner: ana, cost_center: r1}
spec:
  command: [torchrun, train.py]
  pool: local
  resources: {cpus: 1, memory: 1GiB, accelerators: 1, nodes: 4}
  end_date: 2d
  max_cost: $9
  max_duration: 1h
"""


def single(name: str, *lines: str) -> str:
    one = (
        GANG.replace("name: gang", f"name: {name}")
        .replace("nodes: 4", "nodes: 1")
        .replace("max_cost: $9", "max_cost: $1")
    )
    return one + "".join(f"  {line}\n" for line in lines)


def with_nodes(plane: Plane, count: int, accelerators: int = 1) -> Plane:
    """The plane's pool gets so many nodes."""
    offer = Offer(
        pool="local",
        node_type="simulated",
        cpus=8.0,
        memory_bytes=2**36,
        disk_free_bytes=2**40,
        accelerators=accelerators,
        accelerator="h100",
        price_microusd_per_hour=0,
        price_as_of=START.date(),
        price_source="",
        nodes=count,
    )
    pool: MemoryExecutor = plane.executor
    pool._offers = (offer,)
    return plane


def works(order: Order) -> Script:
    """Ten minutes, a checkpoint every minute."""
    found = tuple(
        (60.0 * n, FoundCheckpoint(step=n + 10 * order.number, path=f"/c/{n}", size_bytes=1)) for n in range(1, 10)
    )
    return Script(ends_after_s=600, checkpoints=found)


def hurries(_: Order) -> Script:
    return Script(ends_after_s=20)


async def entries(plane: Plane) -> dict[str, QueueEntry]:
    async with plane.store.inner.transaction() as tx:
        return {entry.id: entry for entry in await tx.find(QueueEntry)}


async def test_a_gang_of_four_never_starts_while_one_of_four_nodes_is_cordoned(tmp_path: Path) -> None:
    plane = with_nodes(await a_plane(tmp_path, works), 4)
    async with plane.store.transaction() as tx:
        await tx.insert(
            Cordon(
                id="local/local-2", pool="local", node="local-2", reason="Xid 79", cordoned_by="ops", cordoned_at=START
            )
        )
    run_id = await plane.submit(GANG)
    for _ in range(20):
        await plane.step()
        plane.clock.pass_s(60)
    assert plane.orders == []
    standing = Standing(store=plane.store, clock=plane.clock, executors={"local": plane.executor}, queue=plane.queue)
    story = await standing.story(await plane.runs.get(ADMIN, run_id))
    assert story is not None
    assert story.line.layer == "cordon"
    assert "local-2 (Xid 79)" in story.sentence(plane.clock.now())
    assert "with 3 nodes it would start now" in story.sentence(plane.clock.now())
    async with plane.store.transaction() as tx:
        await tx.delete(Cordon, "local/local-2")
    await plane.step()
    await plane.step()
    assert plane.orders == [f"{run_id}-1"]
    assert len((await entries(plane))[run_id].placements) == 4


async def test_preempted_work_resumes_from_its_checkpoint_and_keeps_its_time_in_the_queue(tmp_path: Path) -> None:
    plane = with_nodes(await a_plane(tmp_path, works), 1)
    toy = await plane.submit(single("toy", "priority: exploratory"))
    await plane.step()
    await plane.step()
    plane.clock.pass_s(200)
    await plane.step()
    real = await plane.submit(single("real"))
    for _ in range(4):
        await plane.step()
    entry = (await entries(plane))[toy]
    assert entry.stage is not Stage.PLACED
    run = await plane.run_to_end(real)
    assert run.status is RunStatus.SUCCEEDED
    run = await plane.run_to_end(toy)
    assert run.status is RunStatus.SUCCEEDED
    first, second = await plane.runs.attempts(ADMIN, toy)
    assert first.end_reason is EndReason.PREEMPTED
    assert second.resumed_from_step == 13
    assert await entries(plane) == {}
    await plane.balances()


async def test_a_quota_over_all_pools_is_never_exceeded(tmp_path: Path) -> None:
    plane = with_nodes(await a_plane(tmp_path, works), 2)
    async with plane.store.transaction() as tx:
        await tx.insert(ProjectQuota(id="vision", accelerators=1, updated_at=START))
    runs = [await plane.submit(single(name)) for name in ("one", "two")]
    for _ in range(5):
        await plane.step()
        held = [entry for entry in (await entries(plane)).values() if entry.holds]
        assert len(held) <= 1
        plane.clock.pass_s(1)
    for run_id in runs:
        assert (await plane.run_to_end(run_id)).status is RunStatus.SUCCEEDED


async def crashed_at(plane: Plane, crash_at: int, *, after_commit: bool, stride_s: float = 15) -> None:
    """Two runs, one preempting the other, while the control plane dies once; then everything is as it must be."""
    plane = with_nodes(plane, 1)
    toy = await plane.submit(single("toy", "priority: exploratory"))
    plane.store.commits, plane.store.crash_at, plane.store.after_commit = 0, crash_at, after_commit
    real = ""
    for number in range(400):
        try:
            if number == 10:
                real = await plane.submit(single("real"))
            await plane.step()
        except CrashError:
            async with plane.store.transaction() as tx:  # a new process gives back the dead one's leases
                for row in await tx.find(Run, {"lease_owner": "w"}):
                    await tx.update(replace(row, lease_owner="", lease_expires_at=None))
            plane.queue = Queue(store=plane.store, clock=plane.clock, executors={"local": plane.executor})
        plane.clock.pass_s(stride_s)
        if number > 10 and not await entries(plane):
            break
    assert len(plane.orders) == len(set(plane.orders)), "no attempt is started twice"
    assert await entries(plane) == {}, "no capacity is kept"
    async with plane.store.inner.transaction() as tx:
        attempts = await tx.find(Attempt)
    spans = sorted((a.started_at, a.ended_at) for a in attempts if a.started_at and a.ended_at)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans)), "one at a time"
    for run_id in filter(None, (toy, real)):
        assert (await plane.runs.get(ADMIN, run_id)).status is RunStatus.SUCCEEDED
    await plane.balances()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(crash_at=st.integers(1, 120), after_commit=st.booleans())
async def test_a_crash_at_any_commit_neither_starts_twice_nor_keeps_capacity(
    tmp_path_factory: pytest.TempPathFactory, crash_at: int, after_commit: bool
) -> None:
    plane = await a_plane(tmp_path_factory.mktemp("crash"), works)
    await crashed_at(plane, crash_at, after_commit=after_commit)


async def test_a_crash_while_placing_or_preempting_is_survived_on_each_store(store: Store, tmp_path: Path) -> None:
    plane = await a_plane(tmp_path, works, store)
    await crashed_at(plane, 40, after_commit=True, stride_s=60)


async def test_what_is_needed_starts_first_and_all_elements_of_an_array_are_needed(
    store: Store, tmp_path: Path
) -> None:
    plane = with_nodes(await a_plane(tmp_path, hurries, store), 8)
    early = await plane.submit(single("train", "needs: [prepare, sweep]"))
    await plane.step()
    assert await waits_for(plane, early) == ("needs", "it needs prepare, sweep, and no run of that name is there yet")
    plans = await plane.plans.plan(ADMIN, single("prepare") + "---\n" + single("sweep", "array: 1-3%2"))
    prepare, *sweep = [(await plane.runs.submit(ADMIN, plan.id)).id for plan in plans]
    for _ in range(2):
        await plane.step()
    await plane.reconcile_all()
    assert await waits_for(plane, early) == ("needs", f"it needs prepare ({prepare}), which is starting, and 3 more")
    assert plane.orders == [f"{run}-1" for run in (prepare, *sweep[:2])], "two of the array at once, and nothing more"
    assert (await plane.run_to_end(early)).status is RunStatus.SUCCEEDED
    assert plane.orders[-1] == f"{early}-1"
    folders = [f"{tmp_path}/runs/{run}/output" for run in sweep]
    assert plane.sent[f"{early}-1"].env["GROUND_INPUT_PREPARE"] == f"{tmp_path}/runs/{prepare}/output"
    assert plane.sent[f"{early}-1"].env["GROUND_INPUT_SWEEP"] == ":".join(folders)


async def test_a_pass_gives_way_to_another_that_decided_meanwhile(store: Store, tmp_path: Path) -> None:
    plane = with_nodes(await a_plane(tmp_path, works, store), 1)
    for name in ("one", "two"):
        await plane.submit(single(name))
    await plane.reconcile_all()
    other = Queue(store=plane.store, clock=plane.clock, executors={"local": plane.executor})
    await asyncio.gather(plane.queue.step(), other.step())
    assert sum(entry.holds for entry in (await entries(plane)).values()) == 1


async def test_a_node_cordoned_while_a_pass_decides_takes_nothing(tmp_path: Path) -> None:
    plane = with_nodes(await a_plane(tmp_path, works), 1)
    await plane.submit(single("one"))
    await plane.reconcile_all()
    cordon = Cordon(
        id="local/local-0", pool="local", node="local-0", reason="Xid 79", cordoned_by="ops", cordoned_at=START
    )
    async with plane.store.inner.transaction() as tx:
        seen = await plane.queue.view(tx, "local", await plane.executor.nodes())
    async with plane.store.inner.transaction() as tx:
        await tx.insert(cordon)
    decisions = schedule(seen.state, plane.clock.now().timestamp())
    assert [type(each) for each in decisions] == [Start]
    assert await plane.queue._write(seen, decisions, plane.clock.now()) == 0
    assert not any(entry.holds for entry in (await entries(plane)).values())


async def waits_for(plane: Plane, run_id: str) -> tuple[str, str]:
    """The layer that keeps a run from starting, and why."""
    standing = Standing(store=plane.store, clock=plane.clock, executors={"local": plane.executor}, queue=plane.queue)
    story = await standing.story(await plane.runs.get(ADMIN, run_id))
    assert story is not None
    return story.line.layer, story.line.reason


async def test_the_queue_is_kept_alike_by_each_store(store: Store) -> None:
    """What a pass locks, reads and counts means the same on SQLite, PostgreSQL and in memory."""
    async with store.transaction() as tx:
        assert await tx.insert_once(QueueState(usage_at=START, usage={"local": {"vision": 0.25}}))
        assert not await tx.insert_once(QueueState(usage_at=START))
    async with store.transaction() as tx:
        state = await tx.get(QueueState, "queue", lock=True)
        assert state is not None
        assert state.usage == {"local": {"vision": 0.25}}
        assert (await tx.total(QueueEntry, "version")).get((), 0) == 0


def in_a_circle(error: pytest.ExceptionInfo[Refusal]) -> str:
    (refused,) = error.value.refusals
    assert refused.rule == "needs-circle"
    return refused.have.partition(": ")[2]


async def test_a_run_that_would_need_itself_through_others_is_refused_by_name(store: Store, tmp_path: Path) -> None:
    plane = with_nodes(await a_plane(tmp_path, hurries, store), 8)
    await plane.submit(single("train", "needs: [prepare]"))
    with pytest.raises(Refusal) as error:
        await plane.submit(single("prepare", "needs: [train]"))
    assert in_a_circle(error) == "prepare → train → prepare"
    for _ in range(2):
        await plane.step()  # now the first has its place in the queue
    await plane.submit(single("report", "needs: [train]"))
    with pytest.raises(Refusal) as error:
        await plane.submit(single("prepare", "needs: [report]"))
    assert in_a_circle(error) == "prepare → report → train → prepare"
    with pytest.raises(Refusal) as error:
        await plane.submit(single("alone", "needs: [alone]"))
    assert in_a_circle(error) == "alone → alone"
    prepare = await plane.submit(single("prepare"))
    assert (await plane.run_to_end(prepare)).status is RunStatus.SUCCEEDED, "the rightful one is taken"


async def test_an_array_is_followed_in_a_circle(tmp_path: Path) -> None:
    plane = with_nodes(await a_plane(tmp_path, hurries), 8)
    await plane.submit(single("train", "needs: [sweep]"))
    plans = await plane.plans.plan(ADMIN, single("sweep", "array: 1-3", "needs: [train]"))
    with pytest.raises(Refusal) as error:
        await plane.runs.submit(ADMIN, plans[0].id)
    assert in_a_circle(error) == "sweep-1 → train → sweep"
    sweep = [plan.id for plan in await plane.plans.plan(ADMIN, single("sweep", "array: 1-3"))]
    for plan_id in sweep:
        await plane.runs.submit(ADMIN, plan_id)
    plane.clock.pass_s(1)
    again = await plane.plans.plan(ADMIN, single("sweep", "array: 1-3", "needs: [sweep]"))
    assert [(await plane.runs.submit(ADMIN, plan.id)).name for plan in again] == ["sweep-1", "sweep-2", "sweep-3"]


async def test_jobs_of_one_file_that_need_each_other_are_refused_before_anything_is_planned(tmp_path: Path) -> None:
    plane = with_nodes(await a_plane(tmp_path, hurries), 8)
    text = "---\n".join((single("a", "needs: [b]"), single("b", "array: 1-2", "needs: [c]"), single("c", "needs: [a]")))
    with pytest.raises(InvalidInput, match="in a circle: a → b → c → a"):
        await plane.plans.plan(ADMIN, text)
    assert await plane.plans.plans(ADMIN) == []


async def test_a_need_means_the_run_that_was_there_when_it_was_asked_for(tmp_path: Path) -> None:
    plane = with_nodes(await a_plane(tmp_path, hurries), 8)
    older = await plane.submit(single("prepare"))
    plane.clock.pass_s(1)
    train = await plane.submit(single("train", "needs: [prepare]"))
    plane.clock.pass_s(1)
    newer = await plane.submit(single("prepare", "needs: [train]"))
    assert (await plane.run_to_end(newer)).status is RunStatus.SUCCEEDED
    assert plane.orders == [f"{run}-1" for run in (older, train, newer)]


async def test_one_key_sent_many_times_at_once_is_one_run(store: Store, tmp_path: Path) -> None:
    plane = with_nodes(await a_plane(tmp_path, hurries, store), 8)
    plans = [(await plane.plans.plan(ADMIN, single("again")))[0] for _ in range(6)]
    runs = await asyncio.gather(
        *(plane.runs.submit(ADMIN, plan.id, idempotency_key="monday") for plan in plans), return_exceptions=True
    )
    assert len({run.id for run in runs if isinstance(run, Run)}) == 1, runs
    assert all(isinstance(run, Run) for run in runs), runs
    async with plane.store.inner.transaction() as tx:
        assert len(await tx.find(Run)) == 1
