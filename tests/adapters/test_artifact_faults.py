"""What can go wrong with stored files: rot, forgery, full disks, sudden death. Nothing is lost and all of it named."""

from __future__ import annotations

import asyncio
import errno
import random
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.adapters.artifact_files import digest, rot, shown, write
from tests.artifact_kills import kill_in_a_folder

from groundplane.adapters.artifacts import PackStore, folder_store, writing
from groundplane.adapters.artifacts.objects import MemoryObjects, _MemoryDraft
from groundplane.domain.packs import sealed
from groundplane.errors import Conflict, IntegrityFailure, NotFound, Unavailable

MIB = 2**20
Put = Callable[[PackStore, list[Path]], Awaitable[object]]


@pytest.fixture
def folder(tmp_path: Path) -> PackStore:
    return folder_store(tmp_path / "store")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
async def test_a_flipped_bit_is_found_by_verify_fetch_and_scrub_and_named(tmp_path: Path, data: st.DataObject) -> None:
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    folder = folder_store(root)
    content = data.draw(st.binary(min_size=1, max_size=5000))
    sha256, size = await folder.put_file(write(tmp_path / "a", content))
    where, bit = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 7))
    piece = await rot(root, folder, sha256, where, bit)
    with pytest.raises(IntegrityFailure, match=f"{sha256}: piece {piece}"):
        await folder.verify(sha256, size)
    with pytest.raises(IntegrityFailure, match=sha256):
        await folder.fetch(sha256, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*.part"))
    (spot,) = (await folder.scrub()).damage
    assert (spot.piece, spot.files) == (piece, (sha256,))
    folder.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**9), st.integers(0, 7))
async def test_any_flipped_bit_of_a_directory_is_found_and_the_pack_named(
    folder: PackStore, tmp_path: Path, where: int, bit: int
) -> None:
    sha256, _ = await folder.put_file(write(tmp_path / "a", b"abc"))
    (pack,) = (tmp_path / "store" / "packs").iterdir()
    good = pack.read_bytes()
    rotten = bytearray(good)
    rotten[3 + where % (len(good) - 3)] ^= 1 << bit
    pack.chmod(0o644)
    pack.write_bytes(rotten)
    try:
        (spot,) = (await folder.scrub()).damage
        assert (spot.pack, spot.files) == (pack.name, (sha256,))
        fresh = folder_store(tmp_path / "store")
        assert (await fresh.usage()).damaged_packs == (pack.name,)
        with pytest.raises(NotFound):
            await fresh.read(sha256, 0, 1)
        fresh.close()
    finally:
        pack.write_bytes(good)


async def test_pushing_again_heals_what_was_found_rotten(folder: PackStore, tmp_path: Path) -> None:
    sha256, size = await folder.put_file(write(tmp_path / "a", b"abc"))
    await rot(tmp_path / "store", folder, sha256)
    with pytest.raises(IntegrityFailure):
        await folder.verify(sha256, size)
    await folder.put_file(tmp_path / "a")
    await folder.verify(sha256, size)
    await folder_store(tmp_path / "store").verify(sha256, size)


async def test_a_recipe_made_with_another_key_is_checked_by_sha256(tmp_path: Path) -> None:
    """Whoever can write into the store can't make other bytes pass for a file's SHA-256."""
    forged = folder_store(tmp_path / "store", key=b"f" * 32)
    content = random.Random(6).randbytes(3 * MIB)
    sha256, size = await forged.put_file(write(tmp_path / "a", content))
    other, _ = await forged.put_file(write(tmp_path / "b", bytes(reversed(content))))
    ours = folder_store(tmp_path / "store", key=b"o" * 32)
    await ours.verify(sha256, size)
    await ours.fetch(sha256, tmp_path / "out")
    swapped = forged._index.recipe(bytes.fromhex(other))
    assert swapped is not None
    lie = sealed(b"f" * 32, bytes.fromhex(sha256), size, swapped.packed)
    ours._index._recipes[lie.name] = lie
    for call in (ours.verify(sha256, size), ours.fetch(sha256, tmp_path / "out2")):
        with pytest.raises(IntegrityFailure, match="now hash to"):
            await call
    assert not (tmp_path / "out2").exists()


async def test_a_recipe_that_is_its_own_name_needs_no_key_and_can_not_be_another(tmp_path: Path) -> None:
    theirs = folder_store(tmp_path / "store", key=b"t" * 32)
    content = random.Random(8).randbytes(3 * MIB)
    paths = [write(tmp_path / "a", content), write(tmp_path / "b", bytes(reversed(content)))]
    (name, size), (other, _) = await theirs.put_unnamed(paths)
    ours = folder_store(tmp_path / "store", key=b"o" * 32)
    await ours.verify(name, size)
    assert await ours.name([name]) == [digest(content)]
    swapped = theirs._index.recipe(bytes.fromhex(other))
    assert swapped is not None
    ours._index._recipes[bytes.fromhex(name)] = replace(swapped, name=bytes.fromhex(name))
    with pytest.raises(IntegrityFailure, match="now hash to"):
        await ours.verify(name, size)
    with pytest.raises(NotFound):
        await ours.name([name])


