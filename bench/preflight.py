"""What preflight and each way of isolation add to a job's start on this machine.

    python bench/preflight.py [--rounds 15] [--json]

Starts the same tiny job through the local executor, in interleaved rounds: bare; with its checks; with its checks
behind each wall this machine can put up. Time from the order to the job's end, medians; and how long the checks alone
take when data has one file and a hundred.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from groundplane.adapters.executors.local import LocalExecutor
from groundplane.adapters.system import SystemClock
from groundplane.domain.isolation import JobIsolation
from groundplane.domain.order import Order
from groundplane.domain.preflight import DataNeed, PreflightNeed
from groundplane.runner.isolation import possible_modes


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=15, help="starts of each kind")
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(Path(folder), options.rounds))
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:<58} {value:>10.1f}")


async def measure(folder: Path, rounds: int) -> dict[str, float]:
    """Each figure by name, its unit last."""
    executor = LocalExecutor(folder / "home", SystemClock())
    walls = [mode for mode in ("user", "bubblewrap") if possible_modes()[mode] == ""]
    kinds = [("bare", "none", False), ("checked", "none", True), *((f"checked, {mode}", mode, True) for mode in walls)]
    took: dict[str, list[float]] = {name: [] for name, _, _ in kinds}
    for number in range(rounds):
        for name, mode, checked in kinds:
            order = order_for(
                folder, f"a-{number}-{len(took[name])}-{mode}-{checked}", mode, need() if checked else None
            )
            began = time.monotonic()
            await executor.start(order)
            await ended(executor, order.attempt_id)
            took[name].append((time.monotonic() - began) * 1e3)
    found = {f"order to end, {name}, median ms": statistics.median(values) for name, values in took.items()}
    node = os.uname().nodename
    for files in (1, 100):
        data = folder / f"data-{files}"
        data.mkdir()
        for index in range(files):
            (data / f"{index}").write_bytes(b"x" * 2**16)
        spans = []
        for number in range(max(3, rounds // 3)):
            asked = need(data=(DataNeed(name="d", path=str(data)),))
            order = order_for(folder, f"p-{files}-{number}", "none", asked)
            began = time.monotonic()
            await executor.preflight(order, node)
            spans.append((time.monotonic() - began) * 1e3)
        found[f"checks alone, data of {files} files, median ms"] = statistics.median(spans)
    return found


def need(data: tuple[DataNeed, ...] = ()) -> PreflightNeed:
    return PreflightNeed(sent_at=datetime.now(UTC).isoformat(), data=data)


def order_for(folder: Path, name: str, mode: str, asked: PreflightNeed | None) -> Order:
    run = folder / "home" / "runs" / name
    return Order(
        attempt_id=name, run_id=name, number=1, command=("true",), workdir="", env={},
        checkpoint_dir=str(run / "checkpoints"), output_dir=str(run / "output"), cpus=1.0, memory_bytes=2**28,
        accelerators=0, max_duration_s=60.0, idle_limit_s=None, control_plane_gone_limit_s=None, stop_grace_s=1.0,
        not_after=datetime.now(UTC) + timedelta(hours=1), isolation=JobIsolation(mode=mode), preflight=asked,
    )  # fmt: skip


async def ended(executor: LocalExecutor, attempt_id: str) -> None:
    deadline = time.monotonic() + 60
    while (await executor.observe([attempt_id]))[attempt_id].state != "ended":
        if time.monotonic() > deadline:
            raise TimeoutError(attempt_id)
        await asyncio.sleep(0.002)


if __name__ == "__main__":
    main()
