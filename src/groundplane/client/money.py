"""The part of the SDK that counts: budgets, holds, costs, the Monday report, and sums before spending."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from groundplane.client.transport import Transport, made, part
from groundplane.domain.budget import Budget, Hold
from groundplane.domain.ledger import CostRow
from groundplane.domain.planning.compare import Comparison
from groundplane.domain.sizing.report import SizeReport
from groundplane.wire.money import BudgetRequest, Report
from groundplane.wire.sizing import CompareRequest, SizeRequest

DEFAULT_THRESHOLDS_PERCENT = (50, 80, 100)


class MoneyCalls(Transport):
    # ------------------------------------------------------------ money

    def budget(self, project: str) -> Budget:
        return self._get(f"/v1/projects/{part(project)}/budget", Budget)

    def set_budget(
        self,
        project: str,
        *,
        monthly_limit_microusd: int | None,
        thresholds_percent: Sequence[int] = DEFAULT_THRESHOLDS_PERCENT,
        reason: str = "",
    ) -> Budget:
        body = made(
            BudgetRequest,
            monthly_limit_microusd=monthly_limit_microusd,
            thresholds_percent=tuple(thresholds_percent),
            reason=reason,
        )
        return self._call("PUT", f"/v1/projects/{part(project)}/budget", Budget, body=body)

    def holds(self, project: str | None = None) -> list[Hold]:
        return self._get("/v1/holds", list[Hold], params={"project": project})

    def costs(
        self, *, by: str = "project", since: datetime | None = None, until: datetime | None = None
    ) -> list[CostRow]:
        """`by` is project, model, run, key, owner or cost_center. The last 30 days when no period is given."""
        return self._get("/v1/costs", list[CostRow], params={"by": by, **_period(since, until)})

    def report(self, *, since: datetime | None = None, until: datetime | None = None) -> Report:
        """The last seven days when no period is given."""
        return self._get("/v1/report", Report, params=_period(since, until))

    # ------------------------------------------------------------ sizing

    def size(self, request: SizeRequest) -> SizeReport:
        """Memory, layout, time and remedies. Raises InvalidInput with near matches for names that are not known."""
        return self._call("POST", "/v1/size", SizeReport, body=request)

    def compare(self, request: CompareRequest) -> Comparison:
        """A workload's options with their dollars a month, cheapest first."""
        return self._call("POST", "/v1/compare", Comparison, body=request)


def _period(since: datetime | None, until: datetime | None) -> dict[str, str | None]:
    return {
        "since": since.isoformat() if since is not None else None,
        "until": until.isoformat() if until is not None else None,
    }
