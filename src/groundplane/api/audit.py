"""The audit trail: read it, prove it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.audit import Event
from groundplane.identity import Actor, Permission
from groundplane.wire.system import AuditVerdict

router = Router(prefix="/v1/audit", tags=["audit"])
Reader = Annotated[Actor, requires(Permission.AUDIT_READ)]


@router.get("/events")
async def list_events(
    app: Ground,
    actor: Reader,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    object_kind: str | None = None,
    object_id: str | None = None,
) -> list[Event]:
    """Newest first: who changed what, before, after, and why."""
    events: list[Event] = await app.audit.events(actor, limit=limit, object_kind=object_kind, object_id=object_id)
    return events


@router.post("/verify")
async def verify_audit(app: Ground, actor: Reader) -> AuditVerdict:
    """Walks the whole chain; `broken` names the first event that was changed, removed or inserted."""
    events, broken = await app.audit.verify()
    return AuditVerdict(events=events, broken=broken)
