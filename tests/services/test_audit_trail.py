"""The trail is verified where it lies: rows are changed behind our back, with SQL, and found."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import asyncpg
import pytest

from groundplane.adapters.store import sql
from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.store.sql import SqlStore
from groundplane.audit import EventDraft
from groundplane.errors import IntegrityFailure
from groundplane.identity import Actor, Role
from groundplane.ports import Store
from groundplane.services.audit_trail import AuditTrail

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
EVENTS = 63
PAGE = 50
Execute = Callable[[str], Awaitable[None]]


async def write(store: Store, count: int, project: str = "") -> None:
    async with store.transaction() as tx:
        for number in range(count):
            await tx.append_event(
                EventDraft(
                    at=NOW,
                    actor="ana",
                    action="run.submit",
                    object_kind="run",
                    object_id=f"run-{number % 3}",
                    project=project,
                    after={"cost": 1.0, "n": number},
                )
            )


class Database:
    """A store with a trail, and a way to it that does not lead through the store."""

    def __init__(self, store: SqlStore, execute: Execute) -> None:
        self.store, self.execute = store, execute
        self.audit = AuditTrail(store=store)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))])
async def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    monkeypatch.setattr(sql, "_PAGE_ROWS", PAGE)  # so that the trail is longer than a page
    url: str = request.getfixturevalue(f"{request.param}_url")

    async def in_sqlite(statements: str) -> None:
        with sqlite3.connect(url.removeprefix("sqlite:///")) as raw:
            raw.executescript(statements)
        raw.close()

    async def in_postgresql(statements: str) -> None:
        raw = await asyncpg.connect(url)
        await raw.execute(statements)
        await raw.close()

    store = await SqlStore.open(url)
    await write(store, EVENTS)
    yield Database(store, in_sqlite if request.param == "sqlite" else in_postgresql)
    await store.close()


async def test_an_untouched_trail_is_true(database: Database) -> None:
    assert await database.audit.verify() == (EVENTS, None)


@pytest.mark.parametrize(
    ("statement", "where", "what"),
    [
        ("UPDATE events SET actor = 'mallory' WHERE id = 40", 40, "was changed"),
        ("UPDATE events SET reason = 'x' WHERE id = 63", 63, "was changed"),
        ("""UPDATE events SET after = '{"cost":2.0,"n":9}' WHERE id = 10""", 10, "was changed"),
        ("UPDATE events SET after = '{nonsense' WHERE id = 55", 55, "can't be read"),
        ("DELETE FROM events WHERE id = 1", 1, "is missing"),
        ("DELETE FROM events WHERE id = 51", 51, "is missing"),
        ("DELETE FROM events WHERE id = 63", 63, "1 event(s) after 62 are missing"),
        ("DELETE FROM events WHERE id > 50", 51, "13 event(s) after 50 are missing"),
        ("DELETE FROM events", 1, "63 event(s) after 0 are missing"),
        (
            "UPDATE events SET id = -1 WHERE id = 5; UPDATE events SET id = 5 WHERE id = 6;"
            "UPDATE events SET id = 6 WHERE id = -1",
            5,
            "does not follow",
        ),
        (
            "INSERT INTO events SELECT 0, at, actor, action, object_kind, object_id, project, before, after, reason,"
            " previous_hash, hash FROM events WHERE id = 1",
            1,
            "is missing; the next one is 0",
        ),
        (
            "INSERT INTO events SELECT 64, at, actor, action, object_kind, object_id, project, before, after, reason,"
            " hash, hash FROM events WHERE id = 63",
            64,
            "was changed",
        ),
        ("UPDATE chain_head SET event_id = 62", 63, ""),
        ("UPDATE chain_head SET event_hash = 'x'", 63, "not the one recorded"),
    ],
    ids=[
        "changed",
        "last-changed",
        "json-changed",
        "unreadable",
        "first-removed",
        "page-start-removed",
        "last-removed",
        "end-cut",
        "emptied",
        "reordered",
        "put-before",
        "put-behind",
        "head-back",
        "head-hash",
    ],
)
async def test_a_row_changed_behind_our_back_is_found(
    database: Database, statement: str, where: int, what: str
) -> None:
    await database.execute(statement)
    _, broken = await database.audit.verify()
    assert broken is not None and broken.event_id == where, broken
    assert what in broken.what


async def test_an_event_forged_behind_the_end_stops_the_next_one(database: Database) -> None:
    await database.execute(
        "INSERT INTO events SELECT 64, at, actor, action, object_kind, object_id, project, before, after, reason,"
        " previous_hash, hash FROM events WHERE id = 63"
    )
    with pytest.raises(IntegrityFailure, match="64"):
        await write(database.store, 1)


async def test_a_trail_without_its_head_takes_no_more_events(database: Database) -> None:
    await database.execute("DELETE FROM chain_head")
    with pytest.raises(IntegrityFailure, match="head of the audit trail"):
        await write(database.store, 1)


async def test_it_can_be_verified_while_it_grows(database: Database) -> None:
    stop = asyncio.Event()

    async def keep_writing() -> None:
        while not stop.is_set():
            await write(database.store, 3)

    writing = asyncio.create_task(keep_writing())
    for _ in range(3):
        count, broken = await database.audit.verify()
        assert broken is None and count >= EVENTS
    stop.set()
    await writing


async def test_an_empty_trail_is_true() -> None:
    assert await AuditTrail(store=MemoryStore()).verify() == (0, None)


async def test_events_are_read_newest_first_by_object(store: Store) -> None:
    await write(store, 6, "vision")
    await write(store, 3, "other")
    audit = AuditTrail(store=store)
    admin = Actor(name="ops", role=Role.ADMIN)
    assert [event.id for event in await audit.events(admin, limit=4)] == [9, 8, 7, 6]
    assert [event.id for event in await audit.events(admin, object_kind="run", object_id="run-1")] == [8, 5, 2]
    assert await audit.events(admin, object_kind="key") == []
    viewer = Actor(name="bo", role=Role.VIEWER, project="other")
    assert [event.id for event in await audit.events(viewer)] == [9, 8, 7]
