"""The registry for OCI clients (oras, skopeo, container runtimes): pull versions, and their certificates as referrers.

Routes, headers and errors are the OCI distribution specification's (1.1). The password, or the bearer token, is a key.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from groundplane.api.access import Ground, requires, requires_any_key
from groundplane.api.ranges import file_answer
from groundplane.domain import oci
from groundplane.errors import Forbidden, GroundError, NotFound, Unauthenticated
from groundplane.identity import Actor, Permission


class ManifestUnknown(NotFound):
    """The repository exists, the tag or digest does not."""


class BlobUnknown(NotFound):
    """No version of the repository has this blob."""


_CODES: tuple[tuple[type[GroundError], str], ...] = (
    (ManifestUnknown, "MANIFEST_UNKNOWN"),
    (BlobUnknown, "BLOB_UNKNOWN"),
    (NotFound, "NAME_UNKNOWN"),
    (Unauthenticated, "UNAUTHORIZED"),
    (Forbidden, "DENIED"),
)


class OciRoute(APIRoute):
    """Errors in the specification's JSON; a missing key asks for a user and a password."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except GroundError as error:
                code = next((code for kind, code in _CODES if isinstance(error, kind)), "UNSUPPORTED")
                said = f"{error.message}; {error.hint}" if error.hint else error.message
                headers = {"WWW-Authenticate": 'Basic realm="groundplane"'} if error.http_status == 401 else {}
                body = {"errors": [{"code": code, "message": said}]}
                return Response(msgspec.json.encode(body), error.http_status, headers, media_type="application/json")

        return handled


router = APIRouter(prefix="/v2", tags=["oci"], route_class=OciRoute, include_in_schema=False)
Reader = Annotated[Actor, requires(Permission.MODELS_READ)]


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
    versions = await app.hub.versions(actor, project, name)
    tags = [tag for tag in oci.tags(versions, await app.hub.aliases(name)) if tag > last]
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
    versions = await app.hub.versions(actor, project, name)
    found = oci.find_manifest(versions, reference, await app.hub.aliases(name))
    if found is None:
        raise ManifestUnknown(f"{project}/{name} has no manifest {reference}", f"try v{versions[0].number} or latest")
    return _document(request, found)


@router.api_route("/{project}/{name}/blobs/{digest}", methods=["GET", "HEAD"])
async def get_blob(project: str, name: str, digest: str, request: Request, app: Ground, actor: Reader) -> Response:
    """A file of a version, whole or one range, or a small document of it."""
    versions = await app.hub.versions(actor, project, name)
    found = oci.find_blob(versions, digest)
    if found is None:
        raise BlobUnknown(f"no version of {project}/{name} has the blob {digest}")
    if found.file is None:
        return _document(request, found)
    return file_answer(request, found.file, app.hub.content, {"Docker-Content-Digest": digest})


@router.get("/{project}/{name}/referrers/{digest}")
async def get_referrers(
    project: str,
    name: str,
    digest: str,
    app: Ground,
    actor: Reader,
    artifact_type: Annotated[str, Query(alias="artifactType")] = "",
) -> Response:
    """What refers to a manifest: its birth certificate."""
    versions = await app.hub.versions(actor, project, name)
    headers = {"OCI-Filters-Applied": "artifactType"} if artifact_type else {}
    return Response(oci.referrers(versions, digest, artifact_type), headers=headers, media_type=oci.INDEX)


def _document(request: Request, blob: oci.Blob) -> Response:
    headers = {
        "Docker-Content-Digest": blob.digest,
        "ETag": f'"{blob.digest}"',
        "Content-Length": str(blob.size_bytes),
    }
    body = b"" if request.method == "HEAD" else blob.content
    return Response(body, headers=headers, media_type=blob.media_type)
