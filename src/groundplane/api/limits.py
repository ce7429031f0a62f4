"""Limits at the gateway: listed, set, lifted."""

from __future__ import annotations

from typing import Annotated

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.serving.limits import LimitRule
from groundplane.identity import Actor, Permission
from groundplane.wire.access import LimitRequest

router = Router(prefix="/v1/limits", tags=["limits"])
Writer = Annotated[Actor, requires(Permission.KEYS_WRITE)]


@router.get("")
async def list_limits(
    app: Ground, actor: Annotated[Actor, requires(Permission.KEYS_READ)], project: str | None = None
) -> list[LimitRule]:
    """Every limit that the caller sees; those that keys carry themselves are with the keys."""
    return await app.gateway_limits.limits(actor, project)


@router.put("")
async def set_limit(body: LimitRequest, app: Ground, actor: Writer) -> LimitRule:
    """Sets or changes one limit; the gateway keeps it within seconds."""
    return await app.gateway_limits.set_limit(
        actor,
        project=body.project,
        scope=body.scope,
        name=body.name,
        measure=body.measure,
        value=body.value,
        when_down=body.when_down,
        reason=body.reason,
    )


@router.delete("")
async def lift_limit(id: str, app: Ground, actor: Writer, reason: str = "") -> LimitRule:
    """Takes a limit away."""
    return await app.gateway_limits.lift(actor, id, reason)
