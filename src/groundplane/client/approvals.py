"""The part of the SDK that agrees to plans: what waits for a yes, the yes, the no, and a project's own limits."""

from __future__ import annotations

import time

from groundplane.client.transport import Transport, part
from groundplane.domain.access import Project, SelfService
from groundplane.domain.approval import Approval, ApprovalStatus
from groundplane.wire import ReasonRequest
from groundplane.wire.plans import ApprovalView, ApproveRequest, SelfServiceRequest

_POLL_FIRST_S, _POLL_MAX_S = 0.5, 10.0

_HINT = "ground approvals lists what waits"


class ApprovalCalls(Transport):
    def approvals(self, *, project: str | None = None, status: str | None = None, limit: int = 100) -> list[Approval]:
        """Newest first. `status` is waiting, approved, rejected, expired, applied, or open for the first two."""
        params = {"project": project, "status": status, "limit": limit}
        return self._call("GET", "/v1/approvals", list[Approval], params=params)

    def approval(self, plan_id: str) -> ApprovalView:
        """NotFound for a plan that needs nobody's yes."""
        return self._call("GET", f"{_plan(plan_id)}/approval", ApprovalView)

    def approve_plan(self, plan_id: str, comment: str = "", *, hash: str = "") -> Approval:
        """A yes to exactly this plan, and with `hash` to what was seen of it. Raises Refusal, Forbidden."""
        return self._call(
            "POST", f"{_plan(plan_id)}/approve", Approval, body=ApproveRequest(comment=comment, hash=hash)
        )

    def reject_plan(self, plan_id: str, reason: str) -> Approval:
        """A no, final for this plan. Raises Refusal, Forbidden, InvalidInput without a reason."""
        return self._call("POST", f"{_plan(plan_id)}/reject", Approval, body=ReasonRequest(reason=reason))

    def wait_for_approval(self, plan_id: str, limit_s: float) -> Approval:
        """The question once it is decided or has expired, or as it stands after `limit_s`."""
        deadline, pause_s = time.monotonic() + limit_s, _POLL_FIRST_S
        while True:
            approval = self.approval(plan_id).approval
            left_s = deadline - time.monotonic()
            if approval.status is not ApprovalStatus.WAITING or left_s <= 0:
                return approval
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, _POLL_MAX_S)

    def set_self_service(self, project: str, limits: SelfService, reason: str = "") -> Project:
        """What the project may begin without approval, all of it anew."""
        body = SelfServiceRequest(
            accelerators_max=limits.accelerators_max,
            plan_max_microusd=limits.plan_max_microusd,
            month_max_microusd=limits.month_max_microusd,
            second_threshold_microusd=limits.second_threshold_microusd,
            second_approvals=limits.second_approvals,
            reason=reason,
        )
        return self._call("PUT", f"/v1/projects/{part(project)}/self-service", Project, body=body)


def _plan(plan_id: str) -> str:
    return f"/v1/plans/{part(plan_id, hint=_HINT)}"
