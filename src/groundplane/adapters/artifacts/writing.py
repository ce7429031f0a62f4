"""Files become pieces and pieces become packs: each byte read once, hashed twice, and written only when it is new."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

from groundplane.adapters.artifacts.index import Index
from groundplane.adapters.artifacts.objects import Draft, Found, Objects
from groundplane.domain.packs import Directory, Piece, Recipe, encode, pack_pieces, sealed, spans, unnamed
from groundplane.domain.pieces import PIECE_BYTES_MAX, cut
from groundplane.domain.scanning.byte_view import ByteView
from groundplane.errors import Conflict, InvalidInput, NotFound

PACK_BYTES = 64 << 20
"""A pack is closed at this size: large enough for few files, small enough that the last flush of a push is short."""

# Below this more threads cost more than they hide.
_PIPELINE_FROM_BYTES = 4 << 20
_BUFFER_BYTES = 2 * PIECE_BYTES_MAX
_RING = 8
"""16 MiB a file: what waits for the SHA-256 stays in the processor's cache, and a slow write holds up nothing else."""
_READERS = min(4, os.cpu_count() or 1)
"""Of one file: several are pushed beside each other, each with its own."""


class Push:
    """One put: its files' new pieces go into packs of its own. Files may be added by several threads.

    `relied` are the pieces that were there already, `written` its own, `files` those it is about to make known: the
    collector spares all of them while it lives. Without `sha256` its recipes are their own names, and nothing waits for
    a hash that can't be divided.
    `unpublished_bytes` is the room it has taken and not yet filled with a published pack; the index's lock guards it.
    """

    def __init__(self, index: Index, objects: Objects, key: bytes, *, sha256: bool) -> None:
        self._index, self._objects, self._key, self._sha256 = index, objects, key, sha256
        self._lock = threading.Lock()
        self._draft: Draft | None = None
        self._pieces: list[Piece] = []
        self._filled_bytes = 0
        self._publisher: ThreadPoolExecutor | None = None
        self._publishing: Future[None] | None = None
        self._failure: OSError | None = None
        self.relied: set[bytes] = set()
        self.written: set[bytes] = set()
        self.files: set[bytes] = set()
        self.unpublished_bytes = 0

    def file(self, path: Path, *, write: bool = True) -> tuple[Recipe, int]:
        """(the file's recipe, bytes of it that were not stored before). Without `write` it only finds out.

        Raises NotFound and InvalidInput for what is no regular file, Conflict when it changed meanwhile, and OSError
        with ENOSPC.
        """
        source = open_regular(path)
        try:
            before = os.fstat(source)
            hashing = _Hashing(self, source, write, hashlib.sha256() if self._sha256 and write else None)
            hashing.all(before.st_size)
            after = os.fstat(source)
            if hashing.size_bytes != before.st_size or _stamp(before) != _stamp(after):
                raise Conflict(f"{path} changed while it was being stored", "stop what writes it, then try again")
        finally:
            os.close(source)
        packed = pack_pieces(hashing.pieces)
        if hashing.digest is None:
            return unnamed(hashing.size_bytes, packed), hashing.new_bytes
        return sealed(self._key, hashing.digest.digest(), hashing.size_bytes, packed), hashing.new_bytes

    def add(self, digest: bytes, data: memoryview) -> bool:
        """Stores a piece unless it is there; says whether it was new. After an OSError every further one is the same:
        half a piece may lie in the draft, which then must never become a pack.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._taken(digest):
                return False
            if self._draft is None:
                self._draft = self._objects.draft()
            try:
                self._draft.write(data)
            except OSError as error:
                self._failure = error
                raise
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
    """One file on its way through its hashes. `digest` is its SHA-256, if that is wanted."""

    def __init__(self, push: Push, source: int, write: bool, digest: hashlib._Hash | None) -> None:
        self._push, self._source, self._write = push, source, write
        self._seen: set[bytes] = set()
        self.digest = digest
        self.pieces: list[Piece] = []
        self.size_bytes = 0
        self.new_bytes = 0

    def all(self, size_bytes: int) -> None:
        source = self._source
        if size_bytes < _PIPELINE_FROM_BYTES:
            data = _read_whole(source, size_bytes)
            view = memoryview(data)
            named = _named(view, cut(ByteView.of(data)))
            self._store(view, named)
            self._update(view, named)
            self._count(named)
            return
        os.posix_fadvise(source, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self._pipelined(cut(ByteView(lambda at, count: os.pread(source, count, at), size_bytes)))

    def _pipelined(self, lengths: Sequence[int]) -> None:
        """Some threads read and name the pieces; in their order one computes the SHA-256, and one writes what is new.

        All work on the same buffers and none holds the interpreter, so that a push takes as long as the slowest of
        them: the SHA-256, which can't be divided, or reading. A buffer is filled again only when all are done with it.
        """
        readers, hasher, writer = (
            ThreadPoolExecutor(count, thread_name_prefix=f"artifacts-{name}")
            for name, count in (("read", _READERS), ("sha256", 1), ("write", 1))
        )
        busy: deque[tuple[memoryview, Future[list[Piece]], list[Future[None]]]] = deque()
        offset = 0
        try:
            for batch in _batches(lengths):
                buffer = self._done(*busy.popleft()) if len(busy) == _RING else memoryview(bytearray(_BUFFER_BYTES))
                data = buffer[: sum(batch)]
                read = readers.submit(_read_named, self._source, data, offset, batch)
                then = [writer.submit(_after, read, self._store, data)]
                if self.digest is not None:
                    then.append(hasher.submit(_after, read, self._update, data))
                busy.append((buffer, read, then))
                offset += len(data)
            while busy:
                self._done(*busy.popleft())
        finally:
            for pool in (readers, hasher, writer):
                pool.shutdown(cancel_futures=True)

    def _done(self, buffer: memoryview, read: Future[list[Piece]], then: Sequence[Future[None]]) -> memoryview:
        """The buffer, free again; raises what went wrong with it."""
        for each in then:
            each.result()
        self._count(read.result())
        return buffer

    def _count(self, named: Sequence[Piece]) -> None:
        self.pieces += named
        self.size_bytes += sum(piece.length for piece in named)

    def _update(self, data: memoryview, named: Sequence[Piece]) -> None:
        if self.digest is not None:
            self.digest.update(data)

    def _store(self, data: memoryview, named: Sequence[Piece]) -> None:
        for piece, (begin, length) in zip(named, spans([piece.length for piece in named]), strict=True):
            if self._new(piece.digest, data[begin : begin + length]):
                self.new_bytes += length

    def _new(self, digest: bytes, piece: memoryview) -> bool:
        if self._write:
            return self._push.add(digest, piece)
        new = digest not in self._seen and not self._push.has(digest)
        self._seen.add(digest)
        return new


def _named(data: memoryview, lengths: Sequence[int]) -> list[Piece]:
    return [Piece(blake3(data[begin : begin + length]).digest(), length) for begin, length in spans(lengths)]


def _after(read: Future[list[Piece]], work: Callable[[memoryview, list[Piece]], None], data: memoryview) -> None:
    work(data, read.result())


def _read_named(source: int, data: memoryview, offset: int, lengths: Sequence[int]) -> list[Piece]:
    """Fills the buffer from there; its pieces, or none where the file has become shorter."""
    filled = 0
    while filled < len(data) and (count := os.preadv(source, [data[filled:]], offset + filled)):
        filled += count
    return _named(data, lengths) if filled == len(data) else []


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Neighbouring pieces that fit into one buffer."""
    batch: list[int] = []
    filled = 0
    for length in lengths:
        if filled + length > _BUFFER_BYTES:
            yield batch
            batch, filled = [], 0
        batch.append(length)
        filled += length
    if batch:
        yield batch


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
