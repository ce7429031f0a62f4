"""Pools: how long from a submission to a running job, and how many attempts one control plane can watch.

    python bench/nodes.py [--rounds 15] [--attempts 5000] [--json]

1. submit → running, through the HTTP API of a real `ground up`, on the local pool and, where machines of network
   namespaces can be made (root, sshd, ip), on an SSH pool of four; the two take turns. p50, p99.
2. One look at N running attempts by the executor, with N growing: of the memory pool (simulated), and of the local pool
   over N live runner locks and state files as runners leave them (one process holds the locks).
3. A sweep of the reconcile loop over N active runs in a SQLite store with the memory pool: the whole path of a control
   plane, and its resident memory per run.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
from tests.faults import pool_file
from tests.hosts import Hosts, available
from tests.journeys.conftest import Installation, bring_up, free_ports, shut_down

from groundplane.adapters.executors.local import LocalExecutor
from groundplane.adapters.executors.memory import MemoryExecutor, Script
from groundplane.domain.order import Order
from groundplane.domain.run import Attempt, Run, RunStatus
from groundplane.domain.spec.parse import parse
from groundplane.loops.schedule import CLAIM_LIMIT
from groundplane.settings import Settings
from groundplane.wiring import build


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


def order(attempt_id: str, home: Path) -> Order:
    return Order(
        attempt_id=attempt_id,
        run_id=attempt_id.rpartition("-")[0],
        number=1,
        command=("sleep", "600"),
        workdir="",
        env={},
        checkpoint_dir=str(home / "c"),
        output_dir=str(home / "o"),
        cpus=1.0,
        memory_bytes=0,
        accelerators=0,
        max_duration_s=3600.0,
        idle_limit_s=None,
        control_plane_gone_limit_s=None,
        stop_grace_s=1.0,
        not_after=datetime.now(UTC) + timedelta(hours=2),
    )


# ---------------------------------------------------------------- submit → running


def latencies(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ground-bench-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        (place / "hosts").mkdir()
        hosts = Hosts(place / "hosts", 4) if available() else None
        port, gateway_port = free_ports(2)
        plane = Installation(place / "ground", port, gateway_port)
        plane.home.mkdir()
        if hosts is not None:
            (plane.home / "pools.yaml").write_text(json.dumps(pool_file(hosts)))
        try:
            bring_up(plane)
            pools = ["local", "lab"] if hosts is not None else ["local"]
            took: dict[str, list[float]] = {pool: [] for pool in pools}
            for number in range(rounds):
                for pool in pools:
                    took[pool].append(one_latency(plane, pool, number))
            return {pool: {f"p{p}_ms": 1e3 * _percentile(each, p) for p in (50, 99)} for pool, each in took.items()}
        finally:
            shut_down(plane)
            if hosts is not None:
                hosts.remove()


def one_latency(plane: Installation, pool: str, number: int) -> float:
    """From the submission's bytes to the job's first log line, as its own clock stamps it."""
    command = ["python3", "-c", "import time; print(time.time(), flush=True)"]
    spec = plane.job(f"b-{pool}-{number}", command, pool=pool, max_cost="$1", preflight=False)
    spec_text = spec.read_text()
    plan = plane.client.plan(spec_text)[0]
    began = time.time()
    run = plane.client.apply_plan(plan.id, idempotency_key=f"{pool}-{number}").run
    plane.wait_run(run.id, "succeeded", "failed")
    return float(plane.log(run.id).split()[0]) - began


def _percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


# ---------------------------------------------------------------- watching


async def look_at_memory(count: int) -> float:
    executor = MemoryExecutor(SystemClock(), play=lambda _: Script(ends_after_s=None))
    ids = [f"run-{number}-1" for number in range(count)]
    for attempt_id in ids:
        await executor.start(order(attempt_id, Path("/tmp")))
    return await _time(lambda: executor.observe(ids))


async def look_at_local(count: int) -> dict[str, float]:
    """Attempt folders as living runners keep them; this process holds each lock through a child."""
    with tempfile.TemporaryDirectory(prefix="ground-bench-") as folder:
        home = Path(folder)
        ids = [f"run-{number}-1" for number in range(count)]
        sample = {"cpu_percent": 99.0, "memory_bytes": 2**30, "accelerators": []}
        started = datetime.now(UTC).isoformat()
        state = json.dumps(
            {"state": "running", "runner_pid": 1, "started_at": started, "checkpoints": [], "sample": sample}
        )
        for attempt_id in ids:
            attempt = home / "attempts" / attempt_id
            attempt.mkdir(parents=True)
            (attempt / "order.json").write_text("{}")
            (attempt / "state.json").write_text(state)
            (attempt / "lock").touch()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, count + 4096), limit))
        locks = [os.open(home / "attempts" / attempt_id / "lock", os.O_RDWR) for attempt_id in ids]
        for lock in locks:
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            executor = LocalExecutor(home, SystemClock())
            seen = await executor.observe(ids)
            assert all(each.state == "running" for each in seen.values())
            return {"look_s": await _time(lambda: executor.observe(ids))}
        finally:
            for lock in locks:
                os.close(lock)


async def _time(look: Any) -> float:
    took = []
    for _ in range(3):
        began = time.perf_counter()
        await look()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


# ---------------------------------------------------------------- the whole path


async def sweep(count: int) -> dict[str, float]:
    """Seconds in which every one of N running runs is claimed, observed and committed once; and memory for each."""
    with tempfile.TemporaryDirectory(prefix="ground-bench-") as folder:
        app = await build(Settings(home=Path(folder) / "ground"))
        before = psutil.Process().memory_info().rss
        executor = MemoryExecutor(SystemClock(), play=lambda _: Script(ends_after_s=None))
        app.executors["memory"] = executor  # type: ignore[index]
        now = datetime.now(UTC)
        (spec,) = parse(SPEC, now=now)
        runs, attempts = [], []
        for number in range(count):
            run, attempt = _running(f"run-{number:06d}", spec, now)
            runs.append(run)
            attempts.append(attempt)
            await executor.start(order(attempt.id, Path(folder)))
        for start in range(0, count, 500):
            async with app.store.transaction() as tx:
                await tx.insert_many_once(runs[start : start + 500])
                await tx.insert_many_once(attempts[start : start + 500])
        del runs, attempts
        took: list[tuple[float, float]] = []
        for _ in range(2):
            began, began_cpu = time.perf_counter(), time.process_time()
            done = 0
            while done < count:
                async with app.store.transaction() as tx:
                    claimed = await tx.claim(
                        Run, now=app.clock.now() + timedelta(days=1), owner="bench", lease_s=30, limit=CLAIM_LIMIT
                    )
                await app.reconcile.step(claimed)
                done += len(claimed)
            took.append((time.perf_counter() - began, time.process_time() - began_cpu))
        grown = psutil.Process().memory_info().rss - before
        await app.close()
        wall_s, cpu_s = min(took)
        return {"sweep_s": wall_s, "cpu_s": cpu_s, "kib_per_run": grown / count / 1024}


def _running(run_id: str, spec: Any, now: datetime) -> tuple[Run, Attempt]:
    run = Run(
        id=run_id,
        name="watched",
        project="default",
        owner="ana",
        cost_center="r1",
        spec=spec,
        spec_digest="0" * 64,
        plan_id="plan",
        hold_id=f"hold-{run_id}",
        pool="memory",
        price_microusd_per_hour=0,
        status=RunStatus.RUNNING,
        attempt=1,
        created_by="bench",
        created_at=now,
        started_at=now,
        end_date=now + timedelta(days=2),
        due_at=now,
    )
    attempt = Attempt(
        id=f"{run_id}-1",
        run_id=run_id,
        number=1,
        pool="memory",
        started=True,
        created_at=now,
        started_at=now,
        billed_until=now + timedelta(hours=1),  # the sweep is measured, not the billing
    )
    return run, attempt


SPEC = """
apiVersion: groundplane/v1
kind: Job
metadata: {name: watched, project: default, owner: ana, cost_center: r1}
spec:
  command: [sleep, "600"]
  resources: {cpus: 1, memory: 1GiB}
  end_date: 2d
  max_cost: $1
  max_duration: 1h
