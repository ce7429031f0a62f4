"""Datasets as pages: every version, and one with its tables, what came of it, and its end."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import PageRoute, page
from groundplane.identity import Actor, Permission

Reader = Annotated[Actor, requires(Permission.MODELS_READ)]
FILES_SHOWN = 200


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/datasets")

    @router.get("")
    async def datasets(request: Request, actor: Reader, ground: Ground) -> Response:
        return page(request, "datasets.html", actor, datasets=await ground.datasets.datasets(actor))

    @router.get("/{ref}")
    async def dataset(request: Request, ref: str, actor: Reader, ground: Ground) -> Response:
        found = await ground.datasets.get(actor, ref)
        return page(
            request,
            "dataset.html",
            actor,
            dataset=found,
            lineage=await ground.datasets.lineage(actor, found.id),
            erasures=await ground.datasets.erasures(actor, found.id),
            files_shown=FILES_SHOWN,
        )

    return router
