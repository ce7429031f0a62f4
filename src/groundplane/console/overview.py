"""The first page: what runs, what it costs, what is exposed, what needs somebody."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.api.system import failing_loops
from groundplane.console.attention import notices
from groundplane.console.money import budgets_of
from groundplane.console.web import PageRoute, page
from groundplane.domain.approval import ApprovalStatus
from groundplane.domain.endpoint import EndpointStatus
from groundplane.identity import Actor, Permission

RECENT_RUNS = 50


def routes() -> Router:
    router = Router(route_class=PageRoute)

    @router.get("")
    async def overview(
        request: Request, actor: Annotated[Actor, requires(Permission.SYSTEM_READ)], ground: Ground
    ) -> Response:
        active = await ground.runs.runs(actor, status="active")
        recent = await ground.runs.runs(actor, limit=RECENT_RUNS)
        endpoints = await ground.endpoints.endpoints(actor)
        budgets = await budgets_of(ground, actor)
        approvals = await ground.approvals.approvals(actor, status=ApprovalStatus.WAITING)
        exposures = await ground.access.exposures(actor)
        offers, silent_pools = await ground.plans.offers()
        return page(
            request,
            "overview.html",
            actor,
            active=active,
            burn_microusd_per_hour=sum(run.price_microusd_per_hour * run.spec.resources.nodes for run in active),
            recent=[run for run in recent if run.status.is_over][:5],
            endpoints=[e for e in endpoints if e.status is not EndpointStatus.STOPPED],
            ready=sum(e.status is EndpointStatus.READY for e in endpoints),
            budgets=budgets,
            exposures=exposures,
            offers=offers,
            silent_pools=silent_pools,
            notices=notices(
                runs=recent,
                endpoints=endpoints,
                budgets=budgets,
                exposures=exposures,
                approvals=approvals,
                evaluations=await ground.evaluations.newest(actor),
                policy_problem=ground.policies.problem,
                failing=failing_loops(ground, actor),
                now=ground.clock.now(),
            ),
        )

    return router
