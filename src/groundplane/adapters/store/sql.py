"""The store on SQLite (one machine) and PostgreSQL (beyond it): SQLAlchemy Core, no ORM.

SQLite has a single writer, so its transactions queue. PostgreSQL runs them side by side at READ COMMITTED; whoever
reads in order to write locks the row first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, cast

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from groundplane.adapters.store import ranking
from groundplane.adapters.store.engines import Connection, Values, engine_for
from groundplane.adapters.store.migrations import migrate
from groundplane.adapters.store.tables import CHAIN_HEAD, KINDS, TABLES, check_row, scalar_column
from groundplane.audit import Event, EventDraft, seal
from groundplane.domain.conditions import Among, AtLeast, Below, Between, By, Contains, Greatest
from groundplane.errors import Conflict, IntegrityFailure
from groundplane.ports import ChainHead, Row, Tx

_PAGE_ROWS = 1000
# SQLite takes 32,766 bound values a statement, asyncpg 32,767.
_BOUND_VALUES_MAX = 30_000


class SqlStore:
    """`await SqlStore.open("sqlite:////path/groundplane.db")` or `…("postgresql://user@host/name")`.

    `open` brings the schema up to date. Raises Unavailable when the database does not answer, IntegrityFailure
    when it is damaged, Refusal when a newer Groundplane wrote it.
    """

    def __init__(self, url: str) -> None:
        self._engine = engine_for(url)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.writes = 0

    @classmethod
    async def open(cls, url: str) -> SqlStore:
        store = cls(url)
        try:
            await store.upgrade()
        except BaseException:
            await store.close()
            raise
        return store

    async def upgrade(self) -> None:
        """Applies the numbered migrations that are missing. Twice is the same as once; two processes take turns."""
        await self._engine.run(migrate.upgrade)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        if task in self._tasks:
            # On SQLite this would wait for itself for ever.
            raise RuntimeError("a transaction inside a transaction of the same task: pass `tx` along")
        self._tasks.add(task)
        try:
            connection = await self._engine.begin()
            try:
                tx = _SqlTx(connection)
                yield tx
                await tx.flush()
                await connection.commit()
                self.writes += tx.wrote
            finally:
                await connection.close()
        finally:
            self._tasks.discard(task)

    async def events(self) -> AsyncGenerator[Event, None]:
        """In short pages, each its own transaction: a slow reader holds nothing open. Rows are only ever appended."""
        last: int | None = None
        while True:
            where = None if last is None else {"id": AtLeast(last + 1)}
            page, fault = await self._event_page(where)
            for event in page:
                last = event.id
                yield event
            if fault is not None:
                number = (last or 0) + 1
                raise IntegrityFailure(
                    f"event {number} can't be read: {fault.message}", fault.hint, {"event_id": number}
                ) from fault
            if len(page) < _PAGE_ROWS:
                return

    async def _event_page(self, where: Mapping[str, object] | None) -> tuple[list[Event], IntegrityFailure | None]:
        """The next events, up to the first one that can't be read, and what is wrong with that one."""
        async with self.transaction() as tx:
            try:
                return await tx.find(Event, where, limit=_PAGE_ROWS), None
            except IntegrityFailure:
                page: list[Event] = []
                for offset in range(_PAGE_ROWS):
                    try:
                        page += await tx.find(Event, where, limit=1, offset=offset)
                    except IntegrityFailure as fault:
                        return page, fault
                return page, None

    async def close(self) -> None:
        await self._engine.dispose()


