"""Files below runs and models for MLflow clients, and of registered versions: kept by content, verified when read."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import Request
from starlette.responses import Response

from groundplane.api.access import Ground, requires
from groundplane.api.mlflow_wire import PREFIX, MlflowRoute, answer, needed, read
from groundplane.api.ranges import file_answer
from groundplane.api.routing import Router
from groundplane.api.uploads import Landing
from groundplane.domain.model import ManifestFile
from groundplane.domain.tracking.records import Listed, listing
from groundplane.errors import InvalidInput, NotFound
from groundplane.identity import Actor, Permission
from groundplane.services.logged_models import LOGGED, RUNS

router = Router(prefix=f"{PREFIX}/api/2.0", tags=["mlflow"], route_class=MlflowRoute, include_in_schema=False)
Reader = Annotated[Actor, requires(Permission.TRACKING_READ)]
Writer = Annotated[Actor, requires(Permission.TRACKING_WRITE)]
VERSIONS = "models"
"""`models/<name>/<number>/…`: the files of a registered version, which nobody can write."""


class _List(msgspec.Struct):
    path: str = ""
    run_id: str = ""
    run_uuid: str = ""


@router.get("/mlflow-artifacts/artifacts")
async def list_artifacts(request: Request, app: Ground, actor: Reader) -> Response:
    """What lies right below a path, named from there."""
    path = (await read(request, _List)).path.strip("/")
    folder, owner, below = _parts(path)
    if folder == VERSIONS:
        number, _, below = below.partition("/")
        files = await app.tracked_models.files(actor, owner, number)
        found = listing([(file.path, file.size_bytes) for file in files], below)
    else:
        found = await app.logged_models.listing(actor, folder, owner, below)
    return answer({"files": [_document(each, each.path.rpartition("/")[2]) for each in found]})


@router.get("/mlflow/artifacts/list")
async def list_run_artifacts(request: Request, app: Ground, actor: Reader) -> Response:
    """What lies right below a path of a run, named from the run."""
    body = await read(request, _List)
    run_id = needed(body.run_id or body.run_uuid, "run_id")
    found = await app.logged_models.listing(actor, RUNS, run_id, body.path.strip("/"))
    files = [_document(each, each.path) for each in found]
    return answer({"root_uri": f"mlflow-artifacts:/{RUNS}/{run_id}", "files": files})


@router.put("/mlflow-artifacts/artifacts/{path:path}")
async def upload_artifact(path: str, request: Request, app: Ground, landing: Landing, actor: Writer) -> Response:
    """One file, whole or not at all."""
    folder, owner, below = _parts(path)
    if folder == VERSIONS:
        raise InvalidInput("files of a registered version never change", "log to a run, then register a version")
    declared = request.headers.get("content-length", "0")
    upload_id = await landing.begin(actor.key_id)
    try:
        size_bytes = int(declared) if declared.isdigit() else 0
        await landing.receive(upload_id, actor.key_id, "file", request.stream(), size_bytes)
        await app.logged_models.put(actor, folder, owner, below, await landing.folder(upload_id, actor.key_id) / "file")
    finally:
        await landing.discard(upload_id, actor.key_id)
    return answer({})


@router.get("/mlflow-artifacts/artifacts/{path:path}")
async def download_artifact(path: str, request: Request, app: Ground, actor: Reader) -> Response:
    """One file, whole or one range. Of a registered version only while its certificate holds."""
    folder, owner, below = _parts(path)
    if folder == VERSIONS:
        number, _, below = below.partition("/")
        file = _of_version(await app.tracked_models.files(actor, owner, number), below)
    else:
        file = await app.logged_models.file(actor, folder, owner, below)
    return await file_answer(request, file, app.hub.content, {})


@router.delete("/mlflow-artifacts/artifacts/{path:path}")
async def delete_artifact(path: str, app: Ground, actor: Writer) -> Response:
    """A file, or a folder with all that is in it."""
    folder, owner, below = _parts(path)
    if folder == VERSIONS:
        raise InvalidInput("files of a registered version never change", "archive the version: ground models archive")
    await app.logged_models.remove(actor, folder, owner, below)
    return answer({})


@router.post("/mlflow-artifacts/mpu/{step}/{path:path}")
async def multipart(step: str, path: str, actor: Writer) -> Response:
    """Files come in one piece, streamed: clients that ask for parts are told so in the words they look for."""
    told = "Multipart upload is not supported for the current artifact repository"
    return answer({"error_code": "NOT_IMPLEMENTED", "message": told}, 501)


def _parts(path: str) -> tuple[str, str, str]:
    """(folder, owner, path below it). NotFound for a folder that there is not."""
    folder, _, rest = path.strip("/").partition("/")
    owner, _, below = rest.partition("/")
    if folder not in {RUNS, LOGGED, VERSIONS} or not owner:
        raise NotFound(f"there is no {path[:200]}", f"files lie below {RUNS}/, {LOGGED}/ and {VERSIONS}/")
    return folder, owner, below


def _of_version(files: tuple[ManifestFile, ...], path: str) -> ManifestFile:
    found = next((file for file in files if file.path == path), None)
    if found is None:
        raise NotFound(f"the version has no file {path[:200]}", "list its artifacts to see what it has")
    return found


def _document(found: Listed, name: str) -> dict[str, object]:
    told: dict[str, object] = {"path": name, "is_dir": found.is_dir}
    return told if found.is_dir else told | {"file_size": found.size_bytes}
