"""The registry for Hugging Face clients: set `HF_ENDPOINT` to this server's address with `/hf` behind it.

Routes, headers and fields are the hub's own, as huggingface_hub reads them; `HF_TOKEN` is a key of this installation.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from fastapi import Query, Request
from starlette.responses import Response

from groundplane.api.access import Ground, requires, requires_any_key
from groundplane.api.ranges import file_answer
from groundplane.api.routing import Route, Router
from groundplane.domain import hub
from groundplane.domain.model import ModelVersion
from groundplane.errors import GroundError, InvalidInput, NotFound
from groundplane.identity import Actor, Permission
from groundplane.services.hub import RevisionNotFound


class EntryNotFound(NotFound):
    """The revision exists, the file or folder does not. Kept beside the door: only the hub's wire tells them apart."""


_CODES: tuple[tuple[type[GroundError], str], ...] = (
    (RevisionNotFound, "RevisionNotFound"),
    (EntryNotFound, "EntryNotFound"),
    (NotFound, "RepoNotFound"),
)


class HubRoute(Route):
    """Errors as hub clients read them: a sentence as JSON and in a header, and the hub's own code where it has one."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except GroundError as error:
                reasons = [f"{each}; {each.hint}" for each in getattr(error, "refusals", ())]
                said = ". ".join(reasons) or (f"{error.message}; {error.hint}" if error.hint else error.message)
                headers = {"X-Error-Message": said.encode("ascii", "replace").decode()}
                code = next((code for kind, code in _CODES if isinstance(error, kind)), "")
                if code:
                    headers["X-Error-Code"] = code
                return answer({"error": said}, error.http_status, headers)

        return handled


router = Router(prefix="/hf", tags=["hub"], route_class=HubRoute, include_in_schema=False)
Reader = Annotated[Actor, requires(Permission.MODELS_READ)]


@router.get("/api/whoami-v2")
async def who_am_i(actor: Annotated[Actor, requires_any_key()]) -> Response:
    """The caller's own key, as `hf auth whoami` shows it."""
    token = {"displayName": actor.key_id, "role": "read"}
    orgs = [{"type": "org", "name": actor.project}] if actor.project else []
    return answer(
        {"type": "user", "name": actor.name, "fullname": actor.name, "orgs": orgs, "auth": {"accessToken": token}}
    )


@router.get("/api/models")
async def search_models(
    app: Ground,
    actor: Reader,
    search: str = "",
    author: str = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Repositories whose name holds the text, by name."""
    found = await app.hub.search(actor, text=search, project=author, limit=limit)
    return answer([hub.info(version) for version in found])


@router.get("/api/models/{project}/{name}")
async def repository(project: str, name: str, app: Ground, actor: Reader, blobs: bool = False) -> Response:
    """The newest version."""
    return answer(hub.info(await app.hub.version(actor, project, name, hub.MAIN), blobs=blobs))


@router.get("/api/models/{project}/{name}/refs")
async def references(project: str, name: str, app: Ground, actor: Reader) -> Response:
    """Branch and tags with their commits."""
    versions = await app.hub.versions(actor, project, name)
    return answer(hub.refs(versions, await app.hub.aliases(name)))


@router.get("/api/models/{project}/{name}/revision/{revision:path}")
async def revision(project: str, name: str, revision: str, app: Ground, actor: Reader, blobs: bool = False) -> Response:
    """One version."""
    return answer(hub.info(await app.hub.version(actor, project, name, revision), blobs=blobs))


@router.get("/api/models/{project}/{name}/tree/{revision}")
@router.get("/api/models/{project}/{name}/tree/{revision}/{folder:path}")
async def tree(
    project: str,
    name: str,
    revision: str,
    app: Ground,
    actor: Reader,
    folder: str = "",
    recursive: bool = False,
) -> Response:
    """What lies in a folder of a version."""
    version = await app.hub.version(actor, project, name, revision)
    entries = hub.tree(version, folder.strip("/"), recursive=recursive)
    if entries is None:
        raise EntryNotFound(f"{version.id} has no folder {folder}", f"ground models show {version.id} lists its files")
    return answer(entries)


@router.post("/api/models/{project}/{name}/paths-info/{revision}")
async def paths_info(project: str, name: str, revision: str, request: Request, app: Ground, actor: Reader) -> Response:
    """Entries of the files and folders that the body names."""
    version = await app.hub.version(actor, project, name, revision)
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            wanted = msgspec.json.decode(await request.body(), type=_PathsInfo).paths
        except msgspec.MsgspecError as error:
            raise InvalidInput(f"the body names no paths: {error}", 'send {"paths": ["config.json"]}') from None
    else:
        wanted = [value for value in (await request.form()).getlist("paths") if isinstance(value, str)]
    return answer(hub.paths(version, wanted))


class _PathsInfo(msgspec.Struct):
    paths: list[str]


@router.api_route("/{project}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
async def resolve(
    project: str, name: str, revision: str, path: str, request: Request, app: Ground, actor: Reader
) -> Response:
    """A file of a version, whole or one range; its ETag is its SHA-256."""
    version: ModelVersion = await app.hub.version(actor, project, name, revision)
    file = next((file for file in version.files if file.path == path), None)
    if file is None:
        raise EntryNotFound(f"{version.id} has no file {path}", f"ground models show {version.id} lists its files")
    headers = {
        "X-Linked-ETag": f'"{file.sha256}"',
        "X-Linked-Size": str(file.size_bytes),
        "X-Repo-Commit": hub.commit_of(version),
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2])}",
    }
    return file_answer(request, file, app.hub.content, headers)


def answer(document: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(document), status, headers, media_type="application/json")