class _SqlTx:
    """One open transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._dialect = connection.dialect
        self._head: ChainHead | None = None
        self.wrote = False

    async def get(self, kind: type[Row], id: str, *, lock: bool = False) -> Row | None:
        statement = _statements(kind, self._dialect).get_locked if lock else _statements(kind, self._dialect).get
        rows = await self._rows(kind, statement, {"the_id": _typed_id(kind, id)})
        return rows[0] if rows else None

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
        column = TABLES[kind].c[name]
        ordering = column.desc() if order.startswith("-") else column.asc()
        if column.nullable:
            # The two databases put NULL at different ends; ours sorts before everything. Not said of columns without:
            # PostgreSQL walks no index backwards for it. Ties break by id.
            ordering = ordering.nulls_last() if order.startswith("-") else ordering.nulls_first()
        statement = sa.select(TABLES[kind]).where(*_conditions(kind, where))
        if after is not None:
            value, id = after
            # Said in two parts: the first alone is what an index can begin at.
            at_or_behind, behind = (
                (column <= value, column < value) if order[0] == "-" else (column >= value, column > value)
            )
            statement = statement.where(at_or_behind, sa.or_(behind, TABLES[kind].c.id > id))
        statement = statement.order_by(ordering, TABLES[kind].c.id).limit(limit).offset(offset or None)
        return await self._rows(kind, statement, long=not _by_unique_column(kind, where))

    async def ranked(
        self,
        kind: type[Row],
        where: Mapping[str, object] | None,
        by: Sequence[By],
        *,
        limit: int,
        after: Sequence[object] | None = None,
    ) -> list[tuple[Row, list[object]]]:
        table = TABLES[kind]
        others = {each.kind: TABLES[each.kind] for each in by if each.kind is not None}
        ranks = [ranking.rank_of(each, kind, others, self._dialect) for each in by]
        joined: sa.FromClause = table
        for other in others.values():
            joined = joined.outerjoin(other, other.c.id == table.c.id)
        labelled = [rank.label(f"rank_{number}") for number, rank in enumerate(ranks)]
        statement = sa.select(table, *labelled).select_from(joined).where(*_conditions(kind, where))
        if after is not None:
            statement = statement.where(ranking.behind(ranks, by, table.c.id, after))
        statement = statement.order_by(*ranking.ordering(ranks, by), table.c.id).limit(limit)
        names = [item.name for item in fields(cast(Any, kind))]
        found = [
            (kind(**dict(zip(names, row, strict=False))), list(row[len(names) :]))
            for row in await self._decoded(kind, statement, None, long=True)
        ]
        return [(row, [*place, _id(row)]) for row, place in found]

    async def insert(self, row: Row) -> None:
        if not await self._added([row]):
            raise Conflict(f"{KINDS[type(row)].table}: {_id(row)} or what must be unique in it is taken")

    async def insert_once(self, row: Row) -> bool:
        return bool(await self.insert_many_once([row]))

    async def insert_many_once(self, rows: Sequence[Row]) -> frozenset[str]:
        if not rows:
            return frozenset()
        kind = type(rows[0])
        added = await self._added(rows)
        left = {_id(row) for row in rows} - added
        if left and len(await self._present(kind, left)) < len(left):
            raise Conflict(f"{KINDS[kind].table}: what must be unique in {min(left)} is taken")
        return frozenset(added)

    async def update(self, row: Row) -> Row:
        kind = _changeable(row)
        check_row(row)
        values = _values(row)
        version = cast(int, values["version"])
        values["version"] = version + 1
        statement = _statements(kind, self._dialect).update
        values["the_id"], values["the_version"] = values.pop("id"), version
        self.wrote = True
        answer = await self._connection.execute(statement, values)
        if answer.rowcount != 1:
            raise Conflict(
                f"{KINDS[kind].table}: {_id(row)} was changed by somebody else meanwhile",
                "read it again and repeat what you did",
            )
        return cast(Row, replace(cast(Any, row), version=version + 1))

    async def delete(self, kind: type[object], id: str) -> bool:
        if KINDS[kind].append_only:
            raise TypeError(f"{kind.__name__} rows are append-only")
        table = TABLES[kind]
        self.wrote = True
        answer = await self._connection.execute(table.delete().where(table.c.id == id))
        return answer.rowcount == 1

    async def claim(self, kind: type[Row], *, now: datetime, owner: str, lease_s: float, limit: int) -> list[Row]:
        table = TABLES[kind]
        free = sa.or_(table.c.lease_expires_at.is_(None), table.c.lease_expires_at <= now)
        due = (
            sa.select(table.c.id)
            .where(table.c.due_at <= now, free)
            .order_by(table.c.due_at, table.c.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        ids = [row.id for row in (await self._connection.execute(due, long=True)).rows]
        if not ids:
            return []
        self.wrote = True
        lease = {"lease_owner": owner, "lease_expires_at": now + timedelta(seconds=lease_s)}
        taken = table.update().where(table.c.id.in_(ids)).values(version=table.c.version + 1, **lease)
        await self._connection.execute(taken, long=True)
        rows = await self._rows(kind, sa.select(table).where(table.c.id.in_(ids)), long=True)
        return sorted(rows, key=lambda row: ids.index(_id(row)))

    async def total(
        self,
        kind: type[object],
        column: str,
        *,
        by: Sequence[str] = (),
        where: Mapping[str, object] | None = None,
    ) -> dict[tuple[object, ...], int]:
        table = TABLES[kind]
        for name in by:
            scalar_column(kind, name)
        if column == "*":
            amount: sa.ColumnElement[Any] = sa.func.count()
        elif scalar_column(kind, column) is int:
            amount = sa.func.coalesce(sa.func.sum(table.c[column]), 0)
        else:
            raise ValueError(f"{kind.__name__}.{column} is no integer column")
        groups = [table.c[name] for name in by]
        statement = sa.select(*groups, amount).select_from(table)
        statement = statement.where(*_conditions(kind, where)).group_by(*groups)
        rows = await self._decoded(kind, statement, None, long=True)
        return {tuple(row[:-1]): int(row[-1]) for row in rows}

    async def count(self, kind: type[object], where: Mapping[str, object] | None = None, *, most: int) -> int:
        table = TABLES[kind]
        some: sa.Select[Any] = (
            sa.select(sa.literal_column("1")).select_from(table).where(*_conditions(kind, where)).limit(most)
        )
        statement = sa.select(sa.func.count()).select_from(some.subquery())
        return int((await self._connection.execute(statement, long=True)).rows[0][0])

    async def joined(
        self, kind: type[object], column: str, *, by: Sequence[str], where: Mapping[str, object]
    ) -> dict[tuple[object, ...], str]:
        for name in (column, *by):
            scalar_column(kind, name)
        groups = [TABLES[kind].c[name] for name in by]
        text = sa.func.aggregate_strings(TABLES[kind].c[column], ",")
        statement = sa.select(*groups, text).where(*_conditions(kind, where)).group_by(*groups)
        return {tuple(row[:-1]): row[-1] for row in await self._decoded(kind, statement, None, long=True)}

    async def append_event(self, draft: EventDraft) -> Event:
        head = await self._locked_head()
        event = seal(draft, head.id + 1, head.hash)
        check_row(event)
        if not await self._added([event]):
            raise IntegrityFailure(
                f"the audit trail holds an event {event.id} that was not written through its chain",
                "run `ground audit verify`, then restore the database from a backup",
            )
        self._head = ChainHead(id=event.id, hash=event.hash)
        return event

    async def chain_head(self) -> ChainHead | None:
        head = self._head or await self._read_head(sa.select(CHAIN_HEAD))
        return head if head.id else None

    async def flush(self) -> None:
        """Writes the chain head once, after the last event of this transaction."""
        if self._head is not None:
            values = {"event_id": self._head.id, "event_hash": self._head.hash}
            await self._connection.execute(CHAIN_HEAD.update().where(CHAIN_HEAD.c.id == 1), values)

    async def _locked_head(self) -> ChainHead:
        return self._head or await self._read_head(sa.select(CHAIN_HEAD).with_for_update())

    async def _read_head(self, statement: sa.Select[Any]) -> ChainHead:
        rows = (await self._connection.execute(statement)).rows
        if not rows:
            raise IntegrityFailure("the head of the audit trail is missing", "restore the database from a backup")
        return ChainHead(id=rows[0].event_id, hash=rows[0].event_hash)

    async def _added(self, rows: Sequence[object]) -> set[str]:
        """Inserts the rows that clash with nothing; the others don't break the transaction. Returns the new ids."""
        for row in rows:
            check_row(row)
        self.wrote = True
        statements = _statements(type(rows[0]), self._dialect)
        if len(rows) == 1:
            answer = await self._connection.execute(statements.insert, _values(rows[0]))
            return {_id(rows[0])} if answer.rowcount == 1 else set()
        # Sent in batches whose compiled form is cached, unlike that of one statement with many rows in it.
        values = [_values(row) for row in rows]
        answer = await self._connection.execute(statements.insert_returning, values, long=True)
        return {row.id for row in answer.rows}

    async def _present(self, kind: type, ids: Iterable[str]) -> set[str]:
        wanted, found = sorted(ids), set[str]()
        column = TABLES[kind].c.id
        for start in range(0, len(wanted), _BOUND_VALUES_MAX):
            chunk = wanted[start : start + _BOUND_VALUES_MAX]
            answer = await self._connection.execute(sa.select(column).where(column.in_(chunk)), long=True)
            found |= {row.id for row in answer.rows}
        return found

    async def _rows(
        self, kind: type[Row], statement: sa.Executable, values: Values = None, *, long: bool = False
    ) -> list[Row]:
        names = [item.name for item in fields(cast(Any, kind))]
        rows = await self._decoded(kind, statement, values, long=long)
        return [kind(**dict(zip(names, row, strict=True))) for row in rows]

    async def _decoded(self, kind: type, statement: sa.Executable, values: Values, *, long: bool) -> Sequence[Any]:
        """Rows as Python values; one that was tampered with into nonsense is damage, not a defect of the caller."""
        try:
            return (await self._connection.execute(statement, values, long=long)).rows
        except (ValueError, TypeError, msgspec.MsgspecError) as error:
            raise IntegrityFailure(
                f"a row of {KINDS[kind].table} can't be read: {error}",
                "run `ground audit verify`, then restore the database from a backup",
            ) from error


