"""What every page shares: templates, security headers, and errors that a person can read."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import groundplane
from groundplane.api.access import Requires
from groundplane.api.routing import Route
from groundplane.console import words
from groundplane.errors import AccessError, GroundError, InvalidInput, Unauthenticated
from groundplane.identity import Actor, Permission

HOME = "/console"
LOGIN = f"{HOME}/login"

HEADERS = {
    # Nothing inline and nothing from elsewhere: markup that slips through escaping still runs no script.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # `no-referrer` would make browsers send `Origin: null` with our own forms, and the origin check refuse them.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

# No part begins with a dot or holds a `%`: browsers fold `..` and `%2e%2e` away before they ask.
_OWN_PAGE = re.compile(rf"{HOME}(?:/[\w@-][\w@.-]*)*(?:\?[^\\#]*)?", re.ASCII)

MENUS: tuple[tuple[str, tuple[tuple[str, str, Permission], ...]], ...] = (
    ("", (("Overview", HOME, Permission.SYSTEM_READ),)),
    (
        "Plan",
        (
            ("Requests", f"{HOME}/requests", Permission.REQUESTS_READ),
            ("Recon", f"{HOME}/recon", Permission.SYSTEM_READ),
            ("Sizing", f"{HOME}/sizing", Permission.RUNS_READ),
            ("Plans", f"{HOME}/plans", Permission.RUNS_READ),
            ("Approvals", f"{HOME}/approvals", Permission.RUNS_READ),
        ),
    ),
    (
        "Work",
        (
            ("Runs", f"{HOME}/runs", Permission.RUNS_READ),
            ("Experiments", f"{HOME}/experiments", Permission.TRACKING_READ),
            ("Queue", f"{HOME}/queue", Permission.RUNS_READ),
            ("Dev", f"{HOME}/dev", Permission.RUNS_READ),
            ("Nodes", f"{HOME}/nodes", Permission.SYSTEM_READ),
        ),
    ),
    (
        "Models",
        (
            ("Models", f"{HOME}/models", Permission.MODELS_READ),
            ("Gates", f"{HOME}/gates", Permission.MODELS_READ),
            ("Evaluations", f"{HOME}/evaluations", Permission.MODELS_READ),
            ("Batches", f"{HOME}/batches", Permission.MODELS_READ),
            ("Scans", f"{HOME}/scans", Permission.MODELS_READ),
            ("Datasets", f"{HOME}/datasets", Permission.MODELS_READ),
            ("Lineage", f"{HOME}/lineage", Permission.MODELS_READ),
            ("Storage", f"{HOME}/storage", Permission.MODELS_READ),
        ),
    ),
    (
        "Serve",
        (
            ("Endpoints", f"{HOME}/endpoints", Permission.ENDPOINTS_READ),
            ("Routes", f"{HOME}/routes", Permission.KEYS_READ),
            ("Traffic", f"{HOME}/traffic", Permission.TRAFFIC_READ),
            ("Live requests", f"{HOME}/traffic/requests", Permission.TRAFFIC_READ),
            ("Predictions", f"{HOME}/traffic/predictions", Permission.PREDICTIONS_READ),
        ),
    ),
    ("Money", (("Costs", f"{HOME}/costs", Permission.COSTS_READ),)),
    (
        "Operate",
        (
            ("Policy", f"{HOME}/policy", Permission.POLICY_READ),
            ("Keys", f"{HOME}/keys", Permission.KEYS_READ),
            ("Audit", f"{HOME}/audit", Permission.AUDIT_READ),
        ),
    ),
)
"""Menus of the bar on top, each with its pages. A menu of one page is a link of its own."""
NAVIGATION = tuple(item for _, items in MENUS for item in items)


class PageRoute(Route):
    """A route that answers people: without a session it leads to the sign-in page, and errors are pages."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            response: Response
            try:
                response = await handle(request)
            except Unauthenticated:
                response = RedirectResponse(f"{LOGIN}?next={quote(_here(request))}", status_code=303)
            except RequestValidationError as error:
                field = error.errors()[0]["loc"][-1]
                response = await _error_page(request, InvalidInput(f"the address has a wrong value for {field!r}"))
            except GroundError as error:
                response = await _error_page(request, error)
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return answer


def page(
    request: Request, template: str, actor: Actor | None = None, *, http_status: int = 200, **values: Any
) -> HTMLResponse:
    """Renders a template. `actor` is None on pages that anyone may see."""
    now: datetime = request.app.state.ground.clock.now()
    html = (
        _environment()
        .get_template(template)
        .render(
            actor=actor,
            here=request.url.path,
            menus=_menus(actor),
            now=now,
            release=groundplane.__version__,
            **values,
        )
    )
    return HTMLResponse(html, status_code=http_status)


def _menus(actor: Actor | None) -> list[tuple[str, list[tuple[str, str]]]]:
    """Menus with the pages that the actor may see."""
    if actor is None:
        return []
    seen = ((menu, [(name, href) for name, href, needed in items if actor.may(needed)]) for menu, items in MENUS)
    return [(menu, items) for menu, items in seen if items]


def back(path: str) -> RedirectResponse:
    """After a change: a page that can be reloaded without changing anything again."""
    return RedirectResponse(path, status_code=303)


def local(path: str) -> str:
    """The path if it is one of the console's own pages, else the overview: no redirect leads away from here."""
    return path if _OWN_PAGE.fullmatch(path) else HOME


async def _error_page(request: Request, error: GroundError) -> HTMLResponse:
    """The error as a page, with the way forward; it shows nothing that the error itself doesn't say."""
    try:
        actor = await Requires(None)(request, None)
    except AccessError:
        actor = None
    origin = local(urlsplit(request.headers.get("referer", "")).path) if request.method == "POST" else HOME
    shown = origin if origin != HOME else ""
    return page(request, "error.html", actor, http_status=error.http_status, error=error, origin=shown)


def _here(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.method == "GET" and request.url.query else "")


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(words.FILTERS)
    environment.globals.update(words.GLOBALS)
    return environment
