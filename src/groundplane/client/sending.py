"""One large file sent elsewhere: only the pieces that are not there, in bundles, going on where it broke off."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from groundplane.client.httpx_alone import httpx
from groundplane.domain.packs import Piece
from groundplane.domain.pieces import PIECE_BYTES_MAX, cut
from groundplane.domain.scanning.byte_view import ByteView
from groundplane.errors import Conflict

BY_PIECES_FROM_BYTES = 2 * PIECE_BYTES_MAX
"""Smaller files are sent whole: asking costs a round trip."""

BUNDLE_BYTES = 4 << 20

# Azure refuses a put that doesn't say what kind of blob it makes; the others don't look at it.
_PUT_HEADERS = {"x-ms-blob-type": "BlockBlob"}


def pieces_of(source: Path) -> tuple[str, list[Piece]]:
    """(SHA-256 hex, the pieces it is cut into, as the store cuts it). One read."""
    digest, found = hashlib.sha256(), []
    with source.open("rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        lengths = cut(ByteView(lambda at, count: os.pread(file.fileno(), count, at), size_bytes))
        for length in lengths:
            data = file.read(length)
            digest.update(data)
            found.append(Piece(blake3(data).digest(), len(data)))
    return digest.hexdigest(), found


def bundles(source: Path, pieces: Sequence[Piece], missing: Sequence[int]) -> Iterator[tuple[bytes, int]]:
    """(a bundle, bytes of pieces in it) for the missing ones, in their order. Conflict when the file has changed."""
    wanted, offset = set(missing), 0
    bundle, filled = bytearray(), 0
    with source.open("rb", buffering=0) as file:
        for number, piece in enumerate(pieces):
            if number in wanted:
                data = os.pread(file.fileno(), piece.length, offset)
                if blake3(data).digest() != piece.digest:
                    raise Conflict(f"{source} changed while it was being sent", "stop what writes it, then push again")
                bundle += len(data).to_bytes(4, "big") + data
                filled += len(data)
                if filled + PIECE_BYTES_MAX > BUNDLE_BYTES:
                    yield bytes(bundle), filled
                    bundle, filled = bytearray(), 0
            offset += piece.length
    if bundle:
        yield bytes(bundle), filled


def put_at(address: str, bundle: bytes) -> bool:
    """Puts a bundle at a signed address; False when that can't be reached from here, so that it goes another way."""
    try:
        answer = httpx.put(address, content=bundle, headers=_PUT_HEADERS, timeout=600, trust_env=False)
    except httpx.TransportError:
        return False
    return answer.is_success
