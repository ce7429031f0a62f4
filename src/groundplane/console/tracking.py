"""Experiments as pages: the list, an experiment's runs, a run with its metrics drawn, runs side by side."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from fastapi import Query, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.charts import Chart, chart
from groundplane.console.web import PageRoute, page
from groundplane.domain.tracking.views import compared, view_of
from groundplane.errors import InvalidInput
from groundplane.identity import Actor, Permission
from groundplane.services.logged_models import RUNS
from groundplane.services.tracking import Search, Told

Reader = Annotated[Actor, requires(Permission.TRACKING_READ)]
LIST_LIMIT = 200
COLUMNS_MAX = 6
CHARTS_MAX = 24
POINTS, POINTS_OF_MANY = 300, 150
"""Of a line alone in its picture, and of each of several: a picture is 640 wide."""
COMPARED_MAX = 12
FILES_SHOWN = 200


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/experiments")

    @router.get("")
    async def experiments(request: Request, actor: Reader, ground: Ground) -> Response:
        return page(request, "experiments.html", actor, experiments=await ground.tracking.experiments(actor))

    @router.get("/compare")
    async def compare(
        request: Request, actor: Reader, ground: Ground, run: Annotated[list[str] | None, Query()] = None
    ) -> Response:
        told = [await ground.tracking.run(actor, each) for each in dict.fromkeys(run or ())]
        if not 2 <= len(told) <= COMPARED_MAX:
            raise InvalidInput(
                f"{len(told)} runs are chosen; 2 to {COMPARED_MAX} can be compared", "tick them on an experiment's page"
            )
        return page(
            request,
            "tracked_compare.html",
            actor,
            comparison=compared([view_of(each.run, each.latest, each.points) for each in told]),
            charts=await charts_of(ground, actor, told),
        )

    @router.get("/{experiment_id}")
    async def experiment(
        request: Request, experiment_id: str, actor: Reader, ground: Ground, filter: str = "", order: str = ""
    ) -> Response:
        found = await ground.tracking.experiment(actor, experiment_id)
        wrong, told = None, []
        try:
            search = Search(filter=filter, order=(order,) if order else (), limit=LIST_LIMIT)
            told, _ = await ground.tracking.search_runs(actor, [found.id], search)
        except InvalidInput as error:
            wrong = error
        return page(
            request,
            "experiment.html",
            actor,
            experiment=found,
            runs=[view_of(each.run, each.latest, each.points) for each in told],
            metrics=_common([each.latest for each in told]),
            params=_common([each.run.params for each in told]),
            filter=filter,
            order=order,
            wrong=wrong,
            limit=LIST_LIMIT,
        )

    @router.get("/runs/{run_id}")
    async def run(request: Request, run_id: str, actor: Reader, ground: Ground) -> Response:
        told = await ground.tracking.run(actor, run_id)
        files = await ground.logged_models.files(actor, RUNS, run_id)
        return page(
            request,
            "tracked.html",
            actor,
            view=view_of(told.run, told.latest, told.points),
            experiment=await ground.tracking.experiment(actor, told.run.experiment_id),
            charts=await charts_of(ground, actor, [told]),
            files=files[:FILES_SHOWN],
            more_files=max(0, len(files) - FILES_SHOWN),
        )

    return router


async def charts_of(ground: Any, actor: Actor, told: list[Told]) -> list[Chart]:
    """A picture of each metric that has two points in some run; with one line a run."""
    found, names = [], Counter(each.run.name for each in told)
    keys = _common([each.latest for each in told], CHARTS_MAX)
    most = POINTS if len(told) == 1 else POINTS_OF_MANY
    histories = await ground.tracking.histories(actor, [each.run.id for each in told], keys, most)
    for key in keys:
        series = {}
        for each in told:
            if points := histories[key].get(each.run.id):
                label = each.run.name if names[each.run.name] == 1 else f"{each.run.name} {each.run.id}"
                series[label] = [(float(point.step), point.value) for point in points]
        if any(len(points) > 1 for points in series.values()) and (drawn := chart(key, series)) is not None:
            found.append(drawn)
    return found


def _common(columns: list[Any], most: int = COLUMNS_MAX) -> list[str]:
    """The names that most of them have, first the ones that all have."""
    counts: dict[str, int] = {}
    for column in columns:
        for name in column:
            counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: (-counts[name], name))[:most]
