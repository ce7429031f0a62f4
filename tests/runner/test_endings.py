"""How an attempt ends, told from real commands, signals and missing programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from groundplane.adapters.executors.channels import RUNNER
from groundplane.domain.run import EndReason


async def test_a_command_that_exits_3_fails_with_3(node: Any) -> None:
    await node.start("echo before; exit 3")
    seen = await node.ended()
    assert (seen.end_reason, seen.exit_code) == (EndReason.COMMAND_FAILED, 3)
    assert seen.message == "it exited with status 3"
    assert node.log() == b"before\n"
    assert seen.started_at is not None
    assert seen.ended_at is not None
    assert seen.ended_at >= seen.started_at


async def test_a_command_that_exits_0_succeeded(node: Any) -> None:
    await node.start("true")
    assert (await node.ended()).end_reason is EndReason.SUCCEEDED


@pytest.mark.parametrize("command", [["no-such-program"], ["./nothing/here"], ["/etc"], "no-such-program --in-a-shell"])
async def test_a_missing_program_is_named_as_such(node: Any, command: list[str] | str) -> None:
    await node.start(command)
    assert (await node.ended()).end_reason is EndReason.COMMAND_NOT_FOUND


async def test_a_missing_working_folder_is_named(node: Any) -> None:
    await node.start("pwd", workdir="/nowhere/at/all")
    seen = await node.ended()
    assert seen.end_reason is EndReason.COMMAND_NOT_FOUND
    assert "/nowhere/at/all" in seen.message


async def test_a_job_killed_from_outside_was_killed(node: Any) -> None:
    await node.start(["sleep", "60"])
    await node.until(lambda seen: seen.state == "running")
    os.kill(node.state()["pid"], signal.SIGKILL)
    seen = await node.ended()
    assert (seen.end_reason, seen.exit_code) == (EndReason.KILLED, 137)
    assert "SIGKILL" in seen.message


async def test_a_shells_child_killed_from_outside_was_killed(node: Any) -> None:
    await node.start("sleep 60; exit $?")
    await node.until(lambda seen: len(node.processes()) == 2)
    child = max(node.processes(), key=lambda pid: pid != node.state()["pid"])
    os.kill(child, signal.SIGKILL)
    assert (await node.ended()).end_reason is EndReason.KILLED


async def test_words_of_a_full_disk_name_the_disk(node: Any) -> None:
    await node.start("echo 'OSError: [Errno 28] No space left on device' >&2; exit 1")
    seen = await node.ended()
    assert (seen.end_reason, seen.exit_code) == (EndReason.DISK_FULL, 1)


async def test_the_first_stop_reason_stays(node: Any) -> None:
    await node.start("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    await node.said(b"ready")
    await node.executor.stop("att-1", EndReason.BUDGET_SPENT)
    await node.executor.stop("att-1", EndReason.STOPPED_BY_USER)
    seen = await node.ended()
    assert (seen.end_reason, seen.exit_code) == (EndReason.BUDGET_SPENT, 0)
    assert b"bye" in node.log()


async def test_a_job_deaf_to_sigterm_is_killed_after_its_grace(node: Any) -> None:
    await node.start("trap '' TERM; echo ready; while :; do sleep 0.05; done", stop_grace_s=0.3)
    await node.said(b"ready")
    await node.executor.stop("att-1", EndReason.STOPPED_BY_USER)
    seen = await node.ended()
    assert (seen.end_reason, seen.exit_code) == (EndReason.STOPPED_BY_USER, 137)
    assert node.processes() == []


async def test_grandchildren_and_escaped_daemons_are_gone_with_the_job(node: Any) -> None:
    daemon = "import os,time; os.setsid(); os.fork() and os._exit(0); print('daemon', flush=True); time.sleep(60)"
    await node.python(
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {daemon!r}])\n"
        "subprocess.Popen(['sleep', '60'])\n"
        "subprocess.Popen(['sh', '-c', 'trap \"\" TERM; while :; do sleep 1; done'])\n"
        "time.sleep(0.3)"
    )
    seen = await node.ended()
    assert seen.end_reason is EndReason.SUCCEEDED
    assert b"daemon" in node.log()
    assert node.processes() == []


async def test_the_job_gets_a_clean_environment(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_CONTROL_PLANE", "hunter2")
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    await node.start("env; pwd; cat", env={"FLAVOUR": "sweet", "GROUND_RUN_ID": "forged", "CUDA_VISIBLE_DEVICES": "0"})
    assert (await node.ended()).end_reason is EndReason.SUCCEEDED
    lines = node.log().decode().splitlines()
    env = dict(line.split("=", 1) for line in lines if "=" in line)
    assert "SECRET_OF_THE_CONTROL_PLANE" not in env
    assert (env["FLAVOUR"], env["LC_TIME"], env["GROUND_RUN_ID"]) == ("sweet", "C.UTF-8", "run-1")
    assert (env["GROUND_ATTEMPT"], env["GROUND_ATTEMPT_ID"], env["GROUND_RESUME_FROM"]) == ("1", "att-1", "")
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["GROUND_CHECKPOINT_DIR"].endswith("runs/run-1/checkpoints")
    assert lines[-1] == str(node.folder() / "work")


async def test_an_unreadable_order_fails_to_start_and_says_why(node: Any) -> None:
    node.folder().mkdir(parents=True)
    (node.folder() / "order.json").write_text('{"command": 5}')
    subprocess.run([sys.executable, "-I", "-S", str(RUNNER), "--detach", str(node.folder())], check=True, timeout=30)
    seen = await node.ended()
    assert seen.end_reason is EndReason.START_FAILED
    assert "order" in seen.message
