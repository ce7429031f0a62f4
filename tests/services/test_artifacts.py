"""Artifacts: pushed, taken over, kept within a quota, collected, scrubbed; on every store."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path
from typing import get_type_hints

import pytest
from tests.conftest import ManualClock

from groundplane.adapters.artifacts import PackStore
from groundplane.adapters.store.tables import KINDS
from groundplane.domain.artifact import Arrival, Artifact
from groundplane.domain.model import ManifestFile
from groundplane.errors import NotFound, Refusal
from groundplane.identity import Actor, Role
from groundplane.ports import Store
from groundplane.services import artifacts as service
from groundplane.services.artifacts import HOLDERS, Artifacts, Pushed

ADA = Actor(name="ada", role=Role.MEMBER, project="vision")
BOB = Actor(name="bob", role=Role.MEMBER, project="speech")
OPS = Actor(name="ops", role=Role.ADMIN)


def sources(folder: Path, seed: int = 0, size_bytes: int = 5000) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    path = folder / f"w{seed}.bin"
    path.write_bytes(random.Random(seed).randbytes(size_bytes))
    return {"weights/w.bin": path}


def pushed(folder: Path, seed: int = 0, **more: object) -> Pushed:
    project = str(more.pop("project", "vision"))
    return Pushed(name="tiny", project=project, sources=sources(folder, seed), **more)  # type: ignore[arg-type]


async def actions(store: Store) -> list[str]:
    return [event.action async for event in store.events()]


def test_every_kind_of_row_with_stored_files_is_known_to_the_collection() -> None:
    """Whoever adds a kind that refers to stored files must name it in HOLDERS, or a collection takes its files."""
    holding = {kind for kind in KINDS if any("ManifestFile" in repr(hint) for hint in get_type_hints(kind).values())}
    holding |= {kind for kind in KINDS if isinstance(getattr(kind, "files", None), property)}
    assert holding == set(HOLDERS)
    arriving = {kind for kind in KINDS if any("ArrivedFile" in repr(hint) for hint in get_type_hints(kind).values())}
    assert arriving == {Arrival}


async def test_what_is_pushed_is_found_by_id_and_by_name_and_only_by_who_may_see_it(
    artifacts: Artifacts, store: Store, tmp_path: Path
) -> None:
    first = await artifacts.push(ADA, pushed(tmp_path / "a"))
    assert (await artifacts.get(ADA, first.id)).files[0].path == "weights/w.bin"
    assert (await artifacts.get(ADA, "tiny")).id == first.id
    assert [each.id for each in await artifacts.artifacts(ADA)] == [first.id]
    assert await artifacts.artifacts(BOB) == []
    for ref in (first.id, "tiny"):
        with pytest.raises(NotFound):
            await artifacts.get(BOB, ref)
    with pytest.raises(NotFound):
        await artifacts.push(BOB, pushed(tmp_path / "a"))
    assert await actions(store) == ["artifact.push"]


async def test_bad_paths_are_refused_and_nothing_is_stored(
    artifacts: Artifacts, blobs: PackStore, tmp_path: Path
) -> None:
    path = next(iter(sources(tmp_path / "a").values()))
    for bad in ("../out", "/etc/passwd", "a\x00b"):
        with pytest.raises(Refusal):
            await artifacts.push(ADA, Pushed(name="tiny", project="vision", sources={bad: path}))
    assert (await blobs.usage()).files == 0


async def test_a_digest_alone_gives_nobody_a_file_they_do_not_see(artifacts: Artifacts, tmp_path: Path) -> None:
    secret = (await artifacts.push(ADA, pushed(tmp_path / "a"))).files[0]
    assert await artifacts.known(BOB, [secret.sha256]) == ()
    assert await artifacts.known(ADA, [secret.sha256, "0" * 64]) == (secret.sha256,)
    stolen = Pushed(name="loot", project="speech", sources={}, known=(secret,))
    with pytest.raises(NotFound):
        await artifacts.push(BOB, stolen)
    taken = await artifacts.push(ADA, Pushed(name="again", project="vision", sources={}, known=(secret,)))
    assert taken.files == (secret,)


async def test_a_quota_counts_each_file_once_and_refuses_what_is_over(artifacts: Artifacts, tmp_path: Path) -> None:
    await artifacts.set_quota(OPS, "vision", 8000)
    await artifacts.push(ADA, pushed(tmp_path / "a"))
    await artifacts.push(ADA, pushed(tmp_path / "a"))
    with pytest.raises(Refusal) as refusal:
        await artifacts.push(ADA, pushed(tmp_path / "b", seed=1))
    assert refusal.value.refusals[0].rule == "storage-quota"
    _, projects = await artifacts.usage(ADA)
    assert [(each.project, each.used_bytes, each.limit_bytes) for each in projects] == [("vision", 5000, 8000)]
    await artifacts.set_quota(OPS, "vision", None)
    await artifacts.push(ADA, pushed(tmp_path / "b", seed=1))


async def test_a_collection_takes_what_is_deleted_or_over_and_spares_the_pinned(
    artifacts: Artifacts, store: Store, clock: ManualClock, blobs: PackStore, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(service, "GRACE_MIN_S", 0.0)
    soon = clock.now() + timedelta(days=1)
    deleted = await artifacts.push(ADA, pushed(tmp_path / "a", 1))
    over = await artifacts.push(ADA, pushed(tmp_path / "a", 2, keep_until=soon))
    pinned = await artifacts.push(ADA, pushed(tmp_path / "a", 3, keep_until=soon, pinned=True))
    with pytest.raises(Refusal):
        await artifacts.delete(ADA, pinned.id)
    await artifacts.delete(ADA, deleted.id, "not needed")
    clock.advance(2 * 86_400)
    done = await artifacts.collect(OPS, grace_s=0, thorough=True)
    assert done.files == 2
    assert [each.id for each in await artifacts.artifacts(ADA)] == [pinned.id]
    assert (await artifacts.verify(ADA, pinned.id)).ok
    for gone in (deleted, over):
        with pytest.raises(NotFound):
            await blobs.read(gone.files[0].sha256, 0, 1)
    assert (await actions(store))[-3:] == ["artifact.delete", "artifact.expire", "storage.collect"]


async def test_a_scrub_names_the_piece_and_the_artifact_that_uses_it(
    artifacts: Artifacts, store: Store, blobs: PackStore, tmp_path: Path
) -> None:
    artifact = await artifacts.push(ADA, pushed(tmp_path / "a"))
    assert (await artifacts.scrub(OPS)).ok
    (pack,) = (tmp_path / "store" / "packs").iterdir()
    pack.chmod(0o644)
    data = bytearray(pack.read_bytes())
    data[17] ^= 4
    pack.write_bytes(data)
    (found,) = (await artifacts.scrub(OPS)).damage
    assert found.used_by == (f"{artifact.id} weights/w.bin",)
    assert not (await artifacts.verify(ADA, artifact.id)).ok
    assert "storage.damage" in await actions(store)
    assert artifacts.damaged_spots == 1
    await artifacts.push(ADA, pushed(tmp_path / "a"))
    assert (await artifacts.verify(ADA, artifact.id)).ok
    healed = await artifacts.scrub(OPS)
    assert (healed.ok, [each.spot.other_copy for each in healed.damage], artifacts.damaged_spots) == (True, [True], 0)
    assert (await actions(store)).count("storage.damage") == 1
    pack.unlink()
    for other in (tmp_path / "store" / "packs").iterdir():
        other.unlink()
    report = await artifacts.scrub(OPS)
    assert report.lost[0] == f"{artifact.id} weights/w.bin"


async def test_only_who_sees_every_project_gets_a_signed_url(
    artifacts: Artifacts, blobs: PackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pack may hold pieces of other projects."""
    artifact = await artifacts.push(ADA, pushed(tmp_path / "a"))
    monkeypatch.setattr(blobs._objects, "address", lambda pack: f"https://bucket.example/{pack}?signature=1")
    file = await artifacts.file(ADA, artifact.id, "weights/w.bin")
    assert (await artifacts.pieces(ADA, file))[1] == {}
    assert len((await artifacts.pieces(OPS, file))[1]) == 1


async def test_files_are_listed_in_manifest_order(artifacts: Artifacts, tmp_path: Path) -> None:
    path = next(iter(sources(tmp_path / "a").values()))
    made = await artifacts.push(ADA, Pushed(name="t", project="vision", sources={"b": path, "a": path}))
    assert made == Artifact(**{name: getattr(made, name) for name in Artifact.__slots__})
    assert made.files == tuple(ManifestFile(path=p, sha256=made.files[0].sha256, size_bytes=5000) for p in "ab")
