"""The gateway's snapshot as a file, replaced whole."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from groundplane.errors import Unavailable


class SnapshotFile:
    """Implements `ports.SnapshotSink`: write beside, sync, rename, sync the folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()

    async def publish(self, snapshot: bytes) -> None:
        """Raises Unavailable when the disk does not take it; the old snapshot then stays."""
        try:
            async with self._lock:  # in the order of the calls: the last one published is the one that stays
                await asyncio.to_thread(replace_durably, self._path, snapshot)
        except OSError as error:
            raise Unavailable(
                f"the gateway's snapshot {self._path} can't be written: {error.strerror}",
                "make room on the disk, or check who owns the folder",
            ) from error


def replace_durably(path: Path, data: bytes) -> None:
    """Replaces a file so that a reader, or the next start after a power cut, sees the old or the new bytes."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
