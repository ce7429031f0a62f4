"""Connections of the two databases, behind one small face: begin, execute, commit, close.

SQLite is called directly. What touches a few rows by key takes tens of microseconds and runs where it stands; what can
take longer (waiting for another process, searching, a commit with its fsync) runs in the store's one worker thread. A
driver that hands every call to a thread spends most of an admission waiting for thread switches: 28 of them, not 1.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from groundplane.adapters.store.faults import translate
from groundplane.errors import InvalidInput, Unavailable

_BUSY_TIMEOUT_S = 10
_FAULTS = (SQLAlchemyError, sqlite3.Error, OSError, TimeoutError)
_T = TypeVar("_T")
Values = Mapping[str, object] | list[dict[str, object]] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a statement gave: its rows as Python values, and how many rows it touched."""

    rows: Sequence[Any]
    rowcount: int


class Connection(Protocol):
    """One open transaction. Raises what `faults.translate` makes of the driver's errors."""

    @property
    def dialect(self) -> str: ...

    async def execute(self, statement: sa.Executable, values: Values = None, *, long: bool = False) -> Answer:
        """`long` for what reads or writes more than a few rows by key."""
        ...

    async def commit(self) -> None: ...

    async def close(self) -> None:
        """Rolls back what was not committed. Runs to its end even when the task is cancelled."""
        ...


class Engine(Protocol):
    """A database."""

    url: URL

    async def begin(self) -> Connection:
        """Opens a transaction; waits for its turn."""
        ...

    async def run(self, work: Callable[[sa.Connection], _T]) -> _T:
        """Runs plain code on a plain connection, outside any transaction of ours: what migrations need."""
        ...

    async def dispose(self) -> None: ...


def engine_for(url: str) -> Engine:
    """InvalidInput for a URL that is neither a SQLite file nor PostgreSQL, or when its driver is not installed."""
    hint = "write it like sqlite:////var/lib/groundplane.db or postgresql://user@host/groundplane"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidInput("the database URL can't be read", hint) from None
    backend = parsed.drivername.split("+")[0]
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise InvalidInput("a SQLite URL needs a file", hint)
        return SqliteEngine(parsed.set(drivername="sqlite"))
    if backend in ("postgresql", "postgres"):
        return PostgresqlEngine(parsed.set(drivername="postgresql+asyncpg"))
    raise InvalidInput(f"{backend} is no database Groundplane runs on", hint)


def _answer(result: sa.CursorResult[Any]) -> Answer:
    return Answer(result.fetchall() if result.returns_rows else (), result.rowcount)


# ---------------------------------------------------------------- SQLite


