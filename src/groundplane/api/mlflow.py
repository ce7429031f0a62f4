"""Tracking for MLflow clients: set `MLFLOW_TRACKING_URI` to this server's address with `/mlflow` behind it.

`MLFLOW_TRACKING_TOKEN` is a key of this installation (or `MLFLOW_TRACKING_PASSWORD`, with any user's name).
Source: MLflow REST API 2.0 as its client 3.17 speaks it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import Request
from starlette.responses import RedirectResponse, Response

from groundplane.api.access import Ground, requires, requires_any_key
from groundplane.api.mlflow_wire import PREFIX, MlflowRoute, Number, Pair, answer, mapping, needed, number, pairs, read
from groundplane.api.mlflow_wire import told_number as told
from groundplane.api.routing import Router
from groundplane.domain.tracking.filter import page
from groundplane.domain.tracking.records import (
    DatasetUse,
    Experiment,
    Measured,
    ModelMade,
    Point,
    Stage,
    TrackedRun,
    TrackedState,
    thinned,
)
from groundplane.domain.tracking.search import millis
from groundplane.errors import InvalidInput
from groundplane.identity import Actor, Permission
from groundplane.services.tracking import Search, Told

router = Router(prefix=f"{PREFIX}/api/2.0/mlflow", tags=["mlflow"], route_class=MlflowRoute, include_in_schema=False)
about = Router(prefix=PREFIX, tags=["mlflow"], route_class=MlflowRoute, include_in_schema=False)
Reader = Annotated[Actor, requires(Permission.TRACKING_READ)]
Writer = Annotated[Actor, requires(Permission.TRACKING_WRITE)]
SPOKEN = "3.17.2"
"""The client version whose wire this is."""
HISTORY_MAX = 25_000
_STAGES = {
    "ACTIVE_ONLY": (Stage.ACTIVE,),
    "DELETED_ONLY": (Stage.DELETED,),
    "ALL": (Stage.ACTIVE, Stage.DELETED),
    "1": (Stage.ACTIVE,),
    "2": (Stage.DELETED,),
    "3": (Stage.ACTIVE, Stage.DELETED),
}
_STATES = {str(number): state for number, state in enumerate(TrackedState, 1)} | {
    state: state for state in TrackedState
}


# ---------------------------------------------------------------- about


@about.get("/api/3.0/mlflow/server-info")
async def server_info(actor: Annotated[Actor, requires_any_key()]) -> Response:
    """What this server can do beside the plain routes: files go through it, in one piece."""
    return answer(
        {
            "store_type": "SqlStore",
            "workspaces_enabled": False,
            "trace_archival_enabled": False,
            "multipart_uploads_enabled": False,
            "multipart_downloads_enabled": False,
        }
    )


@about.get("/")
async def links() -> Response:
    """Where the links that clients print lead: to the console's pages."""
    return RedirectResponse("/console/experiments", status_code=303)


@about.get("/version")
async def version(actor: Annotated[Actor, requires_any_key()]) -> Response:
    return Response(SPOKEN, media_type="text/plain")


# ---------------------------------------------------------------- experiments


class _Experiment(msgspec.Struct):
    experiment_id: str = ""
    experiment_name: str = ""
    name: str = ""
    new_name: str = ""
    artifact_location: str = ""
    key: str = ""
    value: str = ""
    tags: list[Pair] = []


class _SearchExperiments(msgspec.Struct):
    max_results: int = 1_000
    page_token: str = ""
    filter: str = ""
    order_by: list[str] = []
    view_type: str = "ACTIVE_ONLY"


def experiment_document(found: Experiment) -> dict[str, object]:
    return {
        "experiment_id": found.id,
        "name": found.name,
        "artifact_location": f"mlflow-artifacts:/experiments/{found.id}",
        "lifecycle_stage": found.stage.value,
        "creation_time": millis(found.created_at),
        "last_update_time": millis(found.updated_at),
        "tags": pairs(found.tags),
    }


@router.post("/experiments/create")
async def create_experiment(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _Experiment)
    if body.artifact_location:
        raise InvalidInput(
            f"files are kept in this installation's artifact store, not at {body.artifact_location[:80]!r}",
            "leave artifact_location out",
        )
    made: Experiment = await app.tracking.create_experiment(actor, needed(body.name, "name"), mapping(body.tags))
    return answer({"experiment_id": made.id})


