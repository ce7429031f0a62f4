"""What an attempt's folder holds: documents replaced whole, and one lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

TYPE_CHECKING = False  # as type checkers know it; importing typing would add a tenth to every job's start
if TYPE_CHECKING:
    from typing import Any

    Document = dict[str, Any]


def now_text(at: float | None = None) -> str:
    return datetime.fromtimestamp(time.time() if at is None else at, timezone.utc).isoformat()


def read_document(path: Path) -> Document | None:
    """The JSON object in the file; None when there is no file. ValueError when it is something else."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds no JSON object")
    return document


def write_document(path: Path, document: Document, durable: bool = True) -> None:
    """Replaces the file whole: a reader sees the old or the new one. `durable` survives a power cut."""
    write_bytes(path, json.dumps(document).encode(), durable)


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def open_inside(root: Path, relative: str, flags: int = os.O_RDONLY) -> int:
    """Opens a regular file below a folder that a job may write to. Neither it nor a folder on the way may be a link:
    whoever runs the job must not choose what its runner, with more rights, reads or writes. With O_CREAT folders are
    made on the way. OSError, also for what is no file; ValueError for a path that leaves the folder.
    """
    parts = Path(relative).parts
    if not parts or ".." in parts or Path(relative).is_absolute():
        raise ValueError(f"{relative!r} leaves {root}")
    into = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    folder = os.open(root, into)
    try:
        for part in parts[:-1]:
            if flags & os.O_CREAT:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=folder)
            below = os.open(part, into | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        # Without O_NONBLOCK, opening a pipe would wait for its other end for ever.
        file = os.open(parts[-1], flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is no regular file", relative)
    return file


def take_lock(folder: Path, patience_s: float) -> int | None:
    """The descriptor that holds the attempt's lock; None when another process keeps it longer than `patience_s`."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(lock)
                return None
            time.sleep(0.02)
        else:
            return lock


def is_held(lock: Path) -> bool:
    """Whether a living runner holds the lock. Asking takes it for an instant, which runners wait out."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_state(folder: Path) -> Document | None:
    """The runner's state document; None before there is one. ValueError when it is damaged."""
    document = read_document(folder / "state.json")
    if document is not None and not isinstance(document.get("state"), str):
        raise ValueError("state.json is no state document")
    return document


def boot_s() -> float:
    """Seconds since boot, suspended time included; nobody can set it back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def parse_time(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
