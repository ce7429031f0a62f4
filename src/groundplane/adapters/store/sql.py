"""The store on SQLite (one machine) and PostgreSQL (beyond it): SQLAlchemy Core, no ORM.

SQLite has a single writer: transactions queue in this process and `BEGIN IMMEDIATE` keeps other processes out.
PostgreSQL runs them side by side at READ COMMITTED; whoever reads in order to write locks the row first.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from groundplane.adapters.store.faults import translate
from groundplane.adapters.store.migrations import migrate
from groundplane.adapters.store.tables import CHAIN_HEAD, KINDS, TABLES, check_row, scalar_column
from groundplane.audit import Event, EventDraft, seal
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput
from groundplane.ports import AtLeast, Below, Between, ChainHead, Row, Tx

_BUSY_TIMEOUT_S = 10
_PAGE_ROWS = 1000
# SQLite ≥ 3.32 takes 32,766 bound values a statement, PostgreSQL 65,535 (asyncpg 32,767).
_BOUND_VALUES_MAX = 30_000
_T = TypeVar("_T")


class SqlStore:
    """`await SqlStore.open("sqlite:////path/groundplane.db")` or `…("postgresql://user@host/name")`.

    `open` brings the schema up to date. Raises Unavailable when the database does not answer, IntegrityFailure
    when it is damaged, Refusal when a newer Groundplane wrote it.
    """

    def __init__(self, url: str) -> None:
        self.url = _parsed(url)
        self._is_sqlite = self.url.get_backend_name() == "sqlite"
        self._engine = _sqlite_engine(self.url) if self._is_sqlite else _postgresql_engine(self.url)
        self._writer = asyncio.Lock() if self._is_sqlite else None
        self._tasks: set[asyncio.Task[Any]] = set()

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
        try:
            if self._is_sqlite:
                _create_private_file(self.url)
            async with self._engine.connect() as connection:
                await connection.run_sync(migrate.upgrade)
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:
            raise translate(error, self.url) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        if task in self._tasks:
            # On SQLite this would wait for itself for ever.
            raise RuntimeError("a transaction inside a transaction of the same task: pass `tx` along")
        self._tasks.add(task)
        try:
            async with self._writer or nullcontext():
                connection = await self._begin()
                try:
                    tx = _SqlTx(connection, self.url)
                    yield tx
                    await tx.flush()
                    await _to_its_end(self._commit(connection))
                finally:
                    # Closing rolls back what was not committed. It runs to its end even when the task is cancelled:
                    # an abandoned transaction would keep its locks.
                    await _to_its_end(connection.close())
        finally:
            self._tasks.discard(task)

    async def _begin(self) -> AsyncConnection:
        connection = self._engine.connect()
        try:
            await connection.start()
            try:
                await connection.begin()
            except BaseException:
                await _to_its_end(connection.close())
                raise
        except (SQLAlchemyError, sqlite3.Error, OSError, TimeoutError) as error:
            raise translate(error, self.url) from error
        return connection

    async def _commit(self, connection: AsyncConnection) -> None:
        try:
            await connection.commit()
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise translate(error, self.url) from error

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

    def __init__(self, connection: AsyncConnection, url: URL) -> None:
        self._connection = connection
        self._url = url
        self._dialect = connection.dialect.name
        self._head: ChainHead | None = None

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
    ) -> list[Row]:
        name = order.removeprefix("-")
        scalar_column(kind, name)
        column = TABLES[kind].c[name]
        # The two databases put NULL at different ends; ours sorts before everything, and ties break by id.
        ordering = column.desc().nulls_last() if order.startswith("-") else column.asc().nulls_first()
        statement = sa.select(TABLES[kind]).where(*_conditions(kind, where))
        statement = statement.order_by(ordering, TABLES[kind].c.id).limit(limit).offset(offset or None)
        return await self._rows(kind, statement)

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
        result = await self._execute(statement, values)
        if result.rowcount != 1:
            raise Conflict(
                f"{KINDS[kind].table}: {_id(row)} was changed by somebody else meanwhile",
                "read it again and repeat what you did",
            )
        return cast(Row, replace(cast(Any, row), version=version + 1))

    async def delete(self, kind: type[object], id: str) -> bool:
        if KINDS[kind].append_only:
            raise TypeError(f"{kind.__name__} rows are append-only")
        table = TABLES[kind]
        result = await self._execute(table.delete().where(table.c.id == id))
        return result.rowcount == 1

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
        ids = list((await self._execute(due)).scalars())
        if not ids:
            return []
        lease = {"lease_owner": owner, "lease_expires_at": now + timedelta(seconds=lease_s)}
        await self._execute(table.update().where(table.c.id.in_(ids)).values(version=table.c.version + 1, **lease))
        rows = await self._rows(kind, sa.select(table).where(table.c.id.in_(ids)))
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
        rows = _decoded(kind, (await self._execute(statement)).fetchall)
        return {tuple(row[:-1]): int(row[-1]) for row in rows}

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
            await self._execute(CHAIN_HEAD.update().where(CHAIN_HEAD.c.id == 1), values)

    async def _locked_head(self) -> ChainHead:
        return self._head or await self._read_head(sa.select(CHAIN_HEAD).with_for_update())

    async def _read_head(self, statement: sa.Select[Any]) -> ChainHead:
        row = (await self._execute(statement)).one_or_none()
        if row is None:
            raise IntegrityFailure("the head of the audit trail is missing", "restore the database from a backup")
        return ChainHead(id=row.event_id, hash=row.event_hash)

    async def _added(self, rows: Sequence[object]) -> set[str]:
        """Inserts the rows that clash with nothing; the others don't break the transaction. Returns the new ids."""
        for row in rows:
            check_row(row)
        statements = _statements(type(rows[0]), self._dialect)
        if len(rows) == 1:
            result = await self._execute(statements.insert, _values(rows[0]))
            return {_id(rows[0])} if result.rowcount == 1 else set()
        # Sent in batches whose compiled form is cached, unlike that of one statement with many rows in it.
        result = await self._execute(statements.insert_returning, [_values(row) for row in rows])
        return set(result.scalars())

    async def _present(self, kind: type, ids: Iterable[str]) -> set[str]:
        wanted, found = sorted(ids), set[str]()
        column = TABLES[kind].c.id
        for start in range(0, len(wanted), _BOUND_VALUES_MAX):
            chunk = wanted[start : start + _BOUND_VALUES_MAX]
            found |= set((await self._execute(sa.select(column).where(column.in_(chunk)))).scalars())
        return found

    async def _rows(
        self, kind: type[Row], statement: sa.Executable, values: Mapping[str, object] | None = None
    ) -> list[Row]:
        result = await self._execute(statement, values)
        names = [item.name for item in fields(cast(Any, kind))]
        return [kind(**dict(zip(names, row, strict=True))) for row in _decoded(kind, result.fetchall)]

    async def _execute(
        self, statement: sa.Executable, values: Mapping[str, object] | list[dict[str, object]] | None = None
    ) -> sa.CursorResult[Any]:
        try:
            return cast("sa.CursorResult[Any]", await self._connection.execute(statement, values))
        except (DBAPIError, OSError, TimeoutError) as error:
            raise translate(error, self._url) from error


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


