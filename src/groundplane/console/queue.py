"""The queue as a page: who holds each node, who waits and until when, quotas, reservations, schedules."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import PageRoute, page
from groundplane.identity import Actor, Permission


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/queue")

    @router.get("")
    async def queue(
        request: Request, actor: Annotated[Actor, requires(Permission.RUNS_READ)], ground: Ground
    ) -> Response:
        return page(
            request,
            "queue.html",
            actor,
            pools=await ground.standing.pools(actor),
            quotas=await ground.quotas.quotas(actor),
            reservations=await ground.quotas.reservations(actor),
            schedules=await ground.schedules.schedules(actor),
        )

    return router
