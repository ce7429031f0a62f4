"""The machines of every pool as a page, with a form that keeps new work away from one."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import HOME, PageRoute, back, page
from groundplane.identity import Actor, Permission

Keeper = Annotated[Actor, requires(Permission.NODES_WRITE)]
Reason = Annotated[str, Form(max_length=500)]


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/nodes")

    @router.get("")
    async def nodes(
        request: Request, actor: Annotated[Actor, requires(Permission.SYSTEM_READ)], ground: Ground
    ) -> Response:
        return page(
            request,
            "nodes.html",
            actor,
            pools=await ground.nodes.pools(actor),
            nodes=await ground.nodes.nodes(actor),
            caches=await ground.staging.caches(),
            may_cordon=actor.may(Permission.NODES_WRITE),
        )

    @router.post("/reload")
    async def reload(actor: Keeper, ground: Ground, reason: Reason = "") -> Response:
        await ground.pools.reload(actor, reason)
        return back(f"{HOME}/nodes")

    @router.post("/{pool}/{node}/cordon")
    async def cordon(pool: str, node: str, actor: Keeper, ground: Ground, reason: Reason = "") -> Response:
        await ground.nodes.cordon(actor, pool, node, reason)
        return back(f"{HOME}/nodes")

    @router.post("/{pool}/{node}/uncordon")
    async def uncordon(pool: str, node: str, actor: Keeper, ground: Ground, reason: Reason = "") -> Response:
        await ground.nodes.uncordon(actor, pool, node, reason)
        return back(f"{HOME}/nodes")

    return router
