"""Installations for the CLI's tests: a home and two free ports each, driven through the real `ground` command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from groundplane.cli.root import run
from groundplane.client import Client
from groundplane.processes import read_mark

GROUND = [sys.executable, "-m", "groundplane.cli"]
CHILDREN = ("control-plane", "gateway")


@dataclass
class Home:
    """One installation, up or down. `ground` is a process of its own; `here` runs in this process, which is quicker."""

    path: Path
    port: int
    gateway_port: int
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        # Every command is a process of its own: compiling each time would be most of what it does.
        left_out = ("GROUND_", "PYTHONDONTWRITEBYTECODE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        ours = {
            "GROUND_HOME": str(self.path),
            "GROUND_PORT": str(self.port),
            "GROUND_GATEWAY_PORT": str(self.gateway_port),
            "GROUND_GATEWAY_WORKERS": "1",
            "GROUND_DRAIN": "5s",
            "OMP_NUM_THREADS": "1",
        }
        return {**kept, **ours, **self.extra}

    def ground(self, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*GROUND, *words],
            env=self.env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=90,
            check=False,
        )
        assert done.returncode == expect, f"{words} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*GROUND, *words], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )

    @property
    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", (self.path / "keys" / "admin").read_text().strip())

    def pid(self, name: str) -> int:
        found = read_mark(self.path / "run" / ("up.lock" if name == "supervisor" else f"{name}.pid"))
        return found.pid if found else 0

    def log(self, name: str) -> str:
        return (self.path / "log" / f"{name}.log").read_text()


@dataclass
class Said:
    """What a command answered: its exit status and both streams."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


def poll(condition: Callable[[], Any], what: str, limit_s: float = 60) -> Any:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail(f"waited {limit_s} s for {what}")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def new_home(path: Path) -> Home:
    port, gateway_port = free_ports(2)
    return Home(path / "ground", port, gateway_port)


def end_everything(home: Home) -> None:
    """By the pids it remembers, whatever the test left behind."""
    if not home.path.is_dir():
        return
    for name in ("supervisor", *CHILDREN):
        if pid := home.pid(name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def wait() -> Callable[..., Any]:
    return poll


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """An installation that is down."""
    made = new_home(tmp_path)
    yield made
    end_everything(made)


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """An installation that is up, for tests that leave it so; project `research` has $5."""
    made = new_home(tmp_path_factory.mktemp("up"))
    made.ground("up", "--detach")
    made.ground("projects", "create", "research", "--owner", "ana", "--cost-center", "r1", "--budget", "$5")
    yield made
    made.ground("down", "--stop-runs")
    end_everything(made)


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`say(home, "ps", "-o", "json")`: a command in this process."""

    def call(home: Home, *words: str) -> Said:
        for name in list(os.environ):
            if name.startswith("GROUND_"):
                monkeypatch.delenv(name)
        for name, value in home.env.items():
            if name.startswith("GROUND_"):
                monkeypatch.setenv(name, value)
        capfd.readouterr()
        code = run(words)
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return Said(code, out, err)

    return call
