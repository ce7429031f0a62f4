"""Pushes by OCI clients: blobs land by digest, and the manifest registers a version, or says what is missing.

Routes, headers and errors are the OCI distribution specification's (1.1). What was pushed is never deleted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from fastapi import Query, Request
from starlette.responses import Response

from groundplane.api.access import Ground, requires
from groundplane.api.oci import ManifestBlobUnknown, NeverDeleted, OciRoute
from groundplane.api.oci_uploads import BlobUploads, DigestInvalid, demand_digest
from groundplane.api.routing import Router
from groundplane.api.uploads import Landing
from groundplane.domain import oci, oci_push
from groundplane.domain.model import ManifestFile
from groundplane.errors import InvalidInput, TooLarge
from groundplane.identity import Actor, Permission
from groundplane.services.oci_registry import Arrived

router = Router(prefix="/v2", tags=["oci"], route_class=OciRoute, include_in_schema=False)
Writer = Annotated[Actor, requires(Permission.MODELS_WRITE)]
_RANGE = re.compile(r"([0-9]{1,19})-([0-9]{1,19})")


@router.post("/{project}/{name}/blobs/uploads/")
async def begin_upload(
    project: str,
    name: str,
    request: Request,
    app: Ground,
    landing: Landing,
    actor: Writer,
    digest: str = "",
    mount: str = "",
    source: Annotated[str, Query(alias="from")] = "",
) -> Response:
    """Begins a blob; with `digest` the body is all of it; with `mount` and `from` another repository's is used."""
    await app.oci.demand_push(actor, project, name)
    uploads = BlobUploads(landing, actor, project, name)
    if mount and await _mount(app, actor, uploads, mount, source):
        return _created(project, name, mount)
    session = await uploads.begin()
    if digest:
        await uploads.append(session, request.stream(), 0, _declared_bytes(request))
        await uploads.finish(session, digest)
        return _created(project, name, digest)
    return _going_on(project, name, session, 0)


async def _mount(app: Ground, actor: Actor, uploads: BlobUploads, digest: str, source: str) -> bool:
    project, _, name = source.partition("/")
    demand_digest(digest)
    found = (await app.oci.blobs(actor, project, name, [digest])).get(digest)
    if found is None or found.file is None:
        return False
    await uploads.mount(found.file.sha256, found.size_bytes)
    return True


@router.get("/{project}/{name}/blobs/uploads/{session}")
async def ask_upload(project: str, name: str, session: str, landing: Landing, actor: Writer) -> Response:
    """How much of a blob has arrived: a broken push goes on from there."""
    have_bytes = await BlobUploads(landing, actor, project, name).size(session)
    return _going_on(project, name, session, have_bytes, status=204)


@router.patch("/{project}/{name}/blobs/uploads/{session}")
async def append_upload(
    project: str, name: str, session: str, request: Request, landing: Landing, actor: Writer
) -> Response:
    """The next chunk; `Content-Range: START-END` says where it belongs, and it belongs at the end."""
    uploads = BlobUploads(landing, actor, project, name)
    have_bytes = await uploads.append(session, request.stream(), _start(request), _declared_bytes(request))
    return _going_on(project, name, session, have_bytes)


@router.put("/{project}/{name}/blobs/uploads/{session}")
async def finish_upload(
    project: str, name: str, session: str, request: Request, landing: Landing, actor: Writer, digest: str = ""
) -> Response:
    """The last chunk, or none, and the digest of the whole: the blob is there if it is that, and gone if not."""
    uploads = BlobUploads(landing, actor, project, name)
    demand_digest(digest)
    await uploads.append(session, request.stream(), _start(request), _declared_bytes(request))
    await uploads.finish(session, digest)
    return _created(project, name, digest)


@router.delete("/{project}/{name}/blobs/uploads/{session}", status_code=204)
async def cancel_upload(project: str, name: str, session: str, landing: Landing, actor: Writer) -> Response:
    """Lets go of a blob that is not whole."""
    await BlobUploads(landing, actor, project, name).cancel(session)
    return Response(status_code=204)


@router.put("/{project}/{name}/manifests/{reference}")
async def put_manifest(
    project: str, name: str, reference: str, request: Request, app: Ground, landing: Landing, actor: Writer
) -> Response:
    """Registers the next version, or keeps a referrer when the manifest names a subject; or refuses it whole."""
    await app.oci.demand_push(actor, project, name)
    packed = oci_push.read_manifest(await _body(request), request.headers.get("content-type", ""))
    if not oci_push.is_digest(reference):
        oci_push.check_tag(reference)
    elif reference != packed.digest:
        raise DigestInvalid(f"the manifest has the digest {packed.digest}, not {reference}", "send it again")
    uploads = BlobUploads(landing, actor, project, name)
    upload_id, _ = await uploads.place()
    digests = [packed.config_digest, *(f"sha256:{file.sha256}" for file in packed.layers)]
    known = await app.oci.blobs(actor, project, name, digests)
    packed = replace(packed, config=await _config(uploads, known.get(packed.config_digest), packed.config_digest))
    layout, kept = await _layers(uploads, known, packed.layers)
    tree = await landing.compose(upload_id, uploads.owner, layout, [file.path for file in kept])
    used: list[str] = []
    try:
        arrived = Arrived(project=project, name=name, reference=reference, packed=packed, tree=tree, kept=kept)
        await app.oci.push(actor, arrived)
        used = [*layout.values(), packed.config_digest.removeprefix("sha256:")]
    finally:
        await landing.drop(upload_id, uploads.owner, tree, used)
    headers = {"Location": f"/v2/{project}/{name}/manifests/{packed.digest}", "Docker-Content-Digest": packed.digest}
    if packed.subject:
        headers["OCI-Subject"] = packed.subject
    return Response(status_code=201, headers=headers)


