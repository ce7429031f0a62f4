"""The store in memory: for tests and demonstrations. Same rules as the databases, nothing survives the process."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from datetime import datetime, timedelta
from typing import Any, cast

from groundplane.adapters.store.tables import KINDS, PENDING, check_row, scalar_column
from groundplane.audit import GENESIS, Event, EventDraft, seal
from groundplane.domain.conditions import Among, AtLeast, Below, Between, By, Contains, Greatest
from groundplane.errors import Conflict
from groundplane.ports import ChainHead, Row, Tx

_Rows = dict[object, Any]


class MemoryStore:
    """Transactions run one after another; each writes to an overlay that is merged on commit and dropped otherwise."""

    def __init__(self) -> None:
        self._rows: dict[type, _Rows] = {kind: {} for kind in KINDS}
        self._lock = asyncio.Lock()
        self._holder: asyncio.Task[Any] | None = None
        self.writes = 0

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        task = asyncio.current_task()
        if task is self._holder:
            raise RuntimeError("a transaction inside a transaction of the same task: pass `tx` along")
        async with self._lock:
            self._holder = task
            try:
                tx = _MemoryTx(self._rows)
                yield tx
                self.writes += tx.commit()
            finally:
                self._holder = None

    async def events(self) -> AsyncGenerator[Event, None]:
        for number in sorted(cast("dict[int, Event]", self._rows[Event])):
            yield self._rows[Event][number]

    async def close(self) -> None:
        """Nothing to let go of."""


class _MemoryTx:
    def __init__(self, rows: dict[type, _Rows]) -> None:
        self._rows = rows
        # None marks a row deleted by this transaction.
        self._overlay: dict[type, dict[object, Any]] = {kind: {} for kind in KINDS}

    def commit(self) -> bool:
        """Says whether there was anything to write."""
        for kind, changed in self._overlay.items():
            for id, row in changed.items():
                if row is None:
                    self._rows[kind].pop(id, None)
                else:
                    self._rows[kind][id] = row
        return any(self._overlay.values())

    async def get(self, kind: type[Row], id: str, *, lock: bool = False) -> Row | None:
        row = self._peek(kind, int(id) if kind is Event else id)
        return None if row is None else cast(Row, _copied(row))

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
        name = order.removeprefix("-")
        scalar_column(kind, name)
        found = sorted(self._matching(kind, where), key=lambda row: row.id)
        found.sort(key=lambda row: _nulls_first(getattr(row, name)), reverse=order.startswith("-"))
        if after is not None:
            found = [row for row in found if _stands_behind(row, name, after, descending=order.startswith("-"))]
        if limit is not None:
            found = found[: offset + limit]
        return [cast(Row, _copied(row)) for row in found[offset:]]

    async def ranked(
        self,
        kind: type[Row],
        where: Mapping[str, object] | None,
        by: Sequence[By],
        *,
        limit: int,
        after: Sequence[object] | None = None,
    ) -> list[tuple[Row, list[object]]]:
        places = {row.id: [*(self._rank(row, each) for each in by), row.id] for row in self._matching(kind, where)}
        found = sorted(self._matching(kind, where), key=lambda row: row.id)
        for number, each in reversed(list(enumerate(by))):
            there = [row for row in found if places[row.id][number] is not None]
            missing = [row for row in found if places[row.id][number] is None]
            there.sort(key=lambda row: places[row.id][number], reverse=each.descending)
            found = there + missing
        if after is not None:
            found = [row for row in found if _ranks_behind(places[row.id], after, by)]
        return [(cast(Row, _copied(row)), places[row.id]) for row in found[:limit]]

    def _rank(self, row: Any, by: By) -> Any:
        holder = row if by.kind is None else self._peek(by.kind, row.id)
        have = None if holder is None else getattr(holder, by.column)
        if not by.key or have is None:
            return have
        found = (json.loads(have) if isinstance(have, str) else have).get(by.key)
        if not by.is_number or found is None:
            return found
        return None if math.isnan(number := float(found[0])) else number

    async def insert(self, row: Row) -> None:
        if not await self.insert_once(row):
            raise Conflict(f"{KINDS[type(row)].table}: {cast(Any, row).id} or what must be unique in it is taken")

    async def insert_once(self, row: Row) -> bool:
        check_row(row)
        kind, id = type(row), cast(Any, row).id
        if self._peek(kind, id) is not None:
            return False
        self._check_constraints(row)
        self._overlay[kind][id] = _copied(row)
        return True

    async def insert_many_once(self, rows: Sequence[Row]) -> frozenset[str]:
        return frozenset([cast(Any, row).id for row in rows if await self.insert_once(row)])

    async def update(self, row: Row) -> Row:
        kind, values = type(row), cast(Any, row)
        if KINDS[kind].append_only:
            raise TypeError(f"{kind.__name__} rows are append-only")
        check_row(row)
        stored = self._peek(kind, values.id)
        if stored is None or stored.version != values.version:
            raise Conflict(
                f"{KINDS[kind].table}: {values.id} was changed by somebody else meanwhile",
                "read it again and repeat what you did",
            )
        self._check_constraints(row)
        changed = replace(values, version=values.version + 1)
        self._overlay[kind][values.id] = _copied(changed)
        return cast(Row, changed)

    async def delete(self, kind: type[object], id: str) -> bool:
        if KINDS[kind].append_only:
            raise TypeError(f"{kind.__name__} rows are append-only")
        if self._peek(kind, id) is None:
            return False
        for other, spec in KINDS.items():
            for column, target in spec.references.items():
                if target is kind and any(True for _ in self._matching(other, {column: id})):
                    raise Conflict(f"{KINDS[kind].table}: {id} is still referred to by {spec.table}")
        self._overlay[kind][id] = None
        return True

    async def claim(self, kind: type[Row], *, now: datetime, owner: str, lease_s: float, limit: int) -> list[Row]:
        due = [
            row
            for row in self._matching(kind, None)
            if row.due_at is not None
            and row.due_at <= now
            and (row.lease_expires_at is None or row.lease_expires_at <= now)
        ]
        due.sort(key=lambda row: (row.due_at, row.id))
        lease = {"lease_owner": owner, "lease_expires_at": now + timedelta(seconds=lease_s)}
        return [await self.update(cast(Row, replace(row, **lease))) for row in due[:limit]]

    async def total(
        self,
        kind: type[object],
        column: str,
        *,
        by: Sequence[str] = (),
        where: Mapping[str, object] | None = None,
    ) -> dict[tuple[object, ...], int]:
        for name in by:
            scalar_column(kind, name)
        if column != "*" and scalar_column(kind, column) is not int:
            raise ValueError(f"{kind.__name__}.{column} is no integer column")
        sums: dict[tuple[object, ...], int] = {} if by else {(): 0}
        for row in self._matching(kind, where):
            group = tuple(getattr(row, name) for name in by)
            sums[group] = sums.get(group, 0) + (1 if column == "*" else getattr(row, column) or 0)
        return sums

    async def count(self, kind: type[object], where: Mapping[str, object] | None = None, *, most: int) -> int:
        return sum(1 for _ in itertools.islice(self._matching(kind, where), most))

    async def joined(
        self, kind: type[object], column: str, *, by: Sequence[str], where: Mapping[str, object]
    ) -> dict[tuple[object, ...], str]:
        found: dict[tuple[object, ...], list[str]] = {}
        for row in self._matching(kind, where):
            found.setdefault(tuple(getattr(row, name) for name in by), []).append(getattr(row, column))
        return {group: ",".join(texts) for group, texts in found.items()}

    async def append_event(self, draft: EventDraft) -> Event:
        head = await self.chain_head() or ChainHead(id=0, hash=GENESIS)
        event = seal(draft, head.id + 1, head.hash)
        check_row(event)
        self._overlay[Event][event.id] = _copied(event)
        return event

    async def chain_head(self) -> ChainHead | None:
        # Events are only ever appended, so the newest is the last of its dict.
        newest = self._overlay[Event] or self._rows[Event]
        if not newest:
            return None
        event = next(reversed(newest.values()))
        return ChainHead(id=event.id, hash=event.hash)

    def _peek(self, kind: type, id: object) -> Any:
        changed = self._overlay[kind]
        return changed[id] if id in changed else self._rows[kind].get(id)

    def _all(self, kind: type) -> Iterator[Any]:
        changed = self._overlay[kind]
        yield from (row for id, row in self._rows[kind].items() if id not in changed)
        yield from (row for row in changed.values() if row is not None)

    def _matching(self, kind: type, where: Mapping[str, object] | None) -> Iterator[Any]:
        wanted = dict(where or {})
        tops: list[tuple[str, str, dict[object, Any]]] = []
        for name, value in list(wanted.items()):
            scalar_column(kind, name)
            if isinstance(value, Greatest):
                scalar_column(kind, value.per)
                tops.append((name, value.per, self._greatest(kind, name, value)))
                del wanted[name]
            if isinstance(value, Among):
                scalar_column(value.kind, value.column)
                wanted[name] = frozenset(getattr(row, value.column) for row in self._matching(value.kind, value.where))
        for row in self._all(kind):
            if all(_satisfies(getattr(row, name), value) for name, value in wanted.items()) and all(
                best.get(getattr(row, per)) == getattr(row, name) for name, per, best in tops
            ):
                yield row

    def _greatest(self, kind: type, name: str, asked: Greatest) -> dict[object, Any]:
        best: dict[object, Any] = {}
        for row in self._matching(kind, asked.where):
            of, value = getattr(row, asked.per), getattr(row, name)
            best[of] = max(value, best.get(of, value))
        return best

    def _check_constraints(self, row: object) -> None:
        spec = KINDS[type(row)]
        for column, target in spec.references.items():
            if self._peek(target, getattr(row, column)) is None:
                raise Conflict(f"{spec.table}: {column} {getattr(row, column)} does not exist")
        groups = list(spec.unique)
        if spec.pending_unique and cast(Any, row).status == PENDING:
            groups += [(name, "status") for name in spec.pending_unique]
        for names in groups:
            where = {name: getattr(row, name) for name in names}
            if any(other.id != cast(Any, row).id for other in self._matching(type(row), where)):
                raise Conflict(f"{spec.table}: what must be unique in {cast(Any, row).id} is taken")


def _satisfies(value: Any, wanted: object) -> bool:
    """As SQL compares: a missing value is in no range."""
    match wanted:
        case tuple() | frozenset():
            return value in wanted
        case Contains(text=text):
            return text in cast(str, value)
        case AtLeast(value=low):
            return value is not None and value >= cast(Any, low)
        case Below(value=high):
            return value is not None and value < cast(Any, high)
        case Between(low=low, high=high):
            return value is not None and cast(Any, low) <= value < cast(Any, high)
        case _:
            return bool(value == wanted)


def _stands_behind(row: Any, name: str, after: tuple[object, str], *, descending: bool) -> bool:
    value, (other, id) = getattr(row, name), cast("tuple[Any, str]", after)
    if value is None or value == other:
        return value is not None and row.id > id
    return bool(value < other if descending else value > other)


def _ranks_behind(place: Sequence[Any], after: Sequence[Any], by: Sequence[By]) -> bool:
    for have, other, each in zip(place, after, by, strict=False):
        if have != other:
            if have is None or other is None:
                return have is None
            return bool(have < other) if each.descending else bool(have > other)
    return bool(place[-1] > after[-1])


def _nulls_first(value: object) -> tuple[bool, Any]:
    return (value is not None, value if value is not None else 0)


def _copied(row: object) -> object:
    """Rows are frozen, but their dicts are not: nobody may change what is stored by changing what was read."""
    changed = {
        item.name: copy.deepcopy(getattr(row, item.name))
        for item in fields(cast(Any, row))
        if isinstance(getattr(row, item.name), dict)
    }
    return replace(cast(Any, row), **changed) if changed else row
