"""What keeps the store small and honest: collection of what nothing refers to, and the scrub for rotten bits.

Collection marks under the index's lock, where no push can begin to rely on a piece, and takes what it marked out of
the index at once: a push that comes meanwhile stores the piece anew. Files are removed only afterwards. A crash leaves
copies, never holes: new packs are durable before old ones go.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from groundplane.adapters.artifacts.index import Index, Place, read_directory
from groundplane.adapters.artifacts.legacy import LegacyBlobs
from groundplane.adapters.artifacts.objects import Draft, Found, Objects
from groundplane.adapters.artifacts.reading import PieceReader
from groundplane.adapters.artifacts.writing import PACK_BYTES
from groundplane.domain.artifact import Collected, Damage, Scrubbed
from groundplane.domain.packs import Directory, PackFault, Piece, Recipe, encode
from groundplane.errors import IntegrityFailure, NotFound

SLACK = 0.25
"""A pack is rewritten when more than this part of it is dead; a thorough collection rewrites all that hold any."""

SMALL_PACK_BYTES = 8 << 20
SMALL_PACKS_MAX = 16
"""More small packs than this become few large ones: each costs a file to open and a read at the start."""

Spared = Callable[[], tuple[set[bytes], set[bytes]]]


@dataclass(slots=True)
class _Plan:
    """What is to be done with each pack, decided under the lock."""

    live: dict[bytes, Recipe]
    live_pieces: set[bytes]
    dead_files: int
    delete: list[Found] = field(default_factory=list)
    rewrite: list[Found] = field(default_factory=list)
    waiting_bytes: int = 0


def collect(
    index: Index,
    objects: Objects,
    legacy: LegacyBlobs,
    roots: frozenset[str],
    spared: Spared,
    *,
    grace_s: float,
    thorough: bool,
) -> Collected:
    """Removes every file that is no root, not spared and older than the grace, with the pieces only it needs."""
    index.refresh()
    young_since = time.time() - grace_s
    young = {entry.name: entry for entry in index.packs() if entry.modified_s > young_since}
    young_recipes = [recipe for entry in young.values() for recipe in _directory(objects, entry).recipes]
    with index.lock:
        touched, relied = spared()
        keep = {bytes.fromhex(root) for root in roots} | touched | {recipe.name for recipe in young_recipes}
        plan = _plan(index, keep, relied, set(young), thorough=thorough)
        plan.waiting_bytes += _spared_bytes(index, {bytes.fromhex(root) for root in roots}, young.values())
        index.drop(entry.name for entry in plan.delete)
    for entry in plan.delete:
        objects.delete(entry.name)
    old_files, old_bytes = legacy.collect(roots | {sha256.hex() for sha256 in touched}, grace_s)
    shrunk_bytes = _rewrite(index, objects, plan)
    return Collected(
        files=plan.dead_files + old_files,
        freed_bytes=sum(entry.size_bytes for entry in plan.delete) + old_bytes + shrunk_bytes,
        packs_deleted=len(plan.delete),
        packs_rewritten=len(plan.rewrite),
        waiting_bytes=plan.waiting_bytes,
    )


def _plan(index: Index, keep: set[bytes], relied: set[bytes], young: set[str], *, thorough: bool) -> _Plan:
    dead = [recipe for recipe in index.recipes() if recipe.name not in keep]
    index.forget(dead)
    live = {recipe.name: recipe for recipe in index.recipes()}
    needed = {piece.digest for recipe in live.values() for piece in recipe.pieces} | relied
    plan = _Plan(live=live, live_pieces=needed, dead_files=len(dead))
    live_bytes: dict[str, int] = defaultdict(int)
    for digest in needed:
        for place in index.places(digest)[:1]:
            live_bytes[place.pack] += place.length
    homes = index.homes(live)
    small = [entry for entry in index.packs() if entry.name not in young and entry.size_bytes < SMALL_PACK_BYTES]
    crowded = {entry.name for entry in small} if len(small) > SMALL_PACKS_MAX else set()
    for entry in index.packs():
        data_bytes = index.data_bytes(entry.name)
        dead_bytes = data_bytes - live_bytes[entry.name]
        if entry.name in young:
            continue
        if not live_bytes[entry.name] and entry.name not in homes:
            plan.delete.append(entry)
        elif dead_bytes > SLACK * data_bytes or entry.name in crowded or (thorough and dead_bytes):
            plan.rewrite.append(entry)
        else:
            plan.waiting_bytes += dead_bytes
    # A file goes before its pieces do: what told of it first, and there the newest, which relied on those before it.
    told = index.homes(recipe.name for recipe in dead)
    plan.delete.sort(key=lambda entry: (entry.name not in told, -entry.modified_s))
    rewritten = {entry.name for entry in plan.rewrite}
    index.forget_pieces(index.only_in(rewritten) - needed)
    return plan


def _spared_bytes(index: Index, roots: set[bytes], young: Iterable[Found]) -> int:
    """Bytes of young packs that no root needs: only their age keeps them."""
    rooted = {piece.digest for recipe in index.recipes() if recipe.name in roots for piece in recipe.pieces}
    needed: dict[str, int] = defaultdict(int)
    for digest in rooted:
        for place in index.places(digest)[:1]:
            needed[place.pack] += place.length
    return sum(index.data_bytes(entry.name) - needed[entry.name] for entry in young)


def _rewrite(index: Index, objects: Objects, plan: _Plan) -> int:
    """Live pieces of many packs into new ones; returns the bytes won. A pack with a bad piece stays as it is."""
    writer = _Rewriter(index, objects)
    done: list[Found] = []
    try:
        for entry in plan.rewrite:
            directory = _directory(objects, entry)
            placed = [(piece, offset) for piece, offset in directory.placed() if piece.digest in plan.live_pieces]
            current = [(p, offset) for p, offset in placed if index.is_current(p.digest, entry.name, offset)]
            with PieceReader(index, objects) as reader:
                bad = [reader.check(piece, Place(entry.name, offset, piece.length)) for piece, offset in current]
                if any(bad):
                    continue
                for piece, _ in current:
                    writer.add(piece, reader.read(piece))
            writer.recipes.update((r.name, r) for r in directory.recipes if plan.live.get(r.name) == r)
            done.append(entry)
        written_bytes = writer.finish()
    finally:
        writer.abandon()
    index.drop(entry.name for entry in done)
    for entry in done:
        objects.delete(entry.name)
    return sum(entry.size_bytes for entry in done) - written_bytes


class _Rewriter:
    """Pieces into new packs; the recipes come with the last."""

    def __init__(self, index: Index, objects: Objects) -> None:
        self._index, self._objects = index, objects
        self._draft: Draft | None = None
        self._pieces: list[Piece] = []
        self._filled_bytes = 0
        self._written_bytes = 0
        self.recipes: dict[bytes, Recipe] = {}

    def add(self, piece: Piece, data: memoryview) -> None:
        if self._draft is None:
            self._draft = self._objects.draft()
        self._draft.write(data)
        self._pieces.append(piece)
        self._filled_bytes += piece.length
        if self._filled_bytes >= PACK_BYTES:
            self._close(())

    def finish(self) -> int:
        """Bytes of all new packs."""
        if self._pieces or self.recipes:
            self._draft = self._draft or self._objects.draft()
            self._close(tuple(self.recipes.values()))
        return self._written_bytes

    def abandon(self) -> None:
        if self._draft is not None:
            self._draft.discard()

    def _close(self, recipes: Sequence[Recipe]) -> None:
        directory = Directory(pieces=tuple(self._pieces), recipes=tuple(recipes))
        name, tail = encode(directory)
        assert self._draft is not None
        self._draft.write(memoryview(tail))
        self._draft.publish(name)
        size_bytes = self._filled_bytes + len(tail)
        self._index.add(name, directory, Found(name, size_bytes, time.time()))
        self._written_bytes += size_bytes
        self._draft, self._pieces, self._filled_bytes = None, [], 0


def _directory(objects: Objects, entry: Found) -> Directory:
    try:
        return read_directory(objects, entry.name, entry.size_bytes)
    except (PackFault, FileNotFoundError):
        # Rotten since it was loaded. The scrub names it; a collection leaves it alone.
        return Directory(pieces=(), recipes=())


# ---------------------------------------------------------------- scrub


def scrub(index: Index, objects: Objects, legacy: LegacyBlobs, limit_bytes: int | None, after: str) -> Scrubbed:
    """Reads packs by name from `after` on, up to about `limit_bytes`, and names every spot that has changed."""
    index.refresh()
    damage: list[Damage] = []
    checked_bytes = checked_pieces = 0
    for entry in sorted(objects.list(), key=lambda entry: entry.name):
        if entry.name <= after:
            continue
        if limit_bytes is not None and checked_bytes >= limit_bytes:
            return _scrubbed(index, damage, checked_bytes, checked_pieces, after)
        found, pieces = _scrub_pack(index, objects, entry)
        damage += found
        checked_bytes, checked_pieces, after = checked_bytes + entry.size_bytes, checked_pieces + pieces, entry.name
    for sha256 in legacy.names():
        try:
            legacy.copy(sha256, None)
            checked_bytes += legacy.size_bytes(sha256)
        except (IntegrityFailure, NotFound) as failure:
            damage.append(Damage(pack="", piece="", offset=0, size_bytes=0, why=failure.message, files=(sha256,)))
    return _scrubbed(index, damage, checked_bytes, checked_pieces, "")


def _scrubbed(index: Index, damage: Iterable[Damage], checked_bytes: int, checked_pieces: int, after: str) -> Scrubbed:
    index.distrust(bytes.fromhex(spot.piece) for spot in damage if spot.piece and not spot.other_copy)
    return Scrubbed(checked_bytes=checked_bytes, checked_pieces=checked_pieces, damage=tuple(damage), next_after=after)


def _scrub_pack(index: Index, objects: Objects, entry: Found) -> tuple[list[Damage], int]:
    try:
        directory = read_directory(objects, entry.name, entry.size_bytes)
    except FileNotFoundError:
        return [], 0
    except (PackFault, OSError) as fault:
        files = tuple(sorted(recipe.name.hex() for recipe in index.using_pack(entry.name)))
        spot = Damage(pack=entry.name, piece="", offset=0, size_bytes=entry.size_bytes, why=str(fault), files=files)
        return [spot], 0
    damage = []
    with PieceReader(index, objects) as reader:
        for piece, offset in directory.placed():
            here = Place(entry.name, offset, piece.length)
            bad = reader.check(piece, here)
            if bad is None:
                continue
            others = [place for place in index.places(piece.digest) if place != here]
            damage.append(
                Damage(
                    pack=entry.name,
                    piece=bad.piece,
                    offset=offset,
                    size_bytes=piece.length,
                    why=bad.why,
                    files=tuple(sorted(recipe.name.hex() for recipe in index.using(piece.digest))),
                    other_copy=any(reader.check(piece, place) is None for place in others),
                )
            )
    return damage, len(directory.pieces)
