"""Endpoints as pages: what is served, how to call it, and stopping it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import HOME, PageRoute, back, page
from groundplane.domain.endpoint import EndpointStatus
from groundplane.identity import Actor, Permission

Reader = Annotated[Actor, requires(Permission.ENDPOINTS_READ)]
Writer = Annotated[Actor, requires(Permission.ENDPOINTS_WRITE)]


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/endpoints")

    @router.get("")
    async def endpoints(request: Request, actor: Reader, ground: Ground) -> Response:
        found = await ground.endpoints.endpoints(actor)
        return page(request, "endpoints.html", actor, endpoints=found, gateway_url=ground.settings.gateway_url)

    @router.get("/{name}")
    async def endpoint(request: Request, name: str, actor: Reader, ground: Ground) -> Response:
        found = await ground.endpoints.get(actor, name)
        over = found.status in {EndpointStatus.STOPPED, EndpointStatus.STOPPING}
        return page(
            request,
            "endpoint.html",
            actor,
            endpoint=found,
            gateway_url=ground.settings.gateway_url,
            may_stop=actor.may(Permission.ENDPOINTS_WRITE) and not over,
        )

    @router.post("/{name}/stop")
    async def stop(name: str, actor: Writer, ground: Ground, reason: Annotated[str, Form()] = "") -> Response:
        await ground.endpoints.stop(actor, name, reason)
        return back(f"{HOME}/endpoints/{name}")

    return router