@router.get("/experiments/get")
async def get_experiment(request: Request, app: Ground, actor: Reader) -> Response:
    body = await read(request, _Experiment)
    found = await app.tracking.experiment(actor, needed(body.experiment_id, "experiment_id"))
    return answer({"experiment": experiment_document(found)})


@router.get("/experiments/get-by-name")
async def get_experiment_by_name(request: Request, app: Ground, actor: Reader) -> Response:
    body = await read(request, _Experiment)
    found = await app.tracking.experiment_named(actor, needed(body.experiment_name, "experiment_name"))
    return answer({"experiment": experiment_document(found)})


@router.post("/experiments/search")
async def search_experiments(request: Request, app: Ground, actor: Reader) -> Response:
    body = await read(request, _SearchExperiments)
    found, token = await app.tracking.search_experiments(actor, _search(body, body.view_type))
    return answer({"experiments": [experiment_document(each) for each in found], "next_page_token": token})


@router.post("/experiments/update")
async def rename_experiment(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _Experiment)
    await app.tracking.rename_experiment(actor, body.experiment_id, needed(body.new_name, "new_name"))
    return answer({})


@router.post("/experiments/delete")
async def delete_experiment(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _Experiment)
    await app.tracking.set_experiment_stage(actor, body.experiment_id, Stage.DELETED)
    return answer({})


@router.post("/experiments/restore")
async def restore_experiment(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _Experiment)
    await app.tracking.set_experiment_stage(actor, body.experiment_id, Stage.ACTIVE)
    return answer({})


@router.post("/experiments/set-experiment-tag")
async def tag_experiment(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _Experiment)
    await app.tracking.tag_experiment(actor, body.experiment_id, body.key, body.value)
    return answer({})


@router.post("/experiments/delete-experiment-tag")
async def untag_experiment(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _Experiment)
    await app.tracking.tag_experiment(actor, body.experiment_id, body.key, None)
    return answer({})


# ---------------------------------------------------------------- runs


class _Run(msgspec.Struct):
    run_id: str = ""
    run_uuid: str = ""
    experiment_id: str = ""
    user_id: str = ""
    run_name: str = ""
    start_time: int = 0
    end_time: int | None = None
    status: str = ""
    tags: list[Pair] = []
    key: str = ""
    value: str = ""

    @property
    def id(self) -> str:
        return needed(self.run_id or self.run_uuid, "run_id")


class _SearchRuns(msgspec.Struct):
    experiment_ids: list[str] = []
    filter: str = ""
    run_view_type: str = "ACTIVE_ONLY"
    max_results: int = 1_000
    order_by: list[str] = []
    page_token: str = ""


def run_document(found: Told) -> dict[str, object]:
    run = found.run
    return {
        "info": info_document(run),
        "data": {
            "metrics": [_metric(key, point) for key, point in found.latest.items()],
            "params": pairs(run.params),
            "tags": pairs(run.tags),
        },
        "inputs": {
            "dataset_inputs": [
                {
                    "tags": pairs(each.tags),
                    "dataset": {
                        name: getattr(each, name)
                        for name in ("name", "digest", "source_type", "source", "schema", "profile")
                        if getattr(each, name)
                    },
                }
                for each in run.datasets
            ],
            "model_inputs": [{"model_id": each} for each in run.model_inputs],
        },
        "outputs": {"model_outputs": [{"model_id": each.model_id, "step": each.step} for each in run.model_outputs]},
    }


def info_document(run: TrackedRun) -> dict[str, object]:
    found: dict[str, object] = {
        "run_id": run.id,
        "run_uuid": run.id,
        "run_name": run.name,
        "experiment_id": run.experiment_id,
        "user_id": run.user,
        "status": run.state.value,
        "start_time": run.started_ms,
        "artifact_uri": f"mlflow-artifacts:/runs/{run.id}",
        "lifecycle_stage": run.stage.value,
    }
    return found if run.ended_ms is None else found | {"end_time": run.ended_ms}


def _metric(key: str, point: Point) -> dict[str, object]:
    return {"key": key, "value": told(point.value), "timestamp": point.timestamp_ms, "step": point.step}