class SqliteEngine:
    """One connection, one transaction at a time: they queue here, and `BEGIN IMMEDIATE` keeps other processes out."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.turn = asyncio.Lock()
        self._engine = sa.create_engine(
            url,
            pool_size=1,
            max_overflow=0,
            connect_args={"timeout": 0, "check_same_thread": False},
        )
        sa.event.listen(self._engine, "connect", _configure)
        sa.event.listen(self._engine, "begin", _begin_immediate)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")

    async def begin(self) -> Connection:
        await self.turn.acquire()
        try:
            try:
                return _SqliteConnection(self, self._begun())
            except _FAULTS as error:
                fault = translate(error, self.url)
                if not isinstance(fault, Unavailable):
                    raise fault from error
            # Another process is writing (or the file is gone, which the second try finds too): wait elsewhere.
            return _SqliteConnection(self, await self._begun_elsewhere())
        except BaseException:
            self.turn.release()
            raise

    async def _begun_elsewhere(self) -> sa.Connection:
        opened: list[sa.Connection] = []
        try:
            await self.in_thread(lambda: opened.append(self._begun(_BUSY_TIMEOUT_S)))
        except BaseException:
            for connection in opened:  # cancelled while it waited, and it got its turn all the same
                connection.close()
            raise
        return opened[0]

    def _begun(self, patience_s: float = 0) -> sa.Connection:
        connection = self._engine.connect()
        try:
            raw = cast(sqlite3.Connection, connection.connection.dbapi_connection)
            if patience_s:
                raw.execute(f"PRAGMA busy_timeout={int(patience_s * 1000)}").close()
            connection.begin()
            if patience_s:
                raw.execute("PRAGMA busy_timeout=0").close()
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        return connection

    async def run(self, work: Callable[[sa.Connection], _T]) -> _T:
        def connected() -> _T:
            _create_private_file(self.url)
            patient = sa.create_engine(self.url, poolclass=sa.NullPool, connect_args={"timeout": _BUSY_TIMEOUT_S})
            sa.event.listen(patient, "connect", _configure)
            sa.event.listen(patient, "begin", _begin_immediate)
            with patient.connect() as connection:
                return work(connection)

        async with self.turn:
            return await self.in_thread(connected)

    async def in_thread(self, work: Callable[[], _T]) -> _T:
        """To its end, also when the task is cancelled: nobody else may use the connection before."""

        async def running() -> _T:
            try:
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
            except _FAULTS as error:
                raise translate(error, self.url) from error

        return await to_its_end(running())

    async def dispose(self) -> None:
        self._engine.dispose()
        self._thread.shutdown(wait=False)


class _SqliteConnection:
    dialect = "sqlite"

    def __init__(self, engine: SqliteEngine, connection: sa.Connection) -> None:
        self._engine = engine
        self._connection = connection
        self._has_written = False

    async def execute(self, statement: sa.Executable, values: Values = None, *, long: bool = False) -> Answer:
        self._has_written = self._has_written or not isinstance(statement, sa.Select)
        if long:
            return await self._engine.in_thread(lambda: self._execute(statement, values))
        try:
            return self._execute(statement, values)
        except _FAULTS as error:
            raise translate(error, self._engine.url) from error

    def _execute(self, statement: sa.Executable, values: Values) -> Answer:
        return _answer(cast("sa.CursorResult[Any]", self._connection.execute(statement, values)))

    async def commit(self) -> None:
        if self._has_written:
            await self._engine.in_thread(self._connection.commit)

    async def close(self) -> None:
        # Not awaited: a rollback only forgets pages in memory.
        try:
            self._connection.close()
        finally:
            self._engine.turn.release()


def _create_private_file(url: URL) -> None:
    """The file holds key digests and who called what: readable by its owner only, from its first byte."""
    os.close(os.open(cast(str, url.database), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _configure(connection: sqlite3.Connection, _: object) -> None:
    # The driver would begin transactions by itself, late and deferred; `_begin_immediate` does it instead.
    connection.isolation_level = None
    # FULL: a commit survives a power cut, not only a crash of ours.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_immediate(connection: sa.Connection) -> None:
    # IMMEDIATE takes the write lock now: a deferred one fails halfway when another writer came first.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


# ---------------------------------------------------------------- PostgreSQL


class PostgresqlEngine:
    """A pool of connections at READ COMMITTED: whoever reads in order to write locks the row first."""

    def __init__(self, url: URL) -> None:
        self.url = url
        settings = {
            "application_name": "groundplane",
            "lock_timeout": "15s",
            "idle_in_transaction_session_timeout": "60s",
            "jit": "off",
        }
        try:
            self._engine = create_async_engine(
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

    async def begin(self) -> Connection:
        connection = self._engine.connect()
        try:
            await connection.start()
            try:
                await connection.begin()
            except BaseException:
                await to_its_end(connection.close())
                raise
        except _FAULTS as error:
            raise translate(error, self.url) from error
        return _PostgresqlConnection(self, connection)

    async def run(self, work: Callable[[sa.Connection], _T]) -> _T:
        try:
            async with self._engine.connect() as connection:
                return await connection.run_sync(work)
        except _FAULTS as error:
            raise translate(error, self.url) from error

    async def dispose(self) -> None:
        await self._engine.dispose()


class _PostgresqlConnection:
    dialect = "postgresql"

    def __init__(self, engine: PostgresqlEngine, connection: AsyncConnection) -> None:
        self._engine = engine
        self._connection = connection

    async def execute(self, statement: sa.Executable, values: Values = None, *, long: bool = False) -> Answer:
        try:
            return _answer(cast("sa.CursorResult[Any]", await self._connection.execute(statement, values)))
        except _FAULTS as error:
            raise translate(error, self._engine.url) from error

    async def commit(self) -> None:
        try:
            await to_its_end(self._connection.commit())
        except _FAULTS as error:
            raise translate(error, self._engine.url) from error

    async def close(self) -> None:
        # An abandoned transaction would keep its locks.
        await to_its_end(self._connection.close())


async def to_its_end(work: Coroutine[Any, Any, _T]) -> _T:
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
