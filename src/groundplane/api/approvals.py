"""Approvals: what waits for somebody's yes, the yes and the no, and what a project may begin without asking."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.access import Project, SelfService
from groundplane.domain.approval import Approval
from groundplane.identity import Actor, Permission
from groundplane.wire import ReasonRequest
from groundplane.wire.plans import ApprovalView, ApproveRequest, SelfServiceRequest

router = Router(prefix="/v1", tags=["approvals"])
Reader = Annotated[Actor, requires(Permission.RUNS_READ)]
Approver = Annotated[Actor, requires(Permission.PLANS_APPROVE)]


@router.get("/approvals")
async def list_approvals(
    app: Ground,
    actor: Reader,
    project: str | None = None,
    status: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[Approval]:
    """Newest first. `status` is waiting, approved, rejected, expired or applied, or `open` for the first two."""
    found: list[Approval] = await app.approvals.approvals(actor, project=project, status=status, limit=limit)
    return found


@router.get("/plans/{plan_id}/approval")
async def get_approval(plan_id: str, app: Ground, actor: Reader) -> ApprovalView:
    """Who agreed to a plan, who may still, and until when. 404 for a plan that needs nobody's yes."""
    approval, approvers = await app.approvals.get(actor, plan_id)
    return ApprovalView(approval=approval, approvers=approvers)


@router.post("/plans/{plan_id}/approve")
async def approve_plan(plan_id: str, body: ApproveRequest, app: Ground, actor: Approver) -> Approval:
    """A yes to exactly this plan. Refused to whoever made the plan or owns its work, unless four eyes are off."""
    given: Approval = await app.approvals.approve(actor, plan_id, comment=body.comment, seen_hash=body.hash)
    return given


@router.post("/plans/{plan_id}/reject")
async def reject_plan(plan_id: str, body: ReasonRequest, app: Ground, actor: Approver) -> Approval:
    """A no, final for this plan."""
    rejected: Approval = await app.approvals.reject(actor, plan_id, body.reason)
    return rejected


@router.put("/projects/{name}/self-service")
async def set_self_service(
    name: str, body: SelfServiceRequest, app: Ground, actor: Annotated[Actor, requires(Permission.PROJECTS_WRITE)]
) -> Project:
    """What the project may begin without approval, from the next plan on."""
    limits = SelfService(
        accelerators_max=body.accelerators_max,
        plan_max_microusd=body.plan_max_microusd,
        month_max_microusd=body.month_max_microusd,
        second_threshold_microusd=body.second_threshold_microusd,
        second_approvals=body.second_approvals,
    )
    changed: Project = await app.approvals.set_limits(actor, name, limits, body.reason)
    return changed
