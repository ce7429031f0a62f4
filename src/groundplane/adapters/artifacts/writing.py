"""Files become pieces and pieces become packs: each byte read once, hashed twice, and written only when it is new."""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

from groundplane.adapters.artifacts.index import Index
from groundplane.adapters.artifacts.objects import Draft, Found, Objects
from groundplane.domain.byte_view import ByteView
from groundplane.domain.packs import Directory, Piece, Recipe, encode, pack_pieces, sealed, spans
from groundplane.domain.pieces import PIECE_BYTES_MAX, cut
from groundplane.errors import Conflict, InvalidInput, NotFound

PACK_BYTES = 64 << 20
"""A pack is closed at this size: large enough for few files, small enough that the last flush of a push is short."""

# Below this a second thread costs more than it hides.
_PIPELINE_FROM_BYTES = 4 << 20
_RING = 8


class Push:
    """One put: its files' new pieces go into packs of its own. Files may be added by several threads.

    `relied` are the pieces that were there already, `written` its own: the collector spares both while it lives.
    `unpublished_bytes` is the room it has taken and not yet filled with a published pack; the index's lock guards it.
    """

    def __init__(self, index: Index, objects: Objects, key: bytes) -> None:
        self._index, self._objects, self._key = index, objects, key
        self._lock = threading.Lock()
        self._draft: Draft | None = None
        self._pieces: list[Piece] = []
        self._filled_bytes = 0
        self._publisher: ThreadPoolExecutor | None = None
        self._publishing: Future[None] | None = None
        self.relied: set[bytes] = set()
        self.written: set[bytes] = set()
        self.unpublished_bytes = 0

    def file(self, path: Path, *, write: bool = True) -> tuple[Recipe, int]:
        """(the file's recipe, bytes of it that were not stored before). Without `write` it only finds out.

        Raises NotFound and InvalidInput for what is no regular file, Conflict when it changed meanwhile, and OSError
        with ENOSPC.
        """
        source = open_regular(path)
        try:
            before = os.fstat(source)
            hashing = _Hashing(self, write)
            sha256 = hashing.all(source, before.st_size)
            after = os.fstat(source)
            if hashing.size_bytes != before.st_size or _stamp(before) != _stamp(after):
                raise Conflict(f"{path} changed while it was being stored", "stop what writes it, then try again")
        finally:
            os.close(source)
        packed = pack_pieces(hashing.pieces)
        return sealed(self._key, sha256, hashing.size_bytes, packed), hashing.new_bytes

    def add(self, digest: bytes, data: memoryview) -> bool:
        """Stores a piece unless it is there; says whether it was new."""
        with self._lock:
            if self._taken(digest):
                return False
            if self._draft is None:
                self._draft = self._objects.draft()
            self._draft.write(data)
            self._pieces.append(Piece(digest, len(data)))
            self._filled_bytes += len(data)
            if self._filled_bytes >= PACK_BYTES:
                self._roll()
            return True

    def has(self, digest: bytes) -> bool:
        """Whether a piece would need no room."""
        return digest in self.written or self._index.has(digest)

    def _taken(self, digest: bytes) -> bool:
        """Whether the piece is there; the push relies on it from now on, or is about to write it."""
        with self._index.lock:
            if digest in self.written or digest in self.relied:
                return True
            (self.relied if self._index.has(digest) else self.written).add(digest)
            return digest in self.relied

    def finish(self, recipes: Sequence[Recipe]) -> None:
        """Publishes the last pack, with the recipes, once every piece they name is durable."""
        with self._lock:
            self._wait()
            if not self._pieces and not recipes:
                return
            draft = self._draft or self._objects.draft()
            self._draft = None
            self._publish(draft, Directory(pieces=tuple(self._pieces), recipes=tuple(recipes)))

    def abandon(self) -> None:
        """Lets go of what was not published. Packs that were are found by the next try, or collected."""
        with self._lock:
            if self._publisher is not None:
                self._publisher.shutdown()
            if self._draft is not None:
                self._draft.discard()
                self._draft = None

    def _roll(self) -> None:
        """A full pack is flushed by another thread while this one goes on."""
        self._wait()
        draft, directory = self._draft, Directory(pieces=tuple(self._pieces), recipes=())
        assert draft is not None
        self._draft, self._pieces, self._filled_bytes = None, [], 0
        if self._publisher is None:
            self._publisher = ThreadPoolExecutor(1, thread_name_prefix="artifacts-publish")
        self._publishing = self._publisher.submit(self._publish, draft, directory)

    def _wait(self) -> None:
        """Until the pack before is durable; raises what went wrong with it."""
        if self._publishing is not None:
            self._publishing.result()
            self._publishing = None

    def _publish(self, draft: Draft, directory: Directory) -> None:
        name, tail = encode(directory)
        try:
            draft.write(memoryview(tail))
            draft.publish(name)
        finally:
            draft.discard()
        with self._index.lock:
            self._index.add(name, directory, Found(name, directory.data_bytes + len(tail), time.time()))
            self.unpublished_bytes -= directory.data_bytes


