"""Which attempt holds which accelerator of a node: a durable file, changed under a lock."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from groundplane.errors import Unavailable


class Reservations:
    """`{accelerator index: attempt id}` of one node, in `accelerators.json` under `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "accelerators.json"

    def take(
        self, attempt_id: str, count: int, *, present: Sequence[int], is_over: Callable[[str], bool]
    ) -> tuple[int, ...]:
        """Reserves `count` of the `present` indexes; the same ones when called again. Unavailable when short.

        Accelerators of attempts that `is_over` are free, so one that nobody released does not stay taken.
        """
        with self._locked():
            held = {index: owner for index, owner in self._read().items() if index in present and not is_over(owner)}
            mine = sorted(index for index, owner in held.items() if owner == attempt_id)
            free = [index for index in present if index not in held]
            missing = count - len(mine)
            if missing > len(free):
                raise Unavailable(
                    f"{attempt_id} needs {count} accelerators; {len(free)} of {len(present)} are free",
                    "it starts when another attempt gives some back",
                )
            mine = sorted([*mine, *free[:missing]])
            self._write({**held, **dict.fromkeys(mine, attempt_id)})
            return tuple(mine)

    def give_back(self, attempt_id: str) -> None:
        """Frees what the attempt holds. Twice is the same as once."""
        if not self._file.exists():
            return
        with self._locked():
            held = self._read()
            if attempt_id in held.values():
                self._write({index: owner for index, owner in held.items() if owner != attempt_id})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._folder / "accelerators.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _read(self) -> dict[int, str]:
        try:
            return {int(index): str(owner) for index, owner in json.loads(self._file.read_bytes()).items()}
        except FileNotFoundError:
            return {}

    def _write(self, held: dict[int, str]) -> None:
        write_atomically(self._file, json.dumps({str(index): owner for index, owner in held.items()}).encode())


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replaces the file whole; `durable` means it survives a power cut. OSError when the disk refuses."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
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
