"""Pushes by Hugging Face clients: files land by digest, and the commit registers a version, or says what is missing.

The facts of the birth certificate are read from the README.md that lies in the tree (`domain.provenance.model_card`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Annotated, TypeVar

import msgspec
from fastapi import Request
from starlette.responses import RedirectResponse, Response

from groundplane.api.access import Ground, requires, requires_any_key
from groundplane.api.hub import EntryNotFound, HubRoute, NotOffered, answer
from groundplane.api.routing import Router
from groundplane.api.staging import Staging
from groundplane.api.uploads import Landing
from groundplane.domain import hub
from groundplane.domain.model import ManifestFile, check_name, check_sha256
from groundplane.domain.provenance.model_card import facts_of
from groundplane.errors import InvalidInput
from groundplane.identity import Actor, Permission

router = Router(prefix="/hf", tags=["hub"], route_class=HubRoute, include_in_schema=False)
Writer = Annotated[Actor, requires(Permission.MODELS_WRITE)]
T = TypeVar("T")


class _NewRepository(msgspec.Struct):
    name: str
    organization: str | None = None
    type: str | None = None


class _Card(msgspec.Struct):
    content: str


class _File(msgspec.Struct):
    path: str
    size: int = 0


class _Preupload(msgspec.Struct):
    files: list[_File]


class _Object(msgspec.Struct):
    oid: str
    size: int


class _Batch(msgspec.Struct):
    operation: str
    objects: list[_Object]


class _Header(msgspec.Struct):
    summary: str = ""
    description: str = ""
    parentCommit: str = ""


class _Content(msgspec.Struct):
    path: str
    content: str
    encoding: str = "base64"


class _Large(msgspec.Struct):
    path: str
    oid: str


class _Path(msgspec.Struct):
    path: str


class _Line(msgspec.Struct):
    key: str
    value: msgspec.Raw


@router.post("/api/repos/create")
async def create_repository(request: Request, app: Ground, actor: Writer) -> Response:
    """Says whether such a repository may be pushed to. It exists from its first version on."""
    body = await _read(request, _NewRepository)
    if body.type not in (None, "model"):
        hint = "ground datasets register --managed" if body.type == "dataset" else "push a model"
        raise InvalidInput(f"repositories of type {body.type} are not pushed here", hint)
    project = body.organization or actor.project
    if not project:
        raise InvalidInput(f"{body.name} names no project", f"write PROJECT/{body.name}")
    check_name(body.name)
    told = {"url": f"{request.base_url}hf/{project}/{body.name}", "name": f"{project}/{body.name}"}
    if await app.hub.parent(actor, project, body.name, "") is not None:
        return answer(told | {"error": f"{project}/{body.name} exists already; push to it"}, 409)
    return answer(told)


@router.post("/api/validate-yaml")
async def validate_card(request: Request, actor: Writer) -> Response:
    """Reads a card as the commit will. What is wrong with it is the answer."""
    body = await _read(request, _Card)
    try:
        facts_of(body.content)
    except InvalidInput as error:
        messages = [str(problem) for problem in error.problems] or [error.message]
        return answer({"errors": [{"message": message} for message in messages], "warnings": []}, 400)
    return answer({"errors": [], "warnings": []})


@router.post("/api/models/{project}/{name}/preupload/{revision}")
async def preupload(project: str, name: str, revision: str, request: Request, app: Ground, actor: Writer) -> Response:
    """How each file is to be sent: by its digest."""
    _only_main(request, revision)
    parent = await app.hub.parent(actor, project, name, "")
    body = await _read(request, _Preupload)
    there = _digests(parent.files) if parent else {}
    files = [
        {"path": file.path, "uploadMode": "lfs", "shouldIgnore": False, "oid": there.get(file.path)}
        for file in body.files
    ]
    return answer({"files": files})


@router.get("/api/models/{project}/{name}/xet-write-token/{revision}")
async def xet_token(project: str, name: str, revision: str, request: Request, actor: Writer) -> Response:
    """The hub's chunk service is not here. Its client shows no answer's text, only the address that said no."""
    return RedirectResponse(f"{request.base_url}hf/no-xet-here/set-HF_HUB_DISABLE_XET=1")


@router.post("/{project}/{name}.git/info/lfs/objects/batch")
async def lfs_batch(
    project: str, name: str, request: Request, app: Ground, landing: Landing, actor: Writer
) -> Response:
    """A link for each object that has not landed yet and that no version of the repository has.

    Who has the link may send that object: it can't be guessed.
    """
    body = await _read(request, _Batch)
    if body.operation != "upload":
        raise InvalidInput(f"the operation {body.operation} is not offered", "download through /resolve/")
    parent = await app.hub.parent(actor, project, name, "")
    held = await app.hub.held(parent, {each.oid for each in body.objects})
    owner = _owner(actor, project, name)
    upload_id = await landing.find(owner) or await landing.begin(owner)
    landed = await landing.folder(upload_id, owner)
    objects: list[dict[str, object]] = []
    for wanted in body.objects:
        told: dict[str, object] = {"oid": check_sha256(wanted.oid), "size": wanted.size}
        if wanted.oid not in held and not (landed / wanted.oid).is_file():
            href = f"{request.base_url}hf/lfs/{upload_id}/{wanted.oid}"
            told["actions"] = {"upload": {"href": href}}
        objects.append(told)
    return answer({"transfer": "basic", "objects": objects})


@router.put("/lfs/{upload_id}/{oid}")
async def lfs_upload(upload_id: str, oid: str, request: Request, landing: Landing) -> Response:
    """One object, whole or not at all, and only if it is what its name says."""
    owner = await landing.capability(upload_id)
    declared = request.headers.get("content-length", "0")
    got = await landing.receive(
        upload_id, owner, check_sha256(oid), request.stream(), int(declared) if declared.isdigit() else 0
    )
    if got.sha256 != oid:
        (await landing.folder(upload_id, owner) / oid).unlink(missing_ok=True)
        raise InvalidInput(f"the bytes have the digest {got.sha256}, not {oid}", "send the file again")
    return Response(status_code=200, headers={"ETag": f'"{oid}"'})


@router.post("/api/models/{project}/{name}/commit/{revision}")
async def commit(
    project: str, name: str, revision: str, request: Request, app: Ground, landing: Landing, actor: Writer
) -> Response:
    """Registers the next version, the parent's files with these changes, or none when anything stands against it.

    A commit that changes nothing is the parent itself: a push that is sent again makes no second version.
    """
    _only_main(request, revision)
    owner = _owner(actor, project, name)
    upload_id = await landing.find(owner) or await landing.begin(owner)
    header, layout, gone = _Header(), dict[str, str](), set[str]()
    for number, line in enumerate((await request.body()).splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = msgspec.json.decode(line, type=_Line)
            if item.key == "header":
                header = msgspec.json.decode(item.value, type=_Header)
            elif item.key == "file":
                small = msgspec.json.decode(item.value, type=_Content)
                layout[small.path] = await _land(landing, upload_id, owner, small)
            elif item.key == "lfsFile":
                large = msgspec.json.decode(item.value, type=_Large)
                layout[large.path] = check_sha256(large.oid)
            elif item.key in ("deletedFile", "deletedFolder"):
                gone.add(msgspec.json.decode(item.value, type=_Path).path.strip("/"))
            else:
                raise InvalidInput(f"line {number}: the operation {item.key} is not offered", "add or delete files")
        except msgspec.MsgspecError as error:
            raise InvalidInput(f"line {number} of the commit can't be read: {error}") from None
    parent = await app.hub.parent(actor, project, name, header.parentCommit)
    _demand_there(parent, gone)
    kept = [file for file in parent.files if _stays(file, layout, gone)] if parent else []
    if parent and layout.items() | _digests(kept).items() == _digests(parent.files).items():
        await landing.discard(upload_id, owner)
        return _committed(request, parent, f"nothing changed since {parent.id}")
    landed = await landing.folder(upload_id, owner)
    absent = {path: oid for path, oid in layout.items() if not (landed / oid).is_file()}
    held = await app.hub.held(parent, absent.values())
    copied = {path for path, oid in absent.items() if oid in held}
    kept += [replace(held[layout[path]], path=path) for path in sorted(copied)]
    arrived = {path: oid for path, oid in layout.items() if path not in copied}
    tree = await landing.compose(upload_id, owner, arrived, [file.path for file in kept])
    message = header.summary or "pushed"
    version = await app.hub.push(actor, project, name, tree=tree, kept=kept, message=message)
    await landing.discard(upload_id, owner)
    return _committed(request, version, f"registered {version.id}")


def _committed(request: Request, version: hub.Revision, said: str) -> Response:
    url = f"{request.base_url}hf/{version.repository}/commit/{version.commit}"
    return answer({"success": True, "commitOid": version.commit, "commitUrl": url, "hookOutput": said})


def _demand_there(parent: hub.Revision | None, gone: set[str]) -> None:
    """EntryNotFound for a deletion of what is not there."""
    files = [file.path for file in parent.files] if parent else []
    for path in sorted(gone):
        if not any(file == path or file.startswith(f"{path}/") for file in files):
            have = parent.id if parent else "the repository"
            raise EntryNotFound(f"{have} has no file or folder {path}", "leave its deletion out")


def _digests(files: Iterable[ManifestFile]) -> dict[str, str]:
    return {file.path: file.sha256 for file in files}


def _stays(file: ManifestFile, layout: dict[str, str], gone: set[str]) -> bool:
    parts = file.path.split("/")
    return file.path not in layout and not any("/".join(parts[:depth]) in gone for depth in range(1, len(parts) + 1))


async def _land(landing: Staging, upload_id: str, owner: str, file: _Content) -> str:
    """A small file that came inside the commit; the name it landed under."""
    if file.encoding != "base64":
        raise InvalidInput(f"{file.path}: the encoding {file.encoding} is not offered", "send base64")
    try:
        content = base64.b64decode(file.content, validate=True)
    except binascii.Error as error:
        raise InvalidInput(f"{file.path} is no base64: {error}") from None

    async def pieces() -> AsyncIterator[bytes]:
        yield content

    name = hashlib.sha256(content).hexdigest()
    await landing.receive(upload_id, owner, name, pieces(), len(content))
    return name


async def _read(request: Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidInput(f"the body can't be read: {error}", "use an official client") from None


def _owner(actor: Actor, project: str, name: str) -> str:
    return f"hub/{actor.key_id}/{project}/{name}"


def _only_main(request: Request, revision: str) -> None:
    if request.query_params.get("create_pr", "").lower() in ("1", "true"):
        raise InvalidInput("pull requests are not offered: a version is reviewed by gates", "push without create_pr")
    if revision != hub.MAIN:
        raise InvalidInput(
            f"{revision} can't be pushed to: versions never change", f"push to {hub.MAIN}: the next version"
        )


@router.api_route("/{path:path}", methods=["GET", "HEAD", "POST", "PUT", "DELETE"])
async def not_offered(path: str, actor: Annotated[Actor, requires_any_key()]) -> Response:
    """The rest of the hub. Stands last: whatever is served was asked for before."""
    raise NotOffered(f"there is no /hf/{path[:200]} here", "docs/guides/models.md says what hub clients find")
