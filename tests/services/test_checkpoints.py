"""Checkpoints of real folders, copied to a real store, kept as specs say, and laid back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from groundplane.adapters.artifacts import PackStore, folder_store
from groundplane.adapters.executors.local import LocalExecutor
from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.system import RandomIds
from groundplane.domain.access import Project
from groundplane.domain.artifact import StorageQuota
from groundplane.domain.node import Placement
from groundplane.domain.run import Attempt, Checkpoint, CopyState, Run, RunStatus
from groundplane.domain.spec import CheckpointPolicy, JobSpec, Metadata, Resources
from groundplane.errors import IntegrityFailure, NotFound
from groundplane.identity import Actor, Role
from groundplane.services.artifacts import Artifacts
from groundplane.services.checkpoints import Checkpoints

ADMIN = Actor(name="ops", role=Role.ADMIN)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.moment = NOON

    def now(self) -> datetime:
        self.moment += timedelta(seconds=1)
        return self.moment


def spec(**changes: Any) -> JobSpec:
    return JobSpec(
        metadata=Metadata(name="train", project="vision", owner="ana", cost_center="r1"),
        command=("true",),
        resources=Resources(cpus=1.0, memory_bytes=2**30),
        end_date=NOON + timedelta(days=1),
        max_cost_microusd=10**6,
        max_duration_s=3600,
        checkpoints=CheckpointPolicy(**changes),
    )


@dataclass
class House:
    """One home with a local pool, a store of artifacts, and run-1 with its attempt."""

    home: Path
    store: MemoryStore
    blobs: PackStore
    clock: Clock
    executor: LocalExecutor
    checkpoints: Checkpoints
    artifacts: Artifacts

    @property
    def folder(self) -> Path:
        return self.home / "runs" / "run-1" / "checkpoints"

    @property
    def node(self) -> str:
        return os.uname().nodename

    def write(self, step: int, data: bytes = b"", **metrics: float) -> Path:
        data = data or b"weights of step %d" % step
        folder = self.folder / f"step-{step}"
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "w.bin").write_bytes(data)
        (folder / "empty").write_bytes(b"")
        files = [
            {"path": "sub/w.bin", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)},
            {"path": "empty", "sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0},
        ]
        (folder / "manifest.json").write_text(json.dumps({"step": step, "files": files, "metrics": metrics}))
        return folder

    async def run(self) -> Run:
        async with self.store.transaction() as tx:
            run = await tx.get(Run, "run-1")
        assert run is not None
        return run

    async def found(self, step: int, data: bytes = b"", **metrics: float) -> Path:
        """Written by the job and noted by the reconcile."""
        folder = self.write(step, data, **metrics)
        run = await self.run()
        row = Checkpoint(
            id=f"run-1:{step}", run_id="run-1", attempt_id="run-1-1", step=step, path=str(folder), size_bytes=20,
            found_at=self.clock.now(), metrics=metrics, project="vision", node=self.node,
        )  # fmt: skip
        async with self.store.transaction() as tx:
            await tx.insert_once(self.checkpoints.wanting(run, row))
        return folder

    async def work(self, times: int = 4) -> None:
        for _ in range(times):
            await self.checkpoints.step()
            await self.checkpoints.settle()

    async def rows(self) -> dict[int, Checkpoint]:
        return {each.step: each for each in await self.checkpoints.list(ADMIN, "run-1")}

    async def ready(self) -> None:
        run = await self.run()
        order = replace(
            self.checkpoints._order(run), attempt_id="run-1-2", number=2, placements=(Placement(node=self.node),)
        )
        await self.checkpoints.ready(run, order)


async def house_of(home: Path, *, bytes_per_s: int = 0, **policy: Any) -> House:
    store, clock = MemoryStore(), Clock()
    blobs = folder_store(home / "store", 0, key=b"k" * 32)
    executor = LocalExecutor(home, clock)
    checkpoints = Checkpoints(
        store=store, clock=clock, executors={"local": executor}, blobs=blobs, folder=home / "staging",
        bytes_per_s=bytes_per_s, home_of=lambda run_id: str(home / "runs" / run_id / "checkpoints"),
    )  # fmt: skip
    artifacts = Artifacts(store=store, clock=clock, ids=RandomIds(), blobs=blobs)
    run = Run(
        id="run-1", name="train", project="vision", owner="ana", cost_center="r1", spec=spec(**policy),
        spec_digest="d", plan_id="p", hold_id="h", pool="local", price_microusd_per_hour=1, status=RunStatus.RUNNING,
        attempt=1, created_by="ana", created_at=NOON, end_date=NOON + timedelta(days=1), due_at=None,
    )  # fmt: skip
    async with store.transaction() as tx:
        await tx.insert(Project(id="vision", owner="ana", cost_center="r1", created_at=NOON))
        await tx.insert(run)
        await tx.insert(Attempt(id="run-1-1", run_id="run-1", number=1, pool="local", node="here", created_at=NOON))
    return House(home, store, blobs, clock, executor, checkpoints, artifacts)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = await house_of(tmp_path)
    yield made
    await made.checkpoints.close()
    made.blobs.close()


async def test_a_found_checkpoint_is_copied_whole_and_noted_with_its_digest(house: House) -> None:
    folder = await house.found(10, loss=0.5)
    await house.work()
    copy = (await house.rows())[10]
    assert copy.copy is CopyState.COPIED
    assert copy.manifest_sha256 == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert {file.path for file in copy.files} == {"sub/w.bin", "empty", "manifest.json"}
    assert await house.checkpoints.content(ADMIN, "run-1", 10, "sub/w.bin", 0, 100) == b"weights of step 10"
    assert house.checkpoints.counts.copied == 1


async def test_one_that_changed_since_it_was_verified_is_never_recorded(house: House) -> None:
    folder = await house.found(10)
    (folder / "sub" / "w.bin").write_bytes(b"WEIGHTS of step 10")
    await house.work(1)
    row = (await house.rows())[10]
    assert row.copy is CopyState.WAITING
    assert "not what the manifest of step 10 says" in row.note
    assert house.checkpoints.counts.failed == 1


async def test_one_that_the_job_deleted_gets_no_copy_and_says_so(house: House) -> None:
    shutil.rmtree(await house.found(10))
    await house.work(1)
    row = (await house.rows())[10]
    assert (row.copy, row.files) == (CopyState.OFF, ())
    assert "gone" in row.note


async def test_a_collection_spares_copies_and_takes_those_that_were_let_go(house: House) -> None:
    for step in (10, 20, 30, 40, 50):
        await house.found(step, data=bytes([step]) * 300_000)
        await house.work(2)
    rows = await house.rows()
    assert [step for step, row in rows.items() if row.copy is CopyState.COPIED] == [30, 40, 50]
    await house.artifacts.collect(ADMIN, grace_s=60)
    for step in (30, 40, 50):
        for file in rows[step].files:
            await house.blobs.verify(file.sha256, file.size_bytes)
    assert all((house.folder / f"step-{step}").is_dir() for step in rows)  # a spec that says nothing deletes nothing


async def test_a_policy_holds_on_the_node_and_in_the_store(tmp_path: Path) -> None:
    house = await house_of(tmp_path, keep_last=2, keep_every=40, best_by="loss")
    losses = {10: 3.0, 20: 0.5, 30: 2.0, 40: 2.0, 50: 1.0, 60: 1.5, 70: 0.9}
    for step, loss in losses.items():
        await house.found(step, loss=loss)
        await house.work(2)
    await house.work()
    left = sorted(int(path.name.removeprefix("step-")) for path in house.folder.iterdir())
    assert left == [20, 40, 60, 70]
    rows = await house.rows()
    assert [step for step, row in rows.items() if row.copy is CopyState.COPIED] == [20, 40, 60, 70]
    assert all((row.removed_at is None) == (step in left) for step, row in rows.items())


async def test_a_full_quota_is_noted_and_stops_nothing(house: House) -> None:
    async with house.store.transaction() as tx:
        await tx.insert(StorageQuota(id="vision", limit_bytes=5))
    await house.found(10)
    await house.work(1)
    row = (await house.rows())[10]
    assert (row.copy, row.files) == (CopyState.OFF, ())
    assert "quota" in row.note


async def test_a_lost_folder_comes_back_before_the_next_attempt(house: House) -> None:
    await house.found(10)
    await house.found(20)
    await house.work()
    shutil.rmtree(house.folder)
    await house.ready()
    there = house.folder / "step-20"
    assert (there / "sub" / "w.bin").read_bytes() == b"weights of step 20"
    assert (there / "empty").read_bytes() == b""
    assert not (house.folder / "step-10").exists()
    assert house.checkpoints.counts.restored == 1
    await house.ready()  # it is there now
    assert house.checkpoints.counts.restored == 1


async def test_a_restore_goes_on_where_it_broke_off_and_never_shows_a_half(house: House) -> None:
    await house.found(20, data=b"x" * 5_000_000)
    await house.work()
    shutil.rmtree(house.folder)
    copy = (await house.rows())[20]
    read, asked = house.blobs.read, []

    async def breaking(sha256: str, offset: int, limit: int) -> bytes:
        asked.append(offset)
        if len(asked) == 2:
            raise IntegrityFailure("the store is hit by lightning")
        return await read(sha256, offset, limit)

    order = house.checkpoints._order(await house.run())
    with pytest.raises(IntegrityFailure):
        await house.executor.restore_checkpoint(order, house.node, copy, breaking, 0)
    assert await house.executor.step_on(order, house.node) is None
    await house.executor.restore_checkpoint(order, house.node, copy, read, 0)
    assert (house.folder / "step-20" / "sub" / "w.bin").stat().st_size == 5_000_000
    assert asked[:2] == [0, 4 * 2**20]


async def test_damaged_bytes_never_take_a_checkpoints_name(house: House) -> None:
    await house.found(20)
    await house.work()
    shutil.rmtree(house.folder)
    copy = (await house.rows())[20]

    async def wrong(sha256: str, offset: int, limit: int) -> bytes:
        return b"?" * limit

    order = house.checkpoints._order(await house.run())
    with pytest.raises(IntegrityFailure, match="did not arrive whole"):
        await house.executor.restore_checkpoint(order, house.node, copy, wrong, 0)
    assert list(house.folder.iterdir()) == []


async def test_a_damaged_copy_is_passed_over_for_the_next_older_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.found(10)
    await house.found(20)
    await house.work()
    shutil.rmtree(house.folder)
    bad = {file.sha256 for file in (await house.rows())[20].files if file.path == "sub/w.bin"}
    read = house.blobs.read

    async def damaged(sha256: str, offset: int, limit: int) -> bytes:
        if sha256 in bad:
            raise IntegrityFailure("a piece is damaged")
        return await read(sha256, offset, limit)

    monkeypatch.setattr(house.blobs, "read", damaged)
    await house.ready()
    assert (house.folder / "step-10" / "sub" / "w.bin").read_bytes() == b"weights of step 10"
    row = (await house.rows())[20]
    assert (row.copy, row.files) == (CopyState.OFF, ())
    assert "damaged" in row.note


async def test_bandwidth_is_kept(tmp_path: Path) -> None:
    house = await house_of(tmp_path, bytes_per_s=4_000_000)
    await house.found(10, data=b"y" * 2_000_000)
    began = time.monotonic()
    await house.work(1)
    assert time.monotonic() - began > 0.45
    assert (await house.rows())[10].copy is CopyState.COPIED
    assert not list((house.home / "staging").rglob("*.bin"))


async def test_others_see_nothing(house: House) -> None:
    await house.found(10)
    stranger = Actor(name="eve", role=Role.MEMBER, project="sound")
    with pytest.raises(NotFound):
        await house.checkpoints.list(stranger, "run-1")
