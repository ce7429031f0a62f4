"""The registry for Hugging Face clients: set `HF_ENDPOINT` to this server's address with `/hf` behind it.

Routes, headers and fields are the hub's own, as huggingface_hub reads them; `HF_TOKEN` is a key of this installation.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from fastapi import Depends, Query, Request
from starlette.responses import Response

from groundplane.api.access import Ground, requires, requires_any_key
from groundplane.api.ranges import file_answer
from groundplane.api.routing import Route, Router
from groundplane.domain import hub
from groundplane.domain.hub import Kind
from groundplane.errors import Forbidden, GroundError, IntegrityFailure, InvalidInput, NotFound
from groundplane.identity import Actor, Permission
from groundplane.services.hub import RevisionNotFound


class EntryNotFound(NotFound):
    """The revision exists, the file or folder does not. Kept beside the door: only the hub's wire tells them apart.

    With the revision's `commit` clients remember that it is not there, and ask no more.
    """

    def __init__(self, message: str, hint: str, commit: str = "") -> None:
        super().__init__(message, hint)
        self.commit = commit


class NotOffered(InvalidInput):
    """A part of the hub that this installation has not. No repository is missing: the clients must not say so."""

    http_status = 404


_CODES: tuple[tuple[type[GroundError], str], ...] = (
    (RevisionNotFound, "RevisionNotFound"),
    (EntryNotFound, "EntryNotFound"),
    (NotFound, "RepoNotFound"),
    # What is not what was signed is no revision: after any other answer than this one clients load what they kept.
    (IntegrityFailure, "RevisionNotFound"),
    # Clients that get a plain 403 speak of the internet connection; after this one they show the sentence.
    (Forbidden, "GatedRepo"),
)
_ASCII = str.maketrans({"…": "...", "→": "->", "≥": ">=", "≤": "<=", "×": "x", "–": "-", "−": "-"})
"""How what headers cannot hold is spelt in them."""


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
                said = said.translate(_ASCII)  # in both places: clients show two sentences that differ
                headers = {"X-Error-Message": said.encode("ascii", "replace").decode()}
                code = next((code for kind, code in _CODES if isinstance(error, kind)), "")
                if code:
                    headers["X-Error-Code"] = code
                if commit := getattr(error, "commit", ""):
                    headers["X-Repo-Commit"] = commit
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


def repository_kind(kind: str) -> Kind:
    """Which part of the hub an address names."""
    if kind not in list(Kind):
        raise NotOffered(f"repositories of kind {kind} are not kept here", f"there are {' and '.join(Kind)}")
    return Kind(kind)


Kinds = Annotated[Kind, Depends(repository_kind)]


@router.get("/api/{kind}")
async def search_repositories(
    kind: Kinds,
    app: Ground,
    actor: Reader,
    search: str = "",
    author: str = "",
    filter: Annotated[Sequence[str], Query()] = (),
    pipeline_tag: str = "",
    sort: str = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Repositories whose name holds the text and that have each tag of the filter, by name, or newest first."""
    wanted = [*filter, pipeline_tag] if pipeline_tag else filter
    newest_first = sort in ("lastModified", "createdAt")
    found = await app.hub.search(
        actor, kind, text=search, project=author, tags=wanted, limit=limit, newest_first=newest_first
    )
    return answer([hub.info(version) for version in found])


@router.get("/api/{kind}/{project}/{name}")
async def repository(kind: Kinds, project: str, name: str, app: Ground, actor: Reader, blobs: bool = False) -> Response:
    """The newest version."""
    return answer(hub.info(await app.hub.revision(actor, kind, project, name, hub.MAIN), blobs=blobs))


@router.get("/api/{kind}/{project}/{name}/auth-check")
async def authorised(kind: Kinds, project: str, name: str, app: Ground, actor: Reader) -> Response:
    """Whether the caller may read a repository."""
    await app.hub.newest(actor, kind, project, name)
    return answer({})


@router.get("/api/{kind}/{project}/{name}/refs")
async def references(kind: Kinds, project: str, name: str, app: Ground, actor: Reader) -> Response:
    """Branch and tags with their commits."""
    return answer(await app.hub.refs(actor, kind, project, name))