@router.delete("/{project}/{name}/manifests/{reference}")
async def delete_manifest(project: str, name: str, reference: str, actor: Writer) -> Response:
    """Refused: what a certificate was signed for stays what it is."""
    raise NeverDeleted(f"{project}/{name} keeps {reference}: versions never change", "ground models archive hides one")


@router.delete("/{project}/{name}/blobs/{digest}")
async def delete_blob(project: str, name: str, digest: str, actor: Writer) -> Response:
    """Refused: a version is made of it."""
    raise NeverDeleted(f"{project}/{name} keeps {digest}: versions never change", "ground models archive hides one")


async def _layers(
    uploads: BlobUploads, known: Mapping[str, oci.Blob], layers: tuple[ManifestFile, ...]
) -> tuple[dict[str, str], list[ManifestFile]]:
    """{path: landed file}, and what is in the store already. Everything that is nowhere is named at once."""
    layout, kept, missing = dict[str, str](), list[ManifestFile](), list[str]()
    for file in layers:
        digest = f"sha256:{file.sha256}"
        held = known.get(digest)
        if held is not None and held.file is None:
            await uploads.take(digest, held.content)
        landed = await uploads.landed(digest)
        size_bytes = landed.stat().st_size if landed else file.size_bytes
        if size_bytes != file.size_bytes:
            what = f"{file.path} has {size_bytes:,} bytes; the manifest says {file.size_bytes:,}"
            raise InvalidInput(what, "write the size of the bytes that were sent")
        if file.path in layout or any(each.path == file.path for each in kept):
            raise InvalidInput(f"two layers are both {file.path}", "give each layer a title of its own")
        if landed:
            layout[file.path] = file.sha256
        elif held is not None or await uploads.mounted(digest):
            kept.append(file)
        else:
            missing.append(f"{file.path} ({digest})")
    if missing:
        raise ManifestBlobUnknown(f"{len(missing)} blobs are not here: {', '.join(missing[:5])}", "send them first")
    return layout, kept


async def _config(uploads: BlobUploads, found: oci.Blob | None, digest: str) -> str:
    """The config's text. It is kept beside the manifest, so it is small and UTF-8."""
    landed = await uploads.landed(digest)
    if landed is not None:
        if landed.stat().st_size > oci_push.CONFIG_BYTES_MAX:
            raise TooLarge(f"the config has {landed.stat().st_size:,} bytes; {oci_push.CONFIG_BYTES_MAX:,} is the most")
        content = landed.read_bytes()
    elif found is not None and found.file is None:
        content = found.content
    elif digest == oci.digest_of(oci.EMPTY_BYTES):
        content = oci.EMPTY_BYTES
    else:
        raise ManifestBlobUnknown(f"the config {digest} is not here", "send it first")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the config is not UTF-8 at byte {error.start:,}", "send JSON") from None
    if "\0" in text:
        raise InvalidInput("the config holds a zero byte", "send JSON")
    return text


async def _body(request: Request) -> bytes:
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > oci_push.MANIFEST_BYTES_MAX:
            raise TooLarge(f"the manifest has over {oci_push.MANIFEST_BYTES_MAX:,} bytes", "push fewer, larger files")
    return bytes(content)


def _declared_bytes(request: Request) -> int:
    declared = request.headers.get("content-length", "0")
    return int(declared) if declared.isdigit() else 0


def _start(request: Request) -> int | None:
    given = request.headers.get("content-range", "")
    if not given:
        return None
    found = _RANGE.fullmatch(given)
    if found is None or int(found.group(2)) - int(found.group(1)) + 1 != _declared_bytes(request):
        raise InvalidInput(f"the Content-Range {given[:60]!r} is not that of the body", "write START-END, both counted")
    return int(found.group(1))


def _created(project: str, name: str, digest: str) -> Response:
    headers = {"Location": f"/v2/{project}/{name}/blobs/{digest}", "Docker-Content-Digest": digest}
    return Response(status_code=201, headers=headers)


def _going_on(project: str, name: str, session: str, have_bytes: int, *, status: int = 202) -> Response:
    headers = {
        "Location": f"/v2/{project}/{name}/blobs/uploads/{session}",
        "Range": f"0-{max(0, have_bytes - 1)}",
        "Docker-Upload-UUID": session,
    }
    return Response(status_code=status, headers=headers)
