"""Dev environments through the real command and server: start, attach, let go, tunnel, ssh, stop."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import socket
import struct
import subprocess
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults import pool_file
from tests.hosts import Hosts
from tests.journeys.conftest import GROUND, Installation, bring_up

PATIENCE_S = 30.0
OURS = ("--project", "research", "--owner", "ana", "--cost-center", "r1", "--max-cost", "$5")


class Terminal:
    """A person at a terminal of their own who runs one command."""

    def __init__(self, plane: Installation, *args: str) -> None:
        self.seen = b""
        self.pid, self._screen = pty.fork()
        if self.pid == 0:
            os.execve(GROUND, [GROUND, *args], plane.env | {"TERM": "xterm"})
        fcntl.ioctl(self._screen, termios.TIOCSWINSZ, struct.pack("HHHH", 41, 97, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def until(self, words: bytes) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self._screen], [], [], 0.5)[0]:
                try:
                    self.seen += os.read(self._screen, 65_536)
                except OSError:  # it has ended, the last one on its terminal
                    pytest.fail(f"it ended before it said {words!r}: {self.seen!r}")

    def ended(self) -> int:
        """Its exit status, once it has said all."""
        deadline = time.monotonic() + PATIENCE_S
        with contextlib.suppress(OSError):  # the last one on a terminal closes it
            while True:
                assert time.monotonic() < deadline, self.seen
                if select.select([self._screen], [], [], 0.5)[0]:
                    self.seen += os.read(self._screen, 65_536)
        os.close(self._screen)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def start(plane: Any, name: str, *more: str) -> str:
    return str(plane.data("dev", "start", name, *OURS, *more)["id"])


def test_a_shell_is_attached_let_go_found_again_and_stopped_with_its_files_kept(shared: Any) -> None:
    run_id = start(shared, "bench", "--for", "2h", "--idle", "30m")
    first = Terminal(shared, "attach", run_id)
    first.until(b"\x1b[?2004h" if Path("/bin/bash").exists() else b"$ ")
    first.type("export KEPT=here; echo made > made.txt; stty size; echo ready-$((40+2))\r")
    first.until(b"ready-42")
    assert b"41 97" in first.seen
    first.type("\x1d")
    assert first.ended() == 0
    assert b"goes on: ground attach " + run_id.encode() in first.seen

    second = Terminal(shared, "attach", run_id)
    second.type("echo still-$KEPT; exit 5\r")
    assert second.ended() == 5
    assert b"still-here" in second.seen

    asked = shared.ground("attach", run_id, expect=0)  # no input: the shell reads its end and leaves
    assert "Traceback" not in asked.stdout
    piped = subprocess.run(
        [GROUND, "attach", run_id, "--session", "pipe"],
        env=shared.env,
        input=b"cat made.txt; exit 4\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert piped.returncode == 4 and b"made" in piped.stdout

    events = [each for each in shared.data("audit", "log") if each["action"] == "run.attach"]
    assert {each["object_id"] for each in events} == {run_id} and len(events) == 4
    assert run_id in shared.ground("who").stdout
    shared.ground("stop", run_id, "--wait")
    assert (shared.home / "attempts" / f"{run_id}-1" / "work" / "made.txt").read_text() == "made\n"
    gone = shared.ground("attach", run_id, expect=None)
    assert gone.returncode != 0 and "there is nothing to attach to" in gone.stderr


def test_an_idle_environment_stops_by_itself(shared: Any) -> None:
    run_id = start(shared, "idler", "--idle", "1s")
    detail = shared.wait_run(run_id, "stopped")
    assert detail.run.end_reason == "idle"


@pytest.fixture
def tunnel(shared: Any) -> Iterator[Callable[..., str]]:
    """Opens tunnels; the address it says. All end at the end."""
    opened: list[subprocess.Popen[str]] = []

    def open_tunnel(run_id: str, *more: str) -> str:
        opened.append(
            subprocess.Popen(
                [GROUND, "dev", "tunnel", run_id, *more], env=shared.env, stderr=subprocess.PIPE, text=True
            )
        )
        assert opened[-1].stderr is not None
        line = opened[-1].stderr.readline()
        found = re.search(r"http://\S+", line)
        assert found, line
        return found[0]

    yield open_tunnel
    for each in opened:
        each.kill()
        each.communicate()


def notebook(plane: Any, folder: Path, programs: Path) -> str:
    """A dev environment with the Jupyter that lies among the programs."""
    document = {
        "apiVersion": "groundplane/v1",
        "kind": "dev",
        "metadata": {"name": "notebook", "project": "research", "owner": "ana", "cost_center": "r1"},
        "spec": {
            "dev": "jupyter",
            "env": {"PATH": f"{programs}:{os.environ['PATH']}"},
            "resources": {"cpus": 1, "memory": "512MiB"},
            "end_date": "2h",
            "max_duration": "2h",
            "max_cost": "$1",
        },
    }
    path = folder / "dev.yaml"
    path.write_text(json.dumps(document))
    run_id: str = plane.submit(path)
    plane.wait_run(run_id, "running")
    return run_id


def fetched(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 0, b""


@pytest.mark.needs("jupyter")
def test_the_real_jupyter_answers_through_a_tunnel_to_its_token_alone(
    shared: Any, tunnel: Callable[..., str], tmp_path: Path, wait: Any
) -> None:
    program = shutil.which("jupyter")
    assert program is not None
    run_id = notebook(shared, tmp_path, Path(program).parent)
    about = wait(lambda: shared.data("dev", "show", run_id), "the environment")
    typed = subprocess.run(
        [GROUND, "attach", run_id],
        env=shared.env,
        input=b"echo 'print(6 * 7)' > made.py\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert typed.returncode == 0
    address, _, token = tunnel(run_id).partition("/?")
    assert wait(lambda: fetched(f"{address}/api/status?{token}")[0] == 200, "Jupyter through the tunnel", 60)
    found = json.loads(fetched(f"{address}/api/contents/made.py?{token}")[1])
    assert found["content"] == "print(6 * 7)\n", "what the shell wrote, the notebook sees"
    assert fetched(f"{address}/api/contents/made.py")[0] == 403
    opened = urllib.request.Request(f"{address}/api/terminals?{token}", method="POST", data=b"")
    with urllib.request.urlopen(opened, timeout=10) as answer:
        name = json.loads(answer.read())["name"]
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        words = [f"GET /terminals/websocket/{name}?{token} HTTP/1.1", f"Host: {host}:{port}", "Connection: Upgrade",
                 "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {'A' * 22}=="]  # fmt: skip
        link.sendall("\r\n".join([*words, "", ""]).encode())
        assert b"101 Switching Protocols" in link.recv(4096)
    assert about["jupyter_token"] not in shared.log(run_id)
    shared.ground("stop", run_id, "--wait")


def test_jupyter_is_reached_through_a_tunnel_with_its_token(
    shared: Any, tunnel: Callable[..., str], tmp_path: Path, wait: Any
) -> None:
    """A stand-in with Jupyter's options that lets nobody in without the token it was given."""
    program = tmp_path / "bin" / "jupyter"
    program.parent.mkdir()
    program.write_text(JUPYTER)
    program.chmod(0o755)
    run_id = notebook(shared, tmp_path, program.parent)
    about = wait(lambda: shared.data("dev", "show", run_id), "the environment")
    address = tunnel(run_id)
    assert address.endswith(f"?token={about['jupyter_token']}") and len(about["jupyter_token"]) >= 24

    assert wait(lambda: fetched(address)[0] == 200, "the notebook through the tunnel")
    assert len(fetched(address)[1]) == 300_000
    assert fetched(address.partition("?")[0])[0] == 403
    assert "no ssh configuration" in shared.ground("dev", "ssh-config", run_id, expect=None).stderr
    shared.ground("stop", run_id, "--wait")


