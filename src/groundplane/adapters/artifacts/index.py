"""What the store holds, in memory: where each piece lies and which pieces make each file. Read from the packs alone."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from groundplane.adapters.artifacts.objects import Found, Objects, Reader
from groundplane.domain.packs import FOOTER_BYTES, Directory, PackFault, Recipe, decode, directory_bytes

_TAIL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Place:
    """Where one copy of a piece lies."""

    pack: str
    offset: int
    length: int


@dataclass(slots=True)
class _Pack:
    name: str
    size_bytes: int
    data_bytes: int
    modified_s: float


class Index:
    """Thread-safe. A piece may lie in several packs: the newest copy is read, the others stand behind it."""

    def __init__(self, objects: Objects) -> None:
        self.lock = threading.RLock()
        self._objects = objects
        # A place in one integer: a terabyte of models is a million pieces, and objects for each would cost 250 MB.
        self._pieces: dict[bytes, int] = {}
        self._others: dict[bytes, list[int]] = {}
        self._suspect: set[bytes] = set()
        self._recipes: dict[bytes, Recipe] = {}
        self._homes: dict[bytes, int] = {}
        self._packs: dict[int, _Pack] = {}
        self._numbers: dict[str, int] = {}
        self._next = 0
        self._stored_bytes = 0
        self.damaged: dict[str, str] = {}
        self.refresh()

    # ------------------------------------------------------------ packs

    def refresh(self) -> None:
        """Reads packs that appeared, forgets packs that went. What can't be read is in `damaged`, with its reason."""
        with self.lock:
            found = {entry.name: entry for entry in self._objects.list()}
            self.drop([name for name in self._numbers if name not in found])
            for name in [name for name in self.damaged if name not in found]:
                del self.damaged[name]
            for entry in sorted(found.values(), key=lambda entry: (entry.modified_s, entry.name)):
                if entry.name not in self._numbers and entry.name not in self.damaged:
                    self._load(entry)

    def _load(self, entry: Found) -> None:
        try:
            self.add(entry.name, read_directory(self._objects, entry.name, entry.size_bytes), entry)
        except FileNotFoundError:
            return
        except (PackFault, OSError) as fault:
            self.damaged[entry.name] = str(fault)

    def add(self, name: str, directory: Directory, entry: Found) -> None:
        """Makes a published pack's pieces and recipes known. Twice is the same as once."""
        with self.lock:
            if name in self._numbers:
                return
            number, self._next = self._next, self._next + 1
            self._numbers[name] = number
            self._stored_bytes += directory.data_bytes
            self._packs[number] = _Pack(name, entry.size_bytes, directory.data_bytes, entry.modified_s)
            for piece, offset in directory.placed():
                place = number << 72 | offset << 32 | piece.length
                known = self._pieces.get(piece.digest)
                if known is not None:
                    self._others.setdefault(piece.digest, []).append(known)
                self._pieces[piece.digest] = place
                self._suspect.discard(piece.digest)
            for recipe in directory.recipes:
                self._recipes[recipe.name] = recipe
                self._homes[recipe.name] = number

    def drop(self, names: Iterable[str]) -> None:
        """Forgets packs and the pieces that were only in them; the files they made are still told of."""
        with self.lock:
            numbers = {self._numbers.pop(name) for name in names if name in self._numbers}
            if not numbers:
                return
            for number in numbers:
                self._stored_bytes -= self._packs.pop(number).data_bytes
            for digest in list(self._others):
                left = [place for place in self._others[digest] if place >> 72 not in numbers]
                if left:
                    self._others[digest] = left
                else:
                    del self._others[digest]
            for digest in [digest for digest, place in self._pieces.items() if place >> 72 in numbers]:
                others = self._others.get(digest)
                if others is None:
                    del self._pieces[digest]
                    continue
                self._pieces[digest] = others.pop()
                if not others:
                    del self._others[digest]

    def packs(self) -> list[Found]:
        """Every readable pack."""
        with self.lock:
            return [Found(pack.name, pack.size_bytes, pack.modified_s) for pack in self._packs.values()]

    def data_bytes(self, name: str) -> int:
        """Bytes of the pieces in a pack."""
        with self.lock:
            return self._packs[self._numbers[name]].data_bytes

    @property
    def stored_bytes(self) -> int:
        """Bytes of pieces, every copy counted."""
        return self._stored_bytes

    @property
    def piece_count(self) -> int:
        return len(self._pieces)

    # ------------------------------------------------------------ pieces

    def has(self, digest: bytes) -> bool:
        """Whether a push may rely on a piece."""
        return digest in self._pieces and digest not in self._suspect

    def places(self, digest: bytes) -> list[Place]:
        """Every copy of a piece, the one to read first."""
        with self.lock:
            first = self._pieces.get(digest)
            if first is None:
                return []
            return [self._place(place) for place in (first, *reversed(self._others.get(digest, ())))]

    def _place(self, place: int) -> Place:
        return Place(self._packs[place >> 72].name, place >> 32 & (2**40 - 1), place & 0xFFFF_FFFF)

    def is_current(self, digest: bytes, pack: str, offset: int) -> bool:
        """Whether this copy is the one that is read."""
        place = self._pieces.get(digest)
        return place is not None and place >> 72 == self._numbers.get(pack) and place >> 32 & (2**40 - 1) == offset

    def only_in(self, packs: set[str]) -> set[bytes]:
        """Pieces of which these packs hold the copy that is read."""
        numbers = {self._numbers[name] for name in packs if name in self._numbers}
        with self.lock:
            return {digest for digest, place in self._pieces.items() if place >> 72 in numbers}

    def distrust(self, digests: Iterable[bytes]) -> None:
        """Pieces without a good copy: the next push of their content stores them anew. Until then they are tried."""
        with self.lock:
            self._suspect.update(digests)

    def forget_pieces(self, digests: Iterable[bytes]) -> None:
        """Nothing needs them: a push that does from now on stores them anew."""
        with self.lock:
            for digest in digests:
                self._pieces.pop(digest, None)
                self._others.pop(digest, None)

    # ------------------------------------------------------------ recipes

    def recipe(self, sha256: bytes) -> Recipe | None:
        return self._recipes.get(sha256)

    def recipes(self) -> list[Recipe]:
        """Every file the store can tell of, also one that lacks a piece."""
        with self.lock:
            return list(self._recipes.values())

    def is_whole(self, recipe: Recipe) -> bool:
        """Whether every piece of it is known to lie somewhere."""
        return all(piece.digest in self._pieces for piece in recipe.pieces)

    def homes(self, sha256s: Iterable[bytes]) -> set[str]:
        """The packs whose directories tell of these files."""
        with self.lock:
            numbers = {self._homes[sha256] for sha256 in sha256s}
            return {self._packs[number].name for number in numbers if number in self._packs}

    def using(self, digest: bytes) -> list[Recipe]:
        """The files that a piece belongs to."""
        return [recipe for recipe in self.recipes() if any(piece.digest == digest for piece in recipe.pieces)]

    def using_pack(self, name: str) -> list[Recipe]:
        """The files that have a piece in this pack, or are told of in it."""
        with self.lock:
            number = self._numbers.get(name)
            inside = {digest for digest, place in self._pieces.items() if place >> 72 == number}
            return [
                recipe
                for recipe in self.recipes()
                if self._homes[recipe.name] == number or any(piece.digest in inside for piece in recipe.pieces)
            ]

    def forget(self, recipes: Iterable[Recipe]) -> None:
        """The files are no longer there; their pieces stay until no other file needs them."""
        with self.lock:
            for recipe in recipes:
                self._recipes.pop(recipe.name, None)


def read_directory(objects: Objects, name: str, size_bytes: int) -> Directory:
    """A pack's directory, in one read for most. PackFault, OSError."""
    reader = objects.reader(name)
    try:
        tail = _read(reader, max(0, size_bytes - _TAIL_BYTES), min(size_bytes, _TAIL_BYTES))
        need = directory_bytes(tail[-FOOTER_BYTES:], size_bytes) + FOOTER_BYTES
        if need > len(tail):
            tail = _read(reader, size_bytes - need, need)
        return decode(name, size_bytes, tail)
    finally:
        reader.close()


def _read(reader: Reader, offset: int, count: int) -> bytes:
    buffer = bytearray(count)
    return bytes(buffer[: reader.into(memoryview(buffer), offset)])
