"""Keys and exposures as a page: who may call what, and what is reachable from outside."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import HOME, PageRoute, back, page
from groundplane.errors import InvalidInput
from groundplane.identity import Actor, Permission
from groundplane.units import parse_duration_s

Writer = Annotated[Actor, requires(Permission.KEYS_WRITE)]


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/keys")

    @router.get("")
    async def keys(
        request: Request, actor: Annotated[Actor, requires(Permission.KEYS_READ)], ground: Ground
    ) -> Response:
        return page(
            request,
            "keys.html",
            actor,
            keys=await ground.access.keys(actor),
            exposures=await ground.access.exposures(actor),
            may_revoke=actor.may(Permission.KEYS_WRITE),
            signing_key_id=ground.models.signing_key_id,
            trusted=ground.models.public_keys(),
        )

    @router.post("/{key_id}/revoke")
    async def revoke(key_id: str, actor: Writer, ground: Ground, reason: Annotated[str, Form()] = "") -> Response:
        await ground.access.revoke_key(actor, key_id, reason)
        return back(f"{HOME}/keys")

    @router.post("/{key_id}/rotate")
    async def rotate(
        request: Request,
        key_id: str,
        actor: Writer,
        ground: Ground,
        grace: Annotated[str, Form(max_length=20)] = "1d",
        reason: Annotated[str, Form(max_length=500)] = "",
    ) -> Response:
        try:
            grace_s = parse_duration_s(grace)
        except ValueError:
            raise InvalidInput(f"{grace!r} is no duration", "like 1d, or 0s for none") from None
        key, secret = await ground.access.rotate_key(actor, key_id, grace_s=grace_s, reason=reason)
        return page(request, "key_rotated.html", actor, key=key, secret=secret)

    return router