JUPYTER = r"""#!/usr/bin/env python3
import http.server, os, sys
port = next(word.partition("=")[2] for word in sys.argv if word.startswith("--ServerApp.port="))
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"x" * 300_000
        self.send_response(200 if self.path.endswith("token=" + os.environ["JUPYTER_TOKEN"]) else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Page).serve_forever()
"""


def test_a_job_is_no_dev_environment_and_a_dev_environment_has_no_command(shared: Any, tmp_path: Path) -> None:
    run_id = shared.submit(shared.job("plain", ["sleep", "30"]))
    shared.wait_run(run_id, "running")
    said = shared.ground("attach", run_id, expect=None)
    assert said.returncode != 0 and "is a job, not a dev environment" in said.stderr
    shared.ground("stop", run_id)
    path = shared.job("confused", ["true"])
    path.write_text(path.read_text().replace('"Job"', '"Dev"'))
    refused = shared.ground("plan", "-f", str(path), expect=None)
    assert refused.returncode != 0 and "spec.command" in refused.stderr
    too_dear = shared.ground("dev", "start", "dear", *OURS[:-1], "$0.000001", expect=None)
    assert too_dear.returncode != 0 and "error:" in too_dear.stderr


@pytest.mark.needs("sshd")
def test_on_another_machine_the_shell_is_there_and_ssh_finds_its_folder(
    new_installation: Callable[..., Installation], hosts: Hosts, tmp_path: Path
) -> None:
    plane: Any = new_installation()
    plane.home.mkdir()
    (plane.home / "pools.yaml").write_text(json.dumps(pool_file(hosts)))
    bring_up(plane)
    run_id = start(plane, "far", "--pool", "lab", "--for", "1h")
    screen = Terminal(plane, "attach", run_id)
    screen.type('echo "on-$GROUND_NODE"; touch far.txt; echo sum-$((40+2))\r')
    screen.until(b"sum-42")
    node = plane.client.run(run_id).attempts[0].node
    assert f"on-{node}".encode() in screen.seen
    screen.type("\x1d")
    assert screen.ended() == 0
    config = tmp_path / "config"
    config.write_text(plane.ground("dev", "ssh-config", run_id).stdout)
    folder = re.search(r"# (\S+) on node", config.read_text())
    assert folder is not None
    words = ["ssh", "-F", str(config), "-o", "BatchMode=yes", f"ground-{run_id}", f"ls {folder[1]}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.split() == ["far.txt"], done.stderr
    plane.ground("stop", run_id, "--wait")
