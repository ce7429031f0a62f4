"""Preflight on machines reached over SSH: each node answers for itself, and a gang for the way between its nodes."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.hosts import Hosts

from groundplane.adapters.executors.ssh import SshExecutor
from groundplane.adapters.system import SystemClock
from groundplane.domain.order import Order
from groundplane.domain.pool_file import parse_pools
from groundplane.domain.preflight import CheckStatus, PreflightNeed
from groundplane.domain.run import EndReason, Observation

pytestmark = pytest.mark.needs("sshd")
SHARE = str(Path("/root") / "share")  # in the hosts' own home folders


def open_pool(hosts: Hosts, place: Path, nodes: int) -> SshExecutor:
    body = {
        "user": "root",
        "key_file": str(hosts.key),
        "known_hosts": str(hosts.known_hosts),
        "price": "$1.20",
        "price_as_of": "2026-11-20",
        "nodes": [{"name": host.name, "host": host.address} for host in hosts.hosts[:nodes]],
    }
    (pool,) = parse_pools(json.dumps({"apiVersion": "groundplane/v1", "kind": "Pools", "pools": {"lab": body}}))
    return SshExecutor(pool, place / "home", SystemClock(), installation="preflight")


def order(command: str, *, nodes: int = 1, checkpoint_share: str = "") -> Order:
    now = datetime.now(UTC)
    return Order(
        attempt_id="att-1", run_id="run-1", number=1, command=("sh", "-c", command), workdir="", env={},
        checkpoint_dir=f"{checkpoint_share}/run-1" if checkpoint_share else "", checkpoint_share=checkpoint_share,
        output_dir="", cpus=1.0, memory_bytes=0, accelerators=0, max_duration_s=300.0, idle_limit_s=None,
        control_plane_gone_limit_s=None, stop_grace_s=1.0, not_after=now + timedelta(hours=1), nodes=nodes,
        preflight=PreflightNeed(sent_at=now.isoformat()),
    )  # fmt: skip


async def ended(executor: SshExecutor) -> Observation:
    deadline = time.monotonic() + 40
    while (seen := (await executor.observe(["att-1"]))["att-1"]).state != "ended":
        assert time.monotonic() < deadline, seen
        await asyncio.sleep(0.05)
    return seen


async def test_a_node_answers_for_itself_and_for_a_share_that_only_it_lacks(hosts: Hosts, tmp_path: Path) -> None:
    executor = open_pool(hosts, tmp_path, 2)
    (hosts.hosts[0].home / "share").mkdir()
    try:
        verdicts = {}
        for name in ("n0", "n1"):
            found = await executor.preflight(order("true", checkpoint_share=SHARE), name)
            verdicts[name] = {each.name: each for each in found}["checkpoints"]
        assert verdicts["n0"].status is CheckStatus.OK
        assert verdicts["n1"].have == f"{SHARE} is missing"
        assert await executor.attempts() == []
    finally:
        await executor.close()


async def test_a_gang_measures_the_way_between_its_nodes_before_it_starts(hosts: Hosts, tmp_path: Path) -> None:
    executor = open_pool(hosts, tmp_path, 3)
    try:
        await executor.start(order("echo ran $RANK", nodes=3))
        seen = await ended(executor)
        assert seen.end_reason is EndReason.SUCCEEDED, seen
        found = {each.name: each for each in seen.preflight}["network"]
        assert found.have.startswith("2 of 2 other nodes sent to it")
        assert found.figures["bytes_per_s"] > 1e6
    finally:
        await executor.close()
