"""A node's own copies of pulled files: the least recently used go when it is full, pinned ones stay.

The cache is never believed: a pull verifies what it gives piece by piece, and fetches again what is wrong.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from groundplane.errors import InvalidInput

_COPY_BYTES = 64 << 20


class NodeCache:
    """Files under `files/` by SHA-256, marks of pinned ones under `pins/`. Several processes may share it."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        if limit_bytes <= 0:
            raise InvalidInput(f"a cache of {limit_bytes} bytes keeps nothing", "give it room: --cache-limit 100GiB")
        self._files, self._pins, self._limit_bytes = folder / "files", folder / "pins", limit_bytes
        for each in (self._files, self._pins):
            each.mkdir(parents=True, exist_ok=True)
        self._lock = folder / "lock"

    def give(self, sha256: str, part: Path) -> bool:
        """Copies a file to where a pull goes on from; False when it is not here. Counts as a use."""
        try:
            source = os.open(self._files / sha256, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            _copy(source, part)
            os.utime(source)
        finally:
            os.close(source)
        return True

    def take(self, sha256: str, file: Path, *, pin: bool = False) -> bool:
        """Keeps a copy of a verified file, making room for it; False when all the room is pinned or it is too large."""
        if pin:
            (self._pins / sha256).touch()
        with self._locked():
            if (self._files / sha256).exists():
                return True
            if not self._make_room(file.stat().st_size):
                return False
            draft = self._files / f".{secrets.token_hex(8)}"
            try:
                source = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    _copy(source, draft)
                finally:
                    os.close(source)
                draft.replace(self._files / sha256)
            finally:
                draft.unlink(missing_ok=True)
        return True

    def unpin(self, sha256: str) -> None:
        """Lets it go when room is needed. Twice is the same as once."""
        (self._pins / sha256).unlink(missing_ok=True)

    @property
    def used_bytes(self) -> int:
        return sum(size_bytes for _, size_bytes, _ in self._entries())

    def _make_room(self, need_bytes: int) -> bool:
        entries = sorted(self._entries())
        pinned = {path.name for path in self._pins.iterdir()}
        pinned_bytes = sum(size_bytes for _, size_bytes, name in entries if name in pinned)
        if pinned_bytes + need_bytes > self._limit_bytes:
            return False
        used_bytes = sum(size_bytes for _, size_bytes, _ in entries)
        for _, size_bytes, name in entries:
            if used_bytes + need_bytes <= self._limit_bytes:
                break
            if name not in pinned:
                (self._files / name).unlink(missing_ok=True)
                used_bytes -= size_bytes
        return True

    def _entries(self) -> Iterator[tuple[int, int, str]]:
        """(last use in nanoseconds, bytes, SHA-256) of each."""
        for path in list(self._files.iterdir()):
            with suppress(FileNotFoundError):
                found = path.stat()
                if path.name.startswith("."):
                    continue
                yield found.st_mtime_ns, found.st_size, path.name

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Nobody else is writing now: a draft is what a dead process left.
            for left in self._files.glob(".*"):
                left.unlink(missing_ok=True)
            yield
        finally:
            os.close(descriptor)


def _copy(source: int, target: Path) -> None:
    """By the kernel, which shares the blocks where the file system can."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        while os.copy_file_range(source, descriptor, _COPY_BYTES):
            pass
    finally:
        os.close(descriptor)
