"""Where uploaded files land before they are registered: one folder per upload, sizes counted as they come.

A door's buffer, not a store: what is registered moves into the artifact store, what is not is swept after a day.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from blake3 import blake3

from groundplane.domain.model import ManifestFile, path_fault
from groundplane.domain.packs import Piece
from groundplane.domain.pieces import PIECE_BYTES_MAX
from groundplane.errors import InvalidInput, NotFound, TooLarge, Unavailable
from groundplane.units import format_bytes
from groundplane.wire.artifacts import UploadedFile

KEEP_S = 24 * 3600
FILES_MAX = 10_000
_ID = re.compile(r"upl-[0-9a-f]{32}")
_DISK_RESERVE_BYTES = 256 * 2**20
_FILES, _PARTIAL, _PIECES = "files", "partial", "pieces"
SOURCES = "sources.json"
StoredPieces = Callable[[str, int], Awaitable[bytes]]


class Staging:
    """Uploads under one folder. `limit_bytes` bounds one upload; the disk keeps a reserve for everything else."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self._root = root
        self._limit_bytes = limit_bytes

    async def begin(self, owner: str) -> str:
        """A fresh upload, known only to its maker: the id can't be guessed, and `owner` is asked for again later."""
        return await asyncio.to_thread(self._begin, owner)

    async def folder(self, upload_id: str, owner: str) -> Path:
        """The uploaded tree, with files that were named linked into it. NotFound for nobody's or somebody else's.

        What lies on another file system is copied; Unavailable where the disk can't spare that.
        """
        place = self._place(upload_id, owner)
        await asyncio.to_thread(self._link_named, place)
        return place / _FILES

    def place(self, upload_id: str, owner: str) -> Path:
        """The upload's own folder, in which only the control plane's user can write."""
        return self._place(upload_id, owner)

    async def files(self, upload_id: str, owner: str) -> tuple[UploadedFile, ...]:
        """What has arrived so far, with sizes only: what a broken push need not send again."""
        return await asyncio.to_thread(_arrived, self._place(upload_id, owner) / _FILES)

    async def sources(self, upload_id: str, owner: str) -> dict[str, Path]:
        """Relative path → file: what arrived, and what `sources.json` names instead.

        That file can't be sent: it lies outside the tree that uploads fill, in a folder only our own user can write.
        """
        return await asyncio.to_thread(_sources, self._place(upload_id, owner))

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

    async def find(self, owner: str) -> str | None:
        """The owner's newest upload."""
        return await asyncio.to_thread(self._find, owner)

    async def capability(self, upload_id: str) -> str:
        """The owner of an upload, for links that carry the id itself as their proof. NotFound for any other id."""
        known = _ID.fullmatch(upload_id) and (self._root / upload_id / "owner").is_file()
        if not known:
            raise NotFound("this upload link has ended", "begin again")
        return (self._root / upload_id / "owner").read_text()

    async def compose(self, upload_id: str, owner: str, layout: Mapping[str, str], beside: Iterable[str]) -> Path:
        """A tree of this upload's files, {path: uploaded name}, with folders for the paths that will stand `beside`.

        InvalidInput for a path that could leave it or a clash, NotFound for a file that was not uploaded.
        """
        return await asyncio.to_thread(self._compose, self._place(upload_id, owner), layout, beside)

    async def room(self, upload_id: str, owner: str, coming_bytes: int) -> None:
        """TooLarge or Unavailable when an upload can't grow by so much, half blobs counted."""
        used_bytes, _ = await asyncio.to_thread(_usage, self._place(upload_id, owner))
        self._check(used_bytes + coming_bytes, coming_bytes)

    async def drop(self, upload_id: str, owner: str, tree: Path, names: Iterable[str]) -> None:
        """Lets go of a composed tree and of the files it was made of; the rest of the upload stays."""
        place = self._place(upload_id, owner)
        await asyncio.to_thread(shutil.rmtree, tree)
        for name in names:
            (place / _FILES / name).unlink(missing_ok=True)

    async def landed_pieces(self, upload_id: str, owner: str, names: Iterable[str]) -> frozenset[str]:
        """Those pieces (BLAKE3 hex) that have arrived."""
        folder = self._place(upload_id, owner) / _PIECES
        return await asyncio.to_thread(lambda: frozenset(name for name in names if (folder / name).is_file()))

    async def land_pieces(self, upload_id: str, owner: str, bundle: bytes) -> int:
        """Keeps each piece of a bundle under the BLAKE3 of its bytes; how many there were. InvalidInput, TooLarge."""
        await self.room(upload_id, owner, len(bundle))
        return await asyncio.to_thread(_land, self._place(upload_id, owner) / _PIECES, bundle)

    async def assemble(
        self, upload_id: str, owner: str, file: ManifestFile, pieces: Sequence[Piece], stored: StoredPieces
    ) -> UploadedFile:
        """A file from pieces that have arrived and pieces that `stored` gives; whole, verified, or not at all.

        Raises InvalidInput for a bad path, for a missing piece and when the whole has another SHA-256 than was said.
        """
        place = self._place(upload_id, owner)

        async def contents() -> AsyncIterator[bytes]:
            for piece in pieces:
                landed = place / _PIECES / piece.digest.hex()
                yield landed.read_bytes() if landed.is_file() else await stored(piece.digest.hex(), piece.length)

        arrived = await self.receive(upload_id, owner, file.path, contents(), file.size_bytes)
        if (arrived.sha256, arrived.size_bytes) != (file.sha256, file.size_bytes):
            (place / _FILES / file.path).unlink(missing_ok=True)
            raise InvalidInput(
                f"{file.path} came together as {arrived.sha256} ({arrived.size_bytes:,} bytes), not {file.sha256}",
                "it changed while it was sent: push again",
            )
        return arrived

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

    def _compose(self, place: Path, layout: Mapping[str, str], beside: Iterable[str]) -> Path:
        tree = place / f"tree-{secrets.token_hex(8)}"
        tree.mkdir(mode=0o700)
        for path, name in layout.items():
            fault = path_fault(path)
            if fault is not None:
                raise InvalidInput(f"the path {path!r} {fault}", "upload plain relative paths such as tokenizer.json")
            source = place / _FILES / name
            if not source.is_file():
                raise NotFound(
                    f"{path} was not uploaded: there is no {name}", "push again; a day unused ends an upload"
                )
            with _no_clash(tree / path):
                (tree / path).hardlink_to(source)
        for path in beside:
            with _no_clash(tree / path):
                pass
        return tree

    def _find(self, owner: str) -> str | None:
        owned: list[tuple[int, str]] = []
        for place in self._root.glob("upl-*"):
            # One may be swept or let go of meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if (place / "owner").read_text() == owner:
                    owned.append((place.stat().st_mtime_ns, place.name))
        return max(owned)[1] if owned else None

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
        self._spare(coming_bytes)

    def _spare(self, coming_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self._root).free
        spare_bytes = max(0, free_bytes - _DISK_RESERVE_BYTES)
        if coming_bytes > spare_bytes:
            kept = f"{format_bytes(free_bytes)} are free, {format_bytes(_DISK_RESERVE_BYTES)} of them stay so"
            raise Unavailable(
                f"the file has {format_bytes(coming_bytes)}; the disk can spare {format_bytes(spare_bytes)} ({kept})",
                "free space on the disk that holds GROUND_HOME",
            )

    def _link_named(self, place: Path) -> None:
        """A link costs nothing; on another file system the file is copied. Twice is the same as once."""
        for path, source in _named(place).items():
            target = place / _FILES / path
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                os.link(source, target, follow_symlinks=False)
            except FileExistsError:
                continue
            except FileNotFoundError:
                raise NotFound(f"there is no file {source}", "push again") from None
            except OSError as error:
                if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK}:
                    raise
                self._copy(source, place / _PARTIAL / secrets.token_hex(8), target)

    def _copy(self, source: Path, partial: Path, target: Path) -> None:
        self._spare(source.lstat().st_size)
        try:
            shutil.copyfile(source, partial, follow_symlinks=False)
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)

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
            # What comes and goes while it is looked at is in use.
            with contextlib.suppress(FileNotFoundError):
                newest = max(path.stat().st_mtime for path in (place, *place.rglob("*")))
                if now - newest > KEEP_S:
                    shutil.rmtree(place)
                    swept += 1
        return swept


