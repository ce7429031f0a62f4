"""A SIMULATION, in simulated time: 100,000 jobs on 10,000 accelerators under the queue and under plain FIFO.

    python bench/scheduler_sim.py [--jobs 100000] [--load 1.05]

Nothing runs; only the scheduler's own seconds are measured. Jobs are drawn to match what is published of a large trace:
Helios (Hu et al., Characterization and Prediction of Deep Learning Workloads in Large-Scale GPU Datacenters, SC '21;
the figures are in helios_cluster_summary.csv of github.com/S-Lab-System-Group/HeliosArtifact, commit 6345d9f):
1,580,464 GPU jobs ask for 3.716 GPUs in the mean and one in the median; they last 206 s in the median and 6,651.7 s in
the mean. Durations here are log-normal with that median and mean, cut at a day so that a simulated period of days can
be in balance (the mean that is left is printed); sizes stop at 256. What a user states as the longest a job may take is
1 to 10 times what it takes. Arrivals are uniform at the given load. What is ours: the mix of classes, 40 projects, a
checkpoint at every preemption.

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


class Simulation:
    """One pool under given rules, from the first arrival to the last end. Times are simulated seconds."""

    def __init__(self, found: list[tuple[float, Waiting, float]], rules: Rules, classes: dict[str, str]) -> None:
        self.found, self.rules, self.classes = found, rules, classes
        self.scheduler = Scheduler(PoolState(nodes=nodes(), rules=rules))
        self.waiting = {run.id: run for _, run, _ in found}
        self.left = {run.id: takes_s for _, run, takes_s in found}
        self.horizon = found[-1][0]
        self.waits: dict[str, list[float]] = defaultdict(list)
        self.ends: list[tuple[float, str, int]] = []
        self.turn: dict[str, int] = defaultdict(int)
        self.started_at: dict[str, float] = {}
        self.usage: dict[str, float] = {}
        self.now = self.usage_at = self.used = self.spent_s = 0.0
        self.number = self.decisions = self.steps = self.preemptions = self.deepest = 0

    def play(self) -> dict[str, object]:
        """Every job to its end; what came of it."""
        while self.number < len(self.found) or self.ends:
            if self._arrivals() | self._endings():
                self._decide()
            self.deepest = max(self.deepest, len(self.scheduler.waiting))
            upcoming = [self.found[self.number][0]] if self.number < len(self.found) else []
            upcoming += [self.ends[0][0]] if self.ends else []
            if not upcoming:
                break
            self.now = max(self.now + TICK_S, math.ceil(min(upcoming) / TICK_S) * TICK_S)
        for run_id in self.scheduler.holding:
            raise AssertionError(f"{run_id} never ended")
        return {
            "utilisation": self.used / (NODES * CARDS * self.horizon),
            "waits": dict(self.waits),
            "decisions": self.decisions,
            "per_s": self.decisions / self.spent_s,
            "step_ms": 1000 * self.spent_s / self.steps,
            "steps": self.steps,
            "spent_s": self.spent_s,
            "deepest": self.deepest,
            "preemptions": self.preemptions,
            "days": self.now / DAY_S,
            "left": len(self.scheduler.waiting),
        }

    def _arrivals(self) -> bool:
        before = self.number
        while self.number < len(self.found) and self.found[self.number][0] <= self.now:
            self.scheduler.enqueue(self.found[self.number][1])
            self.number += 1
        return self.number > before

    def _endings(self) -> bool:
        ended = False
        while self.ends and self.ends[0][0] <= self.now:
            at, run_id, which = heapq.heappop(self.ends)
            if self.turn[run_id] != which or run_id not in self.scheduler.holding:
                continue
            run, ended = self.scheduler.end(run_id), True
            busy_s = min(at, self.horizon) - min(self.started_at[run_id], self.horizon)
            self.used += run.ask.total.accelerators * max(0.0, busy_s)
            if run.stopping and self.left[run_id] > 0:
                self.turn[run_id] += 1
                self.scheduler.enqueue(self.waiting[run_id])
        return ended

    def _decide(self) -> None:
        if self.now - self.usage_at >= USAGE_S:
            projects = {run.project for run in self.scheduler.holding.values()}
            held = {project: self.scheduler.share(project) - self.usage.get(project, 0.0) for project in projects}
            elapsed_s = self.now - self.usage_at
            self.usage = decayed(self.usage, held, elapsed_s=elapsed_s, half_life_s=DAY_S)
            self.usage_at = self.now
            self.scheduler.use(self.usage)
        began = time.process_time()
        decided = self.scheduler.decide(self.now)
        self.spent_s += time.process_time() - began
        self.steps += 1
        self.decisions += len(decided)
        for each in decided:
            if isinstance(each, Start):
                if self.turn[each.id] == 0:
                    self.waits[self.classes[each.id]].append(self.now - self.waiting[each.id].queued_at)
                self.started_at[each.id] = self.now
                heapq.heappush(self.ends, (self.now + self.left[each.id], each.id, self.turn[each.id]))
                continue
            # It checkpoints when asked: what it has done is kept, its grace is lost.
            self.preemptions += 1
            self.left[each.id] = max(0.0, self.left[each.id] - (self.now - self.started_at[each.id]))
            self.turn[each.id] += 1
            ends_at = self.now + min(self.rules.grace_s, self.left[each.id])
            heapq.heappush(self.ends, (ends_at, each.id, self.turn[each.id]))


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
    report("queue: classes, fair share, backfill, preemption", Simulation(found, Rules(), classes).play())
    # FIFO knows no classes; its waits are still told by the class that each run has.
    plain = [(at, replace(run, priority=CLASSES["training"]), takes) for at, run, takes in found]
    fifo = Rules(depth=1, preempt=False, backfill=False, fair=False)
    report("FIFO: in the order of arrival, nothing overtakes", Simulation(plain, fifo, classes).play())


if __name__ == "__main__":
    main()
