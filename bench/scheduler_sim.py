"""A SIMULATION, in simulated time: 100,000 jobs on 10,000 accelerators under the queue and under plain FIFO.

    python bench/scheduler_sim.py [--jobs 100000] [--load 1.05]

Nothing runs; only the scheduler's own seconds are measured. Jobs are drawn to match what is published of a large trace:
Helios (Hu et al., Characterization and Prediction of Deep Learning Workloads in Large-Scale GPU Datacenters, SC '21,
table 2 and section 3): GPU jobs ask for 3.72 GPUs in the mean, more than half of them for one, the largest for 2,048;
they last 206 s in the median and 6,652 s in the mean. Durations here are log-normal with that median and mean, cut at a
day so that a simulated period of days can be in balance (the mean that is left is printed); sizes stop at 256. What a
user states as the longest a job may take is 1 to 10 times what it takes. Arrivals are uniform at the given load. What
is ours: the mix of classes, 40 projects, a checkpoint at every preemption.

Both see the same jobs. Waits are until the first start, by class; utilisation is over the time in which jobs arrive.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import time
from collections import defaultdict
from dataclasses import replace

from groundplane.domain.node import Node, NodeAccelerator
from groundplane.domain.scheduling.scheduler import Scheduler
from groundplane.domain.scheduling.shares import decayed
from groundplane.domain.scheduling.state import CLASSES, Ask, PoolState, Rules, Start, Waiting, class_name

NODES, CARDS = 1_250, 8
MEDIAN_S, MEAN_S = 206.0, 6_652.0
SIZES = ((1, 0.56), (2, 0.10), (4, 0.12), (8, 0.185), (16, 0.02), (32, 0.01), (64, 0.003), (128, 0.0015), (256, 0.0005))
MIX = (("serving", 0.02), ("training", 0.68), ("exploratory", 0.30))
TICK_S = 30.0
USAGE_S = 600.0
DAY_S = 86_400.0


def jobs(count: int, load: float, seed: int) -> list[tuple[float, Waiting, float]]:
    """(arrival, what is asked, how long it really takes), by arrival."""
    chance = random.Random(seed)
    sigma = math.sqrt(2 * math.log(MEAN_S / MEDIAN_S))
    sizes, weights = zip(*SIZES, strict=True)
    drawn = []
    for number in range(count):
        cards = chance.choices(sizes, weights)[0]
        takes_s = min(DAY_S, max(10.0, chance.lognormvariate(math.log(MEDIAN_S), sigma)))
        name = chance.choices([m[0] for m in MIX], [m[1] for m in MIX])[0]
        drawn.append((number, cards, takes_s, name, chance.randrange(40), chance.uniform(1.0, 10.0)))
    work = sum(cards * takes_s for _, cards, takes_s, *_ in drawn)
    period_s = work / (NODES * CARDS * load)
    arrivals = sorted(chance.uniform(0.0, period_s) for _ in drawn)
    found = []
    for at, (number, cards, takes_s, name, project, caution) in zip(arrivals, drawn, strict=True):
        ask = Ask(
            nodes=max(1, cards // CARDS),
            accelerators=min(cards, CARDS),
            cpus_milli=8_000 * min(cards, CARDS),
            memory_bytes=2**36 * min(cards, CARDS),
        )
        limit_s = min(2 * DAY_S, 300.0 * math.ceil(takes_s * caution / 300.0))
        found.append(
            (
                at,
                Waiting(
                    id=f"run-{number:06}",
                    project=f"p{project:02}",
                    priority=CLASSES[name],
                    queued_at=at,
                    ask=ask,
                    expected_s=limit_s,
                ),
                takes_s,
            )
        )
    return found


def nodes() -> tuple[Node, ...]:
    cards = tuple(NodeAccelerator(index=index, model="gpu", memory_bytes=0) for index in range(CARDS))
    return tuple(
        Node(name=f"n{number:05}", pool="sim", cpus=96, memory_bytes=2**40, accelerators=cards)
        for number in range(NODES)
    )


def simulate(found: list[tuple[float, Waiting, float]], rules: Rules, classes: dict[str, str]) -> dict[str, object]:
    """Plays all jobs to their end."""
    scheduler = Scheduler(PoolState(nodes=nodes(), rules=rules))
    takes = {run.id: takes_s for _, run, takes_s in found}
    arrives = {run.id: at for at, run, _ in found}
    waiting = {run.id: run for _, run, _ in found}
    waits: dict[str, list[float]] = defaultdict(list)
    ends: list[tuple[float, str, int]] = []
    turn: dict[str, int] = defaultdict(int)
    left = dict(takes)
    started_at: dict[str, float] = {}
    now, number, decisions, steps, preemptions, used, usage_at = 0.0, 0, 0, 0, 0, 0.0, 0.0
    busy, usage, deepest, spent_s, lost_s = 0, {}, 0, 0.0, 0.0
    horizon = found[-1][0]
    while number < len(found) or ends:
        changed = False
        while number < len(found) and found[number][0] <= now:
            scheduler.enqueue(found[number][1])
            number, changed = number + 1, True
        while ends and ends[0][0] <= now:
            at, run_id, which = heapq.heappop(ends)
            if turn[run_id] != which or run_id not in scheduler.holding:
                continue
            run, changed = scheduler.end(run_id), True
            busy -= run.ask.total.accelerators
            used += run.ask.total.accelerators * max(0.0, min(at, horizon) - min(started_at[run_id], horizon))
            if run.stopping and left[run_id] > 0:
                turn[run_id] += 1
                scheduler.enqueue(waiting[run_id])
        if changed:
            if now - usage_at >= USAGE_S:
                held = {
                    p: scheduler.share(p) - usage.get(p, 0.0) for p in {r.project for r in scheduler.holding.values()}
                }
                usage, usage_at = decayed(usage, held, elapsed_s=now - usage_at, half_life_s=DAY_S), now
                scheduler.use(usage)
            began = time.process_time()
            decided = scheduler.decide(now)
            spent_s += time.process_time() - began
            steps += 1
            decisions += len(decided)
            for each in decided:
                if isinstance(each, Start):
                    run = scheduler.holding[each.id]
                    if turn[each.id] == 0:
                        waits[classes[run.id]].append(now - arrives[each.id])
                    started_at[each.id] = now
                    busy += run.ask.total.accelerators
                    heapq.heappush(ends, (now + left[each.id], each.id, turn[each.id]))
                else:
                    # It checkpoints when asked: what it has done is kept, its grace is lost.
                    preemptions += 1
                    done = now - started_at[each.id]
                    left[each.id] = max(0.0, left[each.id] - done)
                    lost_s += rules.grace_s
                    turn[each.id] += 1
                    heapq.heappush(ends, (now + min(rules.grace_s, left[each.id]), each.id, turn[each.id]))
        deepest = max(deepest, len(scheduler.waiting))
        upcoming = [found[number][0]] if number < len(found) else []
        upcoming += [ends[0][0]] if ends else []
        if not upcoming:
            break
        now = max(now + TICK_S, math.ceil(min(upcoming) / TICK_S) * TICK_S)
    for run_id in scheduler.holding:
        raise AssertionError(f"{run_id} never ended")
    return {
        "utilisation": used / (NODES * CARDS * horizon),
        "waits": dict(waits),
        "decisions": decisions,
        "per_s": decisions / spent_s,
        "step_ms": 1000 * spent_s / steps,
        "steps": steps,
        "spent_s": spent_s,
        "deepest": deepest,
        "preemptions": preemptions,
        "days": now / DAY_S,
        "left": len(scheduler.waiting),
    }


def report(name: str, result: dict[str, object]) -> None:
    print(f"\n{name} (simulated)")
    print(f"  utilisation while jobs arrive  {result['utilisation']:.1%}; all over after {result['days']:.2f} days")
    print(f"  decisions {result['decisions']:,} in {result['steps']:,} steps, {result['spent_s']:.1f} s of CPU:")
    print(f"    {result['per_s']:,.0f}/s, {result['step_ms']:.1f} ms a step; deepest queue {result['deepest']:,}")
    print(f"  preemptions {result['preemptions']:,}; never run {result['left']}")
    waits = result["waits"]
    assert isinstance(waits, dict)
    everyone = sorted(wait for part in waits.values() for wait in part)
    for label, part in (*((each, sorted(waits.get(each, []))) for each in CLASSES), ("all", everyone)):
        if part:
            p50, p90, p99 = (part[min(len(part) - 1, int(len(part) * q))] for q in (0.5, 0.9, 0.99))
            mean = sum(part) / len(part)
            print(f"  wait {label:<12} mean {mean / 60:8.1f} min   p50 {p50 / 60:7.1f}   p90 {p90 / 60:8.1f}   "
                  f"p99 {p99 / 60:8.1f}   max {part[-1] / 60:9.1f}   of {len(part):,}")  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--jobs", type=int, default=100_000)
    options.add_argument("--load", type=float, default=1.05)
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    found = jobs(asked.jobs, asked.load, asked.seed)
    cards = sum(run.ask.total.accelerators for _, run, _ in found)
    mean_s = sum(takes for *_, takes in found) / len(found)
    print(
        f"SIMULATION of {len(found):,} jobs on {NODES * CARDS:,} accelerators in {NODES:,} nodes, load {asked.load:.0%}"
    )
    print(
        f"drawn: {cards / len(found):.2f} accelerators and {mean_s:,.0f} s in the mean, "
        f"over {found[-1][0] / DAY_S:.2f} days"
    )
    classes = {run.id: class_name(run.priority) for _, run, _ in found}
    report("queue: classes, fair share, backfill, preemption", simulate(found, Rules(), classes))
    # FIFO knows no classes; its waits are still told by the class that each run has.
    plain = [(at, replace(run, priority=CLASSES["training"]), takes) for at, run, takes in found]
    fifo = Rules(depth=1, preempt=False, backfill=False, fair=False)
    report("FIFO: in the order of arrival, nothing overtakes", simulate(plain, fifo, classes))


if __name__ == "__main__":
    main()
