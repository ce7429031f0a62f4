"""Which attempt holds which accelerator of a node: a durable file, changed under a lock."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager

from groundplane.runner.files import write_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


class Short(Exception):
    """Not enough accelerators are free; nothing was taken."""


class Reservations:
    """`{accelerator index: owner}` of one node, in `accelerators.json` under `folder`; one for all who share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "accelerators.json"

    def take(
        self,
        owner: str,
        count: int,
        *,
        present: Sequence[int],
        wanted: Sequence[int],
        is_over: Callable[[str], bool],
    ) -> tuple[int, ...]:
        """Reserves `count` of the `present` indexes, `wanted` ones exactly; the same ones when called again. Short.

        Accelerators of owners that are over are free, so one that nobody released does not stay taken.
        """
        with self._locked():
            held = {index: other for index, other in self.read().items() if index in present and not is_over(other)}
            mine = sorted(index for index, other in held.items() if other == owner)
            free = [index for index in present if index not in held and (not wanted or index in wanted)]
            missing = count - len(mine)
            if missing > len(free):
                named = f" of indexes {sorted(wanted)}" if wanted else f" of {len(present)}"
                raise Short(f"it needs {count} accelerators; {len(free)}{named} are free")
            mine = sorted([*mine, *free[:missing]])
            self._write({**held, **dict.fromkeys(mine, owner)})
            return tuple(mine)

    def give_back(self, owner: str) -> None:
        """Frees what the owner holds. Twice is the same as once."""
        if not self._file.exists():
            return
        with self._locked():
            held = self.read()
            if owner in held.values():
                self._write({index: other for index, other in held.items() if other != owner})

    def read(self) -> dict[int, str]:
        try:
            return {int(index): str(owner) for index, owner in json.loads(self._file.read_bytes()).items()}
        except FileNotFoundError:
            return {}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._folder / "accelerators.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, held: dict[int, str]) -> None:
        write_bytes(self._file, json.dumps({str(index): owner for index, owner in held.items()}).encode())
