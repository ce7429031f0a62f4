"""`ground explain`: for each way to wait, the layer that refuses, and a way out that is tried and works."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.services.test_queue import entries, single, with_nodes, works
from tests.services.test_reconcile import ADMIN, START, Plane, a_plane

from groundplane.domain.node import Cordon
from groundplane.domain.planning.plan import PlanStatus
from groundplane.domain.queue import ProjectQuota, Reservation, ReservedPart
from groundplane.services.standing import Standing


def job(name: str, *lines: str, accelerators: int = 1, nodes: int = 1, cpus: float = 1, hours: float = 1) -> str:
    """A job of the tests' project; durations in hours, a cost bound that its plan fits in."""
    text = single(name, *lines)
    need = f"{{cpus: {cpus}, memory: 1GiB, accelerators: {accelerators}, nodes: {nodes}}}"
    text = text.replace("{cpus: 1, memory: 1GiB, accelerators: 1, nodes: 1}", need)
    return text.replace("max_duration: 1h", f"max_duration: {int(hours * 60)}m").replace("max_cost: $1", "max_cost: $9")


@pytest.fixture
async def plane(tmp_path: Path) -> Plane:
    """Two nodes of two accelerators and eight CPUs each, and money for everything."""
    made = with_nodes(await a_plane(tmp_path, works), 2, accelerators=2)
    await made.costs.set_budget(ADMIN, project="vision", monthly_limit_microusd=900_000_000, reason="test")
    return made


def standing(plane: Plane) -> Standing:
    return Standing(store=plane.store, clock=plane.clock, executors={"local": plane.executor}, queue=plane.queue)


async def said(plane: Plane, run_id: str) -> str:
    story = await standing(plane).story(await plane.runs.get(ADMIN, run_id))
    return story.sentence(plane.clock.now()) if story is not None else ""


async def settle(plane: Plane) -> None:
    for _ in range(3):
        await plane.step()


async def starts(plane: Plane, text: str) -> bool:
    """Whether a run of this spec, submitted instead, has its place after a pass."""
    run_id = await plane.submit(text)
    await settle(plane)
    return (await entries(plane))[run_id].holds


async def submitted(plane: Plane, text: str) -> str:
    run_id = await plane.submit(text)
    await settle(plane)
    return run_id


async def test_a_size_that_is_not_free_names_what_is(plane: Plane) -> None:
    plane = with_nodes(plane, 2, accelerators=4)
    await submitted(plane, job("holder", accelerators=3))
    await submitted(plane, job("holder-2", accelerators=2))
    late = await submitted(plane, job("late", accelerators=4))
    sentence = await said(plane, late)
    assert "(1st of 1, class training): pool-capacity: it needs 1 node with 4 h100 accelerators" in sentence
    assert "0 of 2 have that free. It starts about 04:00 UTC; with 2 accelerators it would start now." in sentence
    assert await starts(plane, job("smaller", accelerators=2, cpus=0.5))


async def test_a_gang_that_finds_too_few_nodes_is_told_how_many_it_would_find(plane: Plane) -> None:
    await submitted(plane, job("holder", accelerators=2))
    gang = await submitted(plane, job("gang", nodes=2, accelerators=2))
    sentence = await said(plane, gang)
    assert "gang: it needs 2 nodes with 2 h100 accelerators" in sentence
    assert "1 of 2 have that free" in sentence
    assert sentence.endswith("with 1 node it would start now.")
    assert await starts(plane, job("alone", accelerators=2))


async def test_a_cordoned_node_is_named_with_its_reason(plane: Plane) -> None:
    cordon = Cordon(
        id="local/local-1", pool="local", node="local-1", reason="Xid 79", cordoned_by="ops", cordoned_at=START
    )
    async with plane.store.transaction() as tx:
        await tx.insert(cordon)
    gang = await submitted(plane, job("gang", nodes=2))
    sentence = await said(plane, gang)
    assert "cordon: it needs 2 nodes" in sentence and "1 take work, cordoned: local-1 (Xid 79)" in sentence
    assert "It starts once they are back: ground nodes uncordon; with 1 node it would start now." in sentence
    async with plane.store.transaction() as tx:
        await tx.delete(Cordon, "local/local-1")
    await settle(plane)
    assert (await entries(plane))[gang].holds


