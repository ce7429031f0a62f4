"""Evaluations as pages: scores with intervals, the wrong answers first, two beside each other; and batches."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import PageRoute, page
from groundplane.identity import Actor, Permission

Reader = Annotated[Actor, requires(Permission.MODELS_READ)]
Word = Annotated[str, Query(max_length=200)]
SHOWN = 200
ITEMS_SHOWN = 50


def routes() -> Router:
    router = Router(route_class=PageRoute)

    @router.get("/evaluations")
    async def evaluations(
        request: Request, actor: Reader, ground: Ground, name: Word = "", version: Word = ""
    ) -> Response:
        found = await ground.evaluations.evaluations(actor, name=name, version=version, limit=SHOWN)
        return page(request, "evaluations.html", actor, evaluations=found, name=name, version=version)

    @router.get("/evaluations/compare")
    async def compare(request: Request, actor: Reader, ground: Ground, before: Word = "", after: Word = "") -> Response:
        found = await ground.evaluations.compare(actor, before, after)
        return page(request, "evaluations_compared.html", actor, compared=found, shown=ITEMS_SHOWN)

    @router.get("/evaluations/{evaluation_id}")
    async def evaluation(
        request: Request, evaluation_id: str, actor: Reader, ground: Ground, metric: Word = ""
    ) -> Response:
        found = await ground.evaluations.get(actor, evaluation_id)
        items = await ground.evaluations.items(actor, evaluation_id, metric=metric, limit=ITEMS_SHOWN)
        earlier = await ground.evaluations.evaluations(actor, project=found.project, name=found.name, limit=SHOWN)
        return page(
            request,
            "evaluation.html",
            actor,
            evaluation=found,
            items=items,
            metric=metric,
            shown=ITEMS_SHOWN,
            others=[each for each in earlier if each.id != found.id],
        )

    @router.get("/batches")
    async def batches(request: Request, actor: Reader, ground: Ground) -> Response:
        runs = [run for run in await ground.runs.runs(actor, status="active", limit=1000) if run.spec.batch]
        return page(
            request,
            "batches.html",
            actor,
            batches=await ground.batches.batches(actor, limit=SHOWN),
            under_way=[await ground.batches.progress(actor, run.id) for run in runs],
        )

    return router
