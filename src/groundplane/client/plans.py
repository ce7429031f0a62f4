"""The part of the SDK that plans and applies: specs in, plans out, and what they become."""

from __future__ import annotations

from groundplane.client.transport import Transport, part
from groundplane.domain.planning.plan import Plan
from groundplane.wire.plans import Applied, AppliedAll, PlansBody, SpecRequest
from groundplane.wire.runs import RunExplanation


class PlanCalls(Transport):
    def plan(self, spec: str) -> tuple[Plan, ...]:
        """One stored plan per document of the spec. Raises InvalidInput with every problem and its line.

        Paths in it are absolute: a relative one is refused by the plan, for nobody here knows what it counts from.
        """
        return self._call("POST", "/v1/plans", PlansBody, body=SpecRequest(spec=spec)).plans

    def get_plan(self, plan_id: str) -> Plan:
        return self._get(f"/v1/plans/{part(plan_id)}", Plan)

    def plans(self, *, project: str | None = None, limit: int = 20) -> list[Plan]:
        """Newest first."""
        return self._get("/v1/plans", list[Plan], params={"project": project, "limit": limit})

    def plan_markdown(self, plan_id: str) -> str:
        """One plan for a ticket or a pull request."""
        return self._send("GET", f"/v1/plans/{part(plan_id)}/markdown").text

    def explain_plan(self, plan_id: str) -> RunExplanation:
        """Why it is refused or waits, or what would happen if it were applied now."""
        return self._get(f"/v1/plans/{part(plan_id)}/explain", RunExplanation)

    def apply_plan(self, plan_id: str, *, idempotency_key: str = "") -> Applied:
        """Raises Refusal with every reason, Conflict when the world changed since the plan."""
        return self._call(
            "POST", f"/v1/plans/{part(plan_id)}/apply", Applied, headers={"Idempotency-Key": idempotency_key}
        )

    def apply(self, spec: str, *, idempotency_key: str = "") -> AppliedAll:
        """Plans and applies every document. Nothing begins when one is refused."""
        return self._call(
            "POST",
            "/v1/apply",
            AppliedAll,
            body=SpecRequest(spec=spec),
            headers={"Idempotency-Key": idempotency_key},
        )
