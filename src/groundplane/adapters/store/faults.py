"""What a database says when it fails, in our own errors: down, damaged, or somebody else was first."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import cast

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from groundplane.errors import Conflict, GroundError, IntegrityFailure, Unavailable
from groundplane.units import format_bytes

_SQLITE_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SQLITE_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def translate(error: BaseException, url: URL) -> BaseException:
    """The GroundError for a database's error; the error itself when it is a defect of ours (bad SQL, bad value)."""
    if isinstance(error, GroundError):
        return error
    cause: BaseException = error
    if isinstance(error, DBAPIError) and error.orig is not None:
        cause = error.orig
    if url.get_backend_name() == "sqlite":
        return _sqlite(error, cause, Path(cast(str, url.database)))
    return _postgresql(error, cause, url)


def _sqlite(error: BaseException, cause: BaseException, path: Path) -> BaseException:
    code = getattr(cause, "sqlite_errorcode", None)
    # Extended codes carry the primary one in their low byte.
    primary = code & 0xFF if isinstance(code, int) else None
    if primary in _SQLITE_DAMAGE:
        return damaged_file(path, str(cause))
    if primary in _SQLITE_BUSY:
        return Unavailable(
            f"the database {path} is locked by another process", "is a second control plane running on it?"
        )
    if primary == sqlite3.SQLITE_FULL:
        free = format_bytes(shutil.disk_usage(path.parent).free)
        return Unavailable(f"no room to write the database {path}: {free} free", "free some disk space")
    if primary == sqlite3.SQLITE_CONSTRAINT:
        return Conflict(str(cause))
    if primary in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
        return Unavailable(
            f"the database {path} can't be used: {cause}", "check that its folder exists and is yours to write"
        )
    if isinstance(cause, (OSError, PoolTimeoutError)):
        return Unavailable(
            f"the database {path} can't be used: {cause}", "check that its folder exists and is yours to write"
        )
    return error


def damaged_file(path: Path, what: str) -> IntegrityFailure:
    """The file is left as it is: it is evidence, and often most of it can still be read."""
    backups = sorted(path.parent.glob(f"{path.name}.before-*"), key=lambda file: file.stat().st_mtime)
    newest = f"cp {backups[-1]} {path}" if backups else f"cp BACKUP {path}"
    return IntegrityFailure(
        f"the database {path} is damaged: {what}",
        f"stop Groundplane, move the file away, restore a backup (`{newest}`); the damaged file was not touched",
    )


def _postgresql(error: BaseException, cause: BaseException, url: URL) -> BaseException:
    where = f"{url.host or 'local socket'}:{url.port or 5432}/{url.database}"
    state = str(getattr(cause, "sqlstate", None) or getattr(error, "sqlstate", None) or "")
    if state in {"40001", "40P01"}:
        return Conflict("somebody else changed the same rows at the same time", "try again")
    if state.startswith("23"):
        return Conflict(_first_line(cause))
    if state.startswith("XX"):
        return IntegrityFailure(f"the database {where} is damaged: {_first_line(cause)}", "restore a backup")
    if state == "55P03":
        return Unavailable(f"the database {where} did not give a lock in time", "try again")
    if state == "3D000":
        return Unavailable(f"the database {where} does not exist", f"createdb {url.database}")
    gone = isinstance(cause, (OSError, TimeoutError, PoolTimeoutError)) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )
    if gone or state.startswith(("08", "28", "53", "57", "58")):
        return Unavailable(
            f"the database {where} does not answer: {_first_line(cause)}",
            "check GROUND_DATABASE_URL and that PostgreSQL is running",
        )
    return error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].split(">: ")[-1]
