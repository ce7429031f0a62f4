"""Who may pass: every route declares one permission, proved by a key or by a console session.

    actor: Annotated[Actor, requires(Permission.RUNS_READ)]

`requirement_of(route)` is what the tests walk: a route without one must stand in OPEN_ROUTES with its reason.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from groundplane.api.sessions import COOKIE, Sessions
from groundplane.errors import Forbidden, Unauthenticated
from groundplane.identity import Actor, Permission

OPEN_ROUTES = {
    "/healthz": "says only that the process lives; load balancers have no key",
    "/readyz": "says only whether the database answers; load balancers have no key",
    "/openapi.json": "the shapes are public; they hold no data",
    "/": "leads to the console",
    "/mlflow/": "leads to the console, as the links do that MLflow clients print",
    "/hf/lfs/{upload_id}/{oid}": "the link is the proof: it can't be guessed, ends, and takes only the bytes it names",
    "/console/login": "where a person without a session shows a key",
    "/console/logout": "ends a session; needs none to do so",
    "/console/static/{name}": "the style sheet, the script and the icon; they hold no data",
}

_bearer = HTTPBearer(auto_error=False, scheme_name="key", description="A key: `Authorization: Bearer gp-…`.")
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


async def ground(request: Request) -> Any:
    """The wired application that this server answers for. Async: what is not is called in a thread each time."""
    return request.app.state.ground


Ground = Annotated[Any, Depends(ground)]


class Requires:
    """The dependency behind `requires`: authenticates the caller and checks one permission."""

    def __init__(self, permission: Permission | None) -> None:
        self.permission = permission

    async def __call__(
        self, request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> Actor:
        secret = credentials.credentials if credentials else basic_secret(request) or session_secret(request)
        if not secret:
            raise Unauthenticated(
                "this needs a key, and none was sent", "send `Authorization: Bearer <key>`, or set GROUND_KEY"
            )
        actor: Actor = await request.app.state.ground.access.authenticate(secret)
        if self.permission is not None and not actor.may(self.permission):
            raise Forbidden(
                f"key {actor.key_id} has the role {actor.role}, which may not {self.permission}",
                "ask an operator for a key with a role that may: ground keys create --role …",
            )
        return actor


def requires(permission: Permission) -> Any:
    """The marker a route's actor parameter carries."""
    return Depends(Requires(permission))


def requires_any_key() -> Any:
    """For the few routes that tell a caller only about itself."""
    return Depends(Requires(None))


def requirement_of(route: APIRoute) -> Requires | None:
    """What a route asks of its caller; None when it asks nothing."""
    for dependency in route.dependant.dependencies:
        if isinstance(dependency.call, Requires):
            return dependency.call
    return None


def basic_secret(request: Request) -> str:
    """The password of basic authentication, which registry clients send; the user's name is not looked at."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def session_secret(request: Request) -> str:
    """The key that the console's session stands for; empty when there is none that holds.

    A cookie travels with requests that other pages cause, other ports of this host included. So a change by cookie
    must come from a page of this very origin, as the browser itself says.
    """
    token = request.cookies.get(COOKIE, "")
    sessions: Sessions = request.app.state.sessions
    secret = sessions.open(token) if token else ""
    if not secret:
        return ""
    if request.method not in _SAFE_METHODS and not same_origin(request):
        raise Forbidden("a console session changes things only from the console's own pages", "send the key instead")
    return secret


def same_origin(request: Request) -> bool:
    """Whether the request comes from a page of this very scheme, host and port, as the browser says."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return request.headers.get("origin", "") == f"{request.url.scheme}://{request.headers.get('host', '')}"
