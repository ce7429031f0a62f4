"""How fast a node stages data, cold and from its cache, beside the floor: `cp` with a sync of the same files.

    python bench/staging.py [--mib 512] [--rounds 3] [--json]

One file of the size given, and as many bytes in files of 256 KiB, from a folder of this machine through the local
executor: listed, copied, hashed while they are copied, synced, laid out. `cold` empties the node's cache before; `warm`
finds every file there. Counted from the order to the command's start, less what a job without data takes. Source files
are in the page cache in every case, so that the disk's reading speed is in no figure. Medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from groundplane.adapters.executors.local import LocalExecutor
from groundplane.adapters.system import SystemClock
from groundplane.domain.order import Order
from groundplane.domain.run import EndReason
from groundplane.domain.staging import StagedSource, StagingNeed

MIB, SMALL_BYTES = 2**20, 256 * 2**10


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--mib", type=int, default=512)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(Path(folder), asked.mib, asked.rounds))
    if asked.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:<44} {value:>10,.1f}")


async def measure(folder: Path, mib: int, rounds: int) -> dict[str, float]:
    many = mib * MIB // SMALL_BYTES
    sources = {
        "one file": _files(folder / "one", [mib * MIB]),
        f"{many:,} files": _files(folder / "many", [SMALL_BYTES] * many),
    }
    executor = LocalExecutor(folder / "home", SystemClock())
    numbers = iter(range(10**6))
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        bare_s = await _started_s(executor, folder, next(numbers), None)
        found.setdefault("a start without data, ms", []).append(1000 * bare_s)
        for name, source in sources.items():
            found.setdefault(f"cp and sync, {name}, MB/s", []).append(_rate(mib, _copied_s(source, folder / "copy")))
            for heat in ("cold", "warm"):
                if heat == "cold":
                    await executor.data_caches("", 0, node="", clear=True)
                took_s = await _started_s(executor, folder, next(numbers), source) - bare_s
                found.setdefault(f"staged {heat}, {name}, MB/s", []).append(_rate(mib, took_s))
    await executor.close()
    return {name: statistics.median(values) for name, values in sorted(found.items())}


def _rate(mib: int, seconds: float) -> float:
    return mib * MIB / 1e6 / max(seconds, 1e-3)


def _files(folder: Path, sizes: list[int]) -> Path:
    folder.mkdir()
    for number, size in enumerate(sizes):
        with (folder / f"{number:06}").open("wb") as file:
            for _ in range(0, size, MIB):
                file.write(os.urandom(min(size, MIB)))
    return folder


def _copied_s(source: Path, target: Path) -> float:
    shutil.rmtree(target, ignore_errors=True)
    began = time.perf_counter()
    subprocess.run(["sh", "-c", f"cp -r {source} {target} && sync -f {target}"], check=True)
    return time.perf_counter() - began


async def _started_s(executor: LocalExecutor, folder: Path, number: int, source: Path | None) -> float:
    """Seconds from the order to the command's start; the attempt has ended and is released afterwards."""
    sources = (StagedSource(name="corpus", source=str(source)),)
    order = Order(
        attempt_id=f"bench-{number}",
        run_id=f"bench-{number}",
        number=1,
        command=("true",),
        workdir="",
        env={},
        checkpoint_dir=str(folder / "checkpoints"),
        output_dir=str(folder / "output"),
        cpus=1.0,
        memory_bytes=0,
        accelerators=0,
        max_duration_s=600.0,
        idle_limit_s=None,
        control_plane_gone_limit_s=None,
        stop_grace_s=1.0,
        not_after=datetime.now(UTC) + timedelta(hours=1),
        staging=StagingNeed(sources=sources, scratch="", cache_bytes=0) if source is not None else None,
    )
    began = datetime.now(UTC)
    await executor.start(order)
    while (seen := (await executor.observe([order.attempt_id]))[order.attempt_id]).state != "ended":
        await asyncio.sleep(0.005)
    if seen.end_reason is not EndReason.SUCCEEDED or seen.started_at is None:
        raise SystemExit(f"{order.attempt_id} ended as {seen.end_reason}: {seen.message}")
    await executor.release(order.attempt_id)
    return (seen.started_at - began).total_seconds()


if __name__ == "__main__":
    main()
