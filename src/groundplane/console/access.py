"""Keys and exposures as a page: who may call what, and what is reachable from outside."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.console.web import HOME, PageRoute, back, page
from groundplane.identity import Actor, Permission


def routes() -> APIRouter:
    router = APIRouter(route_class=PageRoute, prefix="/keys")

    @router.get("")
    async def keys(
        request: Request, actor: Annotated[Actor, requires(Permission.KEYS_READ)], ground: Ground
    ) -> Response:
        return page(
            request,
            "keys.html",
            actor,
            keys=await ground.access.keys(actor),
            exposures=await ground.access.exposures(actor),
            may_revoke=actor.may(Permission.KEYS_WRITE),
        )

    @router.post("/{key_id}/revoke")
    async def revoke(
        key_id: str,
        actor: Annotated[Actor, requires(Permission.KEYS_WRITE)],
        ground: Ground,
        reason: Annotated[str, Form()] = "",
    ) -> Response:
        await ground.access.revoke_key(actor, key_id, reason)
        return back(f"{HOME}/keys")

    return router
