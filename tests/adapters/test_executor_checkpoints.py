"""Checkpoints and hangs on machines reached over SSH: carried through cut cables, laid elsewhere, one link down."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.hosts import Host, Hosts

from groundplane.adapters.executors.channels import Patience
from groundplane.adapters.executors.nodes import RunnerOptions
from groundplane.adapters.executors.ssh import SshExecutor
from groundplane.adapters.system import SystemClock
from groundplane.domain import watchdogs
from groundplane.domain.model import ManifestFile
from groundplane.domain.node import Placement
from groundplane.domain.order import Order
from groundplane.domain.pool_file import parse_pools
from groundplane.domain.run import Checkpoint, EndReason, Observation
from groundplane.errors import Unavailable

pytestmark = pytest.mark.needs("sshd")
PATIENCE_S = 90.0
SOON = Patience(connect_s=2, answer_s=3, alive_s=1, retry_max_s=0.5)
SAVE = """
def save(step, data):
    import hashlib, json, os
    root = os.environ["GROUND_CHECKPOINT_DIR"]
    draft = f"{root}/.step-{step}"
    os.makedirs(draft, exist_ok=True)
    open(draft + "/w.bin", "wb").write(data)
    files = [{"path": "w.bin", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}]
    json.dump({"step": step, "files": files}, open(draft + "/manifest.json", "w"))
    os.rename(draft, f"{root}/step-{step}")
"""
# Steps in lockstep: rank 0 sends to all and hears from all before a step is over. Not one socket has a time limit.
GANG = (
    SAVE
    + """
import json, os, socket, time
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
first = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
resume = os.environ["GROUND_RESUME_FROM"]
step = json.load(open(resume + "/manifest.json"))["step"] if resume else 0
if rank == 0:
    server = socket.create_server(first)
    others = [server.accept()[0] for _ in range(size - 1)]
else:
    while True:
        try: others = [socket.create_connection(first)]; break
        except OSError: time.sleep(0.05)
print(f"rank {rank} of {size} from step {step}", flush=True)
while True:
    if rank == 0:
        for each in others: each.sendall(b"x")
        for each in others: each.recv(1)
        step += 1
        if step % 5 == 0: save(step, b"state %d" % step)
    else:
        others[0].recv(1); others[0].sendall(b"x")
    print("step", flush=True)
    time.sleep(0.1)
