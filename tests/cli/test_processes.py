"""`ground up`, `down`, `status`: one installation per home, ports that are named, crashes that are survived."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from groundplane.errors import AlreadyUp, Conflict, InvalidInput
from groundplane.processes import HomeLock, ProcessMark, check_port_free, end, mark, port_holder, read_mark, write_mark
from groundplane.supervisor import LOGS_KEPT, STEADY_S, next_backoff, rotate


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


# ---------------------------------------------------------------- a whole life


def test_up_status_down_and_up_again(home: Any, wait: Callable[..., Any]) -> None:
    first = home.ground("up", "--detach")
    secret = first.stdout.strip()
    assert secret.startswith("gp-admin-")
    assert f"http://127.0.0.1:{home.port}" in first.stderr
    assert f"http://127.0.0.1:{home.gateway_port}/v1" in first.stderr
    assert (home.path / "keys" / "admin").read_text().strip() == secret
    assert stat.S_IMODE((home.path / "keys" / "admin").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert secret not in home.log("supervisor") + home.log("control-plane") + home.log("gateway")

    status = json.loads(home.ground("status", "-o", "json").stdout)
    assert (status["up"], status["ready"]) == (True, True)
    assert {process["state"] for process in status["processes"]} == {"up"}
    assert status["control_plane"]["database"] == "sqlite"
    pids = [process["pid"] for process in status["processes"]]

    again = home.ground("up", "--detach", expect=1)
    assert again.stderr.startswith(f"error: {home.path} is already up (pid {home.pid('supervisor')})\nhint: ")

    down = home.ground("down")
    assert "no runs are left" in down.stdout
    assert not [pid for pid in pids if mark(pid)]
    assert home.ground("down").stdout == f"nothing is up on {home.path}\n"
    gone = home.ground("status", expect=6)
    assert "ground up" in gone.stdout

    second = home.ground("up", "--detach")
    assert second.stdout == "", "the admin key is shown once"
    with home.client as client:
        assert client.whoami().name == "admin"
    home.ground("down")


def test_in_the_foreground_a_signal_drains_everything_and_exits_0(home: Any, wait: Callable[..., Any]) -> None:
    process = home.start("up", "--no-gateway")
    assert process.stdout.readline().startswith("gp-admin-")
    wait(lambda: home.pid("control-plane") and answers(home), "the control plane")
    assert not home.pid("gateway")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "stopping (SIGTERM)" in err
    assert "control-plane stopped" in err
    assert not home.pid("control-plane")


def test_when_the_terminal_dies_so_does_what_it_started(home: Any, wait: Callable[..., Any]) -> None:
    process = home.start("up", "--no-gateway")
    wait(lambda: answers(home), "the control plane")
    supervisor = home.pid("supervisor")
    process.kill()
    process.communicate(timeout=60)
    wait(lambda: not psutil.pid_exists(supervisor) or not home.pid("supervisor"), "the supervisor to notice")
    assert not home.pid("control-plane")
    assert "the terminal that started it is gone" in home.log("supervisor")


def answers(home: Any) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{home.port}/readyz", trust_env=False).is_success
    except httpx.TransportError:
        return False


# ---------------------------------------------------------------- crashes


def test_crashes_of_any_process_are_survived(home: Any, wait: Callable[..., Any]) -> None:
    home.ground("up", "--detach")
    before = {name: home.pid(name) for name in ("control-plane", "gateway")}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    wait(lambda: all(home.pid(n) and home.pid(n) != pid for n, pid in before.items()) and answers(home), "new ones")
    status = json.loads(home.ground("status", "-o", "json").stdout)
    assert {p["name"]: p["restarts"] for p in status["processes"]} == {
        "supervisor": 0,
        "control-plane": 1,
        "gateway": 1,
    }
    assert "crashed name=gateway exit=-9" in home.log("supervisor")

    # A killed supervisor leaves both serving; the next start ends them first.
    old = home.pid("control-plane")
    os.kill(home.pid("supervisor"), signal.SIGKILL)
    wait(lambda: not home.pid("supervisor"), "it to be gone")
    assert answers(home)
    again = home.ground("up", "--detach")
    assert f"control-plane of an earlier start (pid {old}) was still there: " in again.stderr
    assert home.pid("control-plane") not in {0, old}

    os.kill(home.pid("supervisor"), signal.SIGKILL)
    wait(lambda: not home.pid("supervisor"), "it to be gone")
    down = home.ground("down")
    assert "control-plane (pid" in down.stdout
    assert not home.pid("gateway")


def test_gateway_workers_are_replaced_without_an_outage(home: Any, wait: Callable[..., Any]) -> None:
    home.extra["GROUND_GATEWAY_WORKERS"] = "2"
    home.ground("up", "--detach")
    before = {name: home.pid(name) for name in ("gateway", "gateway-1")}
    assert all(before.values())
    os.kill(home.pid("supervisor"), signal.SIGUSR1)

    def replaced() -> bool:
        health = httpx.get(f"http://127.0.0.1:{home.gateway_port}/healthz", trust_env=False)
        assert health.status_code == 200, "somebody answers all the time"
        return all(home.pid(name) not in {0, pid} for name, pid in before.items())

    wait(replaced, "new workers")
    wait(lambda: home.log("supervisor").count("replaced name=gateway") == 2, "both to be told")
    status = json.loads(home.ground("status", "-o", "json").stdout)
    assert {process["name"]: process["restarts"] for process in status["processes"]}["gateway-1"] == 0
    home.ground("down")
    assert not home.pid("gateway") and not home.pid("gateway-1")


# ---------------------------------------------------------------- what forbids a start


def test_a_taken_port_is_named_with_who_has_it(home: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", home.gateway_port))
        taken.listen(1)
        refused = home.ground("up", "--detach", expect=5)
    assert f"error: port {home.gateway_port} on 127.0.0.1 is taken by pid {os.getpid()} (" in refused.stderr
    assert "hint: stop it, or choose another port with GROUND_GATEWAY_PORT" in refused.stderr
    assert not home.pid("control-plane"), "ports are looked at before anything starts"


def test_a_corrupted_database_is_refused_and_left_as_it_is(home: Any) -> None:
    home.path.mkdir(mode=0o700)
    database = home.path / "groundplane.db"
    database.write_bytes(b"this is no database, whatever its name says " * 200)
    before = database.read_bytes()
    refused = home.ground("up", "--detach", expect=8)
    assert "groundplane.db" in refused.stderr
    assert "hint: " in refused.stderr
    assert database.read_bytes() == before
    assert not home.pid("supervisor")


def test_addresses_beyond_loopback_need_exposures(home: Any) -> None:
    home.extra |= {"GROUND_HOST": "0.0.0.0", "GROUND_GATEWAY_HOST": "0.0.0.0"}
    refused = home.ground("up", "--detach", expect=3)
    assert "error: refused for 2 reasons\n  exposure: needs an exposure with owner, reason and expiry" in refused.stderr
    assert "start on 127.0.0.1, then: ground exposures add 0.0.0.0:" in refused.stderr
    assert not home.pid("supervisor")


def test_an_exposure_in_force_permits_the_address_and_its_end_stops_it(home: Any, wait: Callable[..., Any]) -> None:
    # A second address of this very machine's loopback: not one of the names that need no exposure.
    home.ground("up", "--detach", "--no-gateway")
    address = f"127.0.0.2:{home.gateway_port}"
    expires = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    home.ground("exposures", "add", address, "--owner", "ana", "--reason", "a pilot", "--expires", expires)
    home.ground("down")

    home.extra["GROUND_GATEWAY_HOST"] = "127.0.0.2"
    home.extra["GROUND_EXPOSURE_CHECK"] = "1s"
    assert address in home.ground("up", "--detach").stderr
    with home.client as client:
        client.withdraw_exposure(address, "over")
    wait(lambda: not home.pid("supervisor"), "everything to stop")
    wait(lambda: "exposure: needs" in home.log("supervisor"), "its reason")


def test_a_home_that_cannot_be_made_is_named(home: Any) -> None:
    home.path.write_text("a file in the way")
    refused = home.ground("up", "--detach", expect=2)
    assert "ground" in refused.stderr
    assert "GROUND_HOME" in refused.stderr


# ---------------------------------------------------------------- the parts


def test_a_pid_that_was_given_to_another_process_is_not_the_one_remembered(tmp_path: Path) -> None:
    process = sleeper()
    try:
        write_mark(tmp_path / "a.pid", process.pid)
        assert read_mark(tmp_path / "a.pid") == mark(process.pid)
        assert end(ProcessMark(pid=process.pid, start="1"), wait_s=1) == "gone"
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert read_mark(tmp_path / "a.pid") is None


def test_what_does_not_heed_sigterm_is_killed() -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = mark(process.pid)
        assert found is not None
        assert end(found, wait_s=0.2) == "killed"


@pytest.mark.parametrize("text", ["", "no json", "{}", '{"pid": 1}', "[]"])
def test_a_damaged_pid_file_remembers_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.pid").write_text(text)
    assert read_mark(tmp_path / "a.pid") is None


def test_a_lock_is_held_by_one_and_free_when_let_go(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    first, second = HomeLock(tmp_path / "run" / "up.lock"), HomeLock(tmp_path / "run" / "up.lock")
    first.take()
    with pytest.raises(AlreadyUp, match=str(os.getpid())):
        second.take()
    first.release()
    second.take()
    second.release()
    second.release()


def test_ports_are_told_apart() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        assert f"pid {os.getpid()} " in port_holder(port)
        with pytest.raises(Conflict, match=f"port {port} on 127.0.0.1 is taken by pid {os.getpid()}"):
            check_port_free("127.0.0.1", port, "GROUND_PORT")
    check_port_free("127.0.0.1", port, "GROUND_PORT")
    with pytest.raises(InvalidInput, match="can't be bound"):
        check_port_free("192.0.2.1", port, "GROUND_PORT")
    with pytest.raises(InvalidInput, match="no address"):
        check_port_free("no such host", port, "GROUND_PORT")


def test_a_child_that_is_killed_again_and_again_is_soon_back_and_one_that_never_comes_up_is_given_time() -> None:
    def pauses(ready_for_s: float | None, was_killed: bool = False) -> list[float]:
        pause_s, found = 0.0, []
        for _ in range(9):
            pause_s = next_backoff(pause_s, ready_for_s, was_killed=was_killed)
            found.append(pause_s)
        return found

    assert pauses(1.0) == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 5.0, 5.0]
    assert pauses(None, was_killed=True) == pauses(1.0)
    assert pauses(None) == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert set(pauses(STEADY_S)) == {0.5}
    assert next_backoff(30.0, STEADY_S) == 0.5
    assert next_backoff(30.0, 1.0) == 5.0


def test_a_log_over_its_limit_is_rotated_under_an_open_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with path.open("ab") as writer:
        for number in range(LOGS_KEPT + 2):
            writer.write(b"%d" % number * 100)
            writer.flush()
            assert rotate(path, 50)
        writer.write(b"after")
        writer.flush()
        assert path.read_bytes() == b"after"
        assert not rotate(path, 50)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.log", *(f"a.log.{n}" for n in range(1, LOGS_KEPT + 1))]
    assert (tmp_path / "a.log.1").read_bytes() == b"%d" % (LOGS_KEPT + 1) * 100


def test_a_missing_log_is_not_rotated(tmp_path: Path) -> None:
    assert not rotate(tmp_path / "none.log", 1)
