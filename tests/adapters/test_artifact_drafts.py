"""How packs get to a disk: past the page cache where the file system takes that, through it elsewhere, and whole."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.adapters.artifact_files import write

from groundplane.adapters.artifacts import folder_store, objects
from groundplane.adapters.artifacts.objects import FolderObjects
from groundplane.errors import Unavailable

MIB = 2**20
BLOCK = objects._BLOCK_BYTES
SIZES = (0, 1, 4095, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 4095)
CONTENT = random.Random(4712).randbytes(2 * BLOCK + 4095)
DISK_BYTES = 24 * MIB


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.needs(kind)) for kind in ("tmpfs", "ext4")])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """24 MiB of a real file system, in memory or with a device below it."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs"]
    if request.param == "ext4":
        image = tmp_path / "image"
        image.touch()
        os.truncate(image, DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
        command = ["mount", "-o", "loop", str(image)]
    subprocess.run([*command, str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def packed(store: FolderObjects, name: str, data: bytes) -> Path:
    """A pack with these bytes, written in parts that fit no block."""
    draft = store.draft()
    for begin in range(0, len(data), 1_000_003):
        draft.write(memoryview(data)[begin : begin + 1_000_003])
    draft.publish(name)
    return Path(store.address(name))


def in_page_cache(path: Path, offset: int = 0) -> bool:
    """Whether a page can be read without asking the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def test_a_pack_of_any_size_is_what_was_written_and_leaves_nothing_beside_it(disk: Path) -> None:
    store = FolderObjects(disk)
    for size_bytes in SIZES:
        pack = packed(store, "pack", CONTENT[:size_bytes])
        assert pack.read_bytes() == CONTENT[:size_bytes], size_bytes
        assert list((disk / "tmp").iterdir()) == []
    store.close()


@pytest.mark.needs("ext4")
@pytest.mark.parametrize("disk", ["ext4"], indirect=True)
def test_full_blocks_go_past_the_page_cache_and_small_packs_through_it(disk: Path) -> None:
    store = FolderObjects(disk)
    large = packed(store, "large", CONTENT)
    assert [in_page_cache(large, offset) for offset in (0, BLOCK, len(CONTENT) - 1)] == [False, False, True]
    assert in_page_cache(packed(store, "small", CONTENT[: BLOCK - 1]))
    store.close()


@pytest.mark.needs("ext4")
@pytest.mark.parametrize("disk", ["ext4"], indirect=True)
@pytest.mark.parametrize("refused", ["when asked", "at the first write"])
def test_where_direct_writes_are_refused_the_page_cache_takes_them(
    disk: Path, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fcntl.fcntl

    def no(descriptor: int, command: int, flags: int = 0) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "this file system has no direct writes")
        return asked(descriptor, command, flags)

    store = FolderObjects(disk)
    draft = store.draft()
    if refused == "when asked":
        monkeypatch.setattr(objects.fcntl, "fcntl", no)
    else:
        # A disk reads from memory only where it is aligned; one byte further on the kernel says EINVAL.
        draft._block = memoryview(mmap.mmap(-1, BLOCK + 1))[1:]
    draft.write(memoryview(CONTENT))
    draft.publish("pack")
    pack = Path(store.address("pack"))
    assert in_page_cache(pack)
    assert pack.read_bytes() == CONTENT
    store.close()


def test_a_disk_that_fills_up_under_a_draft_says_so_and_gets_all_of_it_back(disk: Path) -> None:
    store = FolderObjects(disk)
    kept = packed(store, "kept", CONTENT[: BLOCK + 1])
    free_bytes = store.free_bytes()
    draft = store.draft()
    with pytest.raises(OSError, match="No space left") as full:
        for _ in range(DISK_BYTES // BLOCK + 1):
            draft.write(memoryview(CONTENT)[:BLOCK])
    assert full.value.errno == errno.ENOSPC
    draft.discard()
    assert (list((disk / "tmp").iterdir()), kept.read_bytes()) == ([], CONTENT[: BLOCK + 1])
    assert store.free_bytes() >= free_bytes - 64 * 1024, "a journal may have grown, nothing else"
    store.close()


async def test_a_push_into_a_disk_that_fills_up_is_refused_and_the_next_that_fits_is_pulled_back_equal(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = folder_store(disk)
    with monkeypatch.context() as patched:
        # Somebody else takes the room between the look and the write.
        patched.setattr(store._objects, "free_bytes", lambda: 2**40)
        with pytest.raises(Unavailable, match="no room for large"):
            await store.put_file(write(tmp_path / "large", random.Random(5).randbytes(DISK_BYTES)))
    await store.collect(frozenset(), grace_s=0)
    assert [list((disk / name).iterdir()) for name in ("tmp", "packs")] == [[], []]
    sha256, size_bytes = await store.put_file(write(tmp_path / "fits", CONTENT))
    await store.verify(sha256, size_bytes)
    await store.fetch(sha256, tmp_path / "pulled")
    assert (tmp_path / "pulled").read_bytes() == CONTENT
    store.close()
