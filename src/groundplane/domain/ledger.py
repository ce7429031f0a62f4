"""Metered quantities become money: append-only entries, rated with a dated price, each posted once.

An entry's id is its idempotency key: posting it twice is the same as posting it once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One charge. `kind` is `compute` (quantity in node-seconds) or `tokens` (quantity in tokens)."""

    id: str
    kind: str
    project: str
    owner: str
    cost_center: str
    run_id: str = ""
    endpoint: str = ""
    model: str = ""
    key_id: str = ""
    quantity: int
    amount_microusd: int
    price: str
    hold_id: str = ""
    occurred_at: datetime
    posted_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """One answered (or failed) gateway request, as the gateway's write-ahead log told it. id = request id."""

    id: str
    key_id: str
    project: str
    model: str
    endpoint: str
    revision: int
    status: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    amount_microusd: int
    estimated: bool
    ttft_ms: float | None
    duration_ms: float
    started_at: datetime
