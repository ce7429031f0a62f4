"""Plans as pages: paste a spec, see every way to buy the work side by side, and what stands in its way."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.approvals import question
from groundplane.console.web import HOME, PageRoute, back, page
from groundplane.domain.planning import report as plan_report
from groundplane.errors import InvalidInput
from groundplane.identity import Actor, Permission

Reader = Annotated[Actor, requires(Permission.RUNS_READ)]
Writer = Annotated[Actor, requires(Permission.RUNS_WRITE)]
SHOWN = 50


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/plans")

    @router.get("")
    async def plans(request: Request, actor: Reader, ground: Ground) -> Response:
        return await _list(request, actor, ground)

    @router.post("")
    async def create(request: Request, actor: Writer, ground: Ground, spec: Annotated[str, Form()] = "") -> Response:
        text = spec.replace("\r\n", "\n")
        try:
            made = await ground.plans.plan(actor, text)
        except InvalidInput as error:
            # What was typed stays on the page, so that it can be put right.
            return await _list(request, actor, ground, typed=text, problem=error)
        return back(f"{HOME}/plans/{made[0].id}" if len(made) == 1 else f"{HOME}/plans")

    @router.get("/{plan_id}")
    async def one(request: Request, plan_id: str, actor: Reader, ground: Ground) -> Response:
        plan = await ground.plans.get(actor, plan_id)
        fitting = plan_report.fitting(plan.outlook) if plan.outlook else ()
        return page(
            request,
            "plan.html",
            actor,
            plan=plan,
            explanation=await ground.standing.explain_plan(plan),
            spec=plan.job or plan.endpoint,
            question=await question(ground, actor, plan_id),
            headings=plan_report.CHOICE_HEADINGS,
            right=plan_report.RIGHT,
            choices=list(zip(fitting, plan_report.choice_rows(fitting), strict=True)),
            misfits=plan_report.misfits(plan),
            sections=plan_report.sections(plan),
            refused=[verdict for verdict in plan.verdicts if verdict.refused is not None],
            warned=[v for v in plan.verdicts if v.refused is None and (v.warning or v.approval or v.exception)],
            markdown=plan_report.markdown(plan),
        )

    return router


async def _list(
    request: Request, actor: Actor, ground: Ground, typed: str = "", problem: InvalidInput | None = None
) -> Response:
    return page(
        request,
        "plans.html",
        actor,
        http_status=200 if problem is None else problem.http_status,
        plans=await ground.plans.plans(actor, limit=SHOWN),
        may_write=actor.may(Permission.RUNS_WRITE),
        typed=typed,
        problem=problem,
    )
