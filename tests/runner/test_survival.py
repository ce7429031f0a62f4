"""What survives whose death: jobs their control plane, nobody their runner."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from groundplane.adapters.executors.channels import RUNNER
from groundplane.domain.run import EndReason

STARTER = """
import asyncio, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from groundplane.adapters.executors.local import LocalExecutor
from groundplane.domain.order import Order

class Clock:
    def now(self): return datetime.now(UTC)

home = Path(sys.argv[1])
order = Order(attempt_id="att-1", run_id="run-1", number=1,
    command=("sh", "-c", "echo working; sleep 1.5; echo finished"), workdir="", env={},
    checkpoint_dir=str(home / "c"), output_dir=str(home / "o"), cpus=1.0, memory_bytes=0, accelerators=0,
    max_duration_s=60, idle_limit_s=None, control_plane_gone_limit_s=None, stop_grace_s=1,
    not_after=datetime.now(UTC) + timedelta(hours=1))
asyncio.run(LocalExecutor(home, Clock()).start(order))
print("started", flush=True)
sys.stdin.read()
"""


async def test_a_job_outlives_the_control_plane_that_started_it(node: Any) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(node.home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as control_plane:
        assert control_plane.stdout is not None
        assert control_plane.stdout.readline() == b"started\n"
        os.killpg(control_plane.pid, signal.SIGKILL)  # its whole group: the runner must not be in it
    await node.until(lambda seen: seen.state == "running")
    assert (await node.ended()).end_reason is EndReason.SUCCEEDED
    assert node.log() == b"working\nfinished\n"


async def test_a_dead_runner_is_reported_and_its_job_is_gone(node: Any) -> None:
    await node.start("(setsid sleep 60 &) ; sleep 60 & echo ready; wait")
    await node.said(b"ready")
    await node.until(lambda seen: seen.state == "running")
    assert len(node.processes()) >= 3
    os.kill(node.state()["runner_pid"], signal.SIGKILL)
    seen = await node.ended()
    assert seen.end_reason is EndReason.RUNNER_LOST
    assert node.processes() == []
    assert (await node.see()).ended_at == seen.ended_at


async def test_a_process_that_only_looks_like_the_jobs_is_spared(node: Any) -> None:
    """The dead job's pid now belongs to a stranger: same number, another start tick, no mark."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        await node.start("sleep 60")
        await node.until(lambda seen: seen.state == "running")
        state = node.state()
        os.kill(state["runner_pid"], signal.SIGKILL)
        state.update(pid=stranger.pid, pgid=stranger.pid)
        (node.folder() / "state.json").write_text(json.dumps(state))
        assert (await node.ended()).end_reason is EndReason.RUNNER_LOST
        assert stranger.poll() is None
        stranger.kill()


async def test_a_copied_home_reports_its_attempts_lost_and_touches_nobodys_job(node: Any, node_with: Any) -> None:
    await node.start("sleep 60")
    await node.until(lambda seen: seen.state == "running")
    copy = node_with(node.home.parent / "copy")
    shutil.copytree(node.home, copy.home)
    assert (await copy.ended()).end_reason is EndReason.RUNNER_LOST
    assert (await node.see()).state == "running"
    assert node.processes()


async def test_a_restarted_node_has_lost_its_attempts(node: Any) -> None:
    await node.start("sleep 60")
    await node.until(lambda seen: seen.state == "running")
    state = node.state()
    os.kill(state["runner_pid"], signal.SIGKILL)
    state["boot_id"] = "another-boot"
    (node.folder() / "state.json").write_text(json.dumps(state))
    assert (await node.ended()).end_reason is EndReason.NODE_LOST


async def test_a_second_runner_on_the_same_attempt_does_nothing(node: Any) -> None:
    await node.start("echo once; sleep 60")
    await node.said(b"once")
    second = subprocess.run([sys.executable, str(RUNNER), str(node.folder())], timeout=20, check=False)
    assert second.returncode == 0
    assert node.log() == b"once\n"
    assert (await node.see()).state == "running"


async def test_a_start_that_died_before_its_runner_is_finished_by_the_next(node: Any) -> None:
    order = node.order("att-1", "echo ran")
    (link,) = node.executor._links.values()
    link.channel.desk._call = lambda *_: ""  # dies after the order is written, before the runner is there
    await node.executor.start(order)
    del link.channel.desk._call
    assert (await node.see()).state == "absent"
    await node.executor.start(order)
    assert (await node.ended()).end_reason is EndReason.SUCCEEDED
    assert node.log() == b"ran\n"


async def test_a_lost_attempt_is_never_started_again(node: Any) -> None:
    await node.start("echo ran; sleep 60")
    await node.said(b"ran")
    os.kill(node.state()["runner_pid"], signal.SIGKILL)
    await node.start("echo ran; sleep 60")
    assert (await node.ended()).end_reason is EndReason.RUNNER_LOST
    assert node.log() == b"ran\n"


async def test_a_state_damaged_by_a_power_cut_is_a_lost_attempt(node: Any) -> None:
    await node.start("sleep 60")
    await node.until(lambda seen: seen.state == "running")
    os.kill(node.state()["runner_pid"], signal.SIGKILL)
    (node.folder() / "state.json").write_bytes(b"")
    assert (await node.ended()).end_reason is EndReason.RUNNER_LOST
    assert node.processes() == []


async def test_a_state_that_cannot_be_read_is_unknown_and_nothing_is_done(node: Any) -> None:
    await node.start("sleep 60")
    await node.until(lambda seen: seen.state == "running")
    runner, good = node.state()["runner_pid"], (node.folder() / "state.json").read_bytes()
    os.kill(runner, signal.SIGSTOP)  # so that it does not repair the file meanwhile
    (node.folder() / "state.json").write_bytes(b'{"state": "runn')
    seen = await node.see()
    assert (seen.state, seen.end_reason) == ("unknown", None)
    assert node.processes()
    (node.folder() / "state.json").write_bytes(good)
    os.kill(runner, signal.SIGCONT)
    assert (await node.see()).state == "running"


async def test_a_runner_told_to_end_ends_its_job_first(node: Any) -> None:
    await node.start("trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    await node.said(b"ready")
    await node.until(lambda seen: seen.state == "running")
    os.kill(node.state()["runner_pid"], signal.SIGTERM)
    seen = await node.ended()
    assert seen.end_reason is EndReason.KILLED
    assert node.log().endswith(b"saved\n")


async def test_looking_at_a_thousand_attempts_is_cheap(node: Any) -> None:
    await node.start("sleep 60", "att-live")
    await node.until(lambda seen: seen.state == "running", "att-live")
    for number in range(1000):
        folder: Path = node.folder(f"old-{number}")
        folder.mkdir()
        (folder / "order.json").write_text("{}")
        (folder / "state.json").write_text(json.dumps({"state": "ended", "end_reason": "succeeded"}))
    ids = ["att-live", *(f"old-{number}" for number in range(1000))]
    began = time.process_time()
    seen = await node.executor.observe(ids)
    took_s = time.process_time() - began
    assert sum(each.state == "ended" for each in seen.values()) == 1000
    assert took_s < 5, "seconds of the processor"
