"""Money: what was spent, by whom, what is reserved, and the Monday report."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

from fastapi import Query
from pydantic import AwareDatetime

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.budget import Hold, HoldStatus
from groundplane.domain.endpoint import EndpointStatus
from groundplane.domain.ledger import CostRow
from groundplane.errors import NotFound
from groundplane.identity import Actor, Permission
from groundplane.wire.money import Report

router = Router(prefix="/v1", tags=["costs"])
Reader = Annotated[Actor, requires(Permission.COSTS_READ)]
Since = Annotated[AwareDatetime | None, Query(description="RFC 3339 with a zone; 30 days before `until` by default.")]
Until = Annotated[AwareDatetime | None, Query(description="RFC 3339 with a zone; now when left out.")]
_DEFAULT_SPAN = timedelta(days=30)
_WEEK = timedelta(days=7)
_ENDED = {EndpointStatus.STOPPED, EndpointStatus.FAILED}


class CostGroup(StrEnum):
    PROJECT = "project"
    MODEL = "model"
    RUN = "run"
    KEY = "key"
    OWNER = "owner"
    COST_CENTER = "cost_center"


@router.get("/costs")
async def list_costs(
    app: Ground, actor: Reader, by: CostGroup = CostGroup.PROJECT, since: Since = None, until: Until = None
) -> list[CostRow]:
    """What was spent in a period, one line per group, from the ledger."""
    end = until or app.clock.now()
    return await _lines(app, actor, by, since or end - _DEFAULT_SPAN, end)


@router.get("/holds")
async def list_holds(app: Ground, actor: Reader, project: str | None = None) -> list[Hold]:
    """Money reserved, pending and closed."""
    holds: list[Hold] = await app.costs.holds(actor, project)
    return holds


@router.get("/report")
async def report(app: Ground, actor: Reader, since: Since = None, until: Until = None) -> Report:
    """The Monday report: by default the last seven days, and what is running and reserved right now."""
    end = until or app.clock.now()
    start = since or end - _WEEK
    by_project = await _lines(app, actor, CostGroup.PROJECT, start, end)
    holds = [hold for hold in await app.costs.holds(actor, None) if hold.status is HoldStatus.PENDING]
    return Report(
        since=start,
        until=end,
        total_microusd=sum(line.total_microusd for line in by_project),
        by_project=tuple(by_project),
        by_model=tuple(await _lines(app, actor, CostGroup.MODEL, start, end)),
        by_run=tuple(await _lines(app, actor, CostGroup.RUN, start, end)),
        by_owner=tuple(await _lines(app, actor, CostGroup.OWNER, start, end)),
        budgets=tuple(await _budgets(app, actor)),
        runs_active=tuple(await app.runs.runs(actor, project=None, status="active", limit=1000)),
        endpoints_active=tuple(e for e in await app.endpoints.endpoints(actor) if e.status not in _ENDED),
        held_microusd=sum(hold.amount_microusd - hold.posted_microusd for hold in holds),
    )


async def _lines(app: Any, actor: Actor, by: CostGroup, since: datetime, until: datetime) -> list[CostRow]:
    rows: list[CostRow] = await app.costs.report(actor, by=by.value, since=since, until=until)
    return rows


async def _budgets(app: Any, actor: Actor) -> list[Any]:
    """Those of projects that have one; a project without a budget is admitted nothing and has nothing to show."""
    budgets = []
    for project in await app.access.projects(actor):
        try:
            budgets.append(await app.costs.budget(actor, project.id))
        except NotFound:
            continue
    return budgets
