"""Money reserved before it is spent: budgets and holds, decided here, committed by services.

A hold is pending, then posted (spent in part or whole) or voided. `held + posted ≤ limit` at every reservation.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class HoldStatus(StrEnum):
    PENDING = "pending"
    POSTED = "posted"
    VOIDED = "voided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A project's limit for one calendar month (UTC). id = `<project>:<YYYY-MM>`.

    `held_microusd` is the sum of what pending holds still reserve; `posted_microusd` the sum of ledger entries.
    `thresholds_percent` are notified once each when posted crosses them (`fired_percent` remembers).
    """

    id: str
    project: str
    period: str
    limit_microusd: int
    held_microusd: int = 0
    posted_microusd: int = 0
    thresholds_percent: tuple[int, ...] = (50, 80, 100)
    fired_percent: tuple[int, ...] = ()
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Money reserved for a subject (`run/<id>` or `gateway/<project>`). Remaining = amount − posted while pending."""

    id: str
    budget_id: str
    project: str
    subject: str
    amount_microusd: int
    posted_microusd: int = 0
    status: HoldStatus = HoldStatus.PENDING
    created_at: datetime
    closed_at: datetime | None = None
    version: int = 0
