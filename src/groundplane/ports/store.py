"""The one durable memory: transactions over typed rows, and the audit trail's events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

from groundplane.audit import Event, EventDraft
from groundplane.domain.conditions import By

Row = TypeVar("Row")
"""A frozen dataclass with an `id`, and a `version` when it can change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainHead:
    """The newest event's number and hash, kept apart from the events themselves."""

    id: int
    hash: str


class Tx(Protocol):
    """One transaction: every method sees one consistent state; leaving the block commits all of it or nothing.

    Two methods may see two states: lock a row before reading what is to be changed. After Conflict from `insert` or
    from a stale `update` the transaction can go on. Opening a second one inside it is a RuntimeError.
    """

    async def get(self, kind: type[Row], id: str, *, lock: bool = False) -> Row | None:
        """The row, or None. `lock` makes other transactions that lock it wait until this one ends."""
        ...

    async def find(
        self,
        kind: type[Row],
        where: Mapping[str, object] | None = None,
        *,
        order: str = "id",
        limit: int | None = None,
        offset: int = 0,
        after: tuple[object, str] | None = None,
    ) -> list[Row]:
        """Rows whose columns equal `where`, ordered; `-x` descends, and ids ascend where the column is the same.

        A tuple value means "one of"; AtLeast, Below and Between are ranges; the other conditions say what they mean.
        `after` is (value of the ordering column, id) of a row: only what stands behind it. The column may not be None.
        """
        ...

    async def ranked(
        self,
        kind: type[Row],
        where: Mapping[str, object] | None,
        by: Sequence[By],
        *,
        limit: int,
        after: Sequence[object] | None = None,
    ) -> list[tuple[Row, list[object]]]:
        """Rows as `find` gives them, by several orders one after the other and then by id, each with its place: what
        it has of each order, and its id. `after` is a place: only what stands behind it."""
        ...

    async def insert(self, row: Row) -> None:
        """Adds a row. Raises Conflict when its id is taken."""
        ...

    async def insert_once(self, row: Row) -> bool:
        """Adds a row unless its id is taken; says whether it was added. Twice is the same as once."""
        ...

    async def insert_many_once(self, rows: Sequence[Row]) -> frozenset[str]:
        """`insert_once` for many rows of one kind in few round trips; returns the ids that were added."""
        ...

    async def update(self, row: Row) -> Row:
        """Replaces the row if its stored version still equals `row.version`; returns it with version + 1.

        Raises Conflict when somebody else changed it meanwhile: this is the fencing token of a lease.
        """
        ...

    async def delete(self, kind: type[object], id: str) -> bool:
        """Removes the row; says whether it was there."""
        ...

    async def claim(self, kind: type[Row], *, now: datetime, owner: str, lease_s: float, limit: int) -> list[Row]:
        """Takes up to `limit` rows that are due (`due_at ≤ now`) and unleased or expired, oldest due first.

        Each gets `lease_owner`, `lease_expires_at` and a new version. Two claimers never get the same row.
        A claimer that dies loses its rows when the lease expires.
        """
        ...

    async def total(
        self,
        kind: type[object],
        column: str,
        *,
        by: Sequence[str] = (),
        where: Mapping[str, object] | None = None,
    ) -> dict[tuple[object, ...], int]:
        """Sum of an integer column, grouped: {(group values…): sum}. An empty `by` gives {(): sum}.

        Column `*` counts rows.
        """
        ...

    async def count(self, kind: type[object], where: Mapping[str, object] | None = None, *, most: int) -> int:
        """How many rows match, up to `most`: nothing beyond that is looked at."""
        ...

    async def joined(
        self, kind: type[object], column: str, *, by: Sequence[str], where: Mapping[str, object]
    ) -> dict[tuple[object, ...], str]:
        """The texts of a column, put together with commas between in no order: {(group values…): text}."""
        ...

    async def append_event(self, draft: EventDraft) -> Event:
        """Seals the draft onto the audit chain, in this transaction.

        The chain is locked until the transaction ends: append last, after the rows the event tells of.
        """
        ...

    async def chain_head(self) -> ChainHead | None:
        """The newest event's number and hash; None on an empty trail."""
        ...


class Store(Protocol):
    """The one durable memory of the control plane."""

    @property
    def writes(self) -> int:
        """Rises with each transaction that wrote and was committed through this object: who looks need not look again
        while it stands still, as long as nobody else writes."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[Tx]:
        """Opens a transaction.

        Raises Unavailable when the database does not answer, IntegrityFailure when it is damaged.
        """
        ...

    def events(self) -> AsyncGenerator[Event, None]:
        """Every audit event in order, streamed."""
        ...

    async def close(self) -> None:
        """Lets go of connections. Twice is the same as once."""
        ...
