"""Dev environments as a page: where they run, how to attach, who is attached, the idle clock, and stopping one."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import HOME, PageRoute, back, page
from groundplane.domain.dev import idle_words
from groundplane.identity import Actor, Permission


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/dev")

    @router.get("")
    async def environments(
        request: Request, actor: Annotated[Actor, requires(Permission.RUNS_READ)], ground: Ground
    ) -> Response:
        uses = await ground.dev.environments(actor)
        return page(
            request,
            "dev.html",
            actor,
            uses=[(use, idle_words(use)) for use in uses],
            may_stop=actor.may(Permission.RUNS_WRITE),
        )

    @router.post("/{run_id}/stop")
    async def stop(
        run_id: str,
        actor: Annotated[Actor, requires(Permission.RUNS_WRITE)],
        ground: Ground,
        reason: Annotated[str, Form()] = "",
    ) -> Response:
        await ground.runs.stop(actor, run_id, reason)
        return back(f"{HOME}/dev")

    return router
