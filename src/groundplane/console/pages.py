"""The console's routes, put together: one module per resource, the same words as on every floor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from groundplane.api.access import requires_any_key
from groundplane.api.routing import Router
from groundplane.console import (
    access,
    approvals,
    artifacts,
    audit,
    costs,
    datasets,
    dev,
    endpoints,
    evaluations,
    lineage,
    models,
    nodes,
    overview,
    plans,
    policy,
    queue,
    recon,
    registry,
    requests,
    routes,
    runs,
    session,
    sizing,
    tracking,
    traffic,
)
from groundplane.console.web import HOME, PageRoute
from groundplane.errors import NotFound
from groundplane.identity import Actor

STATIC = {
    "ground.css": "text/css; charset=utf-8",
    "ground.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def router() -> Router:
    """Everything under /console, and / which leads there. The application has `state.ground` and `state.sessions`."""
    pages = Router(route_class=PageRoute, include_in_schema=False)

    @pages.get("/")
    async def root() -> Response:
        return RedirectResponse(HOME, status_code=303)

    @pages.get(f"{HOME}/static/{{name}}")
    async def static(name: str) -> Response:
        if name not in STATIC:
            raise NotFound(f"no file {name} belongs to the console")
        path = Path(__file__).parent / "static" / name
        # The pages ask for ?v=VERSION, so a new release is a new address.
        return FileResponse(path, media_type=STATIC[name], headers={"Cache-Control": "private, max-age=3600"})

    parts = (
        session,
        overview,
        queue,
        dev,
        recon,
        nodes,
        requests,
        plans,
        approvals,
        runs,
        tracking,
        policy,
        models,
        registry,
        evaluations,
        datasets,
        lineage,
        artifacts,
        endpoints,
        routes,
        costs,
        sizing,
        access,
        traffic,
        audit,
    )
    for part in parts:
        pages.take(part.routes(), HOME)

    @pages.get(f"{HOME}/{{rest:path}}")
    async def nowhere(request: Request, rest: str, actor: Annotated[Actor, requires_any_key()]) -> Response:
        if not rest or rest.endswith("/"):
            return RedirectResponse(f"{HOME}/{rest}".rstrip("/"), status_code=308)
        raise NotFound(f"there is no page {request.url.path}", "start at the overview")

    return pages
