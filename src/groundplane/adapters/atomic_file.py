"""Files that are replaced whole."""

from __future__ import annotations

import os
from pathlib import Path


def replace_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """A reader, or the next start after a power cut, sees the old bytes or the new ones.

    OSError when the disk refuses; the old ones stay then. Missing folders are made, for their owner alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
