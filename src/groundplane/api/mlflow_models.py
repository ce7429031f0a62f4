"""Logged models and the registry for MLflow clients. Aliases and stages move through the gates, or are refused with

what they ask for.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import Request
from starlette.responses import Response

from groundplane.api.access import Ground, requires, requires_any_key
from groundplane.api.mlflow_wire import PREFIX, MlflowRoute, NoEndpoint, Pair, answer, mapping, needed, pairs, read
from groundplane.api.mlflow_wire import told_number as told
from groundplane.api.routing import Router
from groundplane.domain.tracking.records import LoggedModel, LoggedState
from groundplane.domain.tracking.search import millis
from groundplane.errors import InvalidInput, Refusal, Refused
from groundplane.identity import Actor, Permission
from groundplane.services.tracked_models import STAGES, NameShown, VersionShown
from groundplane.services.tracking import Search

router = Router(prefix=f"{PREFIX}/api/2.0/mlflow", tags=["mlflow"], route_class=MlflowRoute, include_in_schema=False)
rest = Router(prefix=PREFIX, tags=["mlflow"], route_class=MlflowRoute, include_in_schema=False)
Reader = Annotated[Actor, requires(Permission.TRACKING_READ)]
Writer = Annotated[Actor, requires(Permission.TRACKING_WRITE)]
ModelReader = Annotated[Actor, requires(Permission.MODELS_READ)]
ModelWriter = Annotated[Actor, requires(Permission.MODELS_WRITE)]
_STATES = {str(number): state for number, state in enumerate(LoggedState, 1)} | {state: state for state in LoggedState}


# ---------------------------------------------------------------- logged models


class _Order(msgspec.Struct):
    field_name: str = ""
    ascending: bool = True
    dataset_name: str = ""


class _Logged(msgspec.Struct):
    experiment_id: str = ""
    experiment_ids: list[str] = []
    name: str = ""
    model_type: str = ""
    source_run_id: str = ""
    status: str = ""
    params: list[Pair] = []
    tags: list[Pair] = []
    filter: str = ""
    datasets: list[msgspec.Raw] = []
    order_by: list[_Order] = []
    max_results: int = 100
    page_token: str = ""


def logged_document(found: LoggedModel) -> dict[str, object]:
    return {
        "model": {
            "info": {
                "model_id": found.id,
                "experiment_id": found.experiment_id,
                "name": found.name,
                "creation_timestamp_ms": millis(found.created_at),
                "last_updated_timestamp_ms": millis(found.updated_at),
                "artifact_uri": f"mlflow-artifacts:/logged/{found.id}",
                "status": found.state.value,
                "model_type": found.model_type,
                "source_run_id": found.run_id,
                "tags": pairs(found.tags),
            },
            "data": {
                "params": pairs(found.params),
                "metrics": [
                    {
                        "key": each.key,
                        "value": told(float(each.value)),
                        "timestamp": each.timestamp_ms,
                        "step": each.step,
                        "model_id": found.id,
                        "run_id": each.run_id,
                        **({"dataset_name": each.dataset_name} if each.dataset_name else {}),
                        **({"dataset_digest": each.dataset_digest} if each.dataset_digest else {}),
                    }
                    for each in found.metrics
                ],
            },
        }
    }


@router.post("/logged-models")
async def create_logged_model(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _Logged)
    made = await app.logged_models.create(
        actor,
        needed(body.experiment_id, "experiment_id"),
        name=body.name,
        run_id=body.source_run_id,
        model_type=body.model_type,
        params=mapping(body.params),
        tags=mapping(body.tags),
    )
    return answer(logged_document(made))


@router.post("/logged-models/search")
async def search_logged_models(request: Request, app: Ground, actor: Reader) -> Response:
    body = await read(request, _Logged)
    if body.datasets or any(each.dataset_name for each in body.order_by):
        raise InvalidInput("a search can't be limited to metrics of one dataset here", "filter by metrics.NAME alone")
    order = tuple(f"{each.field_name} {'ASC' if each.ascending else 'DESC'}" for each in body.order_by)
    search = Search(filter=body.filter, order=order, limit=body.max_results, token=body.page_token)
    found, token = await app.logged_models.search(actor, body.experiment_ids, search)
    return answer({"models": [logged_document(each)["model"] for each in found], "next_page_token": token})


@router.get("/logged-models/{model_id}")
async def get_logged_model(model_id: str, app: Ground, actor: Reader, allow_deleted: bool = False) -> Response:
    return answer(logged_document(await app.logged_models.get(actor, model_id, deleted_too=allow_deleted)))


@router.patch("/logged-models/{model_id}")
async def finalize_logged_model(model_id: str, request: Request, app: Ground, actor: Writer) -> Response:
    status = (await read(request, _Logged)).status
    if status not in _STATES:
        raise InvalidInput(f"{status[:40]!r} is no status of a logged model", f"use one of {', '.join(LoggedState)}")
    return answer(logged_document(await app.logged_models.finalize(actor, model_id, _STATES[status])))


@router.delete("/logged-models/{model_id}")
async def delete_logged_model(model_id: str, app: Ground, actor: Writer) -> Response:
    await app.logged_models.delete(actor, model_id)
    return answer({})


@router.patch("/logged-models/{model_id}/tags")
async def tag_logged_model(model_id: str, request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _Logged)
    return answer(logged_document(await app.logged_models.set_tags(actor, model_id, mapping(body.tags))))


@router.delete("/logged-models/{model_id}/tags/{key}")
async def untag_logged_model(model_id: str, key: str, app: Ground, actor: Writer) -> Response:
    await app.logged_models.delete_tag(actor, model_id, key)
    return answer({})


@router.post("/logged-models/{model_id}/params")
async def log_model_params(model_id: str, request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _Logged)
    await app.logged_models.add_params(actor, model_id, mapping(body.params))
    return answer({})


# ---------------------------------------------------------------- names


class _Registered(msgspec.Struct):
    name: str = ""
    new_name: str = ""
    description: str = ""
    version: str = ""
    alias: str = ""
    stage: str = ""
    archive_existing_versions: bool = False
    stages: list[str] = []
    source: str = ""
    run_id: str = ""
    model_id: str = ""
    key: str = ""
    value: str = ""
    tags: list[Pair] = []


class _SearchNames(msgspec.Struct):
    filter: str = ""
    max_results: int = 100
    order_by: list[str] = []
    page_token: str = ""

    def search(self) -> Search:
        return Search(filter=self.filter, order=tuple(self.order_by), limit=self.max_results, token=self.page_token)


async def _name_document(app: Ground, actor: Actor, shown: NameShown) -> dict[str, object]:
    """With the newest version, and the ones that stand on a stage."""
    numbers = {shown.newest} if shown.newest else set[int]()
    numbers |= {number for alias, number in shown.aliases.items() if alias in STAGES}
    latest = [await app.tracked_models.version(actor, shown.name.id, str(number)) for number in sorted(numbers)]
    return {
        "name": shown.name.id,
        "creation_timestamp": millis(shown.name.created_at),
        "last_updated_timestamp": millis(shown.name.updated_at),
        "user_id": shown.name.created_by,
        "description": shown.name.description,
        "latest_versions": [version_document(each) for each in latest],
        "tags": pairs(shown.name.tags),
        "aliases": [{"alias": alias, "version": str(number)} for alias, number in shown.aliases.items()],
    }


def version_document(shown: VersionShown) -> dict[str, object]:
    version, origin = shown.version, shown.origin
    return {
        "name": version.name,
        "version": str(version.number),
        "creation_timestamp": millis(version.created_at),
        "last_updated_timestamp": millis(origin.updated_at),
        "user_id": version.created_by,
        "current_stage": shown.stage,
        "description": origin.description,
        "source": origin.source or _uri(shown),
        "run_id": origin.run_id,
        "status": "READY",
        "tags": pairs(dict(shown.tags)),
        "aliases": list(shown.aliases),
        **({"model_id": origin.model_id} if origin.model_id else {}),
    }


def _uri(shown: VersionShown) -> str:
    return f"mlflow-artifacts:/models/{shown.version.name}/{shown.version.number}"


@router.post("/registered-models/create")
async def create_registered_model(request: Request, app: Ground, actor: ModelWriter) -> Response:
    body = await read(request, _Registered)
    made = await app.tracked_models.create_name(actor, body.name, body.description, mapping(body.tags))
    return answer({"registered_model": await _name_document(app, actor, made)})


@router.get("/registered-models/get")
async def get_registered_model(request: Request, app: Ground, actor: ModelReader) -> Response:
    body = await read(request, _Registered)
    shown = await app.tracked_models.name(actor, needed(body.name, "name"))
    return answer({"registered_model": await _name_document(app, actor, shown)})


@router.patch("/registered-models/update")
async def update_registered_model(request: Request, app: Ground, actor: ModelWriter) -> Response:
    body = await read(request, _Registered)
    shown = await app.tracked_models.describe(actor, body.name, description=body.description)
    return answer({"registered_model": await _name_document(app, actor, shown)})


@router.post("/registered-models/rename")
async def rename_registered_model(request: Request, app: Ground, actor: ModelWriter) -> Response:
    """Refused: a name stands in signed certificates."""
    body = await read(request, _Registered)
    await app.tracked_models.name(actor, body.name)
    raise Refusal([_fixed(f"{body.name}, which its certificates name", "register the files under the new name")])


@router.delete("/registered-models/delete")
async def delete_registered_model(request: Request, app: Ground, actor: ModelWriter) -> Response:
    await app.tracked_models.delete_name(actor, (await read(request, _Registered)).name)
    return answer({})


@router.get("/registered-models/search")
async def search_registered_models(request: Request, app: Ground, actor: ModelReader) -> Response:
    found, token = await app.tracked_search.names(actor, (await read(request, _SearchNames)).search())
    documents = [await _name_document(app, actor, each) for each in found]
    return answer({"registered_models": documents, "next_page_token": token})


@router.post("/registered-models/get-latest-versions")
@router.get("/registered-models/get-latest-versions")
async def latest_versions(request: Request, app: Ground, actor: ModelReader) -> Response:
    """The newest version on each stage asked for; without one, the newest of all and those on a stage."""
    body = await read(request, _Registered)
    shown = await app.tracked_models.name(actor, body.name)
    documents = (await _name_document(app, actor, shown))["latest_versions"]
    assert isinstance(documents, list)
    wanted = {stage.lower() for stage in body.stages}
    kept = [each for each in documents if not wanted or str(each["current_stage"]).lower() in wanted]
    return answer({"model_versions": kept})


@router.post("/registered-models/set-tag")
async def tag_registered_model(request: Request, app: Ground, actor: ModelWriter) -> Response:
    body = await read(request, _Registered)
    await app.tracked_models.describe(actor, body.name, tags={body.key: body.value})
    return answer({})


@router.delete("/registered-models/delete-tag")
async def untag_registered_model(request: Request, app: Ground, actor: ModelWriter) -> Response:
    body = await read(request, _Registered)
    await app.tracked_models.describe(actor, body.name, tags={body.key: None})
    return answer({})


@router.post("/registered-models/alias")
async def set_alias(request: Request, app: Ground, actor: ModelWriter) -> Response:
    """Through the gates, or refused with every requirement that is not met."""
    body = await read(request, _Registered)
    await app.tracked_models.move(actor, body.name, body.alias, needed(body.version, "version"))
    return answer({})


@router.delete("/registered-models/alias")
async def delete_alias(request: Request, app: Ground, actor: ModelWriter) -> Response:
    body = await read(request, _Registered)
    await app.tracked_models.remove_alias(actor, body.name, body.alias)
    return answer({})


@router.get("/registered-models/alias")
async def get_version_by_alias(request: Request, app: Ground, actor: ModelReader) -> Response:
    body = await read(request, _Registered)
    return answer({"model_version": version_document(await app.tracked_models.version(actor, body.name, body.alias))})


# ---------------------------------------------------------------- versions


@router.post("/model-versions/create")
async def create_version(request: Request, app: Ground, actor: ModelWriter) -> Response:
    body = await read(request, _Registered)
    made = await app.tracked_models.create_version(
        actor,
        body.name,
        source=body.source,
        run_id=body.run_id,
        model_id=body.model_id,
        tags=mapping(body.tags),
        description=body.description,
    )
    return answer({"model_version": version_document(made)})


@router.get("/model-versions/get")
async def get_version(request: Request, app: Ground, actor: ModelReader) -> Response:
    body = await read(request, _Registered)
    shown = await app.tracked_models.version(actor, body.name, needed(body.version, "version"))
    return answer({"model_version": version_document(shown)})


@router.get("/model-versions/search")
async def search_versions(request: Request, app: Ground, actor: ModelReader) -> Response:
    found, token = await app.tracked_search.versions(actor, (await read(request, _SearchNames)).search())
    return answer({"model_versions": [version_document(each) for each in found], "next_page_token": token})


@router.get("/model-versions/get-download-uri")
async def download_uri(request: Request, app: Ground, actor: ModelReader) -> Response:
    """Where a version's own files are read from, if it still is what was signed."""
    body = await read(request, _Registered)
    shown = await app.tracked_models.version(actor, body.name, needed(body.version, "version"))
    await app.tracked_models.files(actor, body.name, str(shown.version.number))
    return answer({"artifact_uri": _uri(shown)})


