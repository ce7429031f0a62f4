"""The registry for OCI clients (oras, skopeo, container runtimes): pull versions, and what refers to them.

Routes, headers and errors are the OCI distribution specification's (1.1). The password, or the bearer token, is a key.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import msgspec
from fastapi import Query, Request
from starlette.responses import Response

from groundplane.api.access import Ground, requires, requires_any_key
from groundplane.api.oci_uploads import BlobUploads, DigestInvalid, RangeInvalid, UploadUnknown
from groundplane.api.ranges import file_answer
from groundplane.api.routing import Route, Router
from groundplane.api.uploads import Landing
from groundplane.domain import oci
from groundplane.errors import (
    Conflict,
    Forbidden,
    GroundError,
    InvalidInput,
    NotFound,
    Refusal,
    TooLarge,
    Unauthenticated,
)
from groundplane.identity import Actor, Permission


class ManifestUnknown(NotFound):
    """The repository exists, the tag or digest does not."""


class BlobUnknown(NotFound):
    """No version of the repository has this blob."""


class ManifestBlobUnknown(NotFound):
    """The manifest names a blob that was neither sent nor mounted."""

    http_status = 400


class NeverDeleted(InvalidInput):
    """Versions, their manifests and their blobs stay."""

    http_status = 405


_CODES: tuple[tuple[type[GroundError], str], ...] = (
    (ManifestUnknown, "MANIFEST_UNKNOWN"),
    (BlobUnknown, "BLOB_UNKNOWN"),
    (UploadUnknown, "BLOB_UPLOAD_UNKNOWN"),
    (ManifestBlobUnknown, "MANIFEST_BLOB_UNKNOWN"),
    (NotFound, "NAME_UNKNOWN"),
    (Unauthenticated, "UNAUTHORIZED"),
    (Forbidden, "DENIED"),
    (NeverDeleted, "UNSUPPORTED"),
    (DigestInvalid, "DIGEST_INVALID"),
    (RangeInvalid, "BLOB_UPLOAD_INVALID"),
    (TooLarge, "SIZE_INVALID"),
    (InvalidInput, "MANIFEST_INVALID"),
    (Refusal, "MANIFEST_INVALID"),
    (Conflict, "DENIED"),
)


class OciRoute(Route):
    """Errors in the specification's JSON; a missing key asks for a user and a password."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except GroundError as error:
                code = next((code for kind, code in _CODES if isinstance(error, kind)), "UNSUPPORTED")
                headers = {"WWW-Authenticate": 'Basic realm="groundplane"'} if error.http_status == 401 else {}
                if isinstance(error, RangeInvalid):
                    headers = {"Location": request.url.path, "Range": f"0-{max(0, error.have_bytes - 1)}"}
                # The specification knows no 422: what can't be understood is a bad request.
                status = 400 if error.http_status == 422 else error.http_status
                body = {"errors": [{"code": code, "message": said} for said in _said(error)]}
                return Response(msgspec.json.encode(body), status, headers, media_type="application/json")

        return handled


def _said(error: GroundError) -> list[str]:
    """Every refusal of a push at once, each with its way forward: a client shows them as they are."""
    if isinstance(error, Refusal):
        return [f"{refused}; {refused.hint}" if refused.hint else str(refused) for refused in error.refusals]
    return [f"{error.message}; {error.hint}" if error.hint else error.message]


router = Router(prefix="/v2", tags=["oci"], route_class=OciRoute, include_in_schema=False)
about = Router(prefix="/v1/packages", tags=["oci"])
Reader = Annotated[Actor, requires(Permission.MODELS_READ)]


@about.get("/{project}/{name}")
async def list_packages(
    project: str,
    name: str,
    app: Ground,
    actor: Reader,
    limit: Annotated[int, Query(ge=1, le=1000, description="Of so many versions, and what refers to them.")] = 100,
    below: Annotated[int, Query(ge=0, description="Of versions before this one; 0 is the newest.")] = 0,
) -> list[oci.Package]:
    """The manifests that OCI clients see in a repository, with their tags and what they refer to, newest first."""
    found: list[oci.Package] = await app.oci.packages(actor, project, name, limit=limit, below=below)
    return found


@router.get("/")
async def version_check(actor: Annotated[Actor, requires_any_key()]) -> Response:
    """Says that this registry speaks the specification."""
    return Response(b"{}", headers={"Docker-Distribution-API-Version": "registry/2.0"}, media_type="application/json")


@router.get("/{project}/{name}/tags/list")
async def list_tags(
    project: str,
    name: str,
    app: Ground,
    actor: Reader,
    n: Annotated[int, Query(ge=0, le=10_000)] = 10_000,
    last: str = "",
) -> Response:
    """Tags by their bytes; `n` and `last` page through them."""
    tags = await app.oci.tags(actor, project, name, after=last, limit=n + 1)
    headers = {}
    if n and len(tags) > n:
        headers["Link"] = f'</v2/{project}/{name}/tags/list?n={n}&last={tags[n - 1]}>; rel="next"'
    body = {"name": f"{project}/{name}", "tags": tags[:n]}
    return Response(msgspec.json.encode(body), headers=headers, media_type="application/json")


@router.api_route("/{project}/{name}/manifests/{reference}", methods=["GET", "HEAD"])
async def get_manifest(
    project: str, name: str, reference: str, request: Request, app: Ground, actor: Reader
) -> Response:
    """A manifest by tag or digest."""
    found = await app.oci.manifest(actor, project, name, reference)
    if found is None:
        newest = await app.oci.newest(actor, project, name)
        hint = f"try v{newest} or latest" if newest else "it has no version yet"
        raise ManifestUnknown(f"{project}/{name} has no manifest {reference}", hint)
    return _document(request, found)


@router.api_route("/{project}/{name}/blobs/{digest}", methods=["GET", "HEAD"])
async def get_blob(
    project: str, name: str, digest: str, request: Request, app: Ground, landing: Landing, actor: Reader
) -> Response:
    """A file of a version, whole or one range, or a small document of it. Who pushes learns what need not be sent."""
    if request.method == "HEAD":
        landed = await BlobUploads(landing, actor, project, name).landed(digest)
        if landed is not None:
            headers = {"Docker-Content-Digest": digest, "Content-Length": str(landed.stat().st_size)}
            return Response(headers=headers, media_type="application/octet-stream")
    found = (await app.oci.blobs(actor, project, name, [digest])).get(digest)
    if found is None:
        await app.oci.newest(actor, project, name)
        raise BlobUnknown(f"no version of {project}/{name} has the blob {digest}")
    if found.file is None:
        return _document(request, found)
    return await file_answer(request, found.file, app.hub.content, {"Docker-Content-Digest": digest})


@router.get("/{project}/{name}/referrers/{digest}")
async def get_referrers(
    project: str,
    name: str,
    digest: str,
    app: Ground,
    actor: Reader,
    artifact_type: Annotated[str, Query(alias="artifactType")] = "",
) -> Response:
    """What refers to a manifest: its birth certificate, its addenda, and what was pushed with it as the subject."""
    index = await app.oci.referrers(actor, project, name, digest, artifact_type)
    headers = {"OCI-Filters-Applied": "artifactType"} if artifact_type else {}
    return Response(index, headers=headers, media_type=oci.INDEX)


def _document(request: Request, blob: oci.Blob) -> Response:
    headers = {
        "Docker-Content-Digest": blob.digest,
        "ETag": f'"{blob.digest}"',
        "Content-Length": str(blob.size_bytes),
    }
    body = b"" if request.method == "HEAD" else blob.content
    return Response(body, headers=headers, media_type=blob.media_type)