"""


async def main_async(attempts: int) -> dict[str, Any]:
    found: dict[str, Any] = {"memory_look_s": {}, "local_look_s": {}, "sweep": {}}
    for count in (attempts // 10, attempts // 2, attempts):
        found["memory_look_s"][count] = await look_at_memory(count)
        found["local_look_s"][count] = (await look_at_local(count))["look_s"]
    for count in (attempts // 10, attempts):
        found["sweep"][count] = await sweep(count)
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--attempts", type=int, default=5_000)
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    found = asyncio.run(main_async(asked.attempts))
    found["submit_to_running"] = latencies(asked.rounds)
    if asked.json:
        print(json.dumps(found))
        return 0
    for pool, figures in found["submit_to_running"].items():
        print(f"submit → running on {pool}: p50 {figures['p50_ms']:.0f} ms, p99 {figures['p99_ms']:.0f} ms")
    for kind in ("memory", "local"):
        for count, look_s in found[f"{kind}_look_s"].items():
            each_us = 1e6 * look_s / count
            print(f"one look at {count:,} attempts of the {kind} pool: {look_s:.3f} s ({each_us:.0f} µs each)")
    for count, figures in found["sweep"].items():
        print(
            f"one sweep of {count:,} running runs (SQLite, memory pool): {figures['sweep_s']:.2f} s "
            f"({figures['cpu_s']:.2f} s of CPU), "
            f"{figures['kib_per_run']:.1f} KiB of control plane each"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