@router.patch("/model-versions/update")
async def update_version(request: Request, app: Ground, actor: ModelWriter) -> Response:
    body = await read(request, _Registered)
    shown = await app.tracked_models.describe_version(actor, body.name, body.version, body.description)
    return answer({"model_version": version_document(shown)})


@router.post("/model-versions/transition-stage")
async def transition_stage(request: Request, app: Ground, actor: ModelWriter) -> Response:
    """A stage is an alias: `Production` moves `production`, through its gates."""
    body = await read(request, _Registered)
    archive = body.archive_existing_versions
    shown = await app.tracked_models.set_stage(actor, body.name, body.version, body.stage, archive_existing=archive)
    return answer({"model_version": version_document(shown)})


@router.post("/model-versions/set-tag")
async def tag_version(request: Request, app: Ground, actor: ModelWriter) -> Response:
    body = await read(request, _Registered)
    await app.tracked_models.tag_version(actor, body.name, body.version, body.key, body.value)
    return answer({})


@router.delete("/model-versions/delete-tag")
async def untag_version(request: Request, app: Ground, actor: ModelWriter) -> Response:
    body = await read(request, _Registered)
    await app.tracked_models.tag_version(actor, body.name, body.version, body.key, None)
    return answer({})


@router.delete("/model-versions/delete")
async def delete_version(request: Request, app: Ground, actor: ModelWriter) -> Response:
    """Refused: versions are archived, never deleted."""
    body = await read(request, _Registered)
    shown = await app.tracked_models.version(actor, body.name, body.version)
    raise Refusal([_fixed(shown.version.id, f"archive it: ground models archive {shown.version.id}")])


def _fixed(have: str, hint: str) -> Refused:
    return Refused(rule="versions-stay", need="something that was not registered", have=have, hint=hint)


# ---------------------------------------------------------------- everything else


@rest.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
async def no_endpoint(path: str, actor: Annotated[Actor, requires_any_key()]) -> Response:
    """What MLflow has and this server has not: traces, prompts, webhooks and the like. Must be the last route."""
    raise NoEndpoint(f"there is no /{path[:200]} here", "docs/guides/tracking.md lists what is served")
