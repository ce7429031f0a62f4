"""Where packs lie: named, immutable objects in a folder or in memory. A bucket's are in `bucket.py`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import shutil
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_READ_NOTED_S = 3600.0
_BLOCK_BYTES = 4 << 20
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Found:
    """One object as it is listed. `modified_s` is seconds since 1970 by whoever keeps it."""

    name: str
    size_bytes: int
    modified_s: float


class Draft(Protocol):
    """An object on its way: nobody sees it before `publish`, and `discard` leaves nothing of it."""

    def write(self, data: memoryview) -> None:
        """Appends. OSError with ENOSPC when there is no room."""
        ...

    def publish(self, name: str) -> None:
        """Durable and visible at once, whole. An object of that name, which is equal, is replaced."""
        ...

    def discard(self) -> None:
        """Nothing of it stays. After `publish` it does nothing."""
        ...


class Reader(Protocol):
    """One object, readable at any offset by several threads."""

    def into(self, buffer: memoryview, offset: int) -> int:
        """Fills the buffer; fewer bytes only at the object's end. OSError when the medium fails."""
        ...

    def close(self) -> None:
        """Lets go of it. Twice is the same as once."""
        ...


class Objects(Protocol):
    """A place of immutable objects. Every method may be called from any thread."""

    def list(self) -> list[Found]:
        """All of them."""
        ...

    def draft(self) -> Draft:
        """A fresh one."""
        ...

    def reader(self, name: str) -> Reader:
        """FileNotFoundError when it is not there."""
        ...

    def delete(self, name: str) -> None:
        """Twice is the same as once."""
        ...

    def address(self, name: str) -> str:
        """Where a client reads it without us: an absolute path, a signed URL, or nothing."""
        ...

    def landing(self, name: str) -> str:
        """Where a client puts bytes that are no object yet: a signed URL, or nothing."""
        ...

    def take(self, name: str, limit_bytes: int) -> bytes:
        """What was put under that name, which is gone then. FileNotFoundError; TooLarge for more than the limit."""
        ...

    def free_bytes(self) -> int:
        """What the medium could still take."""
        ...

    def alone(self) -> bool:
        """Whether no other process has this place open."""
        ...

    def cool(self, unread_s: float) -> int:
        """Moves objects unread for that long to the cold tier, if there is one; bytes moved."""
        ...

    def close(self) -> None:
        """Lets other processes have the place to themselves. Twice is the same as once."""
        ...


UNLIMITED_BYTES = 2**62


