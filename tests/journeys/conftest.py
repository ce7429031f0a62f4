"""A real installation for the journeys: its own home and ports, driven through the `ground` command and the SDK."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import pytest

from groundplane.cli.root import run
from groundplane.client import Client
from groundplane.errors import Unavailable

REPOSITORY = Path(__file__).parents[2]
GROUND = str(Path(sys.executable).parent / "ground")


@dataclass
class Installation:
    """One home. `ground()` runs the command; `client` is the SDK with the admin key.

    Commands run in this process, which spares the start of one each: that `ground` is a program like others is what
    tests/cli shows. Two are one here: what `up` leaves behind must not be this process's child, and `attach` takes its
    standard input over.
    """

    home: Path
    port: int
    gateway_port: int
    extra_env: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        return (
            {name: value for name, value in os.environ.items() if not name.startswith("GROUND_")}
            | {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "GROUND_HOME": str(self.home),
                "GROUND_PORT": str(self.port),
                "GROUND_GATEWAY_PORT": str(self.gateway_port),
                "GROUND_GATEWAY_WORKERS": "1",
                "GROUND_LOCAL_PRICE": "0.36",
                "OMP_NUM_THREADS": "1",
                "NO_COLOR": "1",
                "COLUMNS": "200",
            }
            | self.extra_env
        )

    def ground(self, *args: str, expect: int | None = 0, text: str = "") -> subprocess.CompletedProcess[str]:
        """`text` is what standard input says."""
        if args[0] in {"up", "attach"}:
            done = subprocess.run(
                [GROUND, *args],
                env=self.env,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                input=text,
                timeout=120,
            )
        else:
            done = self._here(args, text)
        if expect is not None:
            assert done.returncode == expect, f"ground {args} exited {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def _here(self, args: tuple[str, ...], text: str) -> subprocess.CompletedProcess[str]:
        env, before, stdin = self.env, dict(os.environ), sys.stdin
        # Logs are the job's bytes, whatever they are.
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="replace") for _ in range(2))
        try:
            os.environ.clear()
            os.environ.update(env)
            sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8")
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = run(args)
        finally:
            sys.stdin = stdin
            os.environ.clear()
            os.environ.update(before)
        return subprocess.CompletedProcess(args, code, _written(out), _written(err))

    def data(self, *args: str) -> Any:
        return json.loads(self.ground(*args, "-o", "json").stdout)

    @property
    def admin_key(self) -> str:
        return (self.home / "keys" / "admin").read_text().strip()

    @cached_property
    def client(self) -> Client:
        """Safe to use from several threads."""
        return Client(f"http://127.0.0.1:{self.port}", self.admin_key)

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    def processes(self) -> list[psutil.Process]:
        """Every process that carries this home in its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("GROUND_HOME") == str(self.home) and process.pid != os.getpid():
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def process_running(self, module: str) -> psutil.Process:
        """The one process started as `python -m <module>`."""
        (found,) = [p for p in self.processes() if "-m" in (line := p.cmdline()) and module in line]
        return found

    def job(self, name: str, command: list[str] | str, **spec: object) -> Path:
        """A job spec file; keyword arguments replace fields of `spec`."""
        body: dict[str, object] = {
            "command": command,
            "resources": {"cpus": 1, "memory": "256MiB"},
            "end_date": (datetime.now(UTC) + timedelta(days=2)).date().isoformat(),
            "max_cost": "$0.10",
            "max_duration": "10m",
        }
        document = {
            "apiVersion": "groundplane/v1",
            "kind": "Job",
            "metadata": {"name": name, "project": "research", "owner": "ana", "cost_center": "r1"},
            "spec": body | spec,
        }
        path = self.home.parent / f"{name}.yaml"
        path.write_text(json.dumps(document, indent=1))  # JSON is YAML
        return path

    def submit(self, path: Path) -> str:
        applied = json.loads(self.ground("apply", "-f", str(path), "--yes", "-o", "json").stdout)
        run_id: str = applied["runs"][0]["id"]
        return run_id

    def wait_run(self, run_id: str, *statuses: str, timeout_s: float = 60) -> Any:
        def reached() -> Any:
            try:
                detail = self.client.run(run_id)
            except Unavailable:  # being restarted
                return None
            return detail if detail.run.status in statuses else None

        return wait_for(reached, f"{run_id} to be {statuses}", timeout_s)

    def log(self, run_id: str, attempt: int | None = None) -> str:
        return b"".join(piece.data for piece in self.client.read_log(run_id, attempt)).decode(errors="replace")


def _written(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 90) -> Any:
    """Polls until the condition is truthy; fails with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail(f"waited {timeout_s} s for {what}")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture
def wait() -> Callable[..., Any]:
    return wait_for


@pytest.fixture
def new_installation(tmp_path: Path) -> Iterator[Callable[..., Installation]]:
    """Makes installations that are down; each is stopped, with its runs, at the end."""
    made: list[Installation] = []

    def make(**extra_env: str) -> Installation:
        port, gateway_port = free_ports(2)
        home = tmp_path / f"home{len(made)}" / "ground"
        home.parent.mkdir()
        made.append(Installation(home, port, gateway_port, extra_env))
        return made[-1]

    yield make
    for installation in made:
        shut_down(installation)


@pytest.fixture
def installation(new_installation: Callable[..., Installation]) -> Installation:
    """An installation that is up, with project `research` and a budget of $20."""
    return bring_up(new_installation())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One installation that is up, for a module's tests that don't disturb each other."""
    installation = Installation(tmp_path_factory.mktemp("shared") / "ground", *free_ports(2))
    yield bring_up(installation)
    shut_down(installation)


def bring_up(installation: Installation) -> Installation:
    installation.ground("up", "--detach")
    installation.ground("projects", "create", "research", "--owner", "ana", "--cost-center", "r1", "--budget", "$20")
    return installation


def shut_down(installation: Installation) -> None:
    if "client" in installation.__dict__:
        installation.client.close()
    installation.ground("down", "--stop-runs", expect=None)
    for process in installation.processes():
        process.kill()
