"""Metered quantities become money: append-only entries, rated with a dated price, each posted once.

An entry's id is its idempotency key: posting it twice is the same as posting it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from groundplane.domain.run import Attempt, Run
from groundplane.units import MICROUSD_PER_USD, cost_microusd, format_usd

COMPUTE = "compute"
TOKENS = "tokens"
GROUPINGS: Mapping[str, str] = {
    "project": "project",
    "model": "model",
    "run": "run_id",
    "key": "key_id",
    "owner": "owner",
    "cost_center": "cost_center",
}
"""What a cost report can be grouped by → the ledger's column."""
NO_GROUP = "(none)"


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
    """One answered (or failed) gateway request, as the gateway's write-ahead log told it. id = request id.

    `cached_tokens` were read from the provider's prompt cache, `written_tokens` written to it; both are part of the
    prompt. `cache` is `hit` for an answer that the gateway had kept. `saved_microusd`: what caches made it cheaper by,
    below zero where writing cost more than reading saved.
    """

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
    written_tokens: int = 0
    saved_microusd: int = 0
    cache: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """One group's charges in a period. `requests` are the answered ones (HTTP status below 400).

    `usd_per_1000_requests` = (compute of serving + tokens) ÷ requests × 1000; training is left out; None without
    requests. It is for people: sums are made of the micro-dollars. `saved_microusd` is what prompt caches of providers
    and kept answers saved; `cache_hits` are requests answered from the latter.
    """

    group: str
    compute_microusd: int
    tokens_microusd: int
    total_microusd: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    requests: int
    usd_per_1000_requests: float | None
    saved_microusd: int = 0
    cache_hits: int = 0

    @property
    def microusd_per_1000_requests(self) -> int | None:
        """`usd_per_1000_requests`, to be shown in a column of amounts."""
        per_1000 = self.usd_per_1000_requests
        return None if per_1000 is None else round(per_1000 * MICROUSD_PER_USD)


def compute_entry(run: Run, attempt: Attempt, *, since: datetime, until: datetime, now: datetime) -> LedgerEntry:
    """The charge for one slice of an attempt's time on its nodes.

    Each slice costs what the attempt has cost by its end less what it had cost by its start, so slices that follow
    each other add up to the whole to the micro-dollar: rounding up every slice by itself would charge a run billed
    once a second up to 3,600 micro-dollars an hour too much. The id names the slice's start: a slice is billed once.
    ValueError when the attempt has not started, or the slice ends before it begins.
    """
    if attempt.started_at is None:
        raise ValueError(f"{attempt.id} has not started; there is nothing to bill")
    if until < since:
        raise ValueError(f"{attempt.id}: a slice from {since} to {until} ends before it begins")
    nodes = attempt.nodes or run.spec.resources.nodes
    start_ms, end_ms = (_offset_ms(attempt.started_at, moment) for moment in (since, until))
    price = run.price_microusd_per_hour
    amount = cost_microusd(price, end_ms / 1000, nodes) - cost_microusd(price, start_ms / 1000, nodes)
    return LedgerEntry(
        id=f"{COMPUTE}-{attempt.id}-{start_ms}",
        kind=COMPUTE,
        project=run.project,
        owner=run.owner,
        cost_center=run.cost_center,
        run_id=run.id,
        endpoint=run.endpoint,
        model=run.endpoint,
        quantity=(end_ms * nodes) // 1000 - (start_ms * nodes) // 1000,
        amount_microusd=amount,
        price=f"{format_usd(price)} per node-hour",
        hold_id=run.hold_id,
        occurred_at=since,
        posted_at=now,
    )


def _offset_ms(start: datetime, moment: datetime) -> int:
    # A clock set back can put a moment before the start: nothing had been used by then.
    return max(0, round((moment - start).total_seconds() * 1000))


def token_entry(record: UsageRecord, *, owner: str, cost_center: str, hold_id: str, now: datetime) -> LedgerEntry:
    """The charge for one gateway request, as the gateway rated it with the price of the revision that answered."""
    return LedgerEntry(
        id=f"{TOKENS}-{record.id}",
        kind=TOKENS,
        project=record.project,
        owner=owner,
        cost_center=cost_center,
        endpoint=record.endpoint,
        model=record.model,
        key_id=record.key_id,
        quantity=record.prompt_tokens + record.completion_tokens,
        amount_microusd=record.amount_microusd,
        price=f"{record.endpoint} revision {record.revision}",
        hold_id=hold_id,
        occurred_at=record.started_at,
        posted_at=now,
    )


def cost_rows(amounts: Mapping[tuple[str, str, bool], int], tokens: Mapping[str, Mapping[str, int]]) -> list[CostRow]:
    """A report's rows, dearest first.

    `amounts`: (group, kind, whether it served an endpoint) → micro-dollars. `tokens`: group → prompt_tokens,
    completion_tokens, cached_tokens, requests.
    """
    groups = {group for group, _, _ in amounts} | set(tokens)
    rows = [_row(group, amounts, tokens.get(group, {})) for group in groups]
    return sorted(rows, key=lambda row: (-row.total_microusd, row.group))


def _row(group: str, amounts: Mapping[tuple[str, str, bool], int], tokens: Mapping[str, int]) -> CostRow:
    serving = amounts.get((group, COMPUTE, True), 0)
    training = amounts.get((group, COMPUTE, False), 0)
    charged = sum(amounts.get((group, TOKENS, served), 0) for served in (True, False))
    requests = tokens.get("requests", 0)
    return CostRow(
        group=group or NO_GROUP,
        compute_microusd=serving + training,
        tokens_microusd=charged,
        total_microusd=serving + training + charged,
        prompt_tokens=tokens.get("prompt_tokens", 0),
        completion_tokens=tokens.get("completion_tokens", 0),
        cached_tokens=tokens.get("cached_tokens", 0),
        requests=requests,
        usd_per_1000_requests=round((serving + charged) / requests / 1000, 6) if requests else None,
        saved_microusd=tokens.get("saved_microusd", 0),
        cache_hits=tokens.get("cache_hits", 0),
    )
