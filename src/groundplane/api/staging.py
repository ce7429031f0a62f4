"""Where uploaded files land before they are registered: one folder per upload, sizes counted as they come.

A door's buffer, not a store: what is registered moves into the artifact store, what is not is swept after a day.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from groundplane.domain.model import path_fault
from groundplane.errors import InvalidInput, NotFound, TooLarge, Unavailable
from groundplane.units import format_bytes
from groundplane.wire import UploadedFile

KEEP_S = 24 * 3600
FILES_MAX = 10_000
_ID = re.compile(r"upl-[0-9a-f]{32}")
_DISK_RESERVE_BYTES = 256 * 2**20
_FILES, _PARTIAL = "files", "partial"


class Staging:
    """Uploads under one folder. `limit_bytes` bounds one upload; the disk keeps a reserve for everything else."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self._root = root
        self._limit_bytes = limit_bytes

    async def begin(self, owner: str) -> str:
        """A fresh upload, known only to its maker: the id can't be guessed, and `owner` is asked for again later."""
        return await asyncio.to_thread(self._begin, owner)

    def folder(self, upload_id: str, owner: str) -> Path:
        """The uploaded tree. NotFound for an upload that is not there or somebody else's."""
        place = self._place(upload_id, owner)
        return place / _FILES

    async def receive(
        self, upload_id: str, owner: str, path: str, pieces: AsyncIterator[bytes], declared_bytes: int
    ) -> UploadedFile:
        """Writes one file whole or not at all. `path` is relative; what was there under it is replaced.

        Raises InvalidInput for a path that could leave the folder, TooLarge and Unavailable before the disk is full.
        """
        place = self._place(upload_id, owner)
        fault = path_fault(path)
        if fault is not None:
            raise InvalidInput(f"the path {path!r} {fault}", "upload plain relative paths such as tokenizer.json")
        used_bytes, count = await asyncio.to_thread(_usage, place / _FILES)
        if count >= FILES_MAX:
            raise TooLarge(f"upload {upload_id} has {count} files; {FILES_MAX} is the most", "upload fewer")
        self._check(used_bytes + declared_bytes, declared_bytes)
        partial = place / _PARTIAL / secrets.token_hex(8)
        try:
            digest, size_bytes = await self._write(partial, pieces, used_bytes)
            await asyncio.to_thread(_settle, partial, place / _FILES / path)
        finally:
            partial.unlink(missing_ok=True)
        return UploadedFile(path=path, size_bytes=size_bytes, sha256=digest)

    async def discard(self, upload_id: str, owner: str) -> None:
        """Lets go of an upload and its files."""
        await asyncio.to_thread(shutil.rmtree, self._place(upload_id, owner))

    async def sweep(self) -> int:
        """Removes uploads untouched for a day; returns how many."""
        return await asyncio.to_thread(self._sweep)

    def _begin(self, owner: str) -> str:
        upload_id = f"upl-{secrets.token_hex(16)}"
        place = self._root / upload_id
        for folder in (place / _FILES, place / _PARTIAL):
            folder.mkdir(parents=True, mode=0o700)
        (place / "owner").write_text(owner)
        return upload_id

    def _place(self, upload_id: str, owner: str) -> Path:
        place = self._root / upload_id
        known = _ID.fullmatch(upload_id) and (place / "owner").is_file()
        if not known or (place / "owner").read_text() != owner:
            raise NotFound(f"no upload {upload_id}", "begin one with POST /v1/uploads; a day unused ends it")
        return place

    def _check(self, total_bytes: int, coming_bytes: int) -> None:
        if total_bytes > self._limit_bytes:
            raise TooLarge(
                f"the upload would have {format_bytes(total_bytes)}; {format_bytes(self._limit_bytes)} is the most",
                "raise GROUND_UPLOAD_LIMIT and restart",
            )
        free_bytes = shutil.disk_usage(self._root).free - _DISK_RESERVE_BYTES
        if coming_bytes > free_bytes:
            raise Unavailable(
                f"the file has {format_bytes(coming_bytes)}; the disk can spare {format_bytes(max(0, free_bytes))}",
                "free space on the disk that holds GROUND_HOME",
            )

    async def _write(self, partial: Path, pieces: AsyncIterator[bytes], used_bytes: int) -> tuple[str, int]:
        digest, size_bytes = hashlib.sha256(), 0
        with partial.open("xb") as file:
            async for piece in pieces:
                size_bytes += len(piece)
                self._check(used_bytes + size_bytes, len(piece))
                digest.update(piece)
                await asyncio.to_thread(file.write, piece)
        return digest.hexdigest(), size_bytes

    def _sweep(self) -> int:
        swept, now = 0, time.time()
        for place in self._root.glob("upl-*"):
            # Wall time against file times: a clock set back keeps files longer, which harms nobody.
            newest = max(path.stat().st_mtime for path in (place, *place.rglob("*")))
            if now - newest > KEEP_S:
                shutil.rmtree(place)
                swept += 1
        return swept


def _usage(folder: Path) -> tuple[int, int]:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)


def _settle(partial: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.replace(target)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise InvalidInput(
            f"{target.name!r} is a file and a folder in the same upload", "rename one of the two"
        ) from None
