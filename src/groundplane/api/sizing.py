"""Sums before spending: will it fit and how fast is it, and what does a workload cost here or there."""

from __future__ import annotations

from typing import Annotated

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.planning.compare import Comparison
from groundplane.domain.sizing.report import SizeReport
from groundplane.identity import Actor, Permission
from groundplane.wire.sizing import CompareRequest, SizeRequest

router = Router(prefix="/v1", tags=["sizing"])


@router.post("/size")
async def size(body: SizeRequest, app: Ground, actor: Annotated[Actor, requires(Permission.RUNS_READ)]) -> SizeReport:
    """Memory, layout, time and what would make it fit. Changes nothing: a request has more fields than an address."""
    report: SizeReport = await app.sizings.size(actor, body)
    return report


@router.post("/compare")
async def compare(
    body: CompareRequest, app: Ground, actor: Annotated[Actor, requires(Permission.COSTS_READ)]
) -> Comparison:
    """A workload's options with their dollars a month, cheapest first. Changes nothing."""
    comparison: Comparison = await app.sizings.compare(actor, body)
    return comparison
