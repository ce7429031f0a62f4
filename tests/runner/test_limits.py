"""Limits the runner keeps by itself, on clocks nobody can set."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from groundplane.adapters.executors.channels import RUNNER
from groundplane.domain.run import EndReason

ALIVE = "while :; do echo tick; sleep 0.05; done"


async def test_the_longest_duration_ends_it(node: Any) -> None:
    await node.start(ALIVE, max_duration_s=0.5)
    seen = await node.ended()
    assert seen.end_reason is EndReason.MAX_DURATION
    assert (seen.ended_at - seen.started_at).total_seconds() > 0.4


async def test_the_end_date_ends_it(node: Any) -> None:
    await node.start(ALIVE, not_after=datetime.now(UTC) + timedelta(seconds=1))
    assert (await node.ended()).end_reason is EndReason.END_DATE


async def test_nothing_starts_after_its_end_date(node: Any) -> None:
    await node.start("echo ran", not_after=datetime.now(UTC) - timedelta(days=1))
    seen = await node.ended()
    assert (seen.end_reason, seen.started_at) == (EndReason.END_DATE, None)
    assert node.log() == b""


async def test_silence_without_work_is_idle(node: Any) -> None:
    await node.start("echo once; sleep 60", idle_limit_s=0.8)
    seen = await node.ended()
    assert seen.end_reason is EndReason.IDLE
    assert "0.8 s" in seen.message


async def test_silent_work_is_not_idle(node: Any) -> None:
    await node.python("import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass", idle_limit_s=0.8)
    assert (await node.ended()).end_reason is EndReason.SUCCEEDED


async def test_a_quiet_control_plane_ends_the_job_when_the_order_says_so(node: Any) -> None:
    await node.executor.beat()
    await node.start(ALIVE, control_plane_gone_limit_s=2)
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:  # twice the limit: beating keeps it alive
        await node.executor.beat()
        assert (await node.see()).state in {"starting", "running"}
    seen = await node.ended()
    assert seen.end_reason is EndReason.CONTROL_PLANE_GONE
    assert "silent" in seen.message


async def test_without_a_limit_a_quiet_control_plane_ends_nothing(node: Any) -> None:
    await node.start("sleep 1.2; echo done")
    assert (await node.ended()).end_reason is EndReason.SUCCEEDED


CLOCK_JUMPS = """
import os, runpy, sys, time
real, log = time.time, os.path.join(sys.argv[2], "log")
time.time = lambda: real() + (JUMP if os.path.exists(log) and os.path.getsize(log) else 0)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_with_jumping_clock(node: Any, jump_s: int, **limits: Any) -> dict[str, Any]:
    """Runs an attempt in the foreground under a wall clock that jumps once the job is at work."""
    order = node.order("att-1", ALIVE, **limits)
    node.folder().mkdir(parents=True)
    document = {
        **asdict(order),
        "not_after": order.not_after.isoformat(),
        "beat_path": "/nowhere",
        "sample_period_s": 0.2,
    }
    (node.folder() / "order.json").write_text(json.dumps(document))
    text = CLOCK_JUMPS.replace("JUMP", str(jump_s))
    subprocess.run([sys.executable, "-c", text, str(RUNNER), str(node.folder())], check=True, timeout=30, cwd=Path("/"))
    found: dict[str, Any] = node.state()
    return found


def test_a_clock_set_back_moves_no_end_date(node_with: Any) -> None:
    state = run_with_jumping_clock(node_with(), -3600, not_after=datetime.now(UTC) + timedelta(seconds=2))
    assert state["end_reason"] == "end-date"


def test_a_clock_set_back_lengthens_no_duration(node_with: Any) -> None:
    assert run_with_jumping_clock(node_with(), -3600, max_duration_s=1.0)["end_reason"] == "max-duration"


def test_a_clock_set_forward_ends_nothing_early(node_with: Any) -> None:
    began = time.monotonic()
    state = run_with_jumping_clock(
        node_with(), 7200, max_duration_s=1.5, idle_limit_s=60, not_after=datetime.now(UTC) + timedelta(hours=1)
    )
    assert state["end_reason"] == "max-duration"
    assert time.monotonic() - began >= 1.5
