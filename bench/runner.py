"""What the runner costs: from an order to its first log line, and beside a job that does nothing.

    python bench/runner.py [--rounds 30] [--idle 20] [--json]

On the executor alone, without API, database or loops, in a throw-away home. Figures: order → first log line (median,
p95, least), order → ended for a command that does nothing, bytes per second through the log, the runner's CPU and
memory beside an idle job, and the cost of observing live attempts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from groundplane.adapters.executors.local import LocalExecutor
from groundplane.domain.order import Order
from groundplane.domain.run import EndReason, Observation

LIVE = 20
FLOOD_BYTES = 512 * 2**20


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


def order(home: Path, attempt_id: str, *command: str) -> Order:
    return Order(
        attempt_id=attempt_id,
        run_id=f"run-{attempt_id}",
        number=1,
        command=command,
        workdir="",
        env={},
        checkpoint_dir=str(home / "runs" / attempt_id / "checkpoints"),
        output_dir=str(home / "runs" / attempt_id / "output"),
        cpus=1.0,
        memory_bytes=0,
        accelerators=0,
        max_duration_s=600.0,
        idle_limit_s=600.0,
        control_plane_gone_limit_s=600.0,
        stop_grace_s=1.0,
        not_after=datetime.now(UTC) + timedelta(hours=1),
    )


async def until(executor: LocalExecutor, attempt_id: str, holds: Callable[[Observation], bool]) -> Observation:
    while not holds(seen := (await executor.observe([attempt_id]))[attempt_id]):
        await asyncio.sleep(0.001)
    return seen


async def latencies(executor: LocalExecutor, home: Path, rounds: int) -> dict[str, float]:
    first_line_ms, ended_ms = [], []
    for number in range(rounds):
        began = time.perf_counter()
        await executor.start(order(home, f"quick-{number}", "sh", "-c", "echo hello"))
        while not (await executor.log(f"quick-{number}", 0, 10)).data:
            await asyncio.sleep(0.001)
        first_line_ms.append((time.perf_counter() - began) * 1000)
        await until(executor, f"quick-{number}", lambda seen: seen.state == "ended")
        ended_ms.append((time.perf_counter() - began) * 1000)
    return {
        "order to first log line, median, ms": statistics.median(first_line_ms),
        "order to first log line, p95, ms": statistics.quantiles(first_line_ms, n=20)[-1],
        "order to first log line, least, ms": min(first_line_ms),
        "order to ended, median, ms": statistics.median(ended_ms),
    }


async def throughput(executor: LocalExecutor, home: Path) -> dict[str, float]:
    text = f"import os; block = b'{'x' * 99}\\n' * 10486\nfor _ in range({FLOOD_BYTES // 2**20}): os.write(1, block)"
    began = time.perf_counter()
    await executor.start(order(home, "flood", sys.executable, "-I", "-S", "-c", text))
    await until(executor, "flood", lambda seen: seen.state == "ended")
    took_s = time.perf_counter() - began
    return {"log of 100-byte lines, MiB/s": (home / "attempts" / "flood" / "log").stat().st_size / 2**20 / took_s}


def spent(pid: int) -> tuple[float, float, float]:
    """(CPU seconds, resident MiB, private MiB) of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in rollup[1:]}
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), sizes["Rss"], sizes["Pss"]


async def overhead(executor: LocalExecutor, home: Path, idle_s: float) -> dict[str, float]:
    """Beside LIVE idle jobs at once: single runners use less CPU than a clock tick tells apart."""
    names = [f"idle-{number}" for number in range(LIVE)]
    for name in names:
        await executor.start(order(home, name, "sleep", "600"))
        await until(executor, name, lambda seen: seen.state == "running")
    pids = [json.loads((home / "attempts" / name / "state.json").read_text())["runner_pid"] for name in names]
    before = [spent(pid) for pid in pids]
    began = time.perf_counter()
    await asyncio.sleep(idle_s)
    after = [spent(pid) for pid in pids]
    elapsed_s = time.perf_counter() - began
    began = time.perf_counter()
    sweeps = 50
    for _ in range(sweeps):
        await executor.observe(names)
    sweep_s = (time.perf_counter() - began) / sweeps
    for name in names:
        await executor.stop(name, EndReason.STOPPED_BY_USER)
    for name in names:
        await until(executor, name, lambda seen: seen.state == "ended")
    cpu_s = sum(late[0] - early[0] for early, late in zip(before, after, strict=True)) / LIVE
    return {
        "runner beside an idle job, CPU s per hour": cpu_s / elapsed_s * 3600,
        "runner beside an idle job, % of one core": cpu_s / elapsed_s * 100,
        "runner start-up, CPU s": statistics.median(early[0] for early in before),
        "runner beside an idle job, resident MiB": statistics.median(late[1] for late in after),
        "runner beside an idle job, own share MiB": statistics.median(late[2] for late in after),
        "observing one live attempt, ms": sweep_s / LIVE * 1000,
    }


async def measure(rounds: int, idle_s: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        executor = LocalExecutor(home, SystemClock())
        return {
            **await latencies(executor, home, rounds),
            **await throughput(executor, home),
            **await overhead(executor, home, idle_s),
        }


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=30, help="attempts timed one by one, at least 20")
    arguments.add_argument("--idle", type=float, default=20.0, help="seconds to watch idle runners")
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    figures = asyncio.run(measure(max(20, options.rounds), options.idle))
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:<58} {value:>10.3f}")


if __name__ == "__main__":
    main()
