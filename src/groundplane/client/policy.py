"""The part of the SDK that knows the rules: which are in force, exceptions, and what others would have said."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from groundplane.client.transport import Transport, part
from groundplane.domain.planning.plan import Verdict
from groundplane.domain.policy.exceptions import PolicyException
from groundplane.domain.policy.records import PolicyState, Replay, RuleInfo
from groundplane.errors import InvalidInput
from groundplane.wire import ReasonRequest
from groundplane.wire.policy import ExceptionRequest, ReplayRequest

_REPLAY_TIMEOUT_S = 300


class PolicyCalls(Transport):
    def policy(self) -> PolicyState:
        """Every rule in force, and whether the operator's folder differs from it."""
        return self._call("GET", "/v1/policy", PolicyState)

    def policy_rule(self, rule_id: str) -> RuleInfo:
        return self._call("GET", f"/v1/policy/rules/{part(rule_id)}", RuleInfo)

    def reload_policy(self, reason: str = "") -> PolicyState:
        """Takes the folder as it is now; InvalidInput tells every fault, and what was in force stays."""
        return self._call("POST", "/v1/policy/reload", PolicyState, body=ReasonRequest(reason=reason))

    def replay_policy(self, files: Mapping[str, str], since: datetime) -> Replay:
        """Which plans made since then another set of rules would have judged otherwise. `files` are texts by name."""
        body = ReplayRequest(files=dict(files), since=since)
        return self._call("POST", "/v1/policy/replay", Replay, body=body, timeout_s=_REPLAY_TIMEOUT_S)

    def request_verdicts(self, request_id: str) -> list[Verdict]:
        """What the rules over requests say of one."""
        return self._call("GET", f"/v1/policy/requests/{part(request_id)}/verdicts", list[Verdict])

    def policy_exceptions(self, *, project: str | None = None, over_too: bool = False) -> list[PolicyException]:
        """Soonest to end first."""
        params = {"project": project, "all": "true" if over_too else None}
        return self._call("GET", "/v1/policy/exceptions", list[PolicyException], params=params)

    def add_policy_exception(
        self, *, rule: str, project: str, owner: str, reason: str, expires_at: datetime, name: str = ""
    ) -> PolicyException:
        """Lifts a rule until `expires_at`; for one spec's `name`, or for the whole project."""
        try:
            body = ExceptionRequest(
                rule=rule, project=project, name=name, owner=owner, reason=reason, expires_at=expires_at
            )
        except ValueError as error:
            raise InvalidInput(str(error)) from None
        return self._call("POST", "/v1/policy/exceptions", PolicyException, body=body)

    def remove_policy_exception(self, exception_id: str, reason: str = "") -> PolicyException:
        path = f"/v1/policy/exceptions/{part(exception_id)}"
        return self._call("DELETE", path, PolicyException, params={"reason": reason})
