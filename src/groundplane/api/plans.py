"""Plans: what would happen and cost, and making it happen."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Query, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.endpoint import Endpoint
from groundplane.domain.planning.plan import Plan
from groundplane.domain.planning.report import markdown
from groundplane.domain.run import Run
from groundplane.errors import Forbidden, Refusal
from groundplane.identity import Actor, Permission
from groundplane.wire.plans import Applied, AppliedAll, PlansBody, SpecRequest
from groundplane.wire.runs import RunExplanation

router = Router(prefix="/v1", tags=["plans"])
Planner = Annotated[Actor, requires(Permission.RUNS_WRITE)]
IdempotencyKey = Annotated[str, Header(max_length=200, description="The same key gives what it gave the first time.")]


@router.post("/plans")
async def create_plans(body: SpecRequest, app: Ground, actor: Planner) -> PlansBody:
    """Plans every document of a spec and stores the plans. A plan that policy refuses is stored with its reasons."""
    return PlansBody(plans=tuple(await app.plans.plan(actor, body.spec)))


@router.get("/plans/{plan_id}")
async def get_plan(plan_id: str, app: Ground, actor: Annotated[Actor, requires(Permission.RUNS_READ)]) -> Plan:
    """One plan, as it was made."""
    plan: Plan = await app.plans.get(actor, plan_id)
    return plan


@router.get("/plans")
async def list_plans(
    app: Ground,
    actor: Annotated[Actor, requires(Permission.RUNS_READ)],
    project: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> list[Plan]:
    """The newest plans of the projects that the caller sees."""
    found: list[Plan] = await app.plans.plans(actor, project=project, limit=limit)
    return found


@router.get("/plans/{plan_id}/markdown", response_class=Response, responses={200: {"content": {"text/markdown": {}}}})
async def get_plan_markdown(
    plan_id: str, app: Ground, actor: Annotated[Actor, requires(Permission.RUNS_READ)]
) -> Response:
    """One plan for a ticket or a pull request: choices side by side, sums, refusals."""
    plan: Plan = await app.plans.get(actor, plan_id)
    return Response(markdown(plan), media_type="text/markdown; charset=utf-8")


@router.get("/plans/{plan_id}/explain")
async def explain_plan(
    plan_id: str, app: Ground, actor: Annotated[Actor, requires(Permission.RUNS_READ)]
) -> RunExplanation:
    """One sentence on why the plan is refused or waits, or what would happen if it were applied now."""
    explanation = await app.standing.explain_plan(await app.plans.get(actor, plan_id))
    return RunExplanation(sentence=explanation.sentence, lines=tuple(explanation.lines))


@router.post("/plans/{plan_id}/apply")
async def apply_plan(plan_id: str, app: Ground, actor: Planner, idempotency_key: IdempotencyKey = "") -> Applied:
    """Admits the plan: the money is held and the run or endpoint begins. Refused when the world changed since."""
    return await _apply(app, actor, await app.plans.get(actor, plan_id), idempotency_key)


@router.post("/apply")
async def apply_spec(
    body: SpecRequest, app: Ground, actor: Planner, idempotency_key: IdempotencyKey = ""
) -> AppliedAll:
    """Plans and applies every document of a spec, in order. Nothing begins when any is refused or needs approval."""
    plans: list[Plan] = await app.plans.plan(actor, body.spec)
    refused = [v.refused for plan in plans for v in plan.verdicts if v.refused is not None]
    if refused:
        raise Refusal(refused)
    await app.approvals.require(*plans)
    runs: list[Run] = []
    endpoints: list[Endpoint] = []
    for number, plan in enumerate(plans):
        # One key covers a file of several documents: each gets its own, and the first keeps the caller's.
        key = f"{idempotency_key}/{number}" if idempotency_key and number else idempotency_key
        applied = await _apply(app, actor, plan, key)
        runs += [applied.run] if applied.run else []
        endpoints += [applied.endpoint] if applied.endpoint else []
    return AppliedAll(plans=tuple(plans), runs=tuple(runs), endpoints=tuple(endpoints))


async def _apply(app: Any, actor: Actor, plan: Plan, idempotency_key: str) -> Applied:
    if plan.job is not None:
        return Applied(run=await app.runs.submit(actor, plan.id, idempotency_key=idempotency_key))
    if not actor.may(Permission.ENDPOINTS_WRITE):
        raise Forbidden(f"the role {actor.role} may not {Permission.ENDPOINTS_WRITE}", "ask an operator")
    return Applied(endpoint=await app.endpoints.deploy(actor, plan.id))
