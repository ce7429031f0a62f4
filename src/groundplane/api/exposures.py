"""Exposures: what may be reachable beyond loopback; owned, reasoned, ending."""

from __future__ import annotations

from typing import Annotated

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.access import Exposure
from groundplane.identity import Actor, Permission
from groundplane.wire.access import ExposureRequest

router = Router(prefix="/v1/exposures", tags=["exposures"])
Writer = Annotated[Actor, requires(Permission.SYSTEM_WRITE)]


@router.get("")
async def list_exposures(app: Ground, actor: Annotated[Actor, requires(Permission.SYSTEM_READ)]) -> list[Exposure]:
    """Every exposure, in force and over."""
    exposures: list[Exposure] = await app.access.exposures(actor)
    return exposures


@router.post("", status_code=201)
async def create_exposure(body: ExposureRequest, app: Ground, actor: Writer) -> Exposure:
    """Permits an address to be bound beyond loopback until it expires. The next start may use it."""
    exposure: Exposure = await app.access.expose(
        actor, address=body.address, owner=body.owner, reason=body.reason, expires_at=body.expires_at
    )
    return exposure


@router.delete("/{address:path}", status_code=204)
async def withdraw_exposure(address: str, app: Ground, actor: Writer, reason: str = "") -> None:
    """Ends the permission now; a server bound to the address stops within a minute."""
    await app.access.withdraw(actor, address, reason)
