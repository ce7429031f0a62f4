"""What crosses the HTTP door about budgets, and the Monday report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from groundplane.domain.budget import Budget
from groundplane.domain.endpoint import Endpoint
from groundplane.domain.ledger import CostRow
from groundplane.domain.run import Run
from groundplane.wire.bounds import STRICT, check_money, check_text


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRequest:
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    monthly_limit_microusd: int | None
    thresholds_percent: tuple[int, ...] = (50, 80, 100)
    reason: str = ""

    def __post_init__(self) -> None:
        check_text(reason=self.reason)
        check_money(self.monthly_limit_microusd, self.thresholds_percent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The Monday report: what the period cost, for whom, what is still running, and what is reserved."""

    since: datetime
    until: datetime
    total_microusd: int
    by_project: tuple[CostRow, ...]
    by_model: tuple[CostRow, ...]
    by_run: tuple[CostRow, ...]
    by_owner: tuple[CostRow, ...]
    budgets: tuple[Budget, ...]
    runs_active: tuple[Run, ...]
    endpoints_active: tuple[Endpoint, ...]
    held_microusd: int
