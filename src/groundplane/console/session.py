"""Signing in and out: a key opens a session, whose cookie scripts can't read and other sites can't use."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Form, Request, Response

from groundplane.api.access import Ground, same_origin
from groundplane.api.routing import Router
from groundplane.api.sessions import COOKIE, SESSION_S
from groundplane.console.web import HOME, LOGIN, PageRoute, back, local, page
from groundplane.errors import Forbidden, Unauthenticated
from groundplane.identity import Permission


def routes() -> Router:
    """`/console/login` and `/console/logout`: open to everyone, by their nature."""
    router = Router(route_class=PageRoute)

    @router.get("/login")
    async def sign_in_page(request: Request, next: str = HOME) -> Response:
        return page(request, "login.html", next=local(next), problem=None)

    @router.post("/login")
    async def sign_in(
        request: Request, ground: Ground, key: Annotated[str, Form()] = "", next: Annotated[str, Form()] = HOME
    ) -> Response:
        if not same_origin(request):
            raise Forbidden("this form was sent from another site", f"open {LOGIN} yourself")
        try:
            await _check(ground, key.strip())
        except Unauthenticated as error:
            return page(request, "login.html", http_status=401, next=local(next), problem=error)
        response = back(local(next))
        response.set_cookie(
            COOKIE,
            request.app.state.sessions.seal(key.strip()),
            max_age=SESSION_S,
            # Only the console's own pages get it; the API takes keys.
            path=HOME,
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    @router.post("/logout")
    async def sign_out(request: Request) -> Response:
        if not same_origin(request):
            raise Forbidden("this form was sent from another site", "use the console's own button")
        request.app.state.sessions.end(request.cookies.get(COOKIE, ""))
        response = back(LOGIN)
        response.delete_cookie(COOKIE, path=HOME, httponly=True, samesite="strict")
        return response

    return router


async def _check(ground: Any, secret: str) -> None:
    """Raises Unauthenticated for a key that opens no page."""
    if not secret:
        raise Unauthenticated("no key was given", "paste a key; `ground up` printed the first one")
    actor = await ground.access.authenticate(secret)
    if not actor.may(Permission.SYSTEM_READ):
        raise Unauthenticated(
            f"a key with the role {actor.role} calls models; it opens no console", "ask for a viewer or member key"
        )
