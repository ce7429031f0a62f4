"""What happens by itself: steps are taken, failures outlived, orphans ended, a dead process's leases given back."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from groundplane.api.system import failing_loops
from groundplane.domain.access import Project
from groundplane.domain.order import Order
from groundplane.domain.run import Run, RunStatus
from groundplane.errors import Unavailable
from groundplane.identity import Actor, Role
from groundplane.loops import schedule
from groundplane.loops.worker import SPELL_S, Loop, run_loop
from groundplane.services import gateway_config
from groundplane.settings import Settings
from groundplane.wiring import App, build

ADMIN = Actor(name="ops", role=Role.ADMIN)


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    """A control plane as `ground up` builds it, its loops not running."""
    built = await build(Settings.from_env({"GROUND_HOME": str(tmp_path / "home")}))
    yield built
    await built.close()


async def run_until(loop: Loop, condition: asyncio.Event) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(run_loop(loop, stop))
    await asyncio.wait_for(condition.wait(), 60)
    stop.set()
    await asyncio.wait_for(running, 60)


async def test_a_step_that_fails_is_recorded_and_taken_again() -> None:
    done = asyncio.Event()
    calls: list[float] = []

    async def step() -> bool:
        calls.append(time.monotonic())
        if len(calls) < 3:
            raise Unavailable("the database does not answer", "start it")
        done.set()
        return False

    loop = Loop(name="test", period_s=0.02, step=step)
    await run_until(loop, done)
    assert loop.failures == 2
    assert loop.failures_in_a_row == 0
    assert loop.last_error == "the database does not answer"
    assert calls[2] - calls[1] > calls[1] - calls[0], "each wait is longer than the one before"


def test_a_loop_is_failing_while_its_steps_do_even_when_those_between_had_nothing_to_do() -> None:
    async def step() -> bool:
        return False

    loop = Loop(name="test", period_s=1.0, step=step)
    assert loop.failing_for_s(100.0) is None
    loop.failed(ValueError("refused\n[SQL: secret]"), 100.0)
    assert (loop.failing_for_s(105.0), loop.error_line) == (5.0, "refused")
    loop.failures_in_a_row = 0
    assert loop.failing_for_s(106.0) is None, "once, and then it did its work"
    loop.failed(ValueError("refused"), 130.0)
    loop.failures_in_a_row = 0
    assert (loop.failing_for_s(140.0), loop.spell_failures) == (40.0, 2)
    assert loop.failing_for_s(130.0 + SPELL_S + 1) is None
    loop.failed(ValueError("refused"), 1000.0)
    assert loop.failing_for_s(1001.0) == 1.0, "a spell of its own"


async def test_a_database_that_refuses_is_told_with_since_when_and_the_error(app: App) -> None:
    with contextlib.closing(sqlite3.connect(app.settings.home / "groundplane.db")) as database:
        database.execute("ALTER TABLE schedules RENAME TO elsewhere")
    failed, stop = asyncio.Event(), asyncio.Event()
    schedules = next(loop for loop in schedule.schedule(app) if loop.name == "schedules")
    take = schedules.step

    async def step() -> bool:
        try:
            return await take()
        finally:
            failed.set()

    app.loops = (replace(schedules, step=step),)
    assert failing_loops(app, ADMIN) == ()
    running = asyncio.create_task(run_loop(app.loops[0], stop))
    await asyncio.wait_for(failed.wait(), 60)
    stop.set()
    await asyncio.wait_for(running, 60)
    (told,) = failing_loops(app, ADMIN)
    assert (told.name, told.failures) == ("schedules", 1)
    assert "no such table: schedules" in told.error and "\n" not in told.error
    assert timedelta() <= datetime.now(UTC) - told.since < timedelta(minutes=5)
    (withheld,) = failing_loops(app, Actor(name="eve", role=Role.VIEWER, project="speech"))
    assert withheld.error == "", "it can speak of another project"


async def test_a_wake_up_ends_the_wait() -> None:
    done = asyncio.Event()
    first = asyncio.Event()
    calls = 0

    async def step() -> bool:
        nonlocal calls
        calls += 1
        (first if calls == 1 else done).set()
        return False

    loop = Loop(name="test", period_s=3600, step=step, wakeable=True)
    running = asyncio.create_task(run_until(loop, done))
    await asyncio.wait_for(first.wait(), 60)
    loop.wake.set()
    await asyncio.wait_for(running, 60)


async def test_more_work_is_done_at_once() -> None:
    done = asyncio.Event()
    calls = 0

    async def step() -> bool:
        nonlocal calls
        calls += 1
        if calls == 5:
            done.set()
        return calls < 5

    await run_until(Loop(name="test", period_s=3600, step=step), done)


def an_order(tmp_path: Path, attempt_id: str) -> Order:
    return Order(
        attempt_id=attempt_id,
        run_id=attempt_id.rsplit("-", 1)[0],
        number=1,
        command=(sys.executable, "-c", "import time; time.sleep(600)"),
        workdir="",
        env={},
        checkpoint_dir=str(tmp_path / "c"),
        output_dir=str(tmp_path / "o"),
        cpus=1,
        memory_bytes=2**28,
        accelerators=0,
        max_duration_s=600,
        idle_limit_s=None,
        control_plane_gone_limit_s=None,
        stop_grace_s=1,
        not_after=datetime.now(UTC) + timedelta(days=1),
    )


async def test_an_attempt_nobody_ordered_is_ended_and_forgotten(app: App, tmp_path: Path) -> None:
    pool = app.executors["local"]
    (tmp_path / "c").mkdir()
    (tmp_path / "o").mkdir()
    await pool.start(an_order(tmp_path, "run-stray-1"))
    await schedule.end_orphans(app)
    deadline = time.monotonic() + 60
    while (await pool.observe(["run-stray-1"]))["run-stray-1"].state not in {"ended", "absent"}:
        assert time.monotonic() < deadline, "the stray attempt must end"
        await asyncio.sleep(0.1)
    await schedule.end_orphans(app)
    assert "run-stray-1" not in await pool.attempts()


async def test_a_dead_process_gives_its_leases_back_to_the_next_one(app: App) -> None:
    await app.access.create_project(
        ADMIN,
        name="vision",
        owner="ana",
        cost_center="r1",
        monthly_limit_microusd=10_000_000,
        thresholds_percent=(80,),
        reason="",
    )
    spec = """
