"""What the loop has to do beside requests: long work in steps between them, and files that a thread replaces.

Even to rename a file can take tens of milliseconds where other processes write to the same disk.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic_ns

_STEP_NS = 400_000
_REST_S = 0.001


def work_off(steps: Iterator[object]) -> None:
    """Takes steps for less than half a millisecond, and goes on after a rest, until there are none left."""
    end_ns = monotonic_ns() + _STEP_NS
    for _ in steps:
        if monotonic_ns() >= end_ns:
            asyncio.get_running_loop().call_later(_REST_S, work_off, steps)
            return


class Chore:
    """Work in steps that comes again and again; not before it is over."""

    def __init__(self, steps: Callable[[], Iterator[None]]) -> None:
        self._steps = steps
        self._now: Generator[None] | None = None

    def begin(self) -> None:
        if self._now is None:
            self._now = self._run()
            work_off(self._now)

    def finish(self) -> None:
        """All of it, from its beginning, before anything else."""
        if self._now is not None:
            self._now.close()
        for _ in self._run():
            pass

    def _run(self) -> Generator[None]:
        try:
            yield from self._steps()
        finally:
            self._now = None


class Files:
    """Files replaced whole by a thread. A disk that does not take them costs only their freshness."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "gateway-files")
        self._work: Future[None] | None = None
        self._wanted: dict[Path, bytes] = {}
        self._written: dict[Path, bytes] = {}

    def replace(self, path: Path, data: bytes) -> None:
        """The newest data of a path counts; what comes while the thread is writing is written with what comes next."""
        self._wanted[path] = data
        if self._work is None or self._work.done():
            self._work = self._thread.submit(self._write)

    def close(self) -> None:
        """Waits until everything is written."""
        self._thread.shutdown()
        self._write()

    def _write(self) -> None:
        while self._wanted:
            path, data = self._wanted.popitem()
            if data != self._written.get(path):
                with contextlib.suppress(OSError):
                    draft = path.with_name(f".{path.name}.draft")
                    draft.write_bytes(data)
                    draft.replace(path)
                    self._written[path] = data
