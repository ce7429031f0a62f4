"""Arrivals: stored at once, named afterwards; waited for, never lost, never taken for an artifact before."""

from __future__ import annotations

import asyncio
import hashlib
import random
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.conftest import ManualClock

from groundplane.adapters.artifacts import PackStore, folder_store
from groundplane.domain.model import ManifestFile
from groundplane.domain.spec import DataSource, JobSpec, Metadata, Resources
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, NotFound, Refusal
from groundplane.identity import Actor, Role
from groundplane.ports import Ids, Store
from groundplane.services import artifacts as service
from groundplane.services.arrivals import RETRY, demand_arrived
from groundplane.services.artifacts import Artifacts, Pushed
from groundplane.services.staging import Staging

ADA = Actor(name="ada", role=Role.MEMBER, project="vision")
BOB = Actor(name="bob", role=Role.MEMBER, project="speech")
OPS = Actor(name="ops", role=Role.ADMIN)
CONTENT = random.Random(3).randbytes(5000)
JOB = JobSpec(
    metadata=Metadata(name="reads", project="vision", owner="ada", cost_center="cc"),
    command=("true",),
    resources=Resources(cpus=1, memory_bytes=2**26),
    end_date=datetime(2026, 12, 1, tzinfo=UTC),
    max_cost_microusd=1,
    max_duration_s=60,
    data=(DataSource(name="x", source="artifact:tiny"),),
)


@pytest.fixture
def pushed(tmp_path: Path) -> Pushed:
    (tmp_path / "w.bin").write_bytes(CONTENT)
    (tmp_path / "empty").write_bytes(b"")
    sources = {"weights/w.bin": tmp_path / "w.bin", "empty": tmp_path / "empty"}
    return Pushed(name="tiny", project="vision", sources=sources)


async def test_what_arrives_becomes_the_artifact_that_a_push_would_have_made(
    artifacts: Artifacts, store: Store, pushed: Pushed
) -> None:
    arrival = await artifacts.receive(ADA, pushed)
    assert await artifacts.artifacts(ADA) == []
    assert await artifacts.arriving.arrivals(ADA) == [arrival]
    assert await artifacts.arriving.arrivals(BOB) == await artifacts.arriving.arrivals(OPS, project="speech") == []
    await artifacts.arriving.step()
    assert await artifacts.arriving.arrivals(OPS) == []
    [made] = await artifacts.artifacts(ADA)
    same = await artifacts.push(ADA, pushed)
    assert (made.id, made.created_by, made.created_at) == (arrival.id, "ada", arrival.created_at)
    assert (made.files, made.manifest_sha256, made.size_bytes) == (same.files, same.manifest_sha256, same.size_bytes)
    assert {file.sha256 for file in made.files} == {hashlib.sha256(data).hexdigest() for data in (CONTENT, b"")}
    told = [(event.action, event.actor) async for event in store.events()]
    assert told[:2] == [("artifact.arrive", "ada"), ("artifact.push", "ada")]


async def test_whoever_asks_waits_for_it_and_all_get_one_artifact(
    artifacts: Artifacts, store: Store, clock: ManualClock, pushed: Pushed
) -> None:
    older = await artifacts.push(ADA, pushed)
    clock.advance(1)
    arrival = await artifacts.receive(ADA, pushed)
    with pytest.raises(NotFound):
        await artifacts.get(BOB, arrival.id)
    refs = [arrival.id, "tiny", arrival.id, "tiny"]
    found = await asyncio.gather(*(artifacts.get(ADA, ref) for ref in refs), artifacts.arriving.step())
    assert {artifact.id for artifact in found if artifact is not None} == {arrival.id}
    assert (await artifacts.get(ADA, older.id)).files == (await artifacts.get(ADA, arrival.id)).files
    assert [event.action async for event in store.events()].count("artifact.push") == 2
    assert (await artifacts.verify(ADA, "tiny")).ok


