"""Routes and hosted providers as a page: which model name leads where, and who is asked."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import HOME, PageRoute, back, page
from groundplane.identity import Actor, Permission


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/routes")

    @router.get("")
    async def all_routes(
        request: Request, actor: Annotated[Actor, requires(Permission.KEYS_READ)], ground: Ground
    ) -> Response:
        return page(
            request,
            "routes.html",
            actor,
            routes=await ground.routes.routes(actor),
            providers=await ground.providers.providers(actor),
            standing=await ground.routes.queue_standing(actor),
            findings=await ground.routes.prompt_findings(actor),
            may_remove=actor.may(Permission.KEYS_WRITE),
        )

    @router.post("/remove")
    async def remove(
        actor: Annotated[Actor, requires(Permission.KEYS_WRITE)],
        ground: Ground,
        project: Annotated[str, Form()],
        model: Annotated[str, Form()],
        reason: Annotated[str, Form()] = "",
    ) -> Response:
        await ground.routes.remove(actor, project, model, reason)
        return back(f"{HOME}/routes")

    return router
