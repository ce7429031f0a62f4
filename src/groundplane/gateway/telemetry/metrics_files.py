"""Metrics of several workers: each leaves its counts in a file, and whoever is asked adds them up.

A worker that comes back goes on counting where its earlier life stopped, so counters never fall. Others' figures are a
second old at most.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import msgspec

from groundplane.gateway.telemetry.aside import Files
from groundplane.gateway.telemetry.metrics import Metrics


class MetricsFiles:
    """One worker's file, and its look at the others'. Without a folder there are no others."""

    def __init__(self, folder: Path | None, gateway_id: str, files: Files) -> None:
        self._folder = folder
        self._name = gateway_id
        self._files = files
        self._lock_fd = -1
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Held as long as this process lives: others tell by it that the figures are of a living worker.
            self._lock_fd = os.open(folder / f"{gateway_id}.alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def resume(self, metrics: Metrics) -> None:
        """Takes up what an earlier life of this worker counted."""
        if self._folder is not None:
            before = _read(self._folder / f"{self._name}.json")
            if before is not None:
                metrics.add(before, alive=False)

    def publish(self, metrics: Metrics) -> None:
        """Leaves the figures for the others."""
        if self._folder is not None:
            self._files.replace(self._folder / f"{self._name}.json", msgspec.json.encode(metrics.plain(encoded=True)))

    def rendered(self, metrics: Metrics) -> Iterator[str]:
        """This worker's figures with all others' on top, as Prometheus reads them. In steps, some of which say nothing
        yet: what a thousand keys came to takes as long as many requests."""
        whole = yield from self._merged(metrics)
        yield from whole.render_in_steps()

    def _merged(self, metrics: Metrics) -> Generator[str, None, Metrics]:
        if self._folder is None:
            return metrics
        whole = Metrics()
        whole.workers = 0
        whole.snapshot_version = metrics.snapshot_version
        for _ in whole.add_in_steps(metrics.plain(lazily=True), alive=True):
            yield ""
        for plain, alive in self._others():
            for _ in whole.add_in_steps(plain, alive=alive):
                yield ""
        return whole

    def _others(self) -> Iterator[tuple[dict[str, Any], bool]]:
        assert self._folder is not None
        for path in sorted(self._folder.glob("*.json")):
            if path.stem != self._name:
                plain = _read(path)
                if plain is not None:
                    yield plain, _is_alive(path.with_suffix(".alive"))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        plain: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return None
    return plain


def _is_alive(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
