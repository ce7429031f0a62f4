"""Repositories and revisions as hub clients ask for them: found by what was asked, whatever else there is."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ManualClock
from tests.services.model_house import ADA, EVE, FACTS, NOW, House, Reading, built, doors_of

from groundplane.adapters.store.memory import MemoryStore
from groundplane.domain.dataset import DatasetVersion, Pointer, Profile, digest_of
from groundplane.domain.hub import Kind, dataset_commit, of_dataset
from groundplane.domain.model import ManifestFile
from groundplane.errors import NotFound
from groundplane.identity import SYSTEM, Actor
from groundplane.ports import Clock, Store
from groundplane.services.hub import Hub, RevisionNotFound


@pytest.fixture
async def house(store: Store, clock: Clock, tmp_path: Path) -> House:
    return await built(store, clock, tmp_path)


def data(number: int, *, kept: bool = True, name: str = "rows") -> DatasetVersion:
    files = (ManifestFile(path="a.csv", sha256=f"{number:064x}", size_bytes=3),)
    return DatasetVersion(
        id=f"{name}@{number}", name=name, number=number, project="vision", owner="ada", license="MIT",
        classification="internal", description="", digest=digest_of(files), how="measured", files=files, size_bytes=3,
        pointer=Pointer.MANAGED if kept else Pointer.BUCKET, location="s3://far/rows", profile=Profile(), as_of=NOW,
        fresh_for_s=None, retain_until=None, created_by="ada", created_at=NOW + timedelta(hours=number), kept=kept,
        commit=dataset_commit(f"{name}@{number}", digest_of(files)),
    )  # fmt: skip


async def found(
    hub: Hub, text: str = "", *, actor: Actor = SYSTEM, kind: Kind = Kind.MODELS, **asked: Any
) -> list[str]:
    every = {"project": "", "tags": (), "limit": 10} | asked
    return [each.id for each in await hub.search(actor, kind, text=text, **every)]


async def test_a_revision_is_looked_up_without_reading_the_others(clock: Clock, tmp_path: Path) -> None:
    reading = Reading(MemoryStore())
    house = await built(reading, clock, tmp_path)  # type: ignore[arg-type]
    first = await house.register()
    for _ in range(8):
        await house.register()
    await house.stand("best", 1)
    hub, _ = doors_of(house, clock)
    commit = first.certificate_sha256[:40]
    for revision, expected in {"main": 9, "v1": 1, "1": 1, "best": 1, commit: 1, commit[:12]: 1}.items():
        reading.rows = 0
        assert (await hub.revision(ADA, Kind.MODELS, "vision", "tiny", revision)).number == expected, revision
        assert reading.rows <= 4, revision
    reading.rows = 0
    await hub.newest(ADA, Kind.MODELS, "vision", "tiny")
    assert reading.rows == 1
    for nothing in ("v10", "0" * 40, "worst", "no\0revision", "refs/pr/1"):
        with pytest.raises(RevisionNotFound, match="has no revision") as refused:
            await hub.revision(ADA, Kind.MODELS, "vision", "tiny", nothing)
        assert refused.value.hint == "try main or v9"


async def test_a_search_gives_each_repository_once_in_its_newest_version(house: House, clock: ManualClock) -> None:
    hub, _ = doors_of(house, clock)
    for name, actor in (("tiny", ADA), ("tiny", ADA), ("large", ADA), ("ears", EVE), ("tiny-ears", EVE)):
        facts = FACTS if name != "large" else replace(FACTS, license="MIT")
        clock.advance(60)
        await house.register(name, actor=actor, facts=facts)
    assert await found(hub) == ["ears@1", "large@1", "tiny@2", "tiny-ears@1"]
    assert await found(hub, actor=EVE) == ["ears@1", "tiny-ears@1"]
    assert [await house.models.count(actor) for actor in (SYSTEM, ADA, EVE)] == [5, 3, 2]
    assert await found(hub, "TINY") == ["tiny@2", "tiny-ears@1"]
    assert await found(hub, "vision") == ["large@1", "tiny@2"]
    assert await found(hub, "speech/t") == ["tiny-ears@1"]
    assert await found(hub, "on/tiny") == ["tiny@2"]
    assert await found(hub, "speech/iny") == await found(hub, "t%y") == await found(hub, project="absent") == []
    assert await found(hub, project="speech") == ["ears@1", "tiny-ears@1"]
    assert await found(hub, actor=EVE, project="vision") == []
    assert await found(hub, tags=["License:mit"]) == ["large@1"]
    assert await found(hub, tags=["license:mit", "other"]) == await found(hub, tags=["license:no"]) == []
    assert await found(hub, limit=2) == ["ears@1", "large@1"]
    assert await found(hub, limit=1, newest_first=True) == ["tiny-ears@1"]


async def test_what_is_not_kept_here_is_no_revision_of_a_dataset(house: House, clock: Clock) -> None:
    hub, _ = doors_of(house, clock)
    kept = [data(number) for number in (1, 2)]
    async with house.store.transaction() as tx:
        for row in (*kept, data(3, kept=False), data(1, kept=False, name="far")):
            await tx.insert(row)
    assert await found(hub, kind=Kind.DATASETS) == ["rows@2"]
    for revision, number in (("main", 2), ("v1", 1), *((of_dataset(row).commit, row.number) for row in kept)):
        assert (await hub.revision(ADA, Kind.DATASETS, "vision", "rows", revision)).number == number
    for revision in ("v3", of_dataset(data(3, kept=False)).commit):
        with pytest.raises(RevisionNotFound):
            await hub.revision(ADA, Kind.DATASETS, "vision", "rows", revision)
    for name, hint in (("far", "s3://far/rows"), ("row", "there is no dataset vision/row")):
        with pytest.raises(NotFound, match=hint):
            await hub.newest(ADA, Kind.DATASETS, "vision", name)


async def test_a_version_of_long_ago_still_lends_its_files(house: House, clock: Clock) -> None:
    hub, _ = doors_of(house, clock)
    first = await house.register()
    for text in ("a", "b", "c"):
        (house.source / "config.json").write_text(f'{{"{text}": 1}}')
        last = await house.register()
    config = {file.path: file.sha256 for file in first.files}["config.json"]
    newest = await hub.newest(ADA, Kind.MODELS, "vision", "tiny")
    assert newest.id == last.id
    assert list(await hub.held(newest, {config, "0" * 64})) == [config]
    assert await hub.held(None, {config}) == {}
    history, total = await hub.history(newest, start=1, limit=2)
    assert ([each.number for each in history], total) == ([3, 2], 4)
