"""The gateway's snapshot as a file, replaced whole."""

from __future__ import annotations

import asyncio
from pathlib import Path

from groundplane.adapters.atomic_file import replace_durably
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