@pytest.mark.parametrize(
    ("limits", "ask", "says", "instead"),
    [
        ({"accelerators": 2}, {"accelerators": 3}, "needs 3 accelerators; project vision lacks 1: vision holds 0 of 2",
         "with 2 accelerators"),
        ({"cpus_milli": 2000}, {"accelerators": 0, "cpus": 3}, "it needs 3 CPUs; project vision lacks 1", ""),
        ({"memory_bytes": 2**29}, {}, "it needs 1.0 GiB of memory; project vision lacks 512.0 MiB", ""),
        ({"runs": 0}, {}, "project vision runs 0 of the 0 it may at once", ""),
    ],
)  # fmt: skip
async def test_a_quota_says_what_is_missing_and_what_fits(
    plane: Plane, limits: dict[str, int], ask: dict[str, float], says: str, instead: str
) -> None:
    plane = with_nodes(plane, 2, accelerators=4)
    async with plane.store.transaction() as tx:
        await tx.insert(ProjectQuota(id="vision", updated_at=START, **limits))
    run_id = await submitted(plane, job("much", **ask))  # type: ignore[arg-type]
    sentence = await said(plane, run_id)
    assert "project-quota: " in sentence and says in sentence, sentence
    assert (f"{instead} it would start now" in sentence) == bool(instead), sentence
    if instead:
        assert await starts(plane, job("fits", accelerators=2))


async def test_a_reservation_lets_shorter_runs_through(plane: Plane) -> None:
    await plane.access.create_project(
        ADMIN, name="speech", owner="bo", cost_center="r2", monthly_limit_microusd=1, thresholds_percent=(), reason="t"
    )
    parts = tuple(ReservedPart(node=f"local-{n}", accelerators=2, cpus_milli=8000) for n in range(2))
    async with plane.store.transaction() as tx:
        await tx.insert(
            Reservation(
                id="res-1", project="speech", pool="local", owner="bo", reason="demo",
                starts_at=START + timedelta(hours=1), ends_at=START + timedelta(hours=2), parts=parts, created_at=START,
            )
        )  # fmt: skip
    long = await submitted(plane, job("long", hours=3))
    sentence = await said(plane, long)
    assert "reservation: there is room, but a reservation begins before it would end" in sentence
    assert "It starts about 05:00 UTC; with max_duration 45m it would start now" in sentence
    assert await starts(plane, job("short", hours=0.75))


async def test_room_that_is_kept_for_the_run_before_is_given_to_shorter_ones(plane: Plane) -> None:
    await submitted(plane, job("holder", accelerators=2, hours=1))
    first = await submitted(plane, job("first", nodes=2, accelerators=2))
    behind = await submitted(plane, job("behind", accelerators=2, hours=4))
    sentence = await said(plane, behind)
    assert f"queue: there is room, but {first} is before it and would start later" in sentence
    assert "with max_duration 1h00m it would start now" in sentence
    assert await starts(plane, job("short", accelerators=2, hours=1))


async def test_what_preempts_says_that_others_make_room(plane: Plane) -> None:
    for name in ("a", "b"):
        await submitted(plane, job(name, "priority: exploratory", accelerators=2))
    real = await plane.submit(job("real", accelerators=2))
    await plane.reconcile_all()
    await plane.queue.step()
    sentence = await said(plane, real)
    assert "preempting: runs of a lower class checkpoint and make room for it" in sentence
    await settle(plane)
    await settle(plane)
    plane.clock.pass_s(15)
    await settle(plane)
    assert (await entries(plane))[real].holds


async def test_a_pool_that_does_not_answer_is_the_backend_layer(plane: Plane) -> None:
    run_id = await submitted(plane, job("held", nodes=2, accelerators=2, hours=1))
    late = await submitted(plane, job("late"))
    assert run_id and (await said(plane, late))
    pools = {}
    lost = Standing(store=plane.store, clock=plane.clock, executors=pools, queue=plane.queue)
    story = await lost.story(await plane.runs.get(ADMIN, late))
    assert story is not None
    assert "backend: pool local is not registered. It goes on once the pool answers." in story.sentence(START)


async def test_a_plan_is_explained_like_a_run(plane: Plane) -> None:
    (plan,) = await plane.plans.plan(ADMIN, job("now"))
    told = await standing(plane).explain_plan(plan)
    assert told.sentence == f"{plan.id} is not applied yet; applied now, it would start at once on pool local."

    await submitted(plane, job("holder", accelerators=2, nodes=2))
    told = await standing(plane).explain_plan(plan)
    assert "it would wait (1st of 1, class training): pool-capacity: it needs 1 node with 1 h100 acc" in told.sentence
    assert "It starts about 04:00 UTC." in told.sentence
    assert "holder" in told.lines[0]
    assert plan.id not in await entries(plane), "looking puts nothing into the queue"

    (needy,) = await plane.plans.plan(ADMIN, job("needy", "needs: [nobody]"))
    told = await standing(plane).explain_plan(needy)
    assert "needs: it needs nobody, and no run of that name is there yet" in told.sentence


