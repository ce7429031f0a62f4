"""The store and its databases: migrations, damage, outages, other versions, other processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from groundplane.adapters.store import migrations
from groundplane.adapters.store.migrations import migrate
from groundplane.adapters.store.sql import SqlStore
from groundplane.adapters.store.tables import METADATA, SCHEMA_REVISION
from groundplane.audit import Event, EventDraft
from groundplane.domain.access import Project
from groundplane.domain.hub import dataset_commit
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, Refusal, Unavailable

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
PROJECT = Project(id="vision", owner="ana", cost_center="r&d", created_at=NOW)
REVISIONS = [
    script.revision
    for script in reversed(list(ScriptDirectory(str(Path(migrations.__file__).parent)).walk_revisions()))
]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))])
async def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    url: str = request.getfixturevalue("empty_postgresql_url")
    return url


@pytest.fixture
async def sqlite_store(sqlite_url: str) -> AsyncIterator[SqlStore]:
    store = await SqlStore.open(sqlite_url)
    yield store
    await store.close()


def path_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


async def with_project(url: str) -> None:
    store = await SqlStore.open(url)
    async with store.transaction() as tx:
        await tx.insert(PROJECT)
        for number in range(200):
            await tx.append_event(
                EventDraft(at=NOW, actor="ana", action="x", object_kind="y", object_id=str(number), reason="z" * 200)
            )
    await store.close()


async def on(url: str, work: Any) -> Any:
    """Runs `work(connection)` on a store's own kind of connection."""
    store = SqlStore(url)
    try:
        return await store._engine.run(work)
    finally:
        await store.close()


# ---------------------------------------------------------------- migrations


def test_the_code_names_the_newest_migration() -> None:
    assert REVISIONS[-1] == SCHEMA_REVISION
    assert [f"{number:04}" for number in range(1, len(REVISIONS) + 1)] == REVISIONS


def _description(connection: sa.Connection) -> dict[str, list[Any]]:
    """Everything the database says of its schema, in an order of its own."""
    inspector = sa.inspect(connection)
    found: dict[str, list[Any]] = {}
    for table in inspector.get_table_names():
        if table != "alembic_version":
            checks = inspector.get_check_constraints(table)
            found[table] = [
                sorted((c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)),
                sorted(
                    (
                        i["name"],
                        i["column_names"],
                        bool(i["unique"]),
                        str(next(iter(i["dialect_options"].values()), "")),
                    )
                    for i in inspector.get_indexes(table)
                ),
                sorted((u["name"], u["column_names"]) for u in inspector.get_unique_constraints(table)),
                sorted(
                    (f["name"], f["constrained_columns"], f["referred_table"])
                    for f in inspector.get_foreign_keys(table)
                ),
                sorted((c["name"], c["sqltext"]) for c in checks),
                inspector.get_pk_constraint(table),
            ]
    return found


async def test_an_empty_database_gets_exactly_what_the_migrations_make(empty_url: str) -> None:
    """But for the defaults that a column added to rows needs: nobody writes a row without all its columns."""

    def everything(connection: sa.Connection) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        found = _description(connection)
        rows = {
            table: connection.execute(sa.text(f'SELECT * FROM "{table}"')).fetchall()
            for table in (*found, "alembic_version")
        }
        return found, {table: [tuple(row) for row in listed] for table, listed in rows.items() if listed}

    def made_at_once(connection: sa.Connection) -> Any:
        migrate.upgrade(connection)
        made = everything(connection)
        connection.rollback()
        with connection.begin():
            METADATA.drop_all(connection)
            connection.execute(sa.text("DROP TABLE alembic_version"))
        return made

    def migrated(connection: sa.Connection) -> Any:
        migrate.upgrade(connection, REVISIONS[0])
        migrate.upgrade(connection)
        context = MigrationContext.configure(connection)
        return everything(connection), compare_metadata(context, METADATA)

    expected = await on(empty_url, made_at_once)
    found, differences = await on(empty_url, migrated)
    assert found == expected
    assert set(found[1]) == {"chain_head", "alembic_version"}
    assert differences == []