class FolderObjects:
    """Objects as read-only files in `packs/`. They appear by one rename of a finished, flushed file.

    What a dead process left in `tmp/` is swept on opening: a living writer holds a lock on its file. With a `cold`
    folder an object lies in either of the two; it is moved by a flushed copy, so a crash leaves it in both.
    """

    def __init__(self, root: Path, cold: Path | None = None) -> None:
        self._root, self._packs, self._tmp = root, root / "packs", root / "tmp"
        self._tiers = (self._packs,) if cold is None else (self._packs, cold)
        for folder in (root, self._tmp, *self._tiers):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        self._sweep()

    def list(self) -> list[Found]:
        found: dict[str, Found] = {}
        for folder in reversed(self._tiers):
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        seen = entry.stat(follow_symlinks=False)
                        found[entry.name] = Found(entry.name, seen.st_size, seen.st_mtime)
        return list(found.values())

    def draft(self) -> _FileDraft:
        while True:
            path = self._tmp / f"{os.getpid()}-{secrets.token_hex(8)}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return _FileDraft(path, descriptor, self._packs)
            # A sweep came between opening and locking.
            os.close(descriptor)

    def reader(self, name: str) -> _FileReader:
        descriptor = os.open(self._path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        seen, now = os.fstat(descriptor), time.time()
        if len(self._tiers) > 1 and now - seen.st_atime > _READ_NOTED_S:
            # File systems mounted `noatime` would not remember that it was read.
            os.utime(descriptor, ns=(int(now * 1e9), seen.st_mtime_ns))
        return _FileReader(descriptor)

    def delete(self, name: str) -> None:
        for folder in self._tiers:
            (folder / name).unlink(missing_ok=True)

    def address(self, name: str) -> str:
        return str(self._path(name))

    def landing(self, name: str) -> str:
        return ""

    def take(self, name: str, limit_bytes: int) -> bytes:
        raise FileNotFoundError(name)

    def cool(self, unread_s: float) -> int:
        if len(self._tiers) == 1:
            return 0
        moved_bytes, now, cold = 0, time.time(), self._tiers[1]
        for path in list(self._packs.iterdir()):
            seen = path.stat()
            if now - max(seen.st_atime, seen.st_mtime) < unread_s:
                continue
            part = cold / f".{path.name}.part"
            shutil.copy2(path, part)
            with part.open("rb") as copied:
                os.fsync(copied.fileno())
            part.replace(cold / path.name)
            sync_folder(cold)
            path.unlink()
            moved_bytes += seen.st_size
        return moved_bytes

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _path(self, name: str) -> Path:
        return next((folder / name for folder in self._tiers if (folder / name).exists()), self._packs / name)

    def free_bytes(self) -> int:
        return free_bytes(self._root)

    def alone(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            return False
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        return True

    def _sweep(self) -> None:
        for entry in list(os.scandir(self._tmp)):
            try:
                found = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
                Path(entry.path).unlink(missing_ok=True)
            except BlockingIOError:
                continue
            finally:
                os.close(found)


class _FileDraft:
    """Full blocks go to the disk past the page cache where the file system takes that, everything else through it.

    A pack is read rarely and written at once: pages for it cost more than the disk does, and would drive out what is
    in use. Why, with figures: docs/decisions/0012-past-the-page-cache.md. While one block is on its way to the disk,
    the next one is filled.
    """

    def __init__(self, path: Path, descriptor: int, packs: Path) -> None:
        self._path, self._descriptor, self._packs = path, descriptor, packs
        self._block = _block()
        self._filled_bytes = 0
        self._direct = False
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[memoryview] | None = None

    def write(self, data: memoryview) -> None:
        while data:
            part = data[: _BLOCK_BYTES - self._filled_bytes]
            self._block[self._filled_bytes : self._filled_bytes + len(part)] = part
            self._filled_bytes += len(part)
            data = data[len(part) :]
            if self._filled_bytes == _BLOCK_BYTES:
                self._pass_on()

    def _pass_on(self) -> None:
        """The full block to the other thread, for the one that it has written. Raises what went wrong with that."""
        if self._writer is None:
            self._go(direct=True)
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="artifacts-disk")
        empty = _block() if self._writing is None else self._writing.result()
        self._writing = self._writer.submit(self._flush, self._block)
        self._block, self._filled_bytes = empty, 0

    def _flush(self, block: memoryview) -> memoryview:
        """Writes it, and hands it back. After a direct write that was refused or fell short the page cache takes the
        rest, and says what is wrong where something is: a full disk."""
        data = block
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
            if data and self._direct:
                self._go(direct=False)
        return block

    def _go(self, *, direct: bool) -> None:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & ~os.O_DIRECT
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            direct = False
        self._direct = direct

    def publish(self, name: str) -> None:
        if self._writing is not None:
            self._writing.result()
        if self._direct:
            self._go(direct=False)
        self._flush(self._block[: self._filled_bytes])
        os.fchmod(self._descriptor, 0o444)
        os.fsync(self._descriptor)
        self._path.replace(self._packs / name)
        sync_folder(self._packs)
        self._close()

    def discard(self) -> None:
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.shutdown()
        os.close(self._descriptor)
        self._descriptor = -1


def _block() -> memoryview:
    """Begins at a page, as disks want it, and lies in large ones: a disk takes those in half the time."""
    mapped = mmap.mmap(-1, _BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel that has none
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(mapped)


class _FileReader:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def into(self, buffer: memoryview, offset: int) -> int:
        filled = os.preadv(self._descriptor, [buffer], offset)
        while 0 < filled < len(buffer):
            more = os.preadv(self._descriptor, [buffer[filled:]], offset + filled)
            if more == 0:
                break
            filled += more
        return filled

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class MemoryObjects:
    """Objects in memory: for tests and trials; gone with the process."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    def list(self) -> list[Found]:
        with self._lock:
            return [Found(name, len(data), at) for name, (data, at) in self._held.items()]

    def draft(self) -> _MemoryDraft:
        return _MemoryDraft(self)

    def put(self, name: str, data: bytes) -> None:
        with self._lock:
            self._held[name] = (data, time.time())

    def reader(self, name: str) -> _MemoryReader:
        with self._lock:
            if name not in self._held:
                raise FileNotFoundError(name)
            return _MemoryReader(self._held[name][0])

    def delete(self, name: str) -> None:
        with self._lock:
            self._held.pop(name, None)

    def address(self, name: str) -> str:
        return ""

    def landing(self, name: str) -> str:
        return ""

    def take(self, name: str, limit_bytes: int) -> bytes:
        raise FileNotFoundError(name)

    def free_bytes(self) -> int:
        return UNLIMITED_BYTES

    def alone(self) -> bool:
        return True

    def cool(self, unread_s: float) -> int:
        return 0

    def close(self) -> None:
        pass


class _MemoryDraft:
    def __init__(self, objects: MemoryObjects) -> None:
        self._objects, self._data = objects, bytearray()

    def write(self, data: memoryview) -> None:
        self._data += data

    def publish(self, name: str) -> None:
        self._objects.put(name, bytes(self._data))

    def discard(self) -> None:
        self._data = bytearray()


class _MemoryReader:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def into(self, buffer: memoryview, offset: int) -> int:
        piece = self._data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        pass


def sync_folder(folder: Path) -> None:
    """Makes a rename in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """Bytes that an ordinary user could still write on the folder's disk."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