def _land(folder: Path, bundle: bytes) -> int:
    folder.mkdir(exist_ok=True, mode=0o700)
    view, count = memoryview(bundle), 0
    while view:
        length = int.from_bytes(view[:4], "big")
        piece = view[4 : 4 + length]
        if not 0 < length <= PIECE_BYTES_MAX or len(piece) != length:
            raise InvalidInput(f"piece {count} of the bundle says {length:,} bytes", "send 4 bytes of length, then it")
        part = folder / f".{secrets.token_hex(8)}"
        part.write_bytes(piece)
        part.replace(folder / blake3(piece).hexdigest())
        view, count = view[4 + length :], count + 1
    return count


def _usage(folder: Path) -> tuple[int, int]:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)


def _settle(partial: Path, target: Path) -> None:
    with _no_clash(target):
        partial.replace(target)


@contextlib.contextmanager
def _no_clash(target: Path) -> Iterator[None]:
    """Makes room for a file. InvalidInput where a file is in the way of a folder or the other way round."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise InvalidInput(
            f"{target.name!r} is a file and a folder in the same upload", "rename one of the two"
        ) from None


def _arrived(folder: Path) -> tuple[UploadedFile, ...]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(
        UploadedFile(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256="")
        for path in paths
    )


def _sources(place: Path) -> dict[str, Path]:
    sent = {file.path: place / _FILES / file.path for file in _arrived(place / _FILES)}
    return sent | _named(place)


def _named(place: Path) -> dict[str, Path]:
    """What `sources.json` names: only the control plane's own user can have written it."""
    try:
        listed = json.loads((place / SOURCES).read_bytes())
        given = {str(path): Path(source) for path, source in listed.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError):
        raise InvalidInput(f"{SOURCES} is no object of paths", "push again") from None
    for path, source in given.items():
        if path_fault(path) is not None or not source.is_absolute():
            raise InvalidInput(f"{SOURCES} names {path!r} as {str(source)!r}", "name plain relative and absolute paths")
    return given
