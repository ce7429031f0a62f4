"""Packs: many pieces in one immutable file, with a directory at its end that says what is in it.

A pack is `pieces… directory footer`. The directory lists the pieces in their order and the recipes of files: which
pieces, one after another, are the file of a SHA-256. A pack is named by its directory's BLAKE3, and each piece by its
own, so no bit can change unnoticed. A recipe's seal is a keyed hash: without the installation's key nobody can make
other bytes pass for a file's SHA-256.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from blake3 import blake3

from groundplane.domain.pieces import PIECE_BYTES_MAX

FOOTER_BYTES = 48
_MAGIC = b"GPPACK01"
_FOOTER = struct.Struct("<8sQ32s")
_PIECE = struct.Struct("<32sI")
_COUNTS = struct.Struct("<II")
PIECE_ENTRY_BYTES = _PIECE.size
_RECIPE = struct.Struct("<32s32sQI")


class PackFault(ValueError):
    """A pack that is not what it was when it was written; the message says what of it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece by its BLAKE3 (32 bytes) and its length."""

    digest: bytes
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A file as its pieces in order, packed 36 bytes each. `name` and `seal` are 32 raw bytes.

    Its name is the file's SHA-256; as long as nobody has computed that, the BLAKE3 of `packed`.
    """

    name: bytes
    size_bytes: int
    packed: bytes
    seal: bytes

    @property
    def pieces(self) -> Iterator[Piece]:
        return unpack(self.packed)

    def __len__(self) -> int:
        return len(self.packed) // _PIECE.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """What a pack holds: its pieces in their order, and the recipes that were finished with it."""

    pieces: tuple[Piece, ...]
    recipes: tuple[Recipe, ...]

    @property
    def data_bytes(self) -> int:
        return sum(piece.length for piece in self.pieces)

    def placed(self) -> Iterator[tuple[Piece, int]]:
        """Each piece with its offset in the pack."""
        offsets = accumulate((piece.length for piece in self.pieces), initial=0)
        return zip(self.pieces, offsets, strict=False)


def pack_pieces(pieces: Sequence[Piece]) -> bytes:
    """36 bytes a piece, the form in which a recipe keeps them."""
    return b"".join(_PIECE.pack(piece.digest, piece.length) for piece in pieces)


def unpack(packed: bytes) -> Iterator[Piece]:
    """The pieces again."""
    return (Piece(digest, length) for digest, length in _PIECE.iter_unpack(packed))


def sealed(key: bytes, sha256: bytes, size_bytes: int, packed: bytes) -> Recipe:
    """A recipe under the installation's key (32 bytes)."""
    seal = _seal(key, sha256, size_bytes, packed)
    return Recipe(name=sha256, size_bytes=size_bytes, packed=packed, seal=seal)


def unnamed(size_bytes: int, packed: bytes) -> Recipe:
    """A recipe of a file whose SHA-256 is not known. It needs no seal: other pieces would be another name."""
    return Recipe(name=blake3(packed).digest(), size_bytes=size_bytes, packed=packed, seal=bytes(32))


def is_sealed(key: bytes, recipe: Recipe) -> bool:
    """Whether these pieces are the file of that name: an installation with this key has itself found that they make
    its SHA-256, or the name is their own."""
    seal = _seal(key, recipe.name, recipe.size_bytes, recipe.packed)
    return hmac.compare_digest(recipe.seal, seal) or names_itself(recipe)


def names_itself(recipe: Recipe) -> bool:
    """Whether this is the recipe of a file whose SHA-256 was not computed."""
    return recipe.name == blake3(recipe.packed).digest()


def _seal(key: bytes, sha256: bytes, size_bytes: int, packed: bytes) -> bytes:
    return blake3(sha256 + size_bytes.to_bytes(8, "little") + packed, key=key).digest()


def encode(directory: Directory) -> tuple[str, bytes]:
    """(the pack's name, the bytes that follow its pieces)."""
    parts = [_COUNTS.pack(len(directory.pieces), len(directory.recipes)), pack_pieces(directory.pieces)]
    for recipe in directory.recipes:
        parts.append(_RECIPE.pack(recipe.name, recipe.seal, recipe.size_bytes, len(recipe)))
        parts.append(recipe.packed)
    body = b"".join(parts)
    digest = blake3(body).digest()
    return digest.hex(), body + _FOOTER.pack(_MAGIC, len(body), digest)


def directory_bytes(footer: bytes, pack_bytes: int) -> int:
    """The directory's length, read from a pack's last FOOTER_BYTES. PackFault when this is the end of no pack."""
    if len(footer) != FOOTER_BYTES:
        raise PackFault(f"it has {pack_bytes} bytes; a pack has {FOOTER_BYTES} or more")
    magic, length, _ = _FOOTER.unpack(footer)
    if magic != _MAGIC or length > pack_bytes - FOOTER_BYTES:
        raise PackFault("its last bytes are not those of a pack")
    return int(length)


def decode(name: str, pack_bytes: int, tail: bytes) -> Directory:
    """The directory of the pack `name` from its directory and footer. PackFault unless every byte is as written."""
    length = directory_bytes(tail[-FOOTER_BYTES:], pack_bytes)
    body, stated = tail[-FOOTER_BYTES - length : -FOOTER_BYTES], tail[-32:]
    if len(body) != length or blake3(body).digest() != stated or stated.hex() != name:
        raise PackFault("its directory has changed")
    piece_count, recipe_count = _COUNTS.unpack_from(body)
    position = _COUNTS.size + piece_count * _PIECE.size
    pieces = tuple(unpack(body[_COUNTS.size : position]))
    recipes = []
    for _ in range(recipe_count):
        file, seal, size_bytes, count = _RECIPE.unpack_from(body, position)
        position += _RECIPE.size
        packed = body[position : position + count * _PIECE.size]
        position += len(packed)
        recipes.append(Recipe(name=file, size_bytes=size_bytes, packed=packed, seal=seal))
    found = Directory(pieces=pieces, recipes=tuple(recipes))
    if found.data_bytes + length + FOOTER_BYTES != pack_bytes:
        raise PackFault(f"it has {pack_bytes} bytes; its directory accounts for {found.data_bytes + length}")
    return found


def spans(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(offset, length) of each piece of a file."""
    ends = accumulate(lengths, initial=0)
    return ((begin, end - begin) for begin, end in pairwise(ends))


assert PIECE_BYTES_MAX < 2**32
