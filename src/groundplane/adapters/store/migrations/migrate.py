"""Brings a database to the newest schema: in one transaction, one process at a time, with a copy kept on SQLite.

An empty one gets the newest tables at once, which the tests hold against what the migrations make.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import sqlalchemy as sa
from sqlalchemy.schema import CreateTable

from groundplane.adapters.store.faults import damaged_file
from groundplane.adapters.store.tables import CHAIN_HEAD, INDEXES, METADATA, SCHEMA_REVISION
from groundplane.errors import Refusal, Refused

# Any fixed number: whoever migrates this database holds the advisory lock of this name.
_POSTGRESQL_LOCK = 0x67726F756E64


def upgrade(connection: sa.Connection, target: str = SCHEMA_REVISION) -> None:
    """Applies what is missing up to `target`. Raises Refusal when the database is newer than this code."""
    on_sqlite = connection.dialect.name == "sqlite"
    if on_sqlite:
        _check_file(connection)
    found = current_revision(connection)
    connection.rollback()
    if found is not None and found > SCHEMA_REVISION:
        raise _newer(found)
    if found == target:
        return
    if on_sqlite and found is not None:
        _keep_copy(connection, found)
    with connection.begin():
        if not on_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_POSTGRESQL_LOCK)))
        # Asked again: whoever held the lock before may have made them.
        if target == SCHEMA_REVISION and current_revision(connection) is None:
            _create(connection)
        else:
            _run(connection, target)


def current_revision(connection: sa.Connection) -> str | None:
    """The revision the database is at; None for an empty one."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return cast("str | None", connection.scalar(sa.text("SELECT version_num FROM alembic_version")))


def _create(connection: sa.Connection) -> None:
    """The newest tables, and the rows that the migrations put there."""
    for table in METADATA.sorted_tables:
        connection.execute(CreateTable(table))
    for index in INDEXES:
        index.create(connection)
    connection.execute(CHAIN_HEAD.insert().values(id=1, event_id=0, event_hash="0" * 64))
    version = sa.Table(
        "alembic_version",
        sa.MetaData(),
        sa.Column("version_num", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
    )
    version.create(connection)
    connection.execute(version.insert().values(version_num=SCHEMA_REVISION))


def _run(connection: sa.Connection, target: str) -> None:
    # Imported here: Alembic costs a tenth of a second, and a database at the newest revision does not need it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, target)


def _check_file(connection: sa.Connection) -> None:
    answer = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    connection.rollback()
    if answer != "ok":
        raise damaged_file(Path(cast(str, connection.engine.url.database)), str(answer))


def _keep_copy(connection: sa.Connection, found: str) -> None:
    copy = Path(f"{connection.engine.url.database}.before-{found}-upgrade")
    if not copy.exists():
        raw = connection.connection.cursor()  # outside a transaction, which VACUUM INTO requires
        raw.execute("VACUUM INTO ?", (str(copy),))
        raw.close()
        copy.chmod(0o600)


def _newer(found: str) -> Refusal:
    return Refusal(
        [
            Refused(
                rule="database-version",
                need=f"a database at revision {SCHEMA_REVISION} or older",
                have=f"revision {found}, written by a newer Groundplane",
                hint="upgrade this Groundplane, or restore the backup taken before the database was upgraded",
            )
        ]
    )