async def test_labels_are_looked_up_by_version_however_the_database_was_made(sqlite_url: str) -> None:
    """Of two indexes that serve as well, SQLite takes the one made last: the other one reads every label of a kind."""
    question = (
        "EXPLAIN QUERY PLAN SELECT 1 FROM registry_entries WHERE EXISTS (SELECT 1 FROM version_labels AS a WHERE"
        " a.version_id = registry_entries.id AND a.kind = 'tag' AND a.name = 'stage' AND a.text = 'trial')"
    )

    def plan(connection: sa.Connection) -> str:
        migrate.upgrade(connection)
        return str(connection.execute(sa.text(question)).all())

    def made_in_another_order(connection: sa.Connection) -> None:
        migrate.upgrade(connection, "0021")
        for statement in (
            "DROP INDEX ix_version_labels_kind_name_text",
            "CREATE INDEX ix_version_labels_kind_name_text ON version_labels (kind, name, text)",
        ):
            connection.execute(sa.text(statement))
        connection.commit()

    right = "ix_version_labels_version_id_kind_name_value"
    assert right in await on(sqlite_url, plan)
    other_url = f"{sqlite_url}.other"
    await on(other_url, made_in_another_order)
    assert right in await on(other_url, plan)


@pytest.mark.parametrize("start", REVISIONS)
async def test_every_earlier_revision_is_upgraded(empty_url: str, start: str) -> None:
    if empty_url.startswith("sqlite"):
        path_of(empty_url).touch()
    await on(empty_url, lambda connection: migrate.upgrade(connection, start))
    await with_project(empty_url)
    store = await SqlStore.open(empty_url)  # twice is the same as once
    async with store.transaction() as tx:
        assert await tx.get(Project, "vision") == PROJECT
    await store.close()
    assert await on(empty_url, migrate.current_revision) == SCHEMA_REVISION


async def test_dev_environments_of_before_are_known_after_the_upgrade(empty_url: str) -> None:
    def kinds(connection: sa.Connection) -> list[Any]:
        migrate.upgrade(connection, "0020")
        runs = sa.Table("runs", sa.MetaData(), autoload_with=connection)
        empty = {c.name: "" if isinstance(c.type, sa.Text) else NOW for c in runs.c if not c.nullable}
        empty |= dict.fromkeys(("attempt", "price_microusd_per_hour", "version"), 0)
        for id, spec in (("dev", '{"dev":"jupyter"}'), ("job", '{"env":{"dev":"shell"},"dev":""}')):
            connection.execute(runs.insert().values({**empty, "id": id, "spec": spec}))
        connection.commit()
        migrate.upgrade(connection)
        return [tuple(row) for row in connection.execute(sa.text("SELECT id, dev FROM runs ORDER BY id"))]

    assert await on(empty_url, kinds) == [("dev", "jupyter"), ("job", "")]


async def test_datasets_of_before_keep_their_commits_after_the_upgrade(empty_url: str) -> None:
    def commits(connection: sa.Connection) -> list[str]:
        migrate.upgrade(connection, "0022")
        table = sa.Table("dataset_versions", sa.MetaData(), autoload_with=connection)
        empty = {c.name: "" if isinstance(c.type, sa.Text) else NOW for c in table.c if not c.nullable}
        empty |= {"number": 0, "size_bytes": 0, "version": 0, "kept": True}
        for number in (1, 2):
            named = {"id": f"rows@{number}", "name": "rows", "number": number, "digest": f"{number:064x}"}
            connection.execute(table.insert().values({**empty, **named}))
        connection.commit()
        migrate.upgrade(connection)
        return list(connection.scalars(sa.text('SELECT "commit" FROM dataset_versions ORDER BY id')))

    assert await on(empty_url, commits) == [dataset_commit(f"rows@{number}", f"{number:064x}") for number in (1, 2)]


async def test_two_processes_may_migrate_at_once(empty_url: str) -> None:
    program = (
        "import asyncio, sys; from groundplane.adapters.store.sql import SqlStore\n"
        "async def main():\n    store = await SqlStore.open(sys.argv[1])\n    await store.close()\n"
        "asyncio.run(main())"
    )
    started = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, empty_url, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in started:
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    assert await on(empty_url, migrate.current_revision) == SCHEMA_REVISION


async def test_a_database_newer_than_the_code_is_refused(empty_url: str) -> None:
    store = await SqlStore.open(empty_url)
    await store.close()

    def advance(connection: sa.Connection) -> None:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        connection.commit()

    await on(empty_url, advance)
    with pytest.raises(Refusal) as refused:
        await SqlStore.open(empty_url)
    (why,) = refused.value.refusals
    assert why.rule == "database-version" and "9999" in why.have and SCHEMA_REVISION in why.need
    assert "upgrade" in why.hint