async def test_a_collection_and_a_new_process_lose_no_arrival(
    artifacts: Artifacts, store: Store, clock: ManualClock, ids: Ids, blobs: PackStore, pushed: Pushed,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(service, "GRACE_MIN_S", 0.0)
    arrival = await artifacts.receive(ADA, pushed)
    assert (await artifacts.collect(OPS, grace_s=0, thorough=True)).files == 0
    blobs.close()
    later = Artifacts(store=store, clock=clock, ids=ids, blobs=folder_store(tmp_path / "store"))
    await later.arriving.step()
    assert (await later.collect(OPS, grace_s=0, thorough=True)).files == 2, "what stood for the names"
    assert (await later.verify(ADA, arrival.id)).ok


async def test_a_quota_counts_what_arrives(artifacts: Artifacts, pushed: Pushed, tmp_path: Path) -> None:
    await artifacts.set_quota(OPS, "vision", 8000)
    await artifacts.receive(ADA, pushed)
    assert (await artifacts.usage(ADA))[1][0].used_bytes == (await artifacts.totals(ADA))[1]["vision"] == 5000
    assert (await artifacts.set_quota(OPS, "vision", 9000)).used_bytes == 5000
    (tmp_path / "other").write_bytes(bytes(5000))
    other = Pushed(name="other", project="vision", sources={"other": tmp_path / "other"})
    for call in (artifacts.push, artifacts.receive):
        with pytest.raises(Refusal) as refusal:
            await call(ADA, other)
        assert refusal.value.refusals[0].rule == "storage-quota"


async def test_what_stands_for_a_name_is_no_file_anybody_has(artifacts: Artifacts, pushed: Pushed) -> None:
    arrival = await artifacts.receive(ADA, pushed)
    recipe = arrival.files[0].recipe
    assert await artifacts.known(ADA, [recipe]) == ()
    claimed = ManifestFile(path="w.bin", sha256=recipe, size_bytes=arrival.files[0].size_bytes)
    for actor in (ADA, OPS):
        with pytest.raises(NotFound):
            await artifacts.push(actor, Pushed(name="loot", project="vision", sources={}, known=(claimed,)))
    with pytest.raises(InvalidInput, match="1 files are known"):
        await artifacts.receive(ADA, Pushed(name="loot", project="vision", sources={}, known=(claimed,)))


async def test_who_needs_the_sha256_at_once_is_told_that_it_is_on_its_way(
    artifacts: Artifacts, store: Store, clock: ManualClock, blobs: PackStore, pushed: Pushed
) -> None:
    staging = Staging(store=store, clock=clock, blobs=blobs, executors={}, scratch="/scratch", cache_bytes=10**9)
    older = await artifacts.push(ADA, pushed)
    assert await staging.need(JOB) is not None
    arrival = await artifacts.receive(ADA, pushed)
    with pytest.raises(Conflict, match="tiny is arriving"):
        await staging.need(JOB)
    async with store.transaction() as tx:
        for ref in (arrival.id, "tiny"):
            await demand_arrived(tx, ref, "speech")
            with pytest.raises(Conflict, match=f"{ref} is arriving: 4.9 KiB"):
                await demand_arrived(tx, ref, "vision")
    assert (await artifacts.get(ADA, arrival.id)).files == older.files
    assert await staging.need(JOB) is not None
    async with store.transaction() as tx:
        await demand_arrived(tx, arrival.id, "vision")


async def test_a_damaged_arrival_says_so_rests_and_is_healed_or_deleted(
    artifacts: Artifacts, store: Store, clock: ManualClock, pushed: Pushed, tmp_path: Path
) -> None:
    arrival = await artifacts.receive(ADA, pushed)
    [pack] = (tmp_path / "store" / "packs").iterdir()
    pack.chmod(0o644)
    data = bytearray(pack.read_bytes())
    data[17] ^= 4
    pack.write_bytes(data)
    await artifacts.arriving.step()
    [damaged] = await artifacts.arriving.arrivals(ADA)
    assert "has changed" in damaged.problem
    assert (await artifacts.scrub(OPS)).damage[0].used_by == (f"{arrival.id} weights/w.bin",)
    with pytest.raises(IntegrityFailure, match="has changed"):
        await artifacts.get(ADA, arrival.id)
    again = await artifacts.push(ADA, pushed)
    await artifacts.arriving.step()
    assert [each.id for each in await artifacts.artifacts(ADA)] == [again.id], "it rests"
    clock.advance(RETRY.total_seconds())
    await artifacts.arriving.step()
    assert (await artifacts.get(ADA, arrival.id)).files == again.files
    gone = await artifacts.delete(ADA, (await artifacts.receive(ADA, pushed)).id, "not needed")
    assert await artifacts.arriving.arrivals(ADA) == []
    with pytest.raises(NotFound):
        await artifacts.get(ADA, gone.id)
    assert [event.action async for event in store.events()][-1] == "artifact.delete"