class _Hashing:
    """One file on its way through both hashes."""

    def __init__(self, push: Push, write: bool) -> None:
        self._push, self._write = push, write
        self._seen: set[bytes] = set()
        self.pieces: list[Piece] = []
        self.size_bytes = 0
        self.new_bytes = 0

    def all(self, source: int, size_bytes: int) -> bytes:
        """The whole file's SHA-256."""
        if size_bytes < _PIPELINE_FROM_BYTES:
            data = _read_whole(source, size_bytes)
            self._pieces(memoryview(data), cut(ByteView.of(data)))
            return hashlib.sha256(data).digest()
        os.posix_fadvise(source, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return self._pipelined(source, cut(ByteView(lambda at, count: os.pread(source, count, at), size_bytes)))

    def _pipelined(self, source: int, lengths: Sequence[int]) -> bytes:
        """Another thread computes the SHA-256 of what this one reads, hashes and writes; none holds the interpreter.

        The ring of buffers is the back-pressure: a buffer is filled again only after both are done with it.
        """
        digest = hashlib.sha256()
        free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        full: queue.SimpleQueue[tuple[memoryview, int] | None] = queue.SimpleQueue()
        for _ in range(_RING):
            free.put(memoryview(bytearray(PIECE_BYTES_MAX)))

        def whole() -> None:
            while (item := full.get()) is not None:
                buffer, count = item
                digest.update(buffer[:count])
                free.put(buffer)

        hasher = threading.Thread(target=whole, name="artifacts-sha256")
        hasher.start()
        try:
            for batch in _batches(lengths):
                buffer, count = free.get(), sum(batch)
                if _fill(source, buffer[:count]) != count:
                    break
                full.put((buffer, count))
                self._pieces(buffer[:count], batch)
        finally:
            full.put(None)
            hasher.join()
        return digest.digest()

    def _pieces(self, data: memoryview, lengths: Sequence[int]) -> None:
        for offset, length in spans(lengths):
            piece = data[offset : offset + length]
            found = blake3(piece).digest()
            self.pieces.append(Piece(found, length))
            if self._new(found, piece):
                self.new_bytes += length
        self.size_bytes += len(data)

    def _new(self, digest: bytes, piece: memoryview) -> bool:
        if self._write:
            return self._push.add(digest, piece)
        new = digest not in self._seen and not self._push.has(digest)
        self._seen.add(digest)
        return new


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Neighbouring pieces that fit into one buffer."""
    batch: list[int] = []
    filled = 0
    for length in lengths:
        if filled + length > PIECE_BYTES_MAX:
            yield batch
            batch, filled = [], 0
        batch.append(length)
        filled += length
    if batch:
        yield batch


def _fill(source: int, buffer: memoryview) -> int:
    filled = 0
    while filled < len(buffer) and (count := os.readv(source, [buffer[filled:]])):
        filled += count
    return filled


def _read_whole(source: int, size_bytes: int) -> bytes:
    """One byte more than there should be is asked for: a file that grows is noticed."""
    data = os.read(source, size_bytes + 1)
    while 0 < len(data) <= size_bytes and (more := os.read(source, size_bytes + 1 - len(data))):
        data += more
    return data


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size


def open_regular(path: Path) -> int:
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
