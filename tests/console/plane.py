"""A control plane as the console's tests use it."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from groundplane.client import Client
from groundplane.domain.run import Run, RunStatus
from groundplane.identity import Role

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
"""What a page must show as text and never run."""


def poll(condition: Callable[[], Any], what: str, timeout_s: float = 30) -> Any:
    """Asks again until the answer is truthy; fails with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail(f"waited {timeout_s} s for {what}")


@dataclass(frozen=True)
class Plane:
    """A control plane that is up, with project `vision` and a budget of $20. What it hands out, `opened` closes."""

    url: str
    home: Path
    opened: contextlib.ExitStack

    @property
    def key(self) -> str:
        return (self.home / "keys" / "admin").read_text().strip()

    @functools.cached_property
    def client(self) -> Client:
        return self.opened.enter_context(contextlib.closing(Client(self.url, self.key)))

    def visitor(self) -> httpx.Client:
        """Somebody without JavaScript, not signed in, who sends `Origin` as browsers do."""
        client = httpx.Client(base_url=self.url, headers={"Origin": self.url}, follow_redirects=True, timeout=30)
        return self.opened.enter_context(client)

    def browser(self, key: str | None = None) -> httpx.Client:
        """A visitor who is signed in."""
        visitor = self.visitor()
        answer = visitor.post("/console/login", data={"key": key or self.key})
        assert answer.status_code == 200, answer.text
        return visitor

    def key_for(self, role: Role, name: str = "visitor") -> str:
        return self.client.create_key(name=name, project="vision", owner="dana", role=role).secret

    def submit(self, name: str, command: str, *, owner: str = "dana") -> str:
        """Submits a job; returns the run's id."""
        document = {
            "apiVersion": "groundplane/v1",
            "kind": "Job",
            "metadata": {"name": name, "project": "vision", "owner": owner, "cost_center": "cc-1"},
            "spec": {
                "command": command,
                "resources": {"cpus": 1, "memory": "64MiB"},
                "end_date": (datetime.now(UTC) + timedelta(days=2)).date().isoformat(),
                "max_cost": "$0.10",
                "max_duration": "10m",
                "stop_grace": "1s",
            },
        }
        applied = self.client.apply(json.dumps(document))
        return applied.runs[0].id

    def wait(self, run_id: str, *statuses: RunStatus) -> Run:
        def reached() -> Run | None:
            run = self.client.run(run_id).run
            return run if run.status in statuses else None

        found: Run = poll(reached, f"{run_id} to be {' or '.join(statuses)}")
        return found