@router.get("/api/{kind}/{project}/{name}/commits/{revision:path}")
async def commits(
    kind: Kinds,
    project: str,
    name: str,
    revision: str,
    app: Ground,
    actor: Reader,
    p: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """The versions up to one, newest first, in pages."""
    last = await app.hub.revision(actor, kind, project, name, revision)
    found, total = await app.hub.history(last, start=p * limit, limit=limit)
    return answer(hub.commits(found), headers={"X-Total-Count": str(total)})


@router.get("/api/{kind}/{project}/{name}/revision/{revision:path}")
async def revision(
    kind: Kinds, project: str, name: str, revision: str, app: Ground, actor: Reader, blobs: bool = False
) -> Response:
    """One version."""
    return answer(hub.info(await app.hub.revision(actor, kind, project, name, revision), blobs=blobs))


@router.get("/api/{kind}/{project}/{name}/tree/{revision}")
@router.get("/api/{kind}/{project}/{name}/tree/{revision}/{folder:path}")
async def tree(
    kind: Kinds,
    project: str,
    name: str,
    revision: str,
    app: Ground,
    actor: Reader,
    folder: str = "",
    recursive: bool = False,
    expand: bool = False,
) -> Response:
    """What lies in a folder of a version."""
    version = await app.hub.revision(actor, kind, project, name, revision)
    entries = hub.tree(version, folder.strip("/"), recursive=recursive)
    if entries is None:
        raise EntryNotFound(f"{version.id} has no folder {folder}", _lists_files(version), version.commit)
    if expand:
        entries = await app.hub.dated(version, entries)
    return answer(entries)


@router.post("/api/{kind}/{project}/{name}/paths-info/{revision}")
async def paths_info(
    kind: Kinds, project: str, name: str, revision: str, request: Request, app: Ground, actor: Reader
) -> Response:
    """Entries of the files and folders that the body names."""
    version = await app.hub.revision(actor, kind, project, name, revision)
    dated = False
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            body = msgspec.json.decode(await request.body(), type=_PathsInfo)
        except msgspec.MsgspecError as error:
            raise InvalidInput(f"the body names no paths: {error}", 'send {"paths": ["config.json"]}') from None
        wanted, dated = body.paths, body.expand
    else:
        form = await request.form()
        wanted = [value for value in form.getlist("paths") if isinstance(value, str)]
        dated = str(form.get("expand", "")).lower() == "true"
    entries = hub.paths(version, wanted)
    if dated:
        entries = await app.hub.dated(version, entries)
    return answer(entries)


class _PathsInfo(msgspec.Struct):
    paths: list[str]
    expand: bool = False


@router.get("/v2/{project}/{name}/manifests/{tag}")
async def gguf_manifest(project: str, name: str, tag: str, app: Ground, actor: Reader) -> Response:
    """Which file `hf:project/name:TAG` means, to node-llama-cpp and to llama.cpp of 2025: they read it from `main`."""
    version = await app.hub.revision(actor, Kind.MODELS, project, name, hub.MAIN)
    file = hub.gguf_file(version, tag)
    if file is None:
        which = "" if tag == "latest" else f" with {tag} in its name"
        raise EntryNotFound(f"{version.id} has no GGUF file{which}", _lists_files(version), version.commit)
    return answer({"ggufFile": {"rfilename": file.path, "size": file.size_bytes, "lfs": {"sha256": file.sha256}}})


@router.api_route("/{project}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
async def resolve(
    project: str, name: str, revision: str, path: str, request: Request, app: Ground, actor: Reader
) -> Response:
    """A file of a model's version, whole or one range; its ETag is its SHA-256."""
    return await _file(request, app, await app.hub.revision(actor, Kind.MODELS, project, name, revision), path)


@router.api_route("/datasets/{project}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
async def resolve_dataset(
    project: str, name: str, revision: str, path: str, request: Request, app: Ground, actor: Reader
) -> Response:
    """A file of a dataset's version, as `resolve` gives a model's."""
    return await _file(request, app, await app.hub.revision(actor, Kind.DATASETS, project, name, revision), path)


async def _file(request: Request, app: Any, version: hub.Revision, path: str) -> Response:
    file = version.file(path)
    if file is None:
        raise EntryNotFound(f"{version.id} has no file {path}", _lists_files(version), version.commit)
    headers = {
        "X-Linked-ETag": f'"{file.sha256}"',
        "X-Linked-Size": str(file.size_bytes),
        "X-Repo-Commit": version.commit,
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2])}",
    }
    return await file_answer(request, file, app.hub.content, headers)


def _lists_files(version: hub.Revision) -> str:
    return f"ground {version.kind} show {version.id} lists its files"


def answer(document: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(document), status, headers, media_type="application/json")
