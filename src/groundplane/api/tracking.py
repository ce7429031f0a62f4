"""Experiments and tracked runs for people and programs of Groundplane; scripts tell of themselves below /mlflow."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.tracking.views import (
    Comparison,
    ExperimentView,
    Series,
    TrackedView,
    compared,
    value_of,
    view_of,
)
from groundplane.errors import InvalidInput
from groundplane.identity import Actor, Permission
from groundplane.services.tracking import Search, Told

router = Router(prefix="/v1", tags=["tracking"])
Reader = Annotated[Actor, requires(Permission.TRACKING_READ)]
COMPARED_MAX = 20
POINTS_MAX = 10_000


@router.get("/experiments")
async def list_experiments(app: Ground, actor: Reader) -> list[ExperimentView]:
    """Every experiment that the caller sees, newest first, with the number of its runs."""
    found = await app.tracking.experiments(actor)
    return [ExperimentView(experiment=experiment, runs=runs) for experiment, runs in found]


@router.get("/experiments/{experiment}/runs")
async def list_tracked_runs(
    experiment: str,
    app: Ground,
    actor: Reader,
    filter: str = "",
    order: Annotated[list[str] | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[TrackedView]:
    """Its runs, newest first unless ordered otherwise. `filter`: `metrics.loss < 0.5 AND params.kind = 'big'`."""
    found = await app.tracking.find(actor, experiment)
    search = Search(filter=filter, order=tuple(order or ()), limit=limit)
    runs, _ = await app.tracking.search_runs(actor, [found.id], search)
    return [_view(each) for each in runs]


@router.get("/tracked-runs/compare")
async def compare_tracked_runs(app: Ground, actor: Reader, run: Annotated[list[str], Query()]) -> Comparison:
    """Runs side by side; `run` is given for each."""
    if not 2 <= len(run) <= COMPARED_MAX:
        raise InvalidInput(f"{len(run)} runs are given; 2 to {COMPARED_MAX} can be compared", "name each with run=ID")
    return compared([_view(await app.tracking.run(actor, each)) for each in run])


@router.get("/tracked-runs/{run_id}")
async def get_tracked_run(run_id: str, app: Ground, actor: Reader) -> TrackedView:
    """A tracked run with the latest value of each metric."""
    return _view(await app.tracking.run(actor, run_id))


@router.get("/tracked-runs/{run_id}/metrics")
async def get_metric_series(
    run_id: str,
    app: Ground,
    actor: Reader,
    key: Annotated[list[str] | None, Query()] = None,
    limit: Annotated[int, Query(ge=2, le=POINTS_MAX)] = 1_000,
) -> list[Series]:
    """The points of the metrics named, or of all; at most so many of each: first, last, lows and highs between."""
    told: Told = await app.tracking.run(actor, run_id)
    names = key or sorted(told.latest)
    found = await app.tracking.histories(actor, [run_id], names, limit)
    return [
        Series(run_id=run_id, key=name, points=tuple(value_of(each) for each in found[name].get(run_id, ())))
        for name in names
    ]


@router.get("/runs/{run_id}/tracked")
async def list_tracked_of_run(run_id: str, app: Ground, actor: Reader) -> list[TrackedView]:
    """What the job of a run has told, its own tracked run first."""
    return [_view(each) for each in await app.tracking.of_job(actor, run_id)]


def _view(told: Told) -> TrackedView:
    return view_of(told.run, told.latest, told.points)