"""
)


@asynccontextmanager
async def opened(hosts: Hosts, place: Path, nodes: int) -> AsyncIterator[SshExecutor]:
    body = {
        "user": "root",
        "key_file": str(hosts.key),
        "known_hosts": str(hosts.known_hosts),
        "price": "$1.20",
        "price_as_of": "2026-11-20",
        "nodes": [{"name": host.name, "host": host.address} for host in hosts.hosts[:nodes]],
    }
    (pool,) = parse_pools(json.dumps({"apiVersion": "groundplane/v1", "kind": "Pools", "pools": {"lab": body}}))
    options = RunnerOptions(sample_period_s=0.3)
    executor = SshExecutor(
        pool, place / "home", SystemClock(), installation="keep", options=options, patience=SOON
    )  # fmt: skip
    try:
        yield executor
    finally:
        await executor.close()


def order(text: str, nodes: list[str], number: int = 1, **changes: Any) -> Order:
    fields: dict[str, Any] = {
        "attempt_id": f"run-1-{number}", "run_id": "run-1", "number": number, "command": ("python3", "-c", text),
        "workdir": "", "env": {}, "checkpoint_dir": "", "output_dir": "", "cpus": 1.0, "memory_bytes": 0,
        "accelerators": 0, "max_duration_s": 300.0, "idle_limit_s": None, "control_plane_gone_limit_s": None,
        "stop_grace_s": 1.0, "not_after": datetime.now(UTC) + timedelta(hours=1), "nodes": len(nodes),
        "placements": tuple(Placement(node=node) for node in nodes),
    }  # fmt: skip
    return Order(**{**fields, **changes})


async def until(executor: SshExecutor, attempt_id: str, holds: Callable[[Observation], object]) -> Observation:
    deadline = time.monotonic() + PATIENCE_S
    while not holds(seen := (await executor.observe([attempt_id]))[attempt_id]):
        assert time.monotonic() < deadline, f"still {seen}"
        await asyncio.sleep(0.1)
    return seen


async def said(executor: SshExecutor, attempt_id: str, words: bytes, rank: int = 0) -> bytes:
    deadline = time.monotonic() + PATIENCE_S
    while words not in (data := (await executor.log(attempt_id, 0, 100_000, rank)).data):
        assert time.monotonic() < deadline, data
        await asyncio.sleep(0.1)
    return data


async def test_a_checkpoint_comes_through_a_cut_cable_and_goes_to_another_machine(hosts: Hosts, tmp_path: Path) -> None:
    data = hashlib.sha256(b"seed").digest() * 300_000  # 9.6 MB: three pieces
    text = SAVE + "import hashlib, time\nsave(12, hashlib.sha256(b'seed').digest() * 300_000)\ntime.sleep(120)"
    first, second = hosts.hosts[0], hosts.hosts[1]
    async with opened(hosts, tmp_path, 2) as executor:
        await executor.start(order(text, ["n0"]))
        seen = await until(executor, "run-1-1", lambda seen: seen.checkpoints)
        bringing = asyncio.create_task(
            executor.bring_checkpoint("run-1-1", seen.checkpoints[0].path, tmp_path / "copy", 8_000_000)
        )
        part = tmp_path / "copy" / "w.bin"
        while not (part.exists() and part.stat().st_size):
            await asyncio.sleep(0.05)
        first.cut()
        with pytest.raises(Unavailable):
            await bringing
        arrived = part.stat().st_size
        assert 0 < arrived < len(data)
        first.mend()
        folder = await brought(executor, seen.checkpoints[0].path, tmp_path / "copy")
        assert (folder / "w.bin").read_bytes() == data
        first.crash()  # the machine and its disk are gone

        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        kept = Checkpoint(
            id="run-1:12", run_id="run-1", attempt_id="run-1-1", step=12, path="", size_bytes=len(data),
            found_at=datetime.now(UTC),
            files=tuple(
                ManifestFile(path=name, sha256=hashlib.sha256(body).hexdigest(), size_bytes=len(body))
                for name, body in files.items()
            ),
        )  # fmt: skip
        by_digest = {hashlib.sha256(body).hexdigest(): body for body in files.values()}

        async def read(sha256: str, offset: int, limit: int) -> bytes:
            return by_digest[sha256][offset : offset + limit]

        again = order('import os; print("from", os.environ["GROUND_RESUME_FROM"])', ["n1"], number=2)
        assert await executor.step_on(again, "n1") is None
        await executor.restore_checkpoint(again, "n1", kept, read, 0)
        assert await executor.step_on(again, "n1") == 12
        await executor.start(again)
        assert b"/step-12" in await said(executor, "run-1-2", b"from")
        place = second.root / "keep" if (second.root / "keep").exists() else second.root
        (laid,) = place.rglob("checkpoints/step-12/w.bin")
        assert laid.read_bytes() == data


async def brought(executor: SshExecutor, path: str, target: Path) -> Path:
    """Tries until the cable is mended and the connection with it."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with suppress(Unavailable):
            return await executor.bring_checkpoint("run-1-1", path, target, 0)
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


def severed(host: Host, others: list[Host]) -> None:
    """The node hears the control plane and none of its peers: a fabric link down, as inside a gang."""
    for other in others:
        words = ["ip", "netns", "exec", host.namespace, "ip", "route", "add", "blackhole", f"{other.address}/32"]
        subprocess.run(words, check=True)


def joined(host: Host, others: list[Host]) -> None:
    for other in others:
        words = ["ip", "netns", "exec", host.namespace, "ip", "route", "del", "blackhole", f"{other.address}/32"]
        subprocess.run(words, check=False, capture_output=True)


async def test_a_gang_with_one_link_down_names_its_node_and_goes_on_with_three(hosts: Hosts, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    common = {"checkpoint_dir": str(shared / "run-1"), "checkpoint_share": str(shared), "hang_limit_s": 2.0}
    *well, bad = hosts.hosts
    async with opened(hosts, tmp_path, 4) as executor:
        await executor.start(order(GANG, ["n0", "n1", "n2", "n3"], **common))
        await until(executor, "run-1-1", lambda seen: seen.checkpoints)
        severed(bad, well)
        try:
            seen = await until(executor, "run-1-1", watchdogs.is_hung)
            named = watchdogs.suspect(seen.hangs)
            assert named is not None, seen.hangs
            assert (named.node, named.votes) == ("n3", 3)
            stacks = await executor.stacks("run-1-1", 1)
            assert "python3" in stacks
            assert "waits in" in stacks
            await executor.stop("run-1-1", EndReason.HUNG)
            ended = await until(executor, "run-1-1", lambda seen: seen.state == "ended")
            assert ended.end_reason is EndReason.HUNG
            assert "n3 (rank 3) can't be reached by 3 of the 3 others" in watchdogs.hang_sentence(ended)
            step = max(found.step for found in ended.checkpoints)
            await executor.start(order(GANG, ["n0", "n1", "n2"], number=2, **common))
            assert f"rank 0 of 3 from step {step}".encode() in await said(executor, "run-1-2", b"from step")
            await until(executor, "run-1-2", lambda seen: any(found.step > step for found in seen.checkpoints))
            await executor.stop("run-1-2", EndReason.STOPPED_BY_USER)
            await until(executor, "run-1-2", lambda seen: seen.state == "ended")
        finally:
            joined(bad, well)
