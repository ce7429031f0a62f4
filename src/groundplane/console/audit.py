"""The audit trail as a page: newest first, filtered by object, checked on request."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import PageRoute, page
from groundplane.identity import Actor, Permission

Reader = Annotated[Actor, requires(Permission.AUDIT_READ)]


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/audit")

    @router.get("")
    async def trail(
        request: Request,
        actor: Reader,
        ground: Ground,
        kind: str = "",
        id: str = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Response:
        return await _page(request, actor, ground, kind=kind, id=id, limit=limit, verdict=None)

    @router.post("/verify")
    async def verify(request: Request, actor: Reader, ground: Ground) -> Response:
        """Walks the whole chain: work, though it changes nothing, hence a form and no link."""
        checked, broken = await ground.audit.verify()
        return await _page(
            request, actor, ground, kind="", id="", limit=100, verdict={"checked": checked, "broken": broken}
        )

    return router


async def _page(
    request: Request, actor: Actor, ground: Any, *, kind: str, id: str, limit: int, verdict: Any
) -> Response:
    events = await ground.audit.events(actor, limit=limit, object_kind=kind or None, object_id=id or None)
    return page(request, "audit.html", actor, events=events, kind=kind, id=id, limit=limit, verdict=verdict)