apiVersion: groundplane/v1
kind: Job
metadata: {name: a, project: vision, owner: ana, cost_center: r1}
spec: {command: ["true"], resources: {cpus: 1, memory: 64MiB}, end_date: 1d, max_cost: $1, max_duration: 1m}
"""
    (plan,) = await app.plans.plan(ADMIN, spec)
    run = await app.runs.submit(ADMIN, plan.id)
    async with app.store.transaction() as tx:
        (claimed,) = await tx.claim(Run, now=app.clock.now(), owner=app.lease_owner, lease_s=3600, limit=1)
    await schedule.release_own_leases(app)
    async with app.store.transaction() as tx:
        (again,) = await tx.claim(Run, now=app.clock.now(), owner="next", lease_s=3600, limit=1)
    assert (claimed.id, again.id) == (run.id, run.id)


async def test_the_loops_carry_a_submitted_run_to_its_end(app: App) -> None:
    await test_a_dead_process_gives_its_leases_back_to_the_next_one(app)
    async with app.store.transaction() as tx:
        (run,) = await tx.find(Run)
        await tx.update(replace(run, lease_owner="", lease_expires_at=None))
    stop = asyncio.Event()
    loops = asyncio.create_task(schedule.run_forever(app, stop))
    deadline = time.monotonic() + 30
    while not (run := await app.runs.get(ADMIN, run.id)).status.is_over:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    stop.set()
    await asyncio.wait_for(loops, 60)
    assert run.status is RunStatus.SUCCEEDED
    assert {loop.failures for loop in app.loops} == {0}


async def test_where_nothing_is_due_it_is_looked_for_less_often_until_something_is_written(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[type] = []
    transaction = app.store.transaction

    def counted() -> object:
        looks.append(Run)
        return transaction()

    monkeypatch.setattr(schedule, "REST_S", 3600.0)
    monkeypatch.setattr(app.store, "transaction", counted)
    due = schedule._Due(app, Run)
    for _ in range(50):
        assert await due.claim() == []
    assert len(looks) == schedule.LOOKS_BEFORE_REST
    async with transaction() as tx:
        await tx.insert(Project(id="new", owner="ana", cost_center="r1", created_at=datetime.now(UTC)))
    for _ in range(50):
        assert await due.claim() == []
    assert len(looks) == schedule.LOOKS_BEFORE_REST + 1


async def test_gateways_hear_of_a_key_at_once_and_of_time_within_seconds(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, published = datetime.now(UTC), list[bytes]()
    config = app.gateway_config
    await app.access.create_project(ADMIN, name="vision", owner="ana", cost_center="r1")

    async def publish(data: bytes) -> None:
        published.append(data)

    monkeypatch.setattr(config._sink, "publish", publish)
    monkeypatch.setattr(app.clock, "now", lambda: now)
    while not published or config._seen_writes != app.store.writes:
        await config.refresh()  # the first ones write, too: money is reserved ahead
    count = len(published)
    await app.access.create_key(ADMIN, name="caller", project="vision", owner="ana", role=Role.CALLER)
    await config.refresh()
    assert len(published) == count + 1
    while config._seen_writes != app.store.writes:
        await config.refresh()
    looked_at = config._look_at
    await config.refresh()
    assert config._look_at == looked_at, "nothing was written: nothing is read"
    now += timedelta(seconds=gateway_config.LOOK_S)
    await config.refresh()
    assert config._look_at > looked_at
