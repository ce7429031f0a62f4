"""How fast the scheduler decides: decisions a second with N runs queued, and how that grows.

    python bench/scheduler.py [--seconds 5]

Three measures on pools of 8-accelerator nodes, 20 projects with quotas, three classes, mixed asks and durations:

- `whole`: one pass from a bare state to an answer for every run, as a control plane does after a restart: each run is
  started, planned, or told why it waits. Decisions are those answers.
- `live`: passes of a scheduler that is told what came and ended, with the queue kept at N: before each pass eight runs
  end and as many arrive as started. Printed: milliseconds a pass, and starts and preemptions a second.
- `why`: what `ground explain` adds for one run: all starts ahead, and a smaller ask that would start now.

Seconds of CPU, on one core; medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from groundplane.domain.node import Node, NodeAccelerator
from groundplane.domain.scheduling.forecast import outlook, would_start_now
from groundplane.domain.scheduling.scheduler import Scheduler, schedule
from groundplane.domain.scheduling.state import CLASSES, Ask, PoolState, Quota, Start, Waiting

SIZES = ((128, 1_000), (128, 10_000), (1_250, 10_000), (1_250, 20_000))
LIMITS_S = (1_800, 3_600, 14_400, 43_200, 86_400)
ROUNDS = 3


def nodes(count: int) -> tuple[Node, ...]:
    cards = tuple(NodeAccelerator(index=index, model="gpu", memory_bytes=0) for index in range(8))
    return tuple(
        Node(name=f"n{number:05}", pool="p", cpus=96, memory_bytes=2**41, accelerators=cards) for number in range(count)
    )


def a_run(number: int, chance: random.Random, at: float) -> Waiting:
    cards = chance.choice((1, 1, 1, 1, 2, 4, 8, 8, 16, 64))
    return Waiting(
        id=f"run-{number:07}",
        project=f"p{chance.randrange(20):02}",
        priority=CLASSES[chance.choice(("training", "training", "exploratory"))],
        queued_at=at,
        ask=Ask(
            nodes=max(1, cards // 8),
            accelerators=min(8, cards),
            cpus_milli=8_000 * min(8, cards),
            memory_bytes=2**36 * min(8, cards),
        ),
        expected_s=float(chance.choice(LIMITS_S)),
    )


def state(node_count: int, queued: int, seed: int) -> PoolState:
    chance = random.Random(seed)
    quotas = tuple(
        Quota(project=f"p{number:02}", accelerators=node_count * 8 // 10, cohort="all") for number in range(20)
    )
    return PoolState(
        nodes=nodes(node_count),
        waiting=tuple(a_run(number, chance, float(number)) for number in range(queued)),
        quotas=quotas,
    )


def whole(pool: PoolState, now: float) -> float:
    began = time.process_time()
    count = len(schedule(pool, now))
    return count / (time.process_time() - began)


def live(pool: PoolState, now: float, seconds: float, seed: int) -> tuple[float, float]:
    """(starts and preemptions a second, milliseconds a pass)."""
    chance = random.Random(seed)
    scheduler = Scheduler(pool)
    taken = passes = 0
    number, spent = len(pool.waiting), 0.0
    running: list[str] = []
    while spent < seconds:
        began = time.process_time()
        decided = scheduler.decide(now)
        spent += time.process_time() - began
        passes += 1
        fresh = [each.id for each in decided if isinstance(each, Start)]
        taken += len(decided)
        running += fresh
        now += 30.0
        for _ in range(min(len(running), 8)):
            run_id = running.pop(chance.randrange(len(running)))
            scheduler.end(run_id)
        while len(scheduler.waiting) < len(pool.waiting):
            scheduler.enqueue(a_run(number, chance, now))
            number += 1
    return taken / spent, 1000 * spent / passes


def why(pool: PoolState, now: float) -> float:
    scheduler = Scheduler(pool)
    scheduler.decide(now)
    full = PoolState(
        nodes=pool.nodes,
        waiting=tuple(scheduler.waiting.values()),
        holding=tuple(scheduler.holding.values()),
        quotas=pool.quotas,
    )
    last = max(full.waiting, key=lambda run: run.queued_at)
    began = time.process_time()
    outlook(full, now, steps=20)
    would_start_now(full, now, last.id)
    return time.process_time() - began


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=float, default=3.0)
    asked = options.parse_args()
    print(f"{'nodes':>6} {'queued':>7} {'answers/s':>10} {'taken/s':>9} {'ms a pass':>10} {'why s':>7}")
    found: dict[tuple[int, int], list[tuple[float, ...]]] = {size: [] for size in SIZES}
    for round_number in range(ROUNDS):
        for size in SIZES:
            pool = state(*size, seed=round_number)
            now = float(size[1])
            found[size].append((whole(pool, now), *live(pool, now, asked.seconds, round_number), why(pool, now)))
    for (node_count, queued), rows in found.items():
        a, c, d, e = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{node_count:>6} {queued:>7,} {a:>10,.0f} {c:>9,.0f} {d:>10.1f} {e:>7.2f}")


if __name__ == "__main__":
    main()
