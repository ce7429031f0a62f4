"""A node to run real attempts on: a temporary home, a local executor, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from groundplane.adapters.executors.local import LocalExecutor
from groundplane.adapters.executors.nodes import RunnerOptions
from groundplane.domain.order import Order
from groundplane.domain.run import Observation
from groundplane.runner.files import read_state

PATIENCE_S = 90.0


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


class Node:
    """One home with its executor. `start` runs a shell line, or an argv, or a Python text."""

    def __init__(self, home: Path, **options: Any) -> None:
        self.home = home
        self.options = RunnerOptions(**{"sample_period_s": 0.2, **options})
        self.executor = LocalExecutor(home, SystemClock(), options=self.options)

    def order(self, attempt_id: str, command: str | list[str], **changes: Any) -> Order:
        run = self.home / "runs" / "run-1"
        fields: dict[str, Any] = {
            "attempt_id": attempt_id,
            "run_id": "run-1",
            "number": 1,
            "command": ("sh", "-c", command) if isinstance(command, str) else tuple(command),
            "workdir": "",
            "env": {},
            "checkpoint_dir": str(run / "checkpoints"),
            "output_dir": str(run / "output"),
            "cpus": 1.0,
            "memory_bytes": 0,
            "accelerators": 0,
            "max_duration_s": 120.0,
            "idle_limit_s": None,
            "control_plane_gone_limit_s": None,
            "stop_grace_s": 2.0,
            "not_after": datetime.now(UTC) + timedelta(hours=1),
        }
        return Order(**{**fields, **changes})

    async def start(self, command: str | list[str], attempt_id: str = "att-1", **changes: Any) -> str:
        await self.executor.start(self.order(attempt_id, command, **changes))
        return attempt_id

    async def python(self, text: str, attempt_id: str = "att-1", **changes: Any) -> str:
        return await self.start([sys.executable, "-I", "-S", "-c", text], attempt_id, **changes)

    async def see(self, attempt_id: str = "att-1") -> Observation:
        return (await self.executor.observe([attempt_id]))[attempt_id]

    async def until(
        self, holds: Callable[[Observation], object], attempt_id: str = "att-1", patience_s: float = PATIENCE_S
    ) -> Observation:
        deadline = time.monotonic() + patience_s
        while not holds(seen := await self.see(attempt_id)):
            assert time.monotonic() < deadline, f"still {seen}; log: {self.log(attempt_id)[-2000:]!r}"
            await asyncio.sleep(0.03)
        return seen

    async def ended(self, attempt_id: str = "att-1", patience_s: float = PATIENCE_S) -> Observation:
        return await self.until(lambda seen: seen.state == "ended", attempt_id, patience_s)

    async def said(self, words: bytes, attempt_id: str = "att-1") -> bytes:
        """Waits until the log holds these bytes."""
        await eventually(lambda: words in self.log(attempt_id))
        return self.log(attempt_id)

    def folder(self, attempt_id: str = "att-1") -> Path:
        return self.home / "attempts" / attempt_id

    def log(self, attempt_id: str = "att-1") -> bytes:
        path = self.folder(attempt_id) / "log"
        return path.read_bytes() if path.exists() else b""

    def state(self, attempt_id: str = "att-1") -> dict[str, Any]:
        return read_state(self.folder(attempt_id)) or {}

    def processes(self, attempt_id: str = "att-1") -> list[int]:
        """Living processes that carry the attempt's mark, the runner apart."""
        mark = f"GROUND_ATTEMPT_DIR={self.folder(attempt_id).resolve()}".encode()
        return [pid for pid, env in environments() if mark in env.split(b"\0")]


def environments() -> Iterator[tuple[int, bytes]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), (entry / "environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue


async def eventually(holds: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.03)


def sweep(node: Node) -> None:
    """Ends what a failed test left: the runners by pid, then whatever carries their marks."""
    for folder in (node.home / "attempts").glob("*"):
        state = node.state(folder.name)
        if state and state["state"] != "ended":
            for pid in [state["runner_pid"], *node.processes(folder.name)]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    home = Node(tmp_path / "home")
    yield home
    sweep(home)


@pytest.fixture
def node_with(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Makes a node with options of its own: `node_with(log_limit_bytes=1000)`."""
    made: list[Node] = []

    def make(home: Path = tmp_path / "home", **options: Any) -> Node:
        made.append(Node(home, **options))
        return made[-1]

    yield make
    for each in made:
        sweep(each)


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    return eventually
