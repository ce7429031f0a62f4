"""What a pass over a long queue costs on the database, and whether submissions wait for it.

    python bench/queue_pass.py [--queued 10000] [postgresql://user@host/empty_database]

10,000 runs wait for 16 nodes of 8 accelerators (SQLite in a temporary folder, real fsync, when no address is given).
Three passes are timed, medians: one that finds nothing changed, one after eight runs ended, and one after a
run came. Beside the last two, small transactions such as a submission makes are timed: they must not wait for a pass.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta

from groundplane.adapters.executors.memory import MemoryExecutor
from groundplane.adapters.store.sql import SqlStore
from groundplane.adapters.system import RandomIds, SystemClock
from groundplane.audit import EventDraft
from groundplane.domain.planning.plan import Offer
from groundplane.domain.queue import QueueEntry
from groundplane.domain.run import Run
from groundplane.domain.scheduling.state import CLASSES
from groundplane.domain.spec.parse import parse
from groundplane.services.queue import Queue

NODES, CARDS, PROJECTS, ROUNDS, CHUNK = 16, 8, 20, 7, 500
LIMITS_S = (1_800.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0)
SPEC = """\
apiVersion: groundplane/v1
kind: Job
metadata: {name: bench, project: bench, owner: bench, cost_center: bench}
spec:
  command: [python, train.py]
  resources: {cpus: 1, memory: 1GiB}
  end_date: 2d
  max_cost: $1
  max_duration: 1h
"""


def offer() -> Offer:
    return Offer(
        pool="bench",
        node_type="simulated",
        cpus=96.0,
        memory_bytes=2**41,
        disk_free_bytes=2**40,
        accelerators=CARDS,
        accelerator="h100",
        price_microusd_per_hour=0,
        price_as_of=datetime.now(UTC).date(),
        price_source="",
        simulated=True,
        nodes=NODES,
    )


class Line:
    """The rows of runs that wait: real ones, of one spec, without plan or hold, which no pass looks at."""

    def __init__(self, store: SqlStore, seed: int) -> None:
        self._store = store
        self._ids = RandomIds()
        self._chance = random.Random(seed)
        (spec,) = parse(SPEC, now=datetime.now(UTC))
        self._spec = spec

    async def add(self, count: int) -> None:
        for start in range(0, count, CHUNK):
            pairs = [self._pair() for _ in range(min(CHUNK, count - start))]
            async with self._store.transaction() as tx:
                await tx.insert_many_once([run for run, _ in pairs])
                await tx.insert_many_once([entry for _, entry in pairs])

    async def end(self, count: int) -> None:
        """So many of those that hold a place give it back."""
        async with self._store.transaction() as tx:
            for entry in await tx.find(QueueEntry, {"stage": "placed"}, limit=count):
                await tx.delete(QueueEntry, entry.id)

    def _pair(self) -> tuple[Run, QueueEntry]:
        chance, now = self._chance, datetime.now(UTC)
        run_id, project = self._ids.new("run"), f"p{chance.randrange(PROJECTS):02}"
        cards = chance.choice((1, 1, 1, 1, 2, 4, 8, 8, 16, 64))
        run = Run(
            id=run_id,
            name="bench",
            project=project,
            owner="bench",
            cost_center="bench",
            spec=self._spec,
            spec_digest="",
            plan_id="",
            hold_id="",
            pool="bench",
            price_microusd_per_hour=0,
            created_by="bench",
            created_at=now,
            end_date=now + timedelta(days=2),
            due_at=None,
        )
        entry = QueueEntry(
            id=run_id,
            name="bench",
            project=project,
            pool="bench",
            owner="bench",
            priority=CLASSES[chance.choice(("training", "training", "exploratory"))],
            queued_at=now,
            nodes=max(1, cards // CARDS),
            accelerators=min(CARDS, cards),
            accelerator="h100",
            cpus_milli=8_000 * min(CARDS, cards),
            memory_bytes=2**36 * min(CARDS, cards),
            expected_s=chance.choice(LIMITS_S),
        )
        return run, entry


async def pass_beside_writes(store: SqlStore, queue: Queue) -> tuple[float, float, int]:
    """(seconds of one pass, the longest small transaction beside it in seconds, what was decided)."""
    over, longest = asyncio.Event(), 0.0

    async def write() -> None:
        nonlocal longest
        while not over.is_set():
            began = time.perf_counter()
            async with store.transaction() as tx:
                await tx.append_event(
                    EventDraft(at=datetime.now(UTC), actor="bench", action="bench", object_kind="run", object_id="run")
                )
            longest = max(longest, time.perf_counter() - began)
            await asyncio.sleep(0.005)

    writer = asyncio.create_task(write())
    await asyncio.sleep(0.05)
    longest = 0.0
    began = time.perf_counter()
    decided = await queue.step()
    took_s = time.perf_counter() - began
    over.set()
    await writer
    return took_s, longest, decided


async def settled(queue: Queue) -> None:
    while await queue.step():
        pass


async def measure(url: str, queued: int) -> None:
    store = await SqlStore.open(url)
    line = Line(store, seed=1)
    clock = SystemClock()
    queue = Queue(store=store, clock=clock, executors={"bench": MemoryExecutor(clock, offers=(offer(),), pool="bench")})
    print("  queued  nothing new, ms  8 ended, ms  one came, ms  longest write, ms  decided")
    there = 0
    for count in sorted({queued // 10, queued}):
        await line.add(count - there)
        there = count
        await settled(queue)
        rows: list[tuple[float, ...]] = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            await queue.step()
            idle_s = time.perf_counter() - began
            await line.end(8)
            ended_s, first_s, decided = await pass_beside_writes(store, queue)
            await settled(queue)
            await line.add(1)
            came_s, second_s, _ = await pass_beside_writes(store, queue)
            await settled(queue)
            rows.append((idle_s, ended_s, came_s, max(first_s, second_s), decided))
        *times_s, decided = (statistics.median(column) for column in zip(*rows, strict=True))
        idle, ended, came, blocked = (1000 * each for each in times_s)
        print(f"{count:>8,} {idle:>16.1f} {ended:>12.1f} {came:>13.1f} {blocked:>18.1f} {decided:>8.0f}")
    await store.close()


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("url", nargs="?", default="", help="an empty PostgreSQL database; without, SQLite")
    options.add_argument("--queued", type=int, default=10_000)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(asked.url or f"sqlite:///{folder}/groundplane.db", asked.queued))


if __name__ == "__main__":
    main()