async def test_a_plan_names_the_layer_for_each_way_to_wait(plane: Plane) -> None:
    lost = Standing(store=plane.store, clock=plane.clock, executors={}, queue=plane.queue)
    (plan,) = await plane.plans.plan(ADMIN, job("late"))
    told = (await lost.explain_plan(plan)).sentence
    assert "would wait (1st of 1, class training): backend: pool local is not registered" in told

    sweep = await plane.plans.plan(ADMIN, job("sweep", "array: 1-2%1"))
    await plane.runs.submit(ADMIN, sweep[0].id)
    await settle(plane)
    element = (await plane.plans.plan(ADMIN, job("sweep", "array: 3-4%1")))[0]
    told = (await standing(plane).explain_plan(element)).sentence
    assert "it would wait (training): array: 1 elements of its array run already, as many as may at once" in told

    await submitted(plane, job("prepare", "needs: [train]"))
    (train,) = await plane.plans.plan(ADMIN, job("train", "needs: [prepare]"))
    told = (await standing(plane).explain_plan(train)).sentence
    assert "is refused: needs: needs-circle: needs runs that can start one after another, has a circle" in told
    assert "train → prepare → train" in told and "take one of these needs away" in told

    async with plane.store.transaction() as tx:
        await tx.insert(ProjectQuota(id="vision", runs=1, updated_at=START))
    told = (await standing(plane).explain_plan(plan)).sentence
    assert "project-quota: project vision runs 1 of the 1 it may at once" in told


async def test_a_plan_that_would_run_into_a_reservation_is_told_how_long_it_may_last(plane: Plane) -> None:
    await plane.access.create_project(
        ADMIN, name="speech", owner="bo", cost_center="r2", monthly_limit_microusd=1, thresholds_percent=(), reason="t"
    )
    parts = tuple(ReservedPart(node=f"local-{n}", accelerators=2, cpus_milli=8000) for n in range(2))
    async with plane.store.transaction() as tx:
        await tx.insert(
            Reservation(
                id="res-1", project="speech", pool="local", owner="bo", reason="demo",
                starts_at=START + timedelta(hours=1), ends_at=START + timedelta(hours=2), parts=parts, created_at=START,
            )
        )  # fmt: skip
    (plan,) = await plane.plans.plan(ADMIN, job("long", hours=3))
    told = (await standing(plane).explain_plan(plan)).sentence
    assert "reservation: there is room, but a reservation begins before it would end" in told
    assert told.endswith("with max_duration 45m it would start now.")


async def test_a_plan_that_is_refused_names_the_layer_and_the_way(plane: Plane) -> None:
    (plan,) = await plane.plans.plan(ADMIN, job("huge", accelerators=16))
    told = await standing(plane).explain_plan(plan)
    assert plan.status is PlanStatus.REFUSED
    assert f"{plan.id} is refused: pool-capacity: offer-fits: needs" in told.sentence
    (far,) = await plane.plans.plan(ADMIN, job("far").replace("pool: local", "pool: nowhere"))
    assert "is refused: pool-capacity: pool-known" in (await standing(plane).explain_plan(far)).sentence
    (walled,) = await plane.plans.plan(ADMIN, job("dear").replace("max_cost: $9", "max_cost: $0.01"))
    assert "is refused: budget: max-cost" in (await standing(plane).explain_plan(walled)).sentence

    (fits,) = await plane.plans.plan(ADMIN, job("fits"))
    await plane.costs.set_budget(ADMIN, project="vision", monthly_limit_microusd=1, reason="spent")
    told = await standing(plane).explain_plan(fits)
    assert f"{fits.id} is refused: budget: budget: needs up to $" in told.sentence
    assert "raise the budget: ground budget set vision" in told.sentence


async def test_a_plan_that_became_a_run_says_so(plane: Plane) -> None:
    (plan,) = await plane.plans.plan(ADMIN, job("now"))
    run = await plane.runs.submit(ADMIN, plan.id)
    told = await standing(plane).explain_plan(replace(plan, status=PlanStatus.APPLIED, applied_to=run.id))
    assert told.sentence == f"{plan.id} was applied: it became {run.id}."


async def test_a_spot_plan_says_where_a_notice_would_not_be_seen(plane: Plane) -> None:
    plane.executor.spot_trouble = {"local-1": "no metadata service answers", "local-0": "aws: refused"}
    (plan,) = await plane.plans.plan(ADMIN, job("brave", "spot: true"))
    (said,) = [verdict.warning for verdict in plan.verdicts if verdict.rule == "spot-seen"]
    assert "spot notices can't be seen on 2 nodes of pool local; local-0: aws: refused" in said
    (plan,) = await plane.plans.plan(ADMIN, job("plain"))
    assert [verdict for verdict in plan.verdicts if verdict.rule == "spot-seen" and verdict.warning] == []
