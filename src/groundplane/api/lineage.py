"""Lineage: what jobs outside say of our versions, what a version was made from, and how far our receiver was told."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import Query, Request

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.lineage import LineageStanding, LineageView, OutsideEvent, Received
from groundplane.domain.provenance.openlineage import EVENT_BYTES_MAX
from groundplane.errors import InvalidInput, TooLarge
from groundplane.identity import Actor, Permission

router = Router(prefix="/v1/lineage", tags=["lineage"])
outside = Router(prefix="/api/v1", tags=["lineage"])
Reader = Annotated[Actor, requires(Permission.MODELS_READ)]
Teller = Annotated[Actor, requires(Permission.TRACKING_WRITE)]
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}


@outside.post("/lineage", status_code=201, openapi_extra=_BODY)
async def receive_lineage(request: Request, app: Ground, actor: Teller) -> Received:
    """An OpenLineage event, at the path that its clients know. It becomes lineage from outside, unverified."""
    body = await request.body()
    if len(body) > EVENT_BYTES_MAX:
        raise TooLarge(f"the event has {len(body):,} bytes; {EVENT_BYTES_MAX:,} is the most", "leave facets out")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the event is no JSON: {error}", "send one OpenLineage event") from None
    received: Received = await app.lineage.receive(actor, document)
    return received


@router.get("/events")
async def list_outside_events(
    app: Ground, actor: Reader, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> list[OutsideEvent]:
    """What jobs outside have told, newest first."""
    found: list[OutsideEvent] = await app.lineage.heard(actor, limit=limit)
    return found


@router.get("/standing")
async def get_lineage_standing(
    app: Ground, actor: Annotated[Actor, requires(Permission.SYSTEM_READ)]
) -> LineageStanding:
    """How far the receiver of our own lineage was told."""
    standing: LineageStanding = await app.lineage.standing()
    return standing


@router.get("/nodes/{node}")
async def get_lineage_view(node: str, app: Ground, actor: Reader) -> LineageView:
    """All that `model:NAME@3` or `dataset:NAME@1` was made from and all that was made from it."""
    view: LineageView = await app.lineage.view(actor, node)
    return view
