"""Storage as a page: artifacts, what each project keeps, and what the store saves by sharing pieces."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import PageRoute, page
from groundplane.identity import Actor, Permission

SHOWN = 200


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/storage")

    @router.get("")
    async def storage(
        request: Request, actor: Annotated[Actor, requires(Permission.MODELS_READ)], ground: Ground
    ) -> Response:
        usage, projects = await ground.artifacts.usage(actor)
        found = await ground.artifacts.artifacts(actor, limit=SHOWN)
        return page(
            request,
            "storage.html",
            actor,
            usage=usage,
            projects=projects,
            artifacts=found,
            arriving=await ground.artifacts.arriving.arrivals(actor),
            shown_max=SHOWN,
            damaged=ground.artifacts.damaged_spots,
        )

    return router
