"""Experiments and runs on each store: nothing is lost side by side, nothing is half kept, jobs keep to their own."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.adapters.test_store_conformance import a_project, a_run
from tests.conftest import ManualClock

from groundplane.adapters.job_tokens import FileJobTokens
from groundplane.adapters.system import RandomIds
from groundplane.domain.run import RunStatus
from groundplane.domain.tracking.records import Measured, Point, Stage, TrackedState
from groundplane.errors import Conflict, Forbidden, InvalidInput, NotFound, Unauthenticated
from groundplane.identity import Actor, Role
from groundplane.ports import Store
from groundplane.services.access import Access
from groundplane.services.tracking import JobTracking, Search, Tracking

ANA = Actor(name="ana", role=Role.MEMBER, key_id="key-1", project="vision")
EVE = Actor(name="eve", role=Role.MEMBER, key_id="key-2", project="other")
JOB = Actor(name="ana", role=Role.JOB, key_id="job:run-1", project="vision", run_id="run-1")


def at(value: float, step: int, key: str = "loss") -> Measured:
    return Measured(key=key, point=Point(value=value, timestamp_ms=step, step=step))


@pytest.fixture
async def tracking(store: Store, clock: ManualClock) -> Tracking:
    async with store.transaction() as tx:
        await tx.insert(a_project("vision"))
        await tx.insert(a_run("run-1", status=RunStatus.RUNNING))
    return Tracking(store=store, clock=clock, ids=RandomIds())


async def begun(tracking: Tracking, name: str = "trial") -> str:
    experiment = await tracking.create_experiment(ANA, name, {})
    made = await tracking.create_run(ANA, experiment.id, name="", user="", started_ms=1, tags={})
    return made.run.id


async def test_what_comes_side_by_side_is_all_kept(tracking: Tracking) -> None:
    run_id = await begun(tracking)
    await asyncio.gather(*(tracking.log(ANA, run_id, metrics=[at(step / 10, step)]) for step in range(25)))
    await asyncio.gather(*(tracking.log(ANA, run_id, params={f"p{n}": "1"}, tags={"t": str(n)}) for n in range(10)))
    told = await tracking.run(ANA, run_id)
    assert told.points == 25 and told.latest["loss"].step == 24 and len(told.run.params) == 10
    assert [point.step for point in await tracking.history(ANA, run_id, "loss")] == list(range(25))
    assert await tracking.history(ANA, run_id, "unheard") == []
    await tracking.log(ANA, run_id, metrics=[at(n, 1, f"m{n}") for n in range(500)])
    assert [point.value for point in await tracking.history(ANA, run_id, "m499")] == [499]


async def test_what_is_wrong_with_one_call_is_told_to_no_other(tracking: Tracking) -> None:
    runs = [await begun(tracking, name) for name in ("a", "b", "c")]
    await tracking.set_run_stage(ANA, runs[1], Stage.DELETED)
    calls = [
        tracking.log(actor, run, metrics=[at(number, number)])
        for number in range(40)
        for actor, run in ((ANA, runs[0]), (ANA, runs[1]), (EVE, runs[2]), (ANA, runs[2]), (ANA, "run-none"))
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [type(None), InvalidInput, NotFound, type(None), NotFound] * 40
    for run in (runs[0], runs[2]):
        assert [point.step for point in await tracking.history(ANA, run, "loss")] == list(range(40))
        assert (await tracking.run(ANA, run)).points == 40


async def test_a_caller_that_goes_away_takes_no_points_of_others_along(tracking: Tracking) -> None:
    run = await begun(tracking)
    calls = [asyncio.create_task(tracking.log(ANA, run, metrics=[at(step, step)])) for step in range(20)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    kept = {point.step for point in await tracking.history(ANA, run, "loss")}
    assert kept >= set(range(1, 20, 2)), "an acknowledged point is lost"


async def test_a_run_that_another_process_wrote_or_deleted_is_looked_at_again(
    tracking: Tracking, store: Store, clock: ManualClock
) -> None:
    run = await begun(tracking)
    other = Tracking(store=store, clock=clock, ids=RandomIds())
    for step in range(0, 12, 3):
        await tracking.log(ANA, run, metrics=[at(step, step)])
        await other.log(ANA, run, metrics=[at(step + 1, step + 1)])
        await other.log(ANA, run, metrics=[at(step + 2, step + 2)], params={"lr": "1"})
    assert [point.step for point in await tracking.history(ANA, run, "loss")] == list(range(12))
    assert (await other.run(ANA, run)).points == 12
    await other.set_run_stage(ANA, run, Stage.DELETED)
    with pytest.raises(InvalidInput, match="is deleted"):
        await tracking.log(ANA, run, metrics=[at(12, 12)])
    with pytest.raises(NotFound):
        await tracking.log(EVE, run, metrics=[at(12, 12)])
    await other.set_run_stage(ANA, run, Stage.ACTIVE)
    await tracking.log(ANA, run, metrics=[at(12, 12)])
    with pytest.raises(NotFound):
        await tracking.log(EVE, run, metrics=[at(13, 13)])
    assert (await tracking.run(ANA, run)).latest["loss"].step == 12


async def test_a_call_that_is_refused_leaves_nothing(tracking: Tracking) -> None:
    run_id = await begun(tracking)
    await tracking.log(ANA, run_id, params={"lr": "1"})
    with pytest.raises(InvalidInput, match="lr is '1' already"):
        await tracking.log(ANA, run_id, metrics=[at(1, 1)], params={"lr": "2"}, tags={"t": "x"})
    with pytest.raises(NotFound, match="no logged model"):
        await tracking.log(ANA, run_id, metrics=[at(1, 1), replace(at(1, 1), model_id="m-none")])
    told = await tracking.run(ANA, run_id)
    assert told.points == 0 and not told.latest and "t" not in told.run.tags


async def test_one_project_is_nothing_to_another(tracking: Tracking, store: Store) -> None:
    run_id = await begun(tracking)
    experiment = await tracking.experiment_named(ANA, "trial")
    for refused in (
        tracking.run(EVE, run_id),
        tracking.experiment(EVE, experiment.id),
        tracking.history(EVE, run_id, "x"),
    ):
        with pytest.raises(NotFound):
            await refused
    assert await tracking.search_runs(EVE, [experiment.id], Search()) == ([], "")
    assert (await tracking.create_experiment(EVE, "trial", {})).project == "other"
    assert [each.name for each, _ in await tracking.experiments(EVE)] == ["trial"]
    with pytest.raises(Conflict):
        await tracking.create_experiment(ANA, "trial", {})


async def test_pages_of_runs_join_up_while_more_are_begun(tracking: Tracking) -> None:
    experiment = await tracking.create_experiment(ANA, "many", {})

    async def begin(number: int, started_ms: int) -> str:
        made = await tracking.create_run(ANA, experiment.id, name="", user="", started_ms=started_ms, tags={})
        await tracking.log(ANA, made.run.id, metrics=[at(number, 1)], params={"odd": str(number % 2)})
        return made.run.id

    begun = [await begin(number, 1 + number // 4) for number in range(12)]
    newest_first = sorted(begun, key=lambda run: (-(1 + begun.index(run) // 4), run))
    for query, wanted in (
        ("", newest_first),
        ("params.odd = '1'", [run for run in newest_first if run in begun[1::2]]),
    ):
        found, token, pages = [], "", 0
        while not pages or token:
            told, token = await tracking.search_runs(ANA, [experiment.id], Search(filter=query, limit=3, token=token))
            found += [each.run.id for each in told]
            await begin(100 + pages, 99)  # Newer than everything that is still to come.
            pages += 1
        assert [run for run in found if run in begun] == wanted
    with pytest.raises(InvalidInput, match="page token"):
        foreign = Search(filter="params.odd = '0'", token=(await _first_token(tracking, experiment.id)))
        await tracking.search_runs(ANA, [experiment.id], foreign)
    ordered, _ = await tracking.search_runs(ANA, [experiment.id], Search(order=("metrics.loss ASC",), limit=12))
    assert [each.run.id for each in ordered] == begun


async def _first_token(tracking: Tracking, experiment_id: str) -> str:
    _, token = await tracking.search_runs(ANA, [experiment_id], Search(limit=1))
    assert token
    return token


async def test_the_default_experiment_is_made_when_it_is_asked_for(tracking: Tracking) -> None:
    first, second = await tracking.experiment(ANA, "0"), await tracking.experiment_named(ANA, "Default")
    assert first.id == second.id != (await tracking.experiment(EVE, "0")).id
    found, _ = await tracking.search_runs(ANA, ["0"], Search())
    assert found == []


async def test_a_job_has_its_run_in_the_experiment_that_it_names_first(tracking: Tracking, store: Store) -> None:
    named = await tracking.create_experiment(ANA, "chosen", {})
    assert (await tracking.experiment_named(JOB, "chosen")).id == named.id
    told = await asyncio.gather(*(tracking.run(JOB, "run-1") for _ in range(4)))
    assert {each.run.experiment_id for each in told} == {named.id}
    assert (await tracking.experiment_named(JOB, "chosen")).id == named.id
    await tracking.log(JOB, "run-1", metrics=[at(0.5, 1), at(9, 1, "system/cpu")], params={"lr": "1"})
    other = await begun(tracking)
    with pytest.raises(Forbidden, match="its own runs"):
        await tracking.log(JOB, other, metrics=[at(1, 1)])
    for refused in (
        tracking.set_experiment_stage(JOB, named.id, Stage.DELETED),
        tracking.rename_experiment(JOB, named.id, "x"),
        tracking.set_run_stage(JOB, "run-1", Stage.DELETED),
    ):
        with pytest.raises(Forbidden):
            await refused
    assert [each.run.id for each in await tracking.of_job(ANA, "run-1")] == ["run-1"]
    assert await tracking.of_job(EVE, "run-1") == []


async def test_what_a_job_left_open_ends_as_the_job_did(
    tracking: Tracking, store: Store, clock: ManualClock, tmp_path_factory: pytest.TempPathFactory
) -> None:
    await tracking.run(JOB, "run-1")
    await tracking.log(JOB, "run-1", metrics=[at(0.5, 1), at(9, 1, "system/cpu")], params={"lr": "1"})
    jobs = JobTracking(
        clock=clock, tokens=FileJobTokens(tmp_path_factory.mktemp("keys")), urls={"local": "http://x/mlflow"}
    )
    run = a_run("run-1", status=RunStatus.STOPPED)
    async with store.transaction() as tx:
        assert await jobs.told(tx, run) == ({"loss": 0.5}, {"lr": "1"})
        assert await jobs.told(tx, a_run("run-2")) == ({}, {})
        await jobs.end(tx, run)
    told = await tracking.run(ANA, "run-1")
    assert told.run.state is TrackedState.KILLED and told.run.ended_ms


async def test_a_token_opens_as_long_as_its_run(
    store: Store, tracking: Tracking, clock: ManualClock, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = tmp_path_factory.mktemp("keys")
    tokens = FileJobTokens(keys)
    jobs = JobTracking(clock=clock, tokens=tokens, urls={"local": "http://x/mlflow"})
    access = Access(store=store, clock=clock, ids=RandomIds(), jobs=FileJobTokens(keys))
    run = a_run("run-1", end_date=clock.now() + timedelta(hours=1), status=RunStatus.RUNNING)
    token = jobs.environment(run)["MLFLOW_TRACKING_TOKEN"]
    assert token == tokens.issue("run-1") and (keys / "jobs.key").stat().st_mode & 0o77 == 0
    for none in (
        replace(run, endpoint="served"),
        replace(run, pool="elsewhere"),
        replace(run, spec=replace(run.spec, network=False)),
        replace(run, spec=replace(run.spec, env={"MLFLOW_TRACKING_URI": "http://own"})),
    ):
        assert jobs.environment(none) == {}
    async with store.transaction() as tx:
        kept = await tx.update(run)
    actor = await access.authenticate(token)
    assert (actor.role, actor.run_id, actor.project) == (Role.JOB, "run-1", "vision")
    async with store.transaction() as tx:
        await tx.update(replace(kept, ended_at=clock.now(), status=RunStatus.SUCCEEDED))
    clock.time += timedelta(minutes=9)
    assert (await access.authenticate(token)).run_id == "run-1"
    clock.time += timedelta(minutes=2)
    with pytest.raises(Unauthenticated, match="ended with its run"):
        await access.authenticate(token)
    forged = token.replace("run-1.", "run-2.")
    with pytest.raises(Unauthenticated, match="not known"):
        await access.authenticate(forged)
