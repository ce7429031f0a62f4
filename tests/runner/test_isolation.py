"""Walls around a job, tried by breaking out: other runs, keys, secrets, the control plane's memory and environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundplane.domain.isolation import JobIsolation
from groundplane.domain.run import EndReason

pytestmark = pytest.mark.needs("root")
PYTHON = "/usr/bin/python3"  # one that every user may run
WALLED = ["user", pytest.param("bubblewrap", marks=pytest.mark.needs("bubblewrap"))]
LOOK = """
import ctypes, os, sys
home, victim = sys.argv[1], int(sys.argv[2])
def attempt(name, act):
    try:
        got = act()
    except (OSError, PermissionError) as error:
        print(name, "denied", error.strerror, flush=True)
    else:
        print(name, "GOT", repr(got)[:80], flush=True)
def trace():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, victim, 0, 0):
        raise OSError(ctypes.get_errno(), "ptrace")
    return "attached"
attempt("key", lambda: open(home + "/keys/signing.pem").read())
attempt("database", lambda: open(home + "/groundplane.db").read())
attempt("other-run", lambda: os.listdir(home + "/runs/other"))
attempt("other-attempt", lambda: open(home + "/attempts/other/order.json").read())
attempt("plant", lambda: open(home + "/attempts/other/stop", "w").write("{}"))
attempt("environ", lambda: open(f"/proc/{victim}/environ").read())
attempt("memory", lambda: open(f"/proc/{victim}/mem", "rb").read(1))
attempt("ptrace", trace)
attempt("kill", lambda: os.kill(victim, 9))
attempt("shadow", lambda: open("/etc/shadow").read())
print("end", flush=True)
"""


@pytest.fixture
def victim(node: Any) -> Iterator[int]:
    """A process like the control plane: same user as the runner, a secret in its environment; and files to steal."""
    for path in ("keys/signing.pem", "groundplane.db", "runs/other/secret", "attempts/other/order.json"):
        file = node.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("private")
    sleeper = subprocess.Popen(["sleep", "60"], env={"GROUND_KEY": "secret", "PATH": os.environ["PATH"]})
    yield sleeper.pid
    assert sleeper.poll() is None, "the job killed its neighbour"
    sleeper.kill()
    sleeper.wait(10)


@pytest.mark.parametrize("mode", WALLED)
async def test_a_walled_job_reaches_no_key_no_other_run_and_no_other_process(node: Any, victim: int, mode: str) -> None:
    command = [PYTHON, "-I", "-S", "-c", LOOK, str(node.home), str(victim)]
    await node.start(command, isolation=JobIsolation(mode=mode))
    assert (await node.ended()).end_reason is EndReason.SUCCEEDED, (node.state(), node.log())
    said = node.log().decode()
    assert "GOT" not in said
    assert said.count(" denied ") == 10
    assert said.endswith("end\n")


async def test_without_walls_the_same_job_reaches_everything(node: Any, victim: int) -> None:
    """So that the test above can fail."""
    look = LOOK.replace("os.kill(victim, 9)", "os.kill(victim, 0)")
    await node.start([PYTHON, "-I", "-S", "-c", look, str(node.home), str(victim)])
    await node.ended()
    assert b"key GOT" in node.log()
    assert b"environ GOT" in node.log()


@pytest.mark.parametrize("mode", WALLED)
async def test_a_walled_job_writes_its_own_folders(node: Any, mode: str) -> None:
    line = "echo in > mine && echo out > $GROUND_OUTPUT_DIR/o && echo c > $GROUND_CHECKPOINT_DIR/c && id -u && pwd"
    await node.start(line, isolation=JobIsolation(mode=mode))
    assert (await node.ended()).end_reason is EndReason.SUCCEEDED, (node.state(), node.log())
    assert (node.folder() / "work" / "mine").read_text() == "in\n"
    assert (node.home / "runs/run-1/output/o").read_text() == "out\n"
    uid = node.state()["uid"]
    assert uid >= 710_000
    assert node.log().decode() == f"{uid}\n{node.folder() / 'work'}\n"
    assert (node.folder() / "work" / "mine").stat().st_uid == uid


async def test_two_jobs_at_once_are_two_users_and_a_later_attempt_owns_its_runs_checkpoints(node: Any) -> None:
    for name in ("att-1", "att-2"):
        keep = f"echo {name} > $GROUND_CHECKPOINT_DIR/{name}; until [ -e go ]; do sleep 0.02; done"
        await node.start(keep, name, isolation=JobIsolation(mode="user"))
        await node.until(lambda seen: seen.state == "running", name)
    assert node.state("att-1")["uid"] != node.state("att-2")["uid"]
    for name in ("att-1", "att-2"):
        (node.folder(name) / "work" / "go").touch()
        await node.ended(name)
    await node.start("echo more >> $GROUND_CHECKPOINT_DIR/att-1", "att-3", isolation=JobIsolation(mode="user"))
    assert (await node.ended("att-3")).end_reason is EndReason.SUCCEEDED


@pytest.mark.needs("bubblewrap")
async def test_a_sandboxed_job_sees_a_read_only_system_and_an_empty_tmp(node: Any, tmp_path: Path) -> None:
    line = (
        "ls -A /tmp | grep -v $(echo $GROUND_ATTEMPT_DIR | cut -d/ -f3); touch /usr/x /etc/x; ps ax | wc -l; hostname"
    )
    await node.start(line, isolation=JobIsolation(mode="bubblewrap"))
    await node.ended()
    said = node.log().decode()
    assert said.count("Read-only file system") == 2, said
    assert said.endswith("job\n")


@pytest.mark.needs("bubblewrap")
async def test_without_network_a_sandboxed_job_has_no_way_out(node: Any) -> None:
    look = "import socket; print(len(socket.if_nameindex()))"
    await node.start([PYTHON, "-I", "-S", "-c", look], isolation=JobIsolation(mode="bubblewrap", network=False))
    await node.ended()
    assert node.log() == b"1\n"


@pytest.mark.needs("bubblewrap")
async def test_a_sandboxed_job_has_its_grace_to_end(node: Any) -> None:
    await node.start(
        "trap 'echo saved; exit 3' TERM; echo up; while :; do sleep 0.02; done",
        isolation=JobIsolation(mode="bubblewrap"),
    )
    await node.said(b"up")
    await node.executor.stop("att-1", EndReason.STOPPED_BY_USER)
    seen = await node.ended()
    assert b"saved" in node.log()
    assert (seen.end_reason, seen.exit_code) == (EndReason.STOPPED_BY_USER, 3)
    assert node.processes() == []


@pytest.mark.needs("bubblewrap")
async def test_a_program_missing_in_the_sandbox_is_told_as_such(node: Any) -> None:
    await node.start(["no-such-program"], isolation=JobIsolation(mode="bubblewrap"))
    assert (await node.ended()).end_reason is EndReason.COMMAND_NOT_FOUND


@pytest.mark.parametrize("mode", ["none", *WALLED])
async def test_secrets_are_files_for_the_job_alone_and_leave_no_trace(node: Any, mode: str) -> None:
    line = "cat $GROUND_SECRETS_DIR/token; stat -c ' %a' $GROUND_SECRETS_DIR/token; env | grep -c hunter"
    await node.start(line, isolation=JobIsolation(mode=mode), secrets={"token": "hunter2"})
    await node.ended()
    assert node.log() == b"hunter2 400\n0\n"
    place = Path(node.state()["secrets_dir"])
    assert not place.exists()
    files = [path for path in node.folder().rglob("*") if path.is_file() and path.name != "log"]
    assert not [path for path in files if b"hunter2" in path.read_bytes()]


async def test_secrets_of_an_attempt_whose_runner_died_early_are_forgotten(node: Any) -> None:
    await node.start("sleep 60", secrets={"token": "hunter2"})
    await node.until(lambda seen: seen.state == "running")
    place, order = Path(node.state()["secrets_dir"]), node.folder() / "order.json"
    order.write_text(order.read_text().replace('"readable"', '"secrets": {"token": "hunter2"}, "readable"'))
    os.kill(node.state()["runner_pid"], 9)
    assert (await node.ended()).end_reason is EndReason.RUNNER_LOST
    assert not place.exists()
    assert "hunter2" not in order.read_text()


async def test_a_way_of_isolation_that_is_not_there_ends_the_attempt_with_words(node: Any) -> None:
    await node.start("echo ran", isolation=JobIsolation(mode="magic"))
    seen = await node.ended()
    assert (seen.end_reason, node.log()) == (EndReason.START_FAILED, b"")
    assert "magic" in seen.message


# ---------------------------------------------------------------- containers


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """A container image of a shell and little else, made of this machine's busybox or its own programs."""
    from groundplane.runner.isolation import podman_engine

    busybox = shutil.which("busybox")
    assert busybox, "install busybox-static"
    name = "localhost/groundplane-test:1"
    root = Path("/var/tmp/groundplane-image-root")
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("bin", "tmp", "etc", "proc", "dev"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    for applet in ("sh", "echo", "cat", "id", "sleep", "env", "ls", "grep", "true"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "bin" / "python3").write_text("""#!/bin/sh\necho '["CPython 3.99", "Linux", ["inside==1"]]'\n""")
    (root / "bin" / "python3").chmod(0o755)
    tar = root.with_suffix(".tar")
    subprocess.run(["tar", "-C", str(root), "-cf", str(tar), "."], check=True, timeout=60)
    imported = subprocess.run(
        ["podman", *podman_engine(), "import", str(tar), name], capture_output=True, timeout=60, check=False
    )
    tar.unlink()
    assert imported.returncode == 0, imported.stderr.decode()
    yield name
    subprocess.run(["podman", *podman_engine(), "rmi", "--force", name], capture_output=True, timeout=60, check=False)
    shutil.rmtree(root, ignore_errors=True)


@pytest.mark.needs("podman")
async def test_a_container_job_runs_in_its_image_and_writes_its_own_folders(node: Any, image: str) -> None:
    line = "id -u; echo out > $GROUND_OUTPUT_DIR/o; ls /; cat $GROUND_SECRETS_DIR/token"
    await node.start(line, isolation=JobIsolation(mode="podman", image=image), secrets={"token": "hunter2"})
    seen = await node.ended()
    assert seen.end_reason is EndReason.SUCCEEDED, (node.state(), node.log())
    assert (node.home / "runs/run-1/output/o").read_text() == "out\n"
    assert node.log().endswith(b"hunter2")
    assert b"home" not in node.log()


@pytest.mark.needs("podman")
async def test_the_image_and_its_own_packages_are_seen_before_the_job_starts(node: Any, image: str) -> None:
    await node.start("python3 x.py", isolation=JobIsolation(mode="podman", image=image), observe=True)
    await node.ended()
    (seen,) = await node.executor.circumstances("att-1")
    assert (seen["container"]["used"], seen["container"]["image"]) == (True, image)
    assert seen["container"]["digest"].startswith("sha256:") and len(seen["container"]["digest"]) == 71
    assert seen["environment"]["packages"] == ["inside==1"], seen["unknown"]


@pytest.mark.needs("podman")
async def test_a_container_without_its_image_does_not_start(node: Any) -> None:
    await node.start("true", isolation=JobIsolation(mode="podman", image="localhost/no-such-image:1"))
    seen = await node.ended()
    assert seen.end_reason is EndReason.START_FAILED, node.log()


@pytest.mark.needs("podman")
async def test_no_container_outlives_its_killed_runner(node: Any, image: str) -> None:
    await node.start("echo up; sleep 60", isolation=JobIsolation(mode="podman", image=image))
    await node.said(b"up")
    os.kill(node.state()["runner_pid"], 9)
    assert (await node.ended()).end_reason is EndReason.RUNNER_LOST
    assert node.processes() == []
