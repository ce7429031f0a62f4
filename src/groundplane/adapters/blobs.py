"""Content-addressed bytes: in a folder (`store/sha256/ab/cdef…`), and in memory."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import queue
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from groundplane.domain.model import check_sha256
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, NotFound, Unavailable
from groundplane.units import format_bytes

_T = TypeVar("_T")

# Small enough to stay in a core's cache between read, hash and write: measured faster than 1 and 4 MiB.
_PIECE_BYTES = 256 << 10
_PIECES = 8
# Below this a second thread costs more than it hides.
_PIPELINE_FROM_BYTES = 8 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(slots=True)
class _Room:
    """What one put may still write; nothing any more once its bytes are counted as used."""

    reserved_bytes: int
    refused: Unavailable | None


class FolderBlobStore:
    """ports.BlobStore on a folder.

    A blob appears by one rename of a finished, flushed file, so a crash leaves nothing visible; what a dead process
    left in `tmp/` is swept when the store is opened. Blobs are read-only files. Hashing and copying run in threads,
    several files at once. The quota counts what this process writes; one control plane owns a home, so that is all.
    """

    def __init__(self, root: Path, quota_bytes: int = 0, *, threads: int | None = None) -> None:
        self._root = root.absolute()
        self._blobs = self._root / "sha256"
        self._tmp = self._root / "tmp"
        self._quota_bytes = quota_bytes
        self._room = threading.Lock()
        self._used_bytes: int | None = None
        self._reserved_bytes = 0
        for folder in (self._root, self._blobs, self._tmp):
            folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        self._pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="blobs")

    async def put_file(self, path: Path) -> tuple[str, int]:
        return await self._in_thread(lambda: self._put(path))

    async def fetch(self, sha256: str, target: Path) -> None:
        check_sha256(sha256)
        await self._in_thread(lambda: self._fetch(sha256, target))

    async def verify(self, sha256: str, size_bytes: int) -> None:
        check_sha256(sha256)
        await self._in_thread(lambda: self._verify(sha256, size_bytes))

    async def read(self, sha256: str, offset: int, limit_bytes: int) -> bytes:
        check_sha256(sha256)
        if offset < 0 or limit_bytes < 0:
            raise InvalidInput(f"a range of blob {sha256[:16]} can't begin at {offset} for {limit_bytes} bytes")
        return await self._in_thread(lambda: self._read(sha256, offset, limit_bytes))

    def close(self) -> None:
        """Waits for what is under way and lets the threads go. Twice is the same as once."""
        self._pool.shutdown()

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _path(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256[2:]

    # ------------------------------------------------------------ put

    def _put(self, path: Path) -> tuple[str, int]:
        source = _open_regular(path)
        try:
            before = os.fstat(source)
            with self._reserve(path, before.st_size) as room:
                if room.refused is not None:
                    return self._put_known(source, before.st_size, room.refused)
                try:
                    return self._put_new(path, source, before, room)
                except OSError as error:
                    if error.errno not in _FULL:
                        raise
                    full = self._full(path, before.st_size)
            return self._put_known(source, before.st_size, full)
        finally:
            os.close(source)

    def _put_new(self, path: Path, source: int, before: os.stat_result, room: _Room) -> tuple[str, int]:
        with self._temporary() as (name, target):
            sha256, size_bytes = _copy(source, target)
            after = os.fstat(source)
            if size_bytes != before.st_size or (after.st_mtime_ns, after.st_ctime_ns, after.st_size) != (
                before.st_mtime_ns, before.st_ctime_ns, before.st_size,
            ):  # fmt: skip
                raise Conflict(f"{path} changed while it was being stored", "stop what writes it, then try again")
            os.fchmod(target, 0o444)
            os.fsync(target)
            blob = self._path(sha256)
            if not blob.parent.is_dir():
                blob.parent.mkdir(exist_ok=True)
                _sync_folder(self._blobs)
            with self._room:
                known = blob.exists()
                # An equal blob is replaced by its equal: costs nothing, and heals one that has rotted on disk.
                name.replace(blob)
                if not known and self._used_bytes is not None:
                    self._used_bytes += size_bytes
                self._reserved_bytes -= before.st_size
                room.reserved_bytes = 0
            _sync_folder(blob.parent)
        return sha256, size_bytes

    def _put_known(self, source: int, size_bytes: int, refused: Unavailable) -> tuple[str, int]:
        """No room for a copy, but none is needed when the same content is stored already."""
        os.lseek(source, 0, os.SEEK_SET)
        sha256, count = _copy(source, None)
        if count != size_bytes or not self._path(sha256).exists():
            raise refused
        self._verify(sha256, count)
        return sha256, count

    @contextmanager
    def _reserve(self, path: Path, need_bytes: int) -> Iterator[_Room]:
        """Keeps room for a file while it is written; gives the refusal instead when there is none."""
        with self._room:
            refused = self._refusal(path, need_bytes)
            room = _Room(reserved_bytes=need_bytes if refused is None else 0, refused=refused)
            self._reserved_bytes += room.reserved_bytes
        try:
            yield room
        finally:
            with self._room:
                self._reserved_bytes -= room.reserved_bytes

    def _refusal(self, path: Path, need_bytes: int) -> Unavailable | None:
        if self._quota_bytes:
            if self._used_bytes is None or self._left_bytes() < need_bytes:
                # Count again before refusing: somebody may have made room.
                self._used_bytes = sum(size for _, size in self._entries())
            if self._left_bytes() < need_bytes:
                return _no_room(path, need_bytes, max(0, self._left_bytes()), f"a quota of {self._quota_bytes} bytes")
        if _free_bytes(self._root) < need_bytes:
            return self._full(path, need_bytes)
        return None

    def _left_bytes(self) -> int:
        return self._quota_bytes - (self._used_bytes or 0) - self._reserved_bytes

    def _full(self, path: Path, need_bytes: int) -> Unavailable:
        return _no_room(path, need_bytes, _free_bytes(self._root), "its disk")

    def _entries(self) -> Iterator[tuple[str, int]]:
        for bucket in os.scandir(self._blobs):
            for entry in os.scandir(bucket):
                yield bucket.name + entry.name, entry.stat(follow_symlinks=False).st_size

    # ------------------------------------------------------------ temporary files

    @contextmanager
    def _temporary(self) -> Iterator[tuple[Path, int]]:
        """A locked file in `tmp/`, gone at the end unless it was renamed away. The lock says that its writer lives."""
        while True:
            name = self._tmp / f"{os.getpid()}-{secrets.token_hex(8)}"
            target = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(target, fcntl.LOCK_EX)
            if os.fstat(target).st_nlink:
                break
            # A sweep came between opening and locking.
            os.close(target)
        try:
            yield name, target
        finally:
            name.unlink(missing_ok=True)
            os.close(target)

    def _sweep(self) -> None:
        """Removes temporary files whose writer is gone: a living one holds a lock on its file."""
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

    # ------------------------------------------------------------ reading

    def _open(self, sha256: str) -> int:
        try:
            return os.open(self._path(sha256), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _absent(sha256) from None

    def _fetch(self, sha256: str, target: Path) -> None:
        source = self._open(sha256)
        part = target.parent / f".{target.name[:100]}.{secrets.token_hex(8)}.part"
        try:
            size_bytes = os.fstat(source).st_size
            copy = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                found, _ = _copy(source, copy)
                os.fsync(copy)
            finally:
                os.close(copy)
            if found != sha256:
                raise _rotten(sha256, found)
            part.replace(target)
            _sync_folder(target.parent)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise _no_room(target, size_bytes, _free_bytes(target.parent), "the disk of the target") from error
        finally:
            part.unlink(missing_ok=True)
            os.close(source)

    def _verify(self, sha256: str, size_bytes: int) -> None:
        source = self._open(sha256)
        try:
            have = os.fstat(source).st_size
            if have != size_bytes:
                raise IntegrityFailure(f"blob {sha256} has {have} bytes, not {size_bytes}", _RESTORE_HINT)
            found, _ = _copy(source, None)
        finally:
            os.close(source)
        if found != sha256:
            raise _rotten(sha256, found)

    def _read(self, sha256: str, offset: int, limit_bytes: int) -> bytes:
        source = self._open(sha256)
        try:
            return os.pread(source, limit_bytes, offset)
        finally:
            os.close(source)


class MemoryBlobStore:
    """ports.BlobStore in memory: for tests and trials; gone with the process."""

    def __init__(self, quota_bytes: int = 0) -> None:
        self._blobs: dict[str, bytes] = {}
        self._quota_bytes = quota_bytes

    async def put_file(self, path: Path) -> tuple[str, int]:
        source = _open_regular(path)
        with os.fdopen(source, "rb") as file:
            content = file.read()
        sha256 = hashlib.sha256(content).hexdigest()
        left = self._quota_bytes - sum(len(blob) for blob in self._blobs.values())
        if self._quota_bytes and sha256 not in self._blobs and len(content) > left:
            raise _no_room(path, len(content), left, f"a quota of {self._quota_bytes} bytes")
        self._blobs[sha256] = content
        return sha256, len(content)

    async def fetch(self, sha256: str, target: Path) -> None:
        content = self._get(sha256)
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise _rotten(sha256, found)
        part = target.parent / f".{target.name[:100]}.{secrets.token_hex(8)}.part"
        part.write_bytes(content)
        part.replace(target)

    async def verify(self, sha256: str, size_bytes: int) -> None:
        content = self._get(sha256)
        if len(content) != size_bytes:
            raise IntegrityFailure(f"blob {sha256} has {len(content)} bytes, not {size_bytes}", _RESTORE_HINT)
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise _rotten(sha256, found)

    async def read(self, sha256: str, offset: int, limit_bytes: int) -> bytes:
        if offset < 0 or limit_bytes < 0:
            raise InvalidInput(f"a range of blob {sha256[:16]} can't begin at {offset} for {limit_bytes} bytes")
        return self._get(sha256)[offset : offset + limit_bytes]

    def _get(self, sha256: str) -> bytes:
        try:
            return self._blobs[check_sha256(sha256)]
        except KeyError:
            raise _absent(sha256) from None


# ---------------------------------------------------------------- bytes

_RESTORE_HINT = "restore the blob from a backup, or register the files anew"


def _open_regular(path: Path) -> int:
    """A regular file's descriptor; never a link's, and never one that waits for a writer. InvalidInput, NotFound."""
    try:
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM}:
            raise
        raise InvalidInput(
            f"{path} can't be stored: {os.strerror(error.errno)}", "give a readable, regular file"
        ) from None
    if not stat.S_ISREG(os.fstat(source).st_mode):
        os.close(source)
        raise InvalidInput(f"{path} is no regular file", "give a file, not a folder, pipe, socket or device")
    return source


def _copy(source: int, target: int | None) -> tuple[str, int]:
    """Hashes all of `source`, writing it to `target` on the way; (SHA-256 hex, bytes). Hash and write overlap."""
    digest = hashlib.sha256()
    os.posix_fadvise(source, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    if os.fstat(source).st_size < _PIPELINE_FROM_BYTES:
        size_bytes = 0
        while piece := os.read(source, _PIECE_BYTES):
            digest.update(piece)
            if target is not None:
                _write(target, memoryview(piece))
            size_bytes += len(piece)
        return digest.hexdigest(), size_bytes
    return _copy_pipelined(source, target, digest)


def _copy_pipelined(source: int, target: int | None, digest: hashlib._Hash) -> tuple[str, int]:
    """Another thread hashes what this one reads and writes; both let go of the interpreter while they work.

    The ring of buffers is the back-pressure: a buffer is filled again only after it was hashed.
    """
    free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
    full: queue.SimpleQueue[tuple[memoryview, int] | None] = queue.SimpleQueue()
    for _ in range(_PIECES):
        free.put(memoryview(bytearray(_PIECE_BYTES)))

    def hash_pieces() -> None:
        while (item := full.get()) is not None:
            buffer, count = item
            digest.update(buffer[:count])
            free.put(buffer)

    hasher = threading.Thread(target=hash_pieces, name="blobs-hash")
    hasher.start()
    size_bytes = 0
    try:
        while True:
            buffer = free.get()
            count = os.readv(source, [buffer])
            if count == 0:
                break
            full.put((buffer, count))
            if target is not None:
                _write(target, buffer[:count])
            size_bytes += count
    finally:
        full.put(None)
        hasher.join()
    return digest.hexdigest(), size_bytes


def _write(target: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(target, piece) :]


def _sync_folder(folder: Path) -> None:
    """Makes a rename in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _no_room(path: Path, need_bytes: int, free_bytes: int, what: str) -> Unavailable:
    return Unavailable(
        f"no room for {path.name}: it needs {need_bytes} bytes ({format_bytes(need_bytes)}), "
        f"{what} has {free_bytes} bytes free ({format_bytes(free_bytes)})",
        "make room, or raise GROUND_STORE_QUOTA, then try again; nothing was stored",
        {"need_bytes": need_bytes, "free_bytes": free_bytes},
    )


def _absent(sha256: str) -> NotFound:
    return NotFound(f"blob {sha256} is not in the store", _RESTORE_HINT)


def _rotten(sha256: str, found: str) -> IntegrityFailure:
    return IntegrityFailure(f"blob {sha256} has changed: its bytes now hash to {found[:16]}…", _RESTORE_HINT)