@router.post("/runs/create")
async def create_run(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _Run)
    made: Told = await app.tracking.create_run(
        actor,
        needed(body.experiment_id, "experiment_id"),
        name=body.run_name,
        user=body.user_id,
        started_ms=body.start_time,
        tags=mapping(body.tags),
    )
    return answer({"run": run_document(made)})


@router.get("/runs/get")
async def get_run(request: Request, app: Ground, actor: Reader) -> Response:
    body = await read(request, _Run)
    return answer({"run": run_document(await app.tracking.run(actor, body.id))})


@router.post("/runs/update")
async def update_run(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _Run)
    if body.status and body.status not in _STATES:
        raise InvalidInput(f"{body.status[:40]!r} is no status of a run", f"use one of {', '.join(TrackedState)}")
    state = _STATES[body.status] if body.status else None
    run = await app.tracking.update_run(actor, body.id, state=state, ended_ms=body.end_time, name=body.run_name)
    return answer({"run_info": info_document(run)})


@router.post("/runs/delete")
async def delete_run(request: Request, app: Ground, actor: Writer) -> Response:
    await app.tracking.set_run_stage(actor, (await read(request, _Run)).id, Stage.DELETED)
    return answer({})


@router.post("/runs/restore")
async def restore_run(request: Request, app: Ground, actor: Writer) -> Response:
    await app.tracking.set_run_stage(actor, (await read(request, _Run)).id, Stage.ACTIVE)
    return answer({})


@router.post("/runs/search")
async def search_runs(request: Request, app: Ground, actor: Reader) -> Response:
    body = await read(request, _SearchRuns)
    found, token = await app.tracking.search_runs(actor, body.experiment_ids, _search(body, body.run_view_type))
    return answer({"runs": [run_document(each) for each in found], "next_page_token": token})


# ---------------------------------------------------------------- what a run tells


class _Metric(msgspec.Struct):
    key: str = ""
    value: Number = 0.0
    timestamp: int = 0
    step: int = 0
    model_id: str = ""
    dataset_name: str = ""
    dataset_digest: str = ""

    def measured(self) -> Measured:
        return Measured(
            key=self.key,
            point=Point(value=number(self.value, self.key), timestamp_ms=self.timestamp, step=self.step),
            model_id=self.model_id,
            dataset_name=self.dataset_name,
            dataset_digest=self.dataset_digest,
        )


class _LogMetric(_Metric):
    run_id: str = ""
    run_uuid: str = ""


class _LogBatch(msgspec.Struct):
    run_id: str = ""
    metrics: list[_Metric] = []
    params: list[Pair] = []
    tags: list[Pair] = []


class _Dataset(msgspec.Struct):
    name: str = ""
    digest: str = ""
    source_type: str = ""
    source: str = ""
    schema: str = ""
    profile: str = ""


class _DatasetInput(msgspec.Struct):
    dataset: _Dataset
    tags: list[Pair] = []


class _Model(msgspec.Struct):
    model_id: str = ""
    step: int = 0


class _LogInputs(msgspec.Struct):
    run_id: str = ""
    datasets: list[_DatasetInput] = []
    models: list[_Model] = []


class _LogModel(msgspec.Struct):
    run_id: str = ""
    model_json: str = ""


@router.post("/runs/log-metric")
async def log_metric(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _LogMetric)
    await app.tracking.log(actor, needed(body.run_id or body.run_uuid, "run_id"), metrics=(body.measured(),))
    return answer({})


@router.post("/runs/log-parameter")
async def log_parameter(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _Run)
    await app.tracking.log(actor, body.id, params={body.key: body.value})
    return answer({})


@router.post("/runs/log-batch")
async def log_batch(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _LogBatch)
    params = mapping(body.params)
    if any(params[each.key] != each.value for each in body.params):
        raise InvalidInput("one parameter has two values in one call", "parameters are written once")
    metrics = [each.measured() for each in body.metrics]
    await app.tracking.log(
        actor, needed(body.run_id, "run_id"), metrics=metrics, params=params, tags=mapping(body.tags)
    )
    return answer({})


@router.post("/runs/set-tag")
async def set_tag(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _Run)
    await app.tracking.log(actor, body.id, tags={body.key: body.value})
    return answer({})


@router.post("/runs/delete-tag")
async def delete_tag(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _Run)
    await app.tracking.delete_tag(actor, body.id, body.key)
    return answer({})


