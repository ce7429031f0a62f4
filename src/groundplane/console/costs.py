"""Money as a page: budgets with what is held, posted and left; the ledger grouped; open holds."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated

from fastapi import Query, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.money import budgets_of
from groundplane.console.web import PageRoute, page
from groundplane.domain.budget import HoldStatus
from groundplane.identity import Actor, Permission

DAYS = (1, 7, 31, 366)


class By(StrEnum):
    PROJECT = "project"
    MODEL = "model"
    RUN = "run"
    KEY = "key"
    OWNER = "owner"
    COST_CENTER = "cost_center"


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/costs")

    @router.get("")
    async def costs(
        request: Request,
        actor: Annotated[Actor, requires(Permission.COSTS_READ)],
        ground: Ground,
        by: By = By.PROJECT,
        days: Annotated[int, Query(ge=1, le=3660)] = 31,
    ) -> Response:
        until: datetime = ground.clock.now()
        since = until - timedelta(days=days)
        rows = await ground.costs.report(actor, by=by.value, since=since, until=until)
        projects = await ground.access.projects(actor)
        return page(
            request,
            "costs.html",
            actor,
            by=by.value,
            groupings=[each.value for each in By],
            days=days,
            day_choices=DAYS,
            since=since,
            until=until,
            rows=rows,
            total_microusd=sum(row.total_microusd for row in rows),
            budgets=await budgets_of(ground, actor),
            unbudgeted=[project.id for project in projects if project.monthly_limit_microusd is None],
            holds=[hold for hold in await ground.costs.holds(actor, None) if hold.status is HoldStatus.PENDING],
        )

    return router