@dataclass(frozen=True, slots=True)
class _Statements:
    """The statements every transaction uses, built once per row kind and dialect."""

    get: sa.Select[Any]
    get_locked: sa.Select[Any]
    insert: Any
    insert_returning: Any
    update: sa.Update


_PREPARED: dict[tuple[type, str], _Statements] = {}


def _statements(kind: type, dialect: str) -> _Statements:
    prepared = _PREPARED.get((kind, dialect))
    if prepared is None:
        table = TABLES[kind]
        get = sa.select(table).where(table.c.id == sa.bindparam("the_id"))
        insert = (sqlite if dialect == "sqlite" else postgresql).insert(table).on_conflict_do_nothing()
        update = table.update().where(table.c.id == sa.bindparam("the_id"))
        if "version" in table.c:
            update = update.where(table.c.version == sa.bindparam("the_version"))
        prepared = _Statements(
            get=get,
            get_locked=get.with_for_update(),
            insert=insert,
            insert_returning=insert.returning(table.c.id),
            update=update,
        )
        _PREPARED[kind, dialect] = prepared
    return prepared


def _conditions(
    kind: type, where: Mapping[str, object] | None, table: sa.FromClause | None = None
) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    for name, value in (where or {}).items():
        scalar_column(kind, name)
        column = (TABLES[kind] if table is None else table).c[name]
        match value:
            case tuple():
                one_of = column.in_([item for item in value if item is not None])
                found.append(sa.or_(one_of, column.is_(None)) if None in value else one_of)
            case AtLeast(value=low):
                found.append(column >= low)
            case Below(value=high):
                found.append(column < high)
            case Between(low=low, high=high):
                found.append(sa.and_(column >= low, column < high))
            case Contains(text=text):
                # SQLite's LIKE ignores case, PostgreSQL's does not: what is looked for and in is lower-case.
                found.append(column.contains(text, autoescape=True))
            case Among(kind=other, column=name, where=inner):
                scalar_column(other, name)
                # An alias of its own: the other kind may be this one, or stand inside another Among.
                rows = TABLES[other].alias()
                found.append(sa.exists().where(rows.c[name] == column, *_conditions(other, inner, rows)))
            case Greatest(per=per, where=inner):
                scalar_column(kind, per)
                rows, own = TABLES[kind].alias(), (TABLES[kind] if table is None else table).c[per]
                same = (rows.c[per] == own, *_conditions(kind, inner, rows))
                found.append(column == sa.select(sa.func.max(rows.c[name])).where(*same).scalar_subquery())
            case None:
                found.append(column.is_(None))
            case _:
                found.append(column == value)
    return found


def _by_unique_column(kind: type, where: Mapping[str, object] | None) -> bool:
    """Whether at most one row can match: a key is looked up by its hash with every request."""
    alone = {names[0] for names in KINDS[kind].unique if len(names) == 1}
    return any(name in alone and isinstance(value, str) for name, value in (where or {}).items())


def _values(row: object) -> dict[str, object]:
    return {item.name: getattr(row, item.name) for item in fields(cast(Any, row))}


def _id(row: object) -> str:
    return cast(str, cast(Any, row).id)


def _typed_id(kind: type, id: str) -> object:
    return int(id) if kind is Event else id


def _changeable(row: object) -> type:
    kind = type(row)
    if KINDS[kind].append_only:
        raise TypeError(f"{kind.__name__} rows are append-only")
    return kind