@router.post("/runs/log-inputs")
async def log_inputs(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _LogInputs)
    datasets = [
        DatasetUse(tags=mapping(each.tags), **{n: getattr(each.dataset, n) for n in each.dataset.__struct_fields__})
        for each in body.datasets
    ]
    await app.tracking.log_inputs(actor, needed(body.run_id, "run_id"), datasets, [m.model_id for m in body.models])
    return answer({})


@router.post("/runs/outputs")
async def log_outputs(request: Request, app: Ground, actor: Writer) -> Response:
    body = await read(request, _LogInputs)
    made = [ModelMade(model_id=each.model_id, step=each.step) for each in body.models]
    await app.tracking.log_outputs(actor, needed(body.run_id, "run_id"), made)
    return answer({})


@router.post("/runs/log-model")
async def log_model(request: Request, app: Ground, actor: Writer) -> Response:
    """What clients before version 3 say of a model they have logged: kept as the tag they read it back from."""
    body = await read(request, _LogModel)
    run: Told = await app.tracking.run(actor, needed(body.run_id, "run_id"))
    try:
        model = msgspec.json.decode(body.model_json)
        known = msgspec.json.decode(run.run.tags.get("mlflow.log-model.history", "[]"))
    except msgspec.DecodeError as error:
        raise InvalidInput(f"model_json is no JSON: {error}") from None
    history = msgspec.json.encode([*known, model]).decode()
    await app.tracking.log(actor, body.run_id, tags={"mlflow.log-model.history": history})
    return answer({})


# ---------------------------------------------------------------- histories


class _History(msgspec.Struct):
    run_id: str = ""
    run_uuid: str = ""
    run_ids: list[str] = []
    metric_key: str = ""
    max_results: int = HISTORY_MAX
    page_token: str = ""
    start_step: int | None = None
    end_step: int | None = None


@router.get("/metrics/get-history")
async def metric_history(request: Request, app: Ground, actor: Reader) -> Response:
    body = await read(request, _History)
    run_id = needed(body.run_id or body.run_uuid, "run_id")
    points = await app.tracking.history(actor, run_id, needed(body.metric_key, "metric_key"))
    # Clients that ask for no pages read none: they get all of it.
    asked = "max_results" in request.query_params or body.page_token
    limit = body.max_results if asked else max(1, len(points))
    found, token = page(points, body.page_token, limit, (run_id, body.metric_key)) if points else ([], "")
    return answer({"metrics": [_metric(body.metric_key, each) for each in found], "next_page_token": token})


@router.get("/metrics/get-history-bulk")
async def metric_history_bulk(request: Request, app: Ground, actor: Reader) -> Response:
    body = await read(request, _History)
    ids = request.query_params.getlist("run_id") or body.run_ids
    return answer({"metrics": await _of_runs(app, actor, body, ids)})


@router.get("/metrics/get-history-bulk-interval")
async def metric_history_interval(request: Request, app: Ground, actor: Reader) -> Response:
    """At most so many points of each run between two steps, lows and highs among them."""
    body = await read(request, _History)
    return answer({"metrics": await _of_runs(app, actor, body, body.run_ids, thin=True)})


async def _of_runs(
    app: Ground, actor: Actor, body: _History, run_ids: list[str], *, thin: bool = False
) -> list[dict[str, object]]:
    if not 1 <= len(run_ids) <= 100:
        raise InvalidInput(f"{len(run_ids)} runs are asked for; 1 to 100 can be at once")
    key = needed(body.metric_key, "metric_key")
    low = body.start_step if body.start_step is not None else -(2**63)
    high = body.end_step if body.end_step is not None else 2**63
    found: list[dict[str, object]] = []
    for run_id in run_ids:
        points = [each for each in await app.tracking.history(actor, run_id, key) if low <= each.step <= high]
        picked = thinned(points, body.max_results) if thin else points[: body.max_results]
        found += [_metric(key, each) | {"run_id": run_id} for each in picked]
    return found


def _search(body: _SearchExperiments | _SearchRuns, view: str) -> Search:
    if view not in _STAGES:
        raise InvalidInput(f"{view[:40]!r} is no view", "use ACTIVE_ONLY, DELETED_ONLY or ALL")
    return Search(
        filter=body.filter,
        order=tuple(body.order_by),
        limit=body.max_results,
        token=body.page_token,
        stages=_STAGES[view],
    )
