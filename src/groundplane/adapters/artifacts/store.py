"""The artifact store: files as pieces in packs, in a folder, in a bucket, or in memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from groundplane.adapters.artifacts.bucket import BucketObjects
from groundplane.adapters.artifacts.index import Index
from groundplane.adapters.artifacts.legacy import NO_LEGACY, LegacyBlobs
from groundplane.adapters.artifacts.objects import (
    FULL,
    UNLIMITED_BYTES,
    FolderObjects,
    MemoryObjects,
    Objects,
    free_bytes,
    sync_folder,
)
from groundplane.adapters.artifacts.reading import RESTORE_HINT, PieceReader, shares
from groundplane.adapters.artifacts.upkeep import collect, scrub
from groundplane.adapters.artifacts.writing import Push
from groundplane.domain.artifact import Collected, Scrubbed, StoredPiece, StoreUsage
from groundplane.domain.model import check_sha256
from groundplane.domain.packs import Piece, Recipe, is_sealed, names_itself, sealed
from groundplane.errors import IntegrityFailure, InvalidInput, NotFound, Unavailable
from groundplane.units import format_bytes

_T = TypeVar("_T")
_SMALL_FILE_BYTES = 256 << 10
_SMALL_FILES_PER_TASK = 256
_PARALLEL_FROM_PIECES = 8


class PackStore:
    """ports.ArtifactStore over any place of objects.

    Nothing is visible before its pack is durable, and no file before all its pieces are. Everything known is read from
    the packs when the store is opened; there is no other state to lose. Hashing and copying run in threads.

    `key` seals recipes. Under another key everything can still be read: a file whose seal does not hold is then checked
    by its SHA-256, which is slower.
    """

    def __init__(
        self,
        objects: Objects,
        key: bytes,
        quota_bytes: int = 0,
        *,
        legacy: LegacyBlobs = NO_LEGACY,
        threads: int | None = None,
    ) -> None:
        self._objects, self._key, self._legacy = objects, key, legacy
        self._quota_bytes = quota_bytes
        self._threads = threads or os.cpu_count() or 1
        self._index = Index(objects)
        self._pushes: set[Push] = set()
        # When a file was last pushed, by this process: nothing refers to it yet, and a collection must not take it.
        self._touched: dict[bytes, float] = {}
        self._upkeep = threading.Lock()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="artifacts")

    # ------------------------------------------------------------ the port

    async def put_file(self, path: Path) -> tuple[str, int]:
        return (await self.put_files([path]))[0]

    async def put_files(self, paths: Sequence[Path]) -> list[tuple[str, int]]:
        return await asyncio.to_thread(self._put, paths)

    async def put_unnamed(self, paths: Sequence[Path]) -> list[tuple[str, int]]:
        return await asyncio.to_thread(self._put, paths, sha256=False)

    async def name(self, recipes: Sequence[str]) -> list[str]:
        for recipe in recipes:
            check_sha256(recipe)
        return await asyncio.to_thread(self._give_names, recipes)

    async def fetch(self, sha256: str, target: Path) -> None:
        check_sha256(sha256)
        await asyncio.to_thread(self._fetch, sha256, target)

    async def verify(self, sha256: str, size_bytes: int) -> None:
        check_sha256(sha256)
        await asyncio.to_thread(self._verify, sha256, size_bytes)

    async def read(self, sha256: str, offset: int, limit_bytes: int) -> bytes:
        check_sha256(sha256)
        if offset < 0 or limit_bytes < 0:
            raise InvalidInput(f"a range of blob {sha256[:16]} can't begin at {offset} for {limit_bytes} bytes")
        return await asyncio.to_thread(self._read, sha256, offset, limit_bytes)

    async def pieces(self, sha256: str) -> list[StoredPiece]:
        check_sha256(sha256)
        return await asyncio.to_thread(self._locate, sha256)

    async def address(self, pack: str) -> str:
        return await asyncio.to_thread(self._objects.address, pack)

    async def shared(self, pieces: frozenset[str], among: frozenset[str]) -> frozenset[str]:
        return await asyncio.to_thread(self._shared, pieces, among)

    async def piece(self, blake3: str, size_bytes: int) -> bytes:
        return await asyncio.to_thread(self._piece, Piece(bytes.fromhex(check_sha256(blake3)), size_bytes))

    async def landing(self, name: str) -> str:
        return await asyncio.to_thread(self._objects.landing, name)

    async def take_landing(self, name: str, limit_bytes: int) -> bytes:
        return await asyncio.to_thread(self._take_landing, name, limit_bytes)

    async def whole(self, sha256s: frozenset[str]) -> frozenset[str]:
        return await asyncio.to_thread(self._whole, sha256s)

    async def usage(self) -> StoreUsage:
        return await asyncio.to_thread(self._usage)

    async def collect(self, roots: frozenset[str], *, grace_s: float, thorough: bool = False) -> Collected:
        return await asyncio.to_thread(self._collect, roots, grace_s, thorough)

    async def cool(self, unread_s: float) -> int:
        return await asyncio.to_thread(self._objects.cool, unread_s)

    async def scrub(self, limit_bytes: int | None = None, after: str = "") -> Scrubbed:
        return await asyncio.to_thread(scrub, self._index, self._objects, self._legacy, limit_bytes, after)

    def close(self) -> None:
        """Waits for what is under way and lets the threads go. Twice is the same as once."""
        self._pool.shutdown()
        self._objects.close()

    # ------------------------------------------------------------ put

    def _put(self, paths: Sequence[Path], *, sha256: bool = True) -> list[tuple[str, int]]:
        with self._pushing(paths, sha256=sha256) as push:
            recipes = self._all(push, paths)
            self._publish(push, recipes)
        for recipe in recipes:
            self._legacy.supersede(recipe.name.hex())
        return [(recipe.name.hex(), recipe.size_bytes) for recipe in recipes]

    def _give_names(self, names: Sequence[str]) -> list[str]:
        """One small pack tells of all of them. Twice is the same as once."""

        def named(recipe: Recipe) -> Recipe:
            return sealed(self._key, self._sha256(recipe), recipe.size_bytes, recipe.packed)

        with self._pushing() as push:
            unnamed = [self._unnamed(name) for name in names]
            with self._index.lock:
                push.files.update(recipe.name for recipe in unnamed)
            recipes = list(self._pool.map(named, unnamed))
            self._publish(push, recipes)
        return [recipe.name.hex() for recipe in recipes]

    def _unnamed(self, name: str) -> Recipe:
        recipe = self._recipe(name)
        if recipe is None or not names_itself(recipe):
            raise _absent(name)
        return recipe

    @contextmanager
    def _pushing(self, paths: Sequence[Path] = (), *, sha256: bool = True) -> Iterator[Push]:
        """A push that the collector knows of. Unavailable when the disk fills up."""
        push = Push(self._index, self._objects, self._key, sha256=sha256)
        with self._index.lock:
            self._pushes.add(push)
        try:
            yield push
        except OSError as error:
            if error.errno not in FULL:
                raise
            need_bytes = sum(path.stat().st_size for path in paths)
            what = paths[0].name if paths else "what files are called"
            raise _no_room(what, need_bytes, self._objects.free_bytes(), "its disk") from error
        finally:
            push.abandon()
            with self._index.lock:
                self._pushes.discard(push)

    def _publish(self, push: Push, recipes: Sequence[Recipe]) -> None:
        with self._index.lock:
            push.files.update(recipe.name for recipe in recipes)
        push.finish([recipe for recipe in {each.name: each for each in recipes}.values() if not self._known(recipe)])
        with self._index.lock:
            now = time.monotonic()
            self._touched.update((recipe.name, now) for recipe in recipes)

    def _known(self, recipe: Recipe) -> bool:
        known = self._index.recipe(recipe.name)
        return known is not None and known.packed == recipe.packed and is_sealed(self._key, known)

    def _all(self, push: Push, paths: Sequence[Path]) -> list[Recipe]:
        """Recipes in the order of the paths. Many small files are one task: a hand-over costs more than one."""
        if len(paths) == 1:
            return [self._one(push, paths[0])]
        small = [path for path in paths if _size(path) < _SMALL_FILE_BYTES]
        tasks = [small[at : at + _SMALL_FILES_PER_TASK] for at in range(0, len(small), _SMALL_FILES_PER_TASK)]
        alone = set(small)
        tasks += [[path] for path in paths if path not in alone]
        done = self._pool.map(lambda task: [(path, self._one(push, path)) for path in task], tasks)
        found = {path: recipe for task in done for path, recipe in task}
        return [found[path] for path in paths]

    def _one(self, push: Push, path: Path) -> Recipe:
        size_bytes = _size(path)
        refused = self._take_room(push, path, size_bytes)
        if refused is not None:
            # No room for all of it, but perhaps for what is new in it.
            _, size_bytes = push.file(path, write=False)
            if self._take_room(push, path, size_bytes) is not None:
                raise refused
        recipe, new_bytes = push.file(path)
        with self._index.lock:
            push.unpublished_bytes -= size_bytes - new_bytes
        return recipe

    def _take_room(self, push: Push, path: Path, need_bytes: int) -> Unavailable | None:
        """Keeps room for a file until its push has ended; gives the refusal instead when there is none."""
        with self._index.lock:
            refused = self._refusal(path, need_bytes)
            if refused is None:
                push.unpublished_bytes += need_bytes
        return refused

    def _refusal(self, path: Path, need_bytes: int) -> Unavailable | None:
        if self._quota_bytes:
            left_bytes = self._quota_bytes - self._used_bytes()
            if left_bytes < need_bytes:
                return _no_room(path.name, need_bytes, max(0, left_bytes), f"a quota of {self._quota_bytes} bytes")
        on_disk_bytes = self._objects.free_bytes()
        if on_disk_bytes < need_bytes:
            return _no_room(path.name, need_bytes, on_disk_bytes, "its disk")
        return None

    def _used_bytes(self) -> int:
        pushing = sum(push.unpublished_bytes for push in self._pushes)
        return self._index.stored_bytes + pushing + self._legacy.stored_bytes()

    # ------------------------------------------------------------ reading

    def _recipe(self, sha256: str) -> Recipe | None:
        """None for a file that only the legacy part holds."""
        raw = bytes.fromhex(sha256)
        recipe = self._index.recipe(raw)
        if recipe is None and not self._legacy.has(sha256):
            # Another process may have stored it since.
            self._index.refresh()
            recipe = self._index.recipe(raw)
            if recipe is None:
                raise _absent(sha256)
        return recipe

    def _fetch(self, sha256: str, target: Path) -> None:
        recipe = self._recipe(sha256)
        size_bytes = self._legacy.size_bytes(sha256) if recipe is None else recipe.size_bytes
        part = target.parent / f".{target.name[:100]}.{secrets.token_hex(8)}.part"
        try:
            copy = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                if recipe is None:
                    self._legacy.copy(sha256, copy)
                else:
                    self._lay_out(recipe, copy)
            finally:
                os.close(copy)
            part.replace(target)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise _no_room(target.name, size_bytes, free_bytes(target.parent), "the disk of the target") from error
        finally:
            part.unlink(missing_ok=True)

    def _lay_out(self, recipe: Recipe, copy: int) -> None:
        # A file takes one writer at a time; waiting here costs less than waiting in the kernel.
        writing = threading.Lock()

        def write(data: memoryview, offset: int) -> None:
            with writing:
                while data:
                    count = os.pwrite(copy, data, offset)
                    data, offset = data[count:], offset + count

        self._each(recipe, write)
        if not is_sealed(self._key, recipe):
            with os.fdopen(os.dup(copy), "rb") as file:
                file.seek(0)
                _demand(recipe, hashlib.file_digest(file, "sha256").digest())

    def _verify(self, sha256: str, size_bytes: int) -> None:
        recipe = self._recipe(sha256)
        have = self._legacy.size_bytes(sha256) if recipe is None else recipe.size_bytes
        if have != size_bytes:
            raise IntegrityFailure(f"blob {sha256} has {have} bytes, not {size_bytes}", RESTORE_HINT)
        if recipe is None:
            self._legacy.copy(sha256, None)
        elif is_sealed(self._key, recipe):
            self._each(recipe, _ignore)
        else:
            _demand(recipe, self._sha256(recipe))

    def _sha256(self, recipe: Recipe) -> bytes:
        """Of its pieces, read again and verified."""
        digest = hashlib.sha256()
        with self._reader(recipe) as reader:
            for piece in recipe.pieces:
                digest.update(reader.read(piece))
        return digest.digest()

    def _each(self, recipe: Recipe, take: Callable[[memoryview, int], None]) -> None:
        """Every piece, verified, with its offset in the file; from several threads at once."""
        pieces = list(recipe.pieces)
        if sum(piece.length for piece in pieces) != recipe.size_bytes:
            raise IntegrityFailure(f"blob {recipe.name.hex()} lacks pieces", RESTORE_HINT)

        def share(offset: int, part: Sequence[Piece]) -> None:
            with self._reader(recipe) as reader:
                for piece in part:
                    take(reader.read(piece), offset)
                    offset += piece.length

        if len(pieces) < _PARALLEL_FROM_PIECES:
            share(0, pieces)
            return
        for done in [self._pool.submit(share, offset, part) for offset, part in shares(pieces)]:
            done.result()

    @contextmanager
    def _reader(self, recipe: Recipe) -> Iterator[PieceReader]:
        """What it finds bad is taken for absent, so that pushing the same content again heals it."""
        with PieceReader(self._index, self._objects) as reader:
            try:
                yield reader
            except IntegrityFailure as failure:
                self._index.distrust(bytes.fromhex(bad.piece) for bad in reader.bad)
                sha256 = recipe.name.hex()
                raise IntegrityFailure(f"blob {sha256}: {failure.message}", failure.hint) from None

    def _read(self, sha256: str, offset: int, limit_bytes: int) -> bytes:
        recipe = self._recipe(sha256)
        if recipe is None:
            return self._legacy.read(sha256, offset, limit_bytes)
        parts, position = [], 0
        with self._reader(recipe) as reader:
            for piece in recipe.pieces:
                low, high = max(offset, position), min(offset + limit_bytes, position + piece.length)
                if low < high:
                    parts.append(bytes(reader.read(piece)[low - position : high - position]))
                position += piece.length
        return b"".join(parts)

    def _locate(self, sha256: str) -> list[StoredPiece]:
        recipe = self._recipe(sha256)
        if recipe is None:
            return []
        found = []
        for piece in recipe.pieces:
            places = self._index.places(piece.digest)
            if not places:
                raise IntegrityFailure(f"blob {sha256}: piece {piece.digest.hex()} is missing", RESTORE_HINT)
            first = places[0]
            found.append(
                StoredPiece(
                    blake3=piece.digest.hex(),
                    size_bytes=piece.length,
                    pack=first.pack,
                    offset=first.offset,
                )
            )
        return found

    def _shared(self, pieces: frozenset[str], among: frozenset[str]) -> frozenset[str]:
        self._index.refresh()
        asked = {digest for piece in pieces if self._index.has(digest := bytes.fromhex(piece))}
        found = set[bytes]()
        for sha256 in among:
            recipe = self._index.recipe(bytes.fromhex(sha256))
            if recipe is not None and len(found) < len(asked):
                found |= asked.intersection(piece.digest for piece in recipe.pieces)
        return frozenset(digest.hex() for digest in found)

    def _piece(self, piece: Piece) -> bytes:
        with PieceReader(self._index, self._objects) as reader:
            return bytes(reader.read(piece))

    def _take_landing(self, name: str, limit_bytes: int) -> bytes:
        try:
            return self._objects.take(name, limit_bytes)
        except FileNotFoundError:
            raise NotFound(f"nothing was put under {name}", "put the bytes there first") from None

    # ------------------------------------------------------------ upkeep

    def _whole(self, sha256s: frozenset[str]) -> frozenset[str]:
        self._index.refresh()
        found = ((sha256, self._index.recipe(bytes.fromhex(sha256))) for sha256 in sha256s)
        return frozenset(
            sha256
            for sha256, recipe in found
            if (recipe is not None and self._index.is_whole(recipe)) or self._legacy.has(sha256)
        )

    def _usage(self) -> StoreUsage:
        # A file that was stored before it had a name has two recipes until the next collection.
        recipes = {recipe.packed: recipe for recipe in self._index.recipes()}.values()
        legacy, on_disk_bytes = self._legacy.stored_bytes(), self._objects.free_bytes()
        return StoreUsage(
            files=len(recipes) + self._legacy.count(),
            file_bytes=sum(recipe.size_bytes for recipe in recipes) + legacy,
            pieces=self._index.piece_count,
            packs=len(self._index.packs()),
            stored_bytes=self._index.stored_bytes + legacy,
            legacy_bytes=legacy,
            quota_bytes=self._quota_bytes,
            free_bytes=on_disk_bytes if on_disk_bytes < UNLIMITED_BYTES else None,
            damaged_packs=tuple(sorted(self._index.damaged)),
        )

    def _collect(self, roots: frozenset[str], grace_s: float, thorough: bool) -> Collected:
        with self._upkeep:
            if not self._objects.alone():
                raise Unavailable(
                    "another process has the artifact store open", "stop it, or let it collect; nothing was removed"
                )
            young_since = time.monotonic() - grace_s

            def spared() -> tuple[set[bytes], set[bytes]]:
                """Files and pieces that a push is about to need; called with the index locked."""
                for sha256 in [sha256 for sha256, at in self._touched.items() if at < young_since]:
                    del self._touched[sha256]
                files, relied = set(self._touched), set[bytes]()
                for push in self._pushes:
                    files |= push.files
                    relied |= push.relied | push.written
                return files, relied

            return collect(self._index, self._objects, self._legacy, roots, spared, grace_s=grace_s, thorough=thorough)


def folder_store(
    root: Path,
    quota_bytes: int = 0,
    *,
    key: bytes = bytes(32),
    cold: Path | None = None,
    threads: int | None = None,
) -> PackStore:
    """The store in a folder, with what an older release left there. `cold` is a folder on slower, cheaper storage."""
    root = root.absolute()
    objects = FolderObjects(root, cold.absolute() if cold is not None else None)
    return PackStore(objects, key, quota_bytes, legacy=LegacyBlobs(root / "sha256"), threads=threads)


def bucket_store(url: str, quota_bytes: int = 0, *, key: bytes = bytes(32), threads: int | None = None) -> PackStore:
    """The store in a bucket: `s3://bucket/prefix`, `az://…`, `gs://…`. InvalidInput without the buckets extra."""
    return PackStore(BucketObjects(url), key, quota_bytes, threads=threads)


def seal_key(folder: Path) -> bytes:
    """The key that seals recipes, 32 bytes in `store.key`; made on the first call. Two callers at once get one key."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path, draft = folder / "store.key", folder / f".store.key.{secrets.token_hex(8)}"
    if not path.exists():
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
        sync_folder(folder)
    key = path.read_bytes()
    if len(key) != 32:
        raise IntegrityFailure(
            f"{path} has {len(key)} bytes, not 32",
            "restore it from a backup, or remove it: files are then checked by SHA-256, which is slower",
        )
    return key


def memory_store(quota_bytes: int = 0) -> PackStore:
    """The store in memory: for tests and trials; gone with the process."""
    return PackStore(MemoryObjects(), bytes(32), quota_bytes)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None


def _ignore(data: memoryview, offset: int) -> None:
    pass


def _demand(recipe: Recipe, found: bytes) -> None:
    if found != recipe.name:
        raise IntegrityFailure(
            f"blob {recipe.name.hex()} has changed: its bytes now hash to {found.hex()[:16]}…", RESTORE_HINT
        )


def _absent(sha256: str) -> NotFound:
    return NotFound(f"blob {sha256} is not in the store", RESTORE_HINT)


def _no_room(name: str, need_bytes: int, free_bytes: int, what: str) -> Unavailable:
    return Unavailable(
        f"no room for {name}: it needs {need_bytes} bytes ({format_bytes(need_bytes)}), "
        f"{what} has {free_bytes} bytes free ({format_bytes(free_bytes)})",
        "make room, or raise GROUND_STORE_QUOTA, then try again; nothing was stored",
        {"need_bytes": need_bytes, "free_bytes": free_bytes},
    )
