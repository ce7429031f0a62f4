"""Endpoints: list, look at, stop. They are deployed by applying a plan."""

from __future__ import annotations

from typing import Annotated

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.endpoint import Endpoint
from groundplane.identity import Actor, Permission
from groundplane.wire import ReasonRequest

router = Router(prefix="/v1/endpoints", tags=["endpoints"])
Reader = Annotated[Actor, requires(Permission.ENDPOINTS_READ)]


@router.get("")
async def list_endpoints(app: Ground, actor: Reader, project: str | None = None) -> list[Endpoint]:
    """By name."""
    endpoints: list[Endpoint] = await app.endpoints.endpoints(actor, project)
    return endpoints


@router.get("/{name}")
async def get_endpoint(name: str, app: Ground, actor: Reader) -> Endpoint:
    """One endpoint."""
    endpoint: Endpoint = await app.endpoints.get(actor, name)
    return endpoint


@router.post("/{name}/stop")
async def stop_endpoint(
    name: str, body: ReasonRequest, app: Ground, actor: Annotated[Actor, requires(Permission.ENDPOINTS_WRITE)]
) -> Endpoint:
    """Takes the name out of the gateway and ends its replica. Twice is the same as once."""
    endpoint: Endpoint = await app.endpoints.stop(actor, name, body.reason)
    return endpoint
