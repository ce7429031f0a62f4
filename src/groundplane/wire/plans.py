"""What crosses the HTTP door about plans: specs to plan, yes and no, what they became, and what needs no asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from groundplane.domain.approval import Approval
from groundplane.domain.endpoint import Endpoint
from groundplane.domain.planning.plan import Plan
from groundplane.domain.run import Run
from groundplane.wire.bounds import MONEY_MAX_MICROUSD, RATE_MAX, STRICT, check_range, check_text


@dataclass(frozen=True, slots=True, kw_only=True)
class PlansBody:
    plans: tuple[Plan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecRequest:
    """YAML of one or more documents; relative paths are refused or taken as the spec's rules say."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    spec: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What one plan became: a run or an endpoint."""

    run: Run | None = None
    endpoint: Endpoint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedAll:
    plans: tuple[Plan, ...]
    runs: tuple[Run, ...]
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightRequest:
    """YAML of jobs whose pools' nodes are checked; `node` names one, empty means every node."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    spec: str
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApproveRequest:
    """A yes. `hash` is that of the plan as it was seen, or its beginning; empty trusts the plan's id alone."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    comment: str = ""
    hash: str = ""

    def __post_init__(self) -> None:
        check_text(comment=self.comment, hash=self.hash)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalView:
    """The question whether a plan may be applied, and the names of those who may still agree."""

    approval: Approval
    approvers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfServiceRequest:
    """What a project may begin without asking, all of it anew."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    accelerators_max: int
    plan_max_microusd: int
    month_max_microusd: int | None = None
    second_threshold_microusd: int | None = None
    second_approvals: int = 2
    reason: str = ""

    def __post_init__(self) -> None:
        check_text(reason=self.reason)
        for name in ("plan_max_microusd", "month_max_microusd", "second_threshold_microusd"):
            check_range(name, getattr(self, name), 0, MONEY_MAX_MICROUSD)
        check_range("accelerators_max", self.accelerators_max, 0, RATE_MAX)
        check_range("second_approvals", self.second_approvals, 1, RATE_MAX)
