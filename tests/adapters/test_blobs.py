"""One conformance suite for every blob store; then what only a folder can do wrong."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundplane.adapters.blobs import FolderBlobStore, MemoryBlobStore
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, NotFound, Unavailable
from groundplane.ports import BlobStore

MIB = 2**20
Make = Callable[[int], BlobStore]


@pytest.fixture(params=["folder", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Opens a store with a quota in bytes (0: none)."""
    if request.param == "memory":
        return MemoryBlobStore
    return lambda quota_bytes: FolderBlobStore(tmp_path / "store", quota_bytes)


@pytest.fixture
def folder(tmp_path: Path) -> FolderBlobStore:
    return FolderBlobStore(tmp_path / "store")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def visible(root: Path) -> dict[str, bytes]:
    """Digest → content of everything the store shows."""
    return {
        bucket.name + blob.name: blob.read_bytes()
        for bucket in (root / "sha256").iterdir()
        for blob in bucket.iterdir()
    }


# ---------------------------------------------------------------- every store


@pytest.mark.parametrize("size_bytes", [0, 1, 2047, 65_536, MIB, 9 * MIB + 17])
async def test_what_was_put_can_be_read_fetched_and_verified(make: Make, tmp_path: Path, size_bytes: int) -> None:
    store, data = make(0), random.Random(size_bytes).randbytes(size_bytes)
    sha256, size = await store.put_file(write(tmp_path / "a", data))
    assert (sha256, size) == (digest(data), size_bytes)
    await store.verify(sha256, size_bytes)
    await store.fetch(sha256, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == data
    assert await store.read(sha256, 1, 10) == data[1:11]
    assert await store.read(sha256, size_bytes + 5, 10) == b""


async def test_putting_twice_is_the_same_as_once(make: Make, tmp_path: Path) -> None:
    store = make(0)
    first = await store.put_file(write(tmp_path / "a", b"same"))
    assert await store.put_file(write(tmp_path / "b", b"same")) == first
    await store.verify(*first)


async def test_many_puts_at_once_keep_apart(make: Make, tmp_path: Path) -> None:
    store = make(0)
    paths = [write(tmp_path / str(number), bytes([number % 7]) * 5000 * (number % 7 + 1)) for number in range(60)]
    results = await asyncio.gather(*(store.put_file(path) for path in paths))
    assert [result[0] for result in results] == [digest(path.read_bytes()) for path in paths]


async def test_an_absent_blob_is_not_found(make: Make, tmp_path: Path) -> None:
    store = make(0)
    for call in (store.fetch("0" * 64, tmp_path / "x"), store.verify("0" * 64, 1), store.read("0" * 64, 0, 1)):
        with pytest.raises(NotFound, match="000000"):
            await call
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("bad", ["../../etc/passwd", "A" * 64, "a" * 63, "", "/" * 64, "..", "a" * 63 + "/"])
async def test_what_is_no_digest_never_becomes_a_path(make: Make, tmp_path: Path, bad: str) -> None:
    store = make(0)
    for call in (store.fetch(bad, tmp_path / "x"), store.verify(bad, 1), store.read(bad, 0, 1)):
        with pytest.raises(InvalidInput):
            await call


async def test_a_range_before_the_beginning_is_refused(make: Make, tmp_path: Path) -> None:
    store = make(0)
    sha256, _ = await store.put_file(write(tmp_path / "a", b"abc"))
    with pytest.raises(InvalidInput):
        await store.read(sha256, -1, 2)


async def test_a_wrong_size_is_an_integrity_failure(make: Make, tmp_path: Path) -> None:
    store = make(0)
    sha256, _ = await store.put_file(write(tmp_path / "a", b"abc"))
    with pytest.raises(IntegrityFailure, match="3 bytes, not 4"):
        await store.verify(sha256, 4)


async def test_a_full_quota_names_what_is_needed_and_what_is_free(make: Make, tmp_path: Path) -> None:
    store = make(1000)
    kept = await store.put_file(write(tmp_path / "a", b"a" * 700))
    with pytest.raises(Unavailable, match="needs 400 bytes") as refusal:
        await store.put_file(write(tmp_path / "b", b"b" * 400))
    assert "300 bytes free" in refusal.value.message
    assert "GROUND_STORE_QUOTA" in refusal.value.hint
    assert refusal.value.details == {"need_bytes": 400, "free_bytes": 300}
    with pytest.raises(NotFound):
        await store.read(digest(b"b" * 400), 0, 1)
    await store.verify(*kept)
    assert await store.put_file(write(tmp_path / "c", b"c" * 300)) == (digest(b"c" * 300), 300)


async def test_what_is_stored_already_needs_no_room(make: Make, tmp_path: Path) -> None:
    store = make(1000)
    kept = await store.put_file(write(tmp_path / "a", b"a" * 900))
    assert await store.put_file(write(tmp_path / "again", b"a" * 900)) == kept


async def test_the_quota_holds_when_many_put_at_once(make: Make, tmp_path: Path) -> None:
    store = make(10_000)
    paths = [write(tmp_path / str(number), bytes([number]) * 1000) for number in range(40)]
    results = await asyncio.gather(*(store.put_file(path) for path in paths), return_exceptions=True)
    assert sum(isinstance(result, tuple) for result in results) == 10
    assert sum(isinstance(result, Unavailable) for result in results) == 30


async def test_only_regular_files_are_stored(make: Make, tmp_path: Path) -> None:
    store = make(0)
    (tmp_path / "link").symlink_to(write(tmp_path / "real", b"x"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dir").mkdir()
    for name in ("link", "pipe", "dir"):
        with pytest.raises(InvalidInput):
            await store.put_file(tmp_path / name)
    with pytest.raises(InvalidInput):
        await store.put_file(Path("/dev/null"))
    with pytest.raises(NotFound):
        await store.put_file(tmp_path / "absent")


# ---------------------------------------------------------------- folder


async def test_blobs_are_read_only_files_named_by_their_digest(folder: FolderBlobStore, tmp_path: Path) -> None:
    sha256, _ = await folder.put_file(write(tmp_path / "a", b"abc"))
    blob = tmp_path / "store" / "sha256" / sha256[:2] / sha256[2:]
    assert stat.S_IMODE(blob.stat().st_mode) == 0o444
    await folder.put_file(write(tmp_path / "b", b"abc"))
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == [blob]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
async def test_a_flipped_bit_is_found_by_verify_and_by_fetch(
    folder: FolderBlobStore, tmp_path: Path, data: st.DataObject
) -> None:
    content = data.draw(st.binary(min_size=1, max_size=5000))
    sha256, size = await folder.put_file(write(tmp_path / "a", content))
    blob = tmp_path / "store" / "sha256" / sha256[:2] / sha256[2:]
    rotten = bytearray(content)
    rotten[data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    blob.chmod(0o644)
    blob.write_bytes(rotten)
    with pytest.raises(IntegrityFailure, match=sha256):
        await folder.verify(sha256, size)
    with pytest.raises(IntegrityFailure, match=sha256):
        await folder.fetch(sha256, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*.part"))


async def test_putting_again_heals_a_rotten_blob(folder: FolderBlobStore, tmp_path: Path) -> None:
    sha256, size = await folder.put_file(write(tmp_path / "a", b"abc"))
    blob = tmp_path / "store" / "sha256" / sha256[:2] / sha256[2:]
    blob.chmod(0o644)
    blob.write_bytes(b"abd")
    await folder.put_file(tmp_path / "a")
    await folder.verify(sha256, size)


async def test_fetch_replaces_what_lies_at_the_target_whole(folder: FolderBlobStore, tmp_path: Path) -> None:
    sha256, _ = await folder.put_file(write(tmp_path / "a", b"new"))
    await folder.fetch(sha256, write(tmp_path / "target", b"something older and longer"))
    assert (tmp_path / "target").read_bytes() == b"new"


async def test_a_file_that_changes_while_it_is_stored_is_refused(folder: FolderBlobStore, tmp_path: Path) -> None:
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
            await folder.put_file(path)
    finally:
        stop.set()
        await writer
    assert visible(tmp_path / "store") == {}


async def test_opening_sweeps_what_the_dead_left_and_spares_the_living(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = FolderBlobStore(root)
    write(root / "tmp" / "123-dead", b"half")
    with store._temporary() as (living, _):
        FolderBlobStore(root)
        assert living.exists()
        assert not (root / "tmp" / "123-dead").exists()
    assert list((root / "tmp").iterdir()) == []


async def test_the_quota_counts_what_an_earlier_process_stored(tmp_path: Path) -> None:
    await FolderBlobStore(tmp_path / "store").put_file(write(tmp_path / "a", b"a" * 700))
    with pytest.raises(Unavailable, match="300 bytes free"):
        await FolderBlobStore(tmp_path / "store", 1000).put_file(write(tmp_path / "b", b"b" * 400))


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
    store = FolderBlobStore(small_disk / "store")
    kept = await store.put_file(write(tmp_path / "small", b"k" * MIB))
    with pytest.raises(Unavailable, match=f"needs {8 * MIB} bytes") as refusal:
        await store.put_file(write(tmp_path / "large", b"l" * 8 * MIB))
    assert refusal.value.details["free_bytes"] <= 3 * MIB  # type: ignore[operator]
    assert set(visible(small_disk / "store")) == {kept[0]}
    assert list((small_disk / "store" / "tmp").iterdir()) == []
    await store.verify(*kept)
    await store.put_file(write(tmp_path / "fits", b"f" * MIB))


@pytest.mark.needs("tmpfs")
async def test_a_disk_that_fills_up_while_writing_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    """The room is there when each put begins and gone before it ends: only the write itself finds out."""
    store = FolderBlobStore(small_disk / "store", threads=8)
    paths = [write(tmp_path / str(number), bytes([number]) * 3 * MIB) for number in range(6)]
    results = await asyncio.gather(*(store.put_file(path) for path in paths), return_exceptions=True)
    stored = {result[0] for result in results if isinstance(result, tuple)}
    assert len(stored) <= 1
    assert all(isinstance(result, tuple | Unavailable) for result in results), results
    assert {digest(content) for content in visible(small_disk / "store").values()} == stored
    assert list((small_disk / "store" / "tmp").iterdir()) == []


@pytest.mark.needs("tmpfs")
async def test_a_full_target_leaves_no_half_file(small_disk: Path, folder: FolderBlobStore, tmp_path: Path) -> None:
    sha256, _ = await folder.put_file(write(tmp_path / "a", b"a" * 6 * MIB))
    with pytest.raises(Unavailable, match="disk of the target"):
        await folder.fetch(sha256, small_disk / "model")
    assert list(small_disk.iterdir()) == []


# ---------------------------------------------------------------- sudden death

_PUT_FOREVER = """
import asyncio, sys
from pathlib import Path
from groundplane.adapters.blobs import FolderBlobStore
async def main():
    store = FolderBlobStore(Path(sys.argv[1]))
    print("ready", flush=True)
    while True:
        for path in sorted(Path(sys.argv[2]).iterdir()):
            await store.put_file(path)
asyncio.run(main())
"""


async def test_a_kill_at_any_moment_of_a_put_leaves_nothing_half_written(tmp_path: Path) -> None:
    root, source, chance = tmp_path / "store", tmp_path / "source", random.Random(4700)
    source.mkdir()
    for number in range(6):
        write(source / str(number), chance.randbytes(chance.randrange(1, 12 * MIB)))
    known = {digest(path.read_bytes()) for path in source.iterdir()}
    for _ in range(8):
        child = subprocess.Popen([sys.executable, "-c", _PUT_FOREVER, root, source], stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(chance.random() * 0.25)
            child.send_signal(signal.SIGKILL)
        finally:
            child.kill()
            child.communicate()
        shown = visible(root)
        assert set(shown) <= known
        assert all(digest(content) == name for name, content in shown.items())
    store = FolderBlobStore(root)
    assert list((root / "tmp").iterdir()) == []
    for path in source.iterdir():
        await store.verify(*await store.put_file(path))
