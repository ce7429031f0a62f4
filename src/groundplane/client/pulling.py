"""One file pulled: pieces from wherever they can be read, verified, several at once, going on where it broke off."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from groundplane.client.httpx_alone import httpx
from groundplane.domain.artifact import StoredPiece
from groundplane.errors import Conflict, IntegrityFailure, Unavailable
from groundplane.wire.artifacts import FilePieces

STRETCH_BYTES = 8 << 20
"""Neighbouring pieces that are asked for together: one request instead of many."""

REMOTE_THREADS = 4
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
Range = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Pieces that follow each other in the file, and in one pack when they have one."""

    offset: int
    pieces: tuple[StoredPiece, ...]

    @property
    def size_bytes(self) -> int:
        return sum(piece.size_bytes for piece in self.pieces)


def part_of(file: FilePieces, target: Path) -> Path:
    """Where a file lies until it is whole."""
    return target.parent / f".{target.name[:100]}.{file.sha256[:16]}.part"


def pull_file(file: FilePieces, target: Path, through_us: Range, progress: Callable[[int], object]) -> None:
    """Writes the file beside its place and renames it when every piece is there, verified.

    What lies beside it from a pull that broke off is verified and kept. Twice is the same as once. Not flushed: after a
    power cut it may lack bytes, like any copy. Conflict while another pull of the same file is at work.
    """
    part = part_of(file, target)
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"{target} is being pulled already", "wait for the other pull") from None
        _Pull(file, descriptor, through_us, progress).run()
        part.replace(target)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise Unavailable(
            f"no room for {target.name}: it needs {file.size_bytes} bytes",
            "make room and pull again: what arrived is kept",
            {"need_bytes": file.size_bytes},
        ) from error
    finally:
        os.close(descriptor)


class _Pull:
    def __init__(self, file: FilePieces, descriptor: int, through_us: Range, progress: Callable[[int], object]) -> None:
        self._file, self._descriptor = file, descriptor
        self._through_us, self._progress = through_us, progress
        self._have_bytes = os.fstat(descriptor).st_size
        self._packs: dict[str, int] = {}
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._http = httpx.Client(timeout=600, trust_env=False, verify=self._signed())

    def run(self) -> None:
        stretches = list(_stretches(self._file.pieces))
        local = all(address.startswith("/") for address in self._file.addresses.values())
        threads = (os.cpu_count() or 1) if local and self._file.addresses else REMOTE_THREADS
        try:
            if not stretches:
                self._whole()
            elif len(stretches) == 1:
                self._take(stretches[0])
            else:
                with ThreadPoolExecutor(threads) as pool:
                    for _ in pool.map(self._take, stretches):
                        pass
            os.ftruncate(self._descriptor, self._file.size_bytes)
        finally:
            self._http.close()
            for pack in self._packs.values():
                os.close(pack)

    def _take(self, stretch: _Stretch) -> None:
        if self._there(stretch):
            self._progress(stretch.size_bytes)
            return
        offset = stretch.offset
        for piece, data in self._read(stretch):
            if len(data) != piece.size_bytes or blake3(data).hexdigest() != piece.blake3:
                raise IntegrityFailure(
                    f"piece {piece.blake3} of {self._file.sha256} has changed on its way or in pack {piece.pack}",
                    "ground artifacts scrub says what is damaged",
                )
            view = memoryview(data)
            # A file takes one writer at a time; waiting here costs less than waiting in the kernel.
            with self._writing:
                while view:
                    count = os.pwrite(self._descriptor, view, offset)
                    view, offset = view[count:], offset + count
            self._progress(piece.size_bytes)

    def _there(self, stretch: _Stretch) -> bool:
        """Whether a pull before this one brought it: the bytes decide, not a note of them."""
        if self._have_bytes < stretch.offset + stretch.size_bytes:
            return False
        offset = stretch.offset
        for piece in stretch.pieces:
            if blake3(os.pread(self._descriptor, piece.size_bytes, offset)).hexdigest() != piece.blake3:
                return False
            offset += piece.size_bytes
        return True

    def _read(self, stretch: _Stretch) -> Iterator[tuple[StoredPiece, bytes | memoryview]]:
        first = stretch.pieces[0]
        pack = self._pack(first.pack)
        if pack is not None:
            buffer = memoryview(bytearray(max(piece.size_bytes for piece in stretch.pieces)))
            for piece in stretch.pieces:
                filled = os.preadv(pack, [buffer[: piece.size_bytes]], piece.offset)
                yield piece, buffer[:filled]
            return
        data = memoryview(self._remote(stretch))
        offset = 0
        for piece in stretch.pieces:
            yield piece, data[offset : offset + piece.size_bytes]
            offset += piece.size_bytes

    def _pack(self, name: str) -> int | None:
        """The pack's file when it lies on this machine and may be read."""
        address = self._file.addresses.get(name, "")
        if not address.startswith("/"):
            return None
        with self._lock:
            if name not in self._packs:
                try:
                    self._packs[name] = os.open(address, os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    self._file.addresses.pop(name, None)
                    return None
            return self._packs[name]

    def _remote(self, stretch: _Stretch) -> bytes:
        first, last = stretch.pieces[0], stretch.pieces[-1]
        address = self._file.addresses.get(first.pack, "")
        if address.startswith("http"):
            wanted = f"bytes={first.offset}-{last.offset + last.size_bytes - 1}"
            try:
                answer = self._http.get(address, headers={"Range": wanted})
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code == httpx.codes.PARTIAL_CONTENT:
                return answer.content
        return self._through_us(stretch.offset, stretch.size_bytes)

    def _whole(self) -> None:
        """A file that is stored whole, or an empty one: through the control plane."""
        digest = hashlib.sha256()
        for offset in range(0, self._file.size_bytes, STRETCH_BYTES):
            data = self._through_us(offset, min(STRETCH_BYTES, self._file.size_bytes - offset))
            os.pwrite(self._descriptor, data, offset)
            digest.update(data)
            self._progress(len(data))
        if digest.hexdigest() != self._file.sha256:
            raise IntegrityFailure(f"{self._file.sha256} has changed in the store", "push the same content again")

    def _signed(self) -> bool:
        return any(address.startswith("https") for address in self._file.addresses.values())


def _stretches(pieces: Sequence[StoredPiece]) -> Iterator[_Stretch]:
    offset, waiting, filled = 0, list[StoredPiece](), 0
    for piece in pieces:
        follows = waiting and waiting[-1].pack == piece.pack
        follows = follows and waiting[-1].offset + waiting[-1].size_bytes == piece.offset
        if waiting and (not follows or filled + piece.size_bytes > STRETCH_BYTES):
            yield _Stretch(offset, tuple(waiting))
            offset, waiting, filled = offset + filled, [], 0
        waiting.append(piece)
        filled += piece.size_bytes
    if waiting:
        yield _Stretch(offset, tuple(waiting))
