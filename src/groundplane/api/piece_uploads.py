"""Large files sent by their new pieces: asked which are here, sent in bundles, put together and verified.

A file's pieces cross as 36 bytes each (BLAKE3, length), a bundle as each piece's length in 4 bytes and its bytes.
"""

from __future__ import annotations

import re
import secrets
from typing import Annotated

from fastapi import Query, Request

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.api.uploads import Landing
from groundplane.domain.model import ManifestFile, check_sha256
from groundplane.domain.packs import PIECE_ENTRY_BYTES, Piece, unpack
from groundplane.domain.pieces import PIECE_BYTES_MAX
from groundplane.errors import InvalidInput, TooLarge
from groundplane.identity import Actor, Permission
from groundplane.wire.artifacts import Bundle, MissingPieces, UploadedFile

router = Router(prefix="/v1/piece-uploads", tags=["artifacts"])
Writer = Annotated[Actor, requires(Permission.MODELS_WRITE)]
LISTED_BYTES_MAX = 64 * 2**20
BUNDLE_BYTES_MAX = 8 * 2**20
_BUNDLE = re.compile(r"[0-9a-f]{32}")
_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"format": "binary"}}}}}


@router.post("/{upload_id}/missing", openapi_extra=_BODY)
async def missing_pieces(
    upload_id: str, request: Request, app: Ground, landing: Landing, actor: Writer
) -> MissingPieces:
    """Which of a file's pieces have to be sent: those that neither arrived nor lie in something the caller sees."""
    pieces = await _pieces(request)
    names = frozenset(piece.digest.hex() for piece in pieces)
    here = await landing.landed_pieces(upload_id, actor.key_id, names)
    here |= await app.artifacts.known_pieces(actor, names - here)
    asked, missing = set(here), []
    for number, piece in enumerate(pieces):
        if piece.digest.hex() not in asked:
            asked.add(piece.digest.hex())
            missing.append(number)
    return MissingPieces(missing=tuple(missing))


@router.post("/{upload_id}/bundles", status_code=201)
async def begin_bundle(upload_id: str, app: Ground, landing: Landing, actor: Writer) -> Bundle:
    """A bundle's name, and a signed address that takes it where the store is a bucket: its bytes pass us by."""
    landing.place(upload_id, actor.key_id)
    name = secrets.token_hex(16)
    return Bundle(name=name, address=await app.artifacts.landing(f"{upload_id}/{name}"))


@router.put("/{upload_id}/bundles/{name}", status_code=204, openapi_extra=_BODY)
async def send_bundle(
    upload_id: str, name: str, request: Request, app: Ground, landing: Landing, actor: Writer
) -> None:
    """A bundle's bytes; an empty body says that they were put at its address."""
    landing.place(upload_id, actor.key_id)
    if not _BUNDLE.fullmatch(name):
        raise InvalidInput(f"{name[:40]!r} is no bundle", "ask for one")
    bundle = await _body(request, BUNDLE_BYTES_MAX)
    if not bundle:
        bundle = await app.artifacts.take_landing(f"{upload_id}/{name}", BUNDLE_BYTES_MAX)
    await landing.land_pieces(upload_id, actor.key_id, bundle)


@router.post("/{upload_id}/files", status_code=201, openapi_extra=_BODY)
async def assemble_file(
    upload_id: str,
    path: str,
    sha256: str,
    size_bytes: Annotated[int, Query(ge=1)],
    request: Request,
    app: Ground,
    landing: Landing,
    actor: Writer,
) -> UploadedFile:
    """The file from its pieces, whole and verified, or not at all."""
    pieces = await _pieces(request)
    names = frozenset(piece.digest.hex() for piece in pieces)
    here = await landing.landed_pieces(upload_id, actor.key_id, names)
    # Asked again, not believed: a digest is no proof of having the bytes.
    here |= await app.artifacts.known_pieces(actor, names - here)
    if len(here) < len(names):
        raise InvalidInput(f"{len(names) - len(here)} of {len(names)} pieces of {path} are not here", "send them first")
    file = ManifestFile(path=path, sha256=check_sha256(sha256), size_bytes=size_bytes)
    return await landing.assemble(upload_id, actor.key_id, file, pieces, app.artifacts.piece)


async def _pieces(request: Request) -> list[Piece]:
    listed = await _body(request, LISTED_BYTES_MAX)
    if len(listed) % PIECE_ENTRY_BYTES:
        raise InvalidInput(f"{len(listed):,} bytes are no list of pieces", f"write {PIECE_ENTRY_BYTES} bytes each")
    pieces = list(unpack(listed))
    if not all(0 < piece.length <= PIECE_BYTES_MAX for piece in pieces):
        raise InvalidInput("a piece is empty or too large", f"cut files at {PIECE_BYTES_MAX:,} bytes at most")
    return pieces


async def _body(request: Request, limit_bytes: int) -> bytes:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limit_bytes:
            raise TooLarge(f"the body has over {limit_bytes:,} bytes", "send less at once")
    return bytes(content)
