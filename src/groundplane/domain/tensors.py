"""Which tensors two versions share: each told by what is in it, and large ones by their pieces alone, unread."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from groundplane.domain.canonical import parse_json
from groundplane.domain.pieces import PIECE_BYTES_MAX
from groundplane.domain.registry import Difference
from groundplane.domain.scanning.byte_view import ByteView
from groundplane.domain.scanning.tensor_header import tensor_entries


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a safetensors file: `kind` as `F32 4000×16`, and where its bytes begin and end."""

    name: str
    kind: str
    begin: int
    end: int


def tensors_of(header: bytes, size_bytes: int) -> list[Tensor]:
    """The tensors of a file of this size that begins with `header`, its length and its JSON. Raises HeaderFault."""
    entries = tensor_entries(ByteView(lambda offset, count: header[offset : offset + count], size_bytes))
    told = parse_json(header[8:])
    assert isinstance(told, dict)
    return [
        Tensor(name, f"{told[name]['dtype']} {'×'.join(map(str, told[name]['shape'])) or 'scalar'}", begin, end)
        for name, begin, end in entries
    ]


def parts(tensor: Tensor, pieces: Mapping[int, tuple[str, int]]) -> Iterator[str | tuple[int, int]]:
    """A tensor cut from its first byte: the BLAKE3 of each part, or (begin, bytes) of one that is no stored piece.

    `pieces` is where each stored piece begins → (BLAKE3, bytes). Large tensors are stored in exactly such pieces.
    """
    for begin in range(tensor.begin, tensor.end, PIECE_BYTES_MAX):
        size_bytes = min(PIECE_BYTES_MAX, tensor.end - begin)
        known, there_bytes = pieces.get(begin, ("", 0))
        yield known if there_bytes == size_bytes else (begin, size_bytes)


def fingerprint(tensor: Tensor, digests: Iterable[str]) -> str:
    """What a tensor is and what is in it: the same wherever it lies. `digests` are its parts' BLAKE3."""
    return f"{tensor.kind}, {hashlib.sha256(''.join(digests).encode()).hexdigest()[:16]}"


def starts(pieces: Sequence[tuple[str, int]]) -> dict[int, tuple[str, int]]:
    """Where each piece of a file begins → the piece, from (BLAKE3, bytes) in their order."""
    found, offset = {}, 0
    for blake3_hex, size_bytes in pieces:
        found[offset] = (blake3_hex, size_bytes)
        offset += size_bytes
    return found


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> Iterable[Difference]:
    """Tensors of either, name → fingerprint, that the other has not or has otherwise."""
    for name in sorted({*before, *after}):
        old, new = before.get(name, ""), after.get(name, "")
        if old != new:
            yield Difference(part="tensors", name=name, before=old, after=new)
