"""Approvals as pages: which plans wait for somebody's yes, the yes and the no, and what each project takes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Form, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import HOME, PageRoute, back, page
from groundplane.domain.access import SelfService
from groundplane.domain.approval import Approval, ApprovalStatus, counted, may_approve
from groundplane.errors import InvalidInput, NotFound
from groundplane.identity import Actor, Permission
from groundplane.units import parse_usd

Reader = Annotated[Actor, requires(Permission.RUNS_READ)]
Approver = Annotated[Actor, requires(Permission.PLANS_APPROVE)]
RECENT = 50


@dataclass(frozen=True, slots=True)
class Question:
    """What a page shows of an approval: the question, whose yes counts, who may still, and what the reader may do."""

    asked: Approval
    given: tuple[str, ...]
    approvers: tuple[str, ...]
    may_approve: bool
    may_reject: bool


async def question(ground: Any, actor: Actor, plan_id: str) -> Question | None:
    """For a plan's page; None for a plan that needs nobody's yes."""
    try:
        asked, approvers = await ground.approvals.get(actor, plan_id)
    except NotFound:
        return None
    decides = actor.may(Permission.PLANS_APPROVE)
    return Question(
        asked=asked,
        given=counted(asked, asked.plan_hash),
        approvers=approvers,
        may_approve=decides and may_approve(asked, actor, ground.clock.now()),
        may_reject=decides and asked.status.is_open,
    )


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/approvals")

    @router.get("")
    async def approvals(request: Request, actor: Reader, ground: Ground) -> Response:
        found = await ground.approvals.approvals(actor, limit=RECENT)
        waiting = await ground.approvals.approvals(actor, status=ApprovalStatus.WAITING, limit=1_000)
        return page(
            request,
            "approvals.html",
            actor,
            waiting=waiting,
            decided=[asked for asked in found if asked.status is not ApprovalStatus.WAITING],
            given=lambda asked: len(counted(asked, asked.plan_hash)),
            projects=await ground.access.projects(actor),
            may_set=actor.may(Permission.PROJECTS_WRITE),
        )

    @router.get("/{plan_id}")
    async def one(request: Request, plan_id: str, actor: Reader, ground: Ground) -> Response:
        asked = await question(ground, actor, plan_id)
        if asked is None:
            raise NotFound(f"{plan_id} needs nobody's yes, or is no plan that you see", "see the list of approvals")
        return page(
            request, "approval.html", actor, question=asked, plan=await ground.plans.get(actor, plan_id)
        )  # fmt: skip

    @router.post("/{plan_id}/approve")
    async def approve(
        plan_id: str,
        actor: Approver,
        ground: Ground,
        comment: Annotated[str, Form()] = "",
        hash: Annotated[str, Form()] = "",
    ) -> Response:
        await ground.approvals.approve(actor, plan_id, comment=comment, seen_hash=hash)
        return back(f"{HOME}/approvals/{plan_id}")

    @router.post("/{plan_id}/reject")
    async def reject(plan_id: str, actor: Approver, ground: Ground, reason: Annotated[str, Form()] = "") -> Response:
        await ground.approvals.reject(actor, plan_id, reason)
        return back(f"{HOME}/approvals/{plan_id}")

    @router.post("/limits/{project}")
    async def set_limits(
        project: str,
        actor: Annotated[Actor, requires(Permission.PROJECTS_WRITE)],
        ground: Ground,
        accelerators: Annotated[int, Form(ge=0)],
        per_plan: Annotated[str, Form()],
        several: Annotated[int, Form(ge=1)],
        per_month: Annotated[str, Form()] = "",
        several_above: Annotated[str, Form()] = "",
        reason: Annotated[str, Form()] = "",
    ) -> Response:
        limits = SelfService(
            accelerators_max=accelerators,
            plan_max_microusd=_usd(per_plan) or 0,
            month_max_microusd=_usd(per_month),
            second_threshold_microusd=_usd(several_above),
            second_approvals=several,
        )
        await ground.approvals.set_limits(actor, project, limits, reason)
        return back(f"{HOME}/approvals#limits")

    return router


def _usd(text: str) -> int | None:
    """An amount as typed; nothing typed is no limit."""
    if not text.strip():
        return None
    try:
        return parse_usd(text)
    except ValueError as error:
        raise InvalidInput(str(error), "write it like $500 or 1200.50") from None