async def test_a_copy_is_kept_before_an_upgrade(tmp_path: Path) -> None:
    """Played with a schema that calls itself older: there is only one revision yet."""
    url = f"sqlite:///{tmp_path / 'groundplane.db'}"
    await with_project(url)

    def go_back(connection: sa.Connection) -> None:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0000'"))
        connection.commit()

    await on(url, go_back)
    with pytest.raises(Exception, match="0000"):
        await SqlStore.open(url)
    (copy,) = tmp_path.glob("groundplane.db.before-0000-upgrade")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert sqlite3.connect(copy).execute("SELECT id FROM projects").fetchall() == [("vision",)]


async def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        await with_project(f"sqlite:///{tmp_path / 'groundplane.db'}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "groundplane.db").stat().st_mode) == 0o600


async def test_sqlite_is_durable_and_checks_references(sqlite_store: SqlStore) -> None:
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}

    def pragmas(connection: sa.Connection) -> dict[str, object]:
        return {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in wanted}

    assert await sqlite_store._engine.run(pragmas) == wanted


# ---------------------------------------------------------------- damage


def garbage_everywhere(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to look like one " * 100)


def garbage_in_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(os.urandom(64))


def half_of_it(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [garbage_everywhere, garbage_in_the_middle, half_of_it])
async def test_a_damaged_file_is_reported_and_left_as_it_is(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "groundplane.db"
    await with_project(f"sqlite:///{path}")
    damage(path)
    evidence = path.read_bytes()
    with pytest.raises(IntegrityFailure) as failure:
        await SqlStore.open(f"sqlite:///{path}")
    assert str(path) in failure.value.message and "damaged" in failure.value.message
    assert "backup" in failure.value.hint and "\n" not in failure.value.message
    assert path.read_bytes() == evidence


async def test_the_newest_copy_is_named_as_the_backup(tmp_path: Path) -> None:
    path = tmp_path / "groundplane.db"
    await with_project(f"sqlite:///{path}")
    shutil.copy(path, tmp_path / "groundplane.db.before-0001-upgrade")
    garbage_everywhere(path)
    with pytest.raises(IntegrityFailure) as failure:
        await SqlStore.open(f"sqlite:///{path}")
    assert f"cp {tmp_path}/groundplane.db.before-0001-upgrade {path}" in failure.value.hint


async def test_damage_found_while_running_is_an_integrity_failure(tmp_path: Path) -> None:
    path = tmp_path / "groundplane.db"
    await with_project(f"sqlite:///{path}")
    garbage_in_the_middle(path)
    store = SqlStore(f"sqlite:///{path}")  # without the check that `open` makes
    try:
        with pytest.raises(IntegrityFailure, match="damaged"):
            async with store.transaction() as tx:
                await tx.total(Event, "*", by=("object_id",))
    finally:
        await store.close()


async def test_a_row_changed_into_nonsense_is_an_integrity_failure(sqlite_url: str) -> None:
    await with_project(sqlite_url)
    for change in ("thresholds_percent = '[50'", "thresholds_percent = '{}'", "created_at = 'yesterday'"):
        with sqlite3.connect(path_of(sqlite_url)) as raw:
            raw.execute(f"UPDATE projects SET {change}")
        raw.close()
        store = await SqlStore.open(sqlite_url)
        with pytest.raises(IntegrityFailure, match="projects can't be read"):
            async with store.transaction() as tx:
                await tx.get(Project, "vision")
        await store.close()


# ---------------------------------------------------------------- outages


async def test_a_file_that_cant_be_opened_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="can't be used") as failure:
        await SqlStore.open(f"sqlite:///{tmp_path / 'missing' / 'groundplane.db'}")
    assert failure.value.hint


async def test_a_writer_of_another_process_is_waited_for(sqlite_url: str, sqlite_store: SqlStore) -> None:
    other = sqlite3.connect(path_of(sqlite_url), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    task = asyncio.create_task(_insert(sqlite_store))
    await asyncio.sleep(0.2)
    assert not task.done()
    other.execute("COMMIT")
    other.close()
    async with asyncio.timeout(10):
        await task


async def test_who_is_cancelled_waiting_for_another_process_keeps_no_lock(
    sqlite_url: str, sqlite_store: SqlStore
) -> None:
    other = sqlite3.connect(path_of(sqlite_url), isolation_level=None, timeout=0)
    other.execute("BEGIN IMMEDIATE")
    task = asyncio.create_task(_insert(sqlite_store))
    await asyncio.sleep(0.1)
    task.cancel()
    other.execute("COMMIT")
    with pytest.raises(asyncio.CancelledError):
        await task
    other.execute("BEGIN IMMEDIATE")  # fails at once if the store still held it
    other.execute("COMMIT")
    other.close()
    async with asyncio.timeout(5):
        await _insert(sqlite_store)


async def test_a_writer_that_never_ends_makes_it_unavailable(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundplane.adapters.store.engines._BUSY_TIMEOUT_S", 0.1)
    store = await SqlStore.open(sqlite_url)
    other = sqlite3.connect(path_of(sqlite_url), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked by another process"):
        await _insert(store)
    other.close()
    await _insert(store)
    await store.close()


@pytest.mark.needs("tmpfs")
async def test_a_full_disk_is_unavailable_and_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    try:
        store = await SqlStore.open(f"sqlite:///{disk / 'groundplane.db'}")
        with pytest.raises(Unavailable, match=r"no room .* free"):
            for number in range(200):
                async with store.transaction() as tx:
                    await tx.insert(replace(PROJECT, id=f"p{number:03}", owner="x" * 20_000))
        async with store.transaction() as tx:
            count = len(await tx.find(Project))
        assert count == number
        await store.close()
    finally:
        subprocess.run(["umount", disk], check=True)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="does not answer") as failure:
        await SqlStore.open("postgresql://postgres@127.0.0.1:1/ground")
    assert "GROUND_DATABASE_URL" in failure.value.hint


@pytest.mark.needs("postgresql")
async def test_a_database_that_does_not_exist_is_unavailable(postgresql_server: Any) -> None:
    with pytest.raises(Unavailable, match="does not exist") as failure:
        await SqlStore.open(postgresql_server.url("nowhere"))
    assert failure.value.hint == "createdb nowhere"


@pytest.mark.needs("postgresql")
async def test_a_server_that_goes_away_and_comes_back(postgresql_server: Any, postgresql_url: str) -> None:
    store = await SqlStore.open(postgresql_url)
    with pytest.raises(Unavailable):
        async with store.transaction() as tx:
            await tx.insert(PROJECT)
            postgresql_server.stop()
            await tx.insert(replace(PROJECT, id="other"))
    try:
        with pytest.raises(Unavailable):
            await _insert(store)
    finally:
        postgresql_server.start()
    await _insert(store)  # the pool finds that its connections are dead and makes new ones
    async with store.transaction() as tx:
        assert [row.id for row in await tx.find(Project)] == ["vision"]
    await store.close()


@pytest.mark.needs("postgresql")
async def test_a_deadlock_ends_in_a_conflict_for_one(postgresql_url: str) -> None:
    store = await SqlStore.open(postgresql_url)
    async with store.transaction() as tx:
        await tx.insert(PROJECT)
        await tx.insert(replace(PROJECT, id="other"))
    both_hold_one = asyncio.Barrier(2)

    async def lock(first: str, second: str) -> None:
        async with store.transaction() as tx:
            await tx.get(Project, first, lock=True)
            await both_hold_one.wait()
            await tx.get(Project, second, lock=True)

    results = await asyncio.gather(lock("vision", "other"), lock("other", "vision"), return_exceptions=True)
    assert sorted(type(result) for result in results if result) == [Conflict]
    await store.close()


@pytest.mark.needs("postgresql")
async def test_a_second_control_plane_can_share_the_database(postgresql_url: str) -> None:
    one, two = await SqlStore.open(postgresql_url), await SqlStore.open(postgresql_url)

    async def change(store: SqlStore, number: int) -> None:
        async with store.transaction() as tx:
            await tx.append_event(EventDraft(at=NOW, actor="ana", action="x", object_kind="y", object_id=str(number)))

    await asyncio.gather(*(change(store, number) for number in range(20) for store in (one, two)))
    assert [event.id async for event in one.events()] == list(range(1, 41))
    await one.close()
    await two.close()


@pytest.mark.needs("postgresql")
async def test_money_constraints_are_in_the_database_too(postgresql_url: str) -> None:
    raw = await asyncpg.connect(postgresql_url)
    with pytest.raises(asyncpg.CheckViolationError):
        await raw.execute("INSERT INTO budgets VALUES ('v:2026-11', 'v', '2026-11', 10, -1, 0, '[]', '[]', 0)")
    await raw.close()


@pytest.mark.parametrize("url", ["", "mysql://x/y", "sqlite://", "sqlite:///:memory:", "nonsense"])
async def test_a_url_that_means_no_database_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as failure:
        await SqlStore.open(url)
    assert "postgresql://" in failure.value.hint


async def _insert(store: SqlStore) -> None:
    async with store.transaction() as tx:
        await tx.insert(PROJECT)
