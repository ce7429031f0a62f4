"""A job that stops getting anywhere is noticed, and what it was doing is on record."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from groundplane.domain.isolation import JobIsolation
from groundplane.domain.run import EndReason
from groundplane.runner.hang import HangWatch, stacks, unreachable


async def test_silence_without_a_step_is_a_hang_and_its_stacks_are_kept(node: Any) -> None:
    await node.start("echo started; sleep 60 & wait", hang_limit_s=0.6)
    seen = await node.until(lambda seen: seen.hangs)
    assert "no output and no checkpoint" in seen.hangs[0].why
    text = await node.executor.stacks("att-1")
    assert "sleep 60" in text
    assert "waits in" in text
    await node.executor.stop("att-1", EndReason.HUNG)
    assert (await node.ended()).end_reason is EndReason.HUNG


HUNG = """
import threading
def waits_for_a_lock_that_nobody_gives_back():
    lock = threading.Lock()
    lock.acquire()
    print("step 1", flush=True)
    lock.acquire()
waits_for_a_lock_that_nobody_gives_back()
"""


@pytest.mark.needs("py-spy")
async def test_where_python_hangs_is_named_by_its_own_stack(node: Any) -> None:
    await node.python(HUNG, hang_limit_s=0.6)
    await node.until(lambda seen: seen.hangs)
    text = await node.executor.stacks("att-1")
    assert "waits_for_a_lock_that_nobody_gives_back (<string>:7)" in text
    assert "py-spy: " not in text
    await node.executor.stop("att-1", EndReason.HUNG)
    assert (await node.ended()).end_reason is EndReason.HUNG


@pytest.mark.needs("py-spy")
@pytest.mark.needs("root")
@pytest.mark.needs("bubblewrap")
async def test_a_python_behind_walls_is_seen_as_well(node: Any) -> None:
    command = ["/usr/bin/python3", "-c", HUNG]
    await node.start(command, hang_limit_s=0.6, isolation=JobIsolation(mode="bubblewrap"))
    await node.until(lambda seen: seen.hangs)
    assert "waits_for_a_lock_that_nobody_gives_back" in await node.executor.stacks("att-1")


async def test_a_job_that_writes_or_saves_does_not_hang(node: Any) -> None:
    await node.start("for i in $(seq 12); do echo $i; sleep 0.15; done", hang_limit_s=1.0)
    seen = await node.ended()
    assert (seen.end_reason, seen.hangs) == (EndReason.SUCCEEDED, ())


async def test_one_that_goes_on_is_no_hang_any_more(node: Any) -> None:
    await node.start("sleep 1.5; while true; do echo on; sleep 0.1; done", hang_limit_s=0.5)
    await node.until(lambda seen: seen.hangs)
    await node.until(lambda seen: not seen.hangs)


async def test_last_words_take_no_hang_off_the_record(node: Any) -> None:
    command = "trap 'for i in $(seq 15); do echo going; sleep 0.1; done; exit 3' TERM; sleep 60 & wait"
    await node.start(command, hang_limit_s=0.6, stop_grace_s=10)
    await node.until(lambda seen: seen.hangs)
    await node.executor.stop("att-1", EndReason.HUNG)
    seen = await node.ended()
    assert b"going" in node.log()
    assert (seen.end_reason, len(seen.hangs)) == (EndReason.HUNG, 1)


def test_accelerators_at_zero_that_hold_memory_hang_though_the_log_goes_on(tmp_path: Path) -> None:
    watch = HangWatch({"hang_limit_s": 0.2}, tmp_path)
    cards = [{"utilization_percent": 0.0, "memory_used_bytes": 70e9} for _ in range(2)]
    deadline = time.monotonic() + 60
    while watch.found is None and time.monotonic() < deadline:
        watch.output()
        watch.sampled(cards, 3)
        time.sleep(0.02)
    assert watch.found is not None
    assert "2 accelerators at 0 %" in watch.found["why"]
    watch.sampled([{**cards[0], "utilization_percent": 99.0}, cards[1]], 3)
    assert watch.found is None


def test_accelerators_that_hold_nothing_are_only_free(tmp_path: Path) -> None:
    watch = HangWatch({"hang_limit_s": 0.0001}, tmp_path)
    for step in range(5):
        watch.output()
        watch.sampled([{"utilization_percent": 0.0, "memory_used_bytes": 4e6}], step)
    assert watch._zero_since is None


def test_a_rank_that_refuses_is_reached_and_one_that_is_silent_is_not(monkeypatch: Any) -> None:
    """127.0.0.3 refuses; the silent one is a listener whose queue is full."""
    with socket.socket() as full:
        full.bind(("127.0.0.2", 0))
        full.listen(0)
        monkeypatch.setattr("groundplane.runner.hang.PEER_PORT", full.getsockname()[1])
        monkeypatch.setattr("groundplane.runner.hang.PEER_PATIENCE_S", 0.4)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        env = {"GROUND_NODE_ADDRESSES": "127.0.0.1,127.0.0.2,127.0.0.3", "GROUND_NODE_RANK": "0"}
        assert unreachable(env) == [1]
        for each in waiting:
            each.close()


def test_stacks_name_every_thread_and_survive_processes_that_go(wait_for: Callable[..., Any]) -> None:
    text = stacks([os.getpid(), 2**22 - 1])
    assert f"process {os.getpid()}" in text
    assert text.count("thread ") >= threading.active_count()
