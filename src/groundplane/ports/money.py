"""What gateways were asked to serve and what it cost, and who is told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from groundplane.domain.ledger import UsageRecord
from groundplane.domain.planning.plan import Offer


class UsageLog(Protocol):
    """The gateway's write-ahead log as the control plane reads it."""

    async def read(self, limit: int) -> list[UsageRecord]:
        """Settled requests not yet acknowledged, oldest first. Reading again returns the same ones."""
        ...

    async def acknowledge(self, count: int) -> None:
        """Marks the first `count` records of the last `read` as safely in the ledger.

        A crash before this is durable means that they come again.
        """
        ...

    async def ingested(self) -> dict[str, int]:
        """Per gateway id, the sequence number up to which everything was acknowledged."""
        ...


class SnapshotSink(Protocol):
    """Where the compiled gateway configuration goes."""

    async def publish(self, snapshot: bytes) -> None:
        """Replaces the snapshot whole and durably; a reader sees the old or the new one, never a mixture."""
        ...


class PriceBook(Protocol):
    """Dated prices of node types."""

    def price(self, offer: Offer) -> Offer:
        """The offer with its hourly price, date and source filled in. NotFound when the book has no price for it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What people should know now: `kind` such as `budget.threshold`, a one-line `title`, a `text` with the fix."""

    at: datetime
    kind: str
    project: str
    title: str
    text: str


class Notifier(Protocol):
    """How people are told."""

    async def send(self, notice: Notice) -> None:
        """Tells them. Raises Unavailable when it could not; the caller sends again, so a notice may arrive twice."""
        ...
