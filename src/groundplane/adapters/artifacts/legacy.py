"""Whole files under their SHA-256 (`sha256/ab/cdef…`), as the first release stored them: read, and never written.

A file that is pushed again moves into packs; a collection removes what nothing refers to.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from groundplane.adapters.artifacts.reading import RESTORE_HINT
from groundplane.errors import IntegrityFailure, NotFound

_READ_BYTES = 1 << 20


class LegacyBlobs:
    """The old folder, when there is one."""

    def __init__(self, root: Path | None) -> None:
        self._root = root if root is not None and root.is_dir() else None
        self._stored_bytes: int | None = None

    def has(self, sha256: str) -> bool:
        path = self._path(sha256)
        return path is not None and path.is_file()

    def size_bytes(self, sha256: str) -> int:
        path = self._path(sha256)
        if path is None or not path.is_file():
            raise _absent(sha256)
        return path.stat().st_size

    def copy(self, sha256: str, target: int | None) -> None:
        """Reads the whole file, writing it to the descriptor on the way. IntegrityFailure when it has changed."""
        source, digest = self._open(sha256), hashlib.sha256()
        try:
            while data := os.read(source, _READ_BYTES):
                digest.update(data)
                rest = memoryview(data)
                while rest and target is not None:
                    rest = rest[os.write(target, rest) :]
        finally:
            os.close(source)
        if digest.hexdigest() != sha256:
            raise IntegrityFailure(
                f"blob {sha256} has changed: its bytes now hash to {digest.hexdigest()[:16]}…", RESTORE_HINT
            )

    def read(self, sha256: str, offset: int, limit_bytes: int) -> bytes:
        source = self._open(sha256)
        try:
            return os.pread(source, limit_bytes, offset)
        finally:
            os.close(source)

    def supersede(self, sha256: str) -> None:
        """The file is in packs now."""
        path = self._path(sha256)
        if path is not None and path.exists():
            path.unlink(missing_ok=True)
            self._stored_bytes = None

    def stored_bytes(self) -> int:
        """Counted once and after each change: a quota asks for every file that is pushed."""
        if self._stored_bytes is None:
            self._stored_bytes = sum(entry.stat().st_size for entry in self._entries())
        return self._stored_bytes

    def count(self) -> int:
        return sum(1 for _ in self._entries())

    def names(self) -> list[str]:
        """The SHA-256 of each."""
        return [entry.parent.name + entry.name for entry in self._entries()]

    def collect(self, keep: frozenset[str], grace_s: float) -> tuple[int, int]:
        """Removes what is not kept and older than the grace; (files, bytes)."""
        files, freed_bytes, now = 0, 0, time.time()
        for path in list(self._entries()):
            found = path.stat()
            if path.parent.name + path.name not in keep and now - found.st_mtime >= grace_s:
                path.unlink(missing_ok=True)
                files, freed_bytes = files + 1, freed_bytes + found.st_size
        self._stored_bytes = None
        return files, freed_bytes

    def _entries(self) -> Iterator[Path]:
        return iter(()) if self._root is None else self._root.glob("??/*")

    def _path(self, sha256: str) -> Path | None:
        return None if self._root is None else self._root / sha256[:2] / sha256[2:]

    def _open(self, sha256: str) -> int:
        path = self._path(sha256)
        if path is None:
            raise _absent(sha256)
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _absent(sha256) from None


NO_LEGACY = LegacyBlobs(None)


def _absent(sha256: str) -> NotFound:
    return NotFound(f"blob {sha256} is not in the store", RESTORE_HINT)
