"""Where a version stands, moved by a form; gates with what they ask and who lifted what."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.console.web import HOME, PageRoute, back, page
from groundplane.identity import Actor, Permission

Reader = Annotated[Actor, requires(Permission.MODELS_READ)]
Writer = Annotated[Actor, requires(Permission.MODELS_WRITE)]
Word = Annotated[str, Form(max_length=500)]
SHOWN = 20


def routes() -> APIRouter:
    router = APIRouter(route_class=PageRoute)

    @router.get("/gates")
    async def gates(request: Request, actor: Reader, ground: Ground) -> Response:
        return page(
            request,
            "gates.html",
            actor,
            gates=await ground.gates.gates(actor),
            waivers=await ground.gates.waivers(actor, over_too=True),
        )

    @router.post("/models/{ref}/alias")
    async def move(ref: str, actor: Writer, ground: Ground, alias: Word = "", reason: Word = "") -> Response:
        version = await ground.models.get(actor, ref)
        await ground.registry.move(actor, version.name, alias.strip(), str(version.number), reason)
        return back(f"{HOME}/models/{version.id}")

    @router.post("/models/{ref}/rollback")
    async def rollback(ref: str, actor: Writer, ground: Ground, alias: Word = "", reason: Word = "") -> Response:
        version = await ground.models.get(actor, ref)
        moved = await ground.registry.rollback(actor, version.name, alias.strip(), reason)
        return back(f"{HOME}/models/{version.name}@{moved.to_number}")

    return router


async def standing(ground: Any, actor: Actor, ref: str) -> dict[str, Any]:
    """What a version's page shows beside its certificate."""
    view = await ground.registry.view(actor, ref)
    name = view.version.name
    checks = await ground.gates.checks(actor, ref, limit=1)
    return {
        "view": view,
        "histories": {alias: (await ground.registry.history(actor, name, alias))[:SHOWN] for alias in view.aliases},
        "check": checks[0] if checks else None,
        "may_move": actor.may(Permission.MODELS_WRITE),
    }
