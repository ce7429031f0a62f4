"""Preflight: ask a pool's nodes whether a spec's job could start there, and read what they answered for a run."""

from __future__ import annotations

from typing import Annotated

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.preflight import PreflightReport
from groundplane.identity import Actor, Permission
from groundplane.wire.plans import PreflightRequest

router = Router(prefix="/v1", tags=["preflight"])


@router.post("/preflight")
async def check_preflight(
    body: PreflightRequest, app: Ground, actor: Annotated[Actor, requires(Permission.RUNS_WRITE)]
) -> list[PreflightReport]:
    """Checks every node of each job's pool, or the one that is named. Nothing starts and no money is held."""
    reports: list[PreflightReport] = await app.preflight.check(actor, body.spec, node=body.node)
    return reports


@router.get("/runs/{run_id}/preflight")
async def get_run_preflight(
    run_id: str, app: Ground, actor: Annotated[Actor, requires(Permission.RUNS_READ)]
) -> list[PreflightReport]:
    """What the nodes answered before each attempt, first to last."""
    reports: list[PreflightReport] = await app.runs.preflight(actor, run_id)
    return reports
