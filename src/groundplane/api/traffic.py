"""Requests through the gateways as they end, and where keys stand against their limits."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.serving.traffic import Filter, Live, Tail
from groundplane.identity import Actor, Permission
from groundplane.services.traffic import WAIT_MAX_S

router = Router(prefix="/v1/traffic", tags=["traffic"])
Reader = Annotated[Actor, requires(Permission.TRAFFIC_READ)]


@router.get("/requests")
async def tail_requests(
    app: Ground,
    actor: Reader,
    project: str = "",
    model: str = "",
    key: str = "",
    status: Annotated[str, Query(max_length=20, description="One, like 429, or a class, like 5xx.")] = "",
    slow_ms: Annotated[float, Query(ge=0)] = 0.0,
    after: Annotated[int | None, Query(ge=0)] = None,
    wait_s: Annotated[float, Query(ge=0, le=WAIT_MAX_S)] = 0.0,
) -> Tail:
    """Requests that ended since `after` (from now on when it is left out). Lossy: gateways never wait for readers."""
    wanted = Filter(project=project, model=model, key_id=key, status=status, slow_ms=slow_ms)
    tail: Tail = await app.traffic.tail(actor, wanted, after=after, wait_s=wait_s)
    return tail


@router.get("/live")
async def show_live_traffic(app: Ground, actor: Reader, project: str | None = None) -> Live:
    """Requests and tokens of the last minute by key and model, limits with what is used, the newest refusals."""
    live: Live = await app.traffic.live(actor, project)
    return live