async def test_a_rotten_piece_gets_no_name(folder: PackStore, tmp_path: Path) -> None:
    [(recipe, _)] = await folder.put_unnamed([write(tmp_path / "a", b"abc")])
    piece = await rot(tmp_path / "store", folder, recipe)
    with pytest.raises(IntegrityFailure, match=piece):
        await folder.name([recipe])
    with pytest.raises(NotFound):
        await folder.read(digest(b"abc"), 0, 1)
    await folder.put_unnamed([tmp_path / "a"])
    assert await folder.name([recipe]) == [digest(b"abc")]


@pytest.mark.parametrize("put", [PackStore.put_files, PackStore.put_unnamed])
async def test_a_file_that_changes_while_it_is_stored_is_refused(put: Put, folder: PackStore, tmp_path: Path) -> None:
    path, stop = write(tmp_path / "growing", b"a" * 20 * MIB), asyncio.Event()

    async def grow() -> None:
        with path.open("ab") as file:
            while not stop.is_set():
                file.write(b"b" * 1000)
                file.flush()
                await asyncio.sleep(0)

    writer = asyncio.create_task(grow())
    try:
        with pytest.raises(Conflict, match="changed while"):
            await put(folder, [path])
    finally:
        stop.set()
        await writer
    assert await shown(tmp_path / "store") == set()


async def test_opening_sweeps_what_the_dead_left_and_spares_the_living(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = folder_store(root)
    write(root / "tmp" / "123-dead", b"half")
    living = store._objects.draft()
    folder_store(root)
    assert not (root / "tmp" / "123-dead").exists()
    assert len(list((root / "tmp").iterdir())) == 1
    living.discard()
    assert list((root / "tmp").iterdir()) == []


# ---------------------------------------------------------------- a real full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Four MiB of real file system."""
    mount = tmp_path / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.needs("tmpfs")
async def test_a_full_disk_loses_nothing_and_names_the_bytes(small_disk: Path, tmp_path: Path) -> None:
    store = folder_store(small_disk / "store")
    kept = await store.put_file(write(tmp_path / "small", random.Random(9).randbytes(MIB)))
    with pytest.raises(Unavailable, match=f"needs {8 * MIB} bytes") as refusal:
        await store.put_file(write(tmp_path / "large", random.Random(8).randbytes(8 * MIB)))
    assert refusal.value.details["free_bytes"] <= 3 * MIB  # type: ignore[operator]
    assert await shown(small_disk / "store") == {kept[0]}
    assert list((small_disk / "store" / "tmp").iterdir()) == []
    await store.verify(*kept)
    await store.put_file(write(tmp_path / "fits", random.Random(10).randbytes(MIB)))
    store.close()


@pytest.mark.needs("tmpfs")
async def test_a_disk_that_fills_up_while_writing_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    """The room is there when each put begins and gone before it ends: only the write itself finds out."""
    store = folder_store(small_disk / "store", threads=8)
    paths = [write(tmp_path / str(number), random.Random(number).randbytes(3 * MIB)) for number in range(6)]
    results = await asyncio.gather(*(store.put_file(path) for path in paths), return_exceptions=True)
    stored = {result[0] for result in results if isinstance(result, tuple)}
    assert len(stored) <= 1
    assert all(isinstance(result, tuple | Unavailable) for result in results), results
    assert await shown(small_disk / "store") == stored
    assert list((small_disk / "store" / "tmp").iterdir()) == []
    store.close()


class _HalfWrite(MemoryObjects):
    """A place whose third write takes half of a piece and fails, and which has room again after that."""

    writes = 0

    def draft(self) -> _MemoryDraft:
        draft = super().draft()
        write = draft.write

        def third_fails(data: memoryview) -> None:
            self.writes += 1
            if self.writes == 3:
                write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "no room")
            write(data)

        draft.write = third_fails  # type: ignore[method-assign]
        return draft


async def test_half_a_written_piece_never_comes_into_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "PACK_BYTES", 4 * MIB)
    store = PackStore(_HalfWrite(), bytes(32))
    source = write(tmp_path / "a", random.Random(12).randbytes(12 * MIB))
    with pytest.raises(Unavailable, match="no room"):
        await store.put_file(source)
    assert (await store.scrub()).damage == ()
    assert (await store.usage()).packs == 0
    await store.verify(*await store.put_file(source))
    assert (await store.scrub()).damage == ()
    store.close()


@pytest.mark.needs("tmpfs")
async def test_a_full_target_leaves_no_half_file(small_disk: Path, folder: PackStore, tmp_path: Path) -> None:
    sha256, _ = await folder.put_file(write(tmp_path / "a", random.Random(11).randbytes(6 * MIB)))
    with pytest.raises(Unavailable, match="disk of the target"):
        await folder.fetch(sha256, small_disk / "model")
    assert list(small_disk.iterdir()) == []


# ---------------------------------------------------------------- sudden death


async def test_a_kill_at_any_moment_of_push_pull_and_collection_leaves_nothing_half_written(tmp_path: Path) -> None:
    """Twenty kills; `python -m tests.artifact_kills` is the long form, over HTTP too."""
    await kill_in_a_folder(tmp_path, 20, random.Random(4700))
