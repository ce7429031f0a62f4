"""Lineage as pages: what came from outside and who is told of ours, and one version with all around it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import PageRoute, page
from groundplane.identity import Actor, Permission

Reader = Annotated[Actor, requires(Permission.MODELS_READ)]


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/lineage")

    @router.get("")
    async def lineage(request: Request, actor: Reader, ground: Ground) -> Response:
        events, standing = await ground.lineage.heard(actor), await ground.lineage.standing()
        return page(request, "lineage.html", actor, events=events, standing=standing)

    @router.get("/{node}")
    async def node(request: Request, node: str, actor: Reader, ground: Ground) -> Response:
        return page(request, "lineage_node.html", actor, view=await ground.lineage.view(actor, node))

    return router
