"""Pieces read back: each verified by its BLAKE3 before anybody sees a byte of it, from another copy when one is bad."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from blake3 import blake3

from groundplane.adapters.artifacts.index import Index, Place
from groundplane.adapters.artifacts.objects import Objects, Reader
from groundplane.domain.packs import Piece
from groundplane.domain.pieces import PIECE_BYTES_MAX
from groundplane.errors import IntegrityFailure

_SHARES = 16
_SHARE_PIECES_MIN, _SHARE_PIECES_MAX = 8, 64
"""A pack's worth at most. What is read from the disk in long runs also lies in the page cache in large parts, from
which it is read again a fifth faster."""
RESTORE_HINT = "push the same content again, or restore the store from a backup"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadCopy:
    """A copy of a piece that is not what it was."""

    piece: str
    pack: str
    offset: int
    size_bytes: int
    why: str


class PieceReader:
    """Reads pieces for one thread, holding the packs it meets open. `bad` are copies that failed on the way."""

    def __init__(self, index: Index, objects: Objects) -> None:
        self._index, self._objects = index, objects
        self._stack = ExitStack()
        self._open: dict[str, Reader] = {}
        self._buffer = memoryview(bytearray(PIECE_BYTES_MAX))
        self.bad: list[BadCopy] = []

    def __enter__(self) -> PieceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, piece: Piece) -> memoryview:
        """The piece's bytes, valid until the next read. IntegrityFailure when no good copy is left."""
        for again in (False, True):
            for place in self._index.places(piece.digest):
                data = self._copy(piece, place)
                if data is not None:
                    return data
            if not again:
                # A collection may have moved the piece since it was looked up.
                self._index.refresh()
        name = piece.digest.hex()
        if self.bad:
            bad = self.bad[-1]
            raise IntegrityFailure(
                f"piece {name} has changed: {bad.why}, in pack {bad.pack} at byte {bad.offset}", RESTORE_HINT
            )
        raise IntegrityFailure(f"piece {name} is missing", RESTORE_HINT)

    def check(self, piece: Piece, place: Place) -> BadCopy | None:
        """What is wrong with one copy, or None."""
        before = len(self.bad)
        self._copy(piece, place)
        return self.bad[-1] if len(self.bad) > before else None

    def _copy(self, piece: Piece, place: Place) -> memoryview | None:
        buffer = self._buffer[: piece.length]
        try:
            filled = self._reader(place.pack).into(buffer, place.offset)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._note(piece, place, f"it can't be read: {error.strerror or error}")
            return None
        if filled != piece.length:
            self._note(piece, place, f"{filled} of {piece.length} bytes are there")
            return None
        found = blake3(buffer).digest()
        if found != piece.digest:
            self._note(piece, place, f"its bytes hash to {found.hex()[:16]}…")
            return None
        return buffer

    def _note(self, piece: Piece, place: Place, why: str) -> None:
        name = piece.digest.hex()
        self.bad.append(BadCopy(piece=name, pack=place.pack, offset=place.offset, size_bytes=piece.length, why=why))

    def _reader(self, pack: str) -> Reader:
        reader = self._open.get(pack)
        if reader is None:
            reader = self._open[pack] = self._objects.reader(pack)
            self._stack.callback(reader.close)
        return reader


def shares(pieces: Sequence[Piece]) -> Iterator[tuple[int, Sequence[Piece]]]:
    """(offset in the file, neighbouring pieces), in file order: threads that take the next one each stay close."""
    offset, count = 0, min(max(len(pieces) // _SHARES, _SHARE_PIECES_MIN), _SHARE_PIECES_MAX)
    for begin in range(0, len(pieces), count):
        share = pieces[begin : begin + count]
        yield offset, share
        offset += sum(piece.length for piece in share)