def _conditions(kind: type, where: Mapping[str, object] | None) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    for name, value in (where or {}).items():
        scalar_column(kind, name)
        column = TABLES[kind].c[name]
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
            case None:
                found.append(column.is_(None))
            case _:
                found.append(column == value)
    return found


def _decoded(kind: type, fetch: Any) -> Sequence[Any]:
    """Rows as Python values; one that was tampered with into nonsense is damage, not a defect of the caller."""
    try:
        return cast("Sequence[Any]", fetch())
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        raise IntegrityFailure(
            f"a row of {KINDS[kind].table} can't be read: {error}",
            "run `ground audit verify`, then restore the database from a backup",
        ) from error


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


async def _to_its_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Runs to its end even when the caller is cancelled meanwhile; the cancellation follows afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except BaseException:
            break
    if cancelled is not None and task.exception() is None:
        raise cancelled
    return task.result()


# ---------------------------------------------------------------- engines


def _parsed(url: str) -> URL:
    hint = "write it like sqlite:////var/lib/groundplane.db or postgresql://user@host/groundplane"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidInput("the database URL can't be read", hint) from None
    backend = parsed.drivername.split("+")[0]
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise InvalidInput("a SQLite URL needs a file", hint)
        return parsed.set(drivername="sqlite+aiosqlite")
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+asyncpg")
    raise InvalidInput(f"{backend} is no database Groundplane runs on", hint)


def _create_private_file(url: URL) -> None:
    """The file holds key digests and who called what: readable by its owner only, from its first byte."""
    os.close(os.open(cast(str, url.database), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _sqlite_engine(url: URL) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=1, max_overflow=0, connect_args={"timeout": _BUSY_TIMEOUT_S})

    @sa.event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _: object) -> None:
        # The driver would begin transactions by itself, late and deferred; `begin` below does it instead.
        connection.isolation_level = None
        cursor = connection.cursor()
        # FULL: a commit survives a power cut, not only a crash of ours.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine.sync_engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # IMMEDIATE takes the write lock now: a deferred one fails halfway when another writer came first.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _postgresql_engine(url: URL) -> AsyncEngine:
    settings = {
        "application_name": "groundplane",
        "lock_timeout": "15s",
        "idle_in_transaction_session_timeout": "60s",
        "jit": "off",
    }
    try:
        return create_async_engine(
            url,
            pool_size=10,
            max_overflow=10,
            pool_pre_ping=True,
            isolation_level="READ COMMITTED",
            connect_args={"timeout": 5, "command_timeout": 60, "server_settings": settings},
        )
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"PostgreSQL needs the package {error.name}", "pip install 'groundplane[postgres]'"
        ) from error
