"""When waiting runs start, and what would start one now: the same scheduler run forward, and run on a changed ask.

Every run is taken to last as long as it may: real starts come at that time or sooner, as long as nothing new arrives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from groundplane.domain.scheduling.scheduler import Scheduler
from groundplane.domain.scheduling.state import Ask, PoolState, Start, Waiting
from groundplane.units import format_count

STEPS_MAX = 400


@dataclass(frozen=True, slots=True)
class Outlook:
    """`starts` by run, in seconds since 1970. `until` is how far was looked: what has no start by then starts later."""

    starts: dict[str, float]
    until: float
    complete: bool


def outlook(state: PoolState, now: float, *, steps: int = STEPS_MAX) -> Outlook:
    """Every start that follows from the ends that are known."""
    scheduler = Scheduler(state)
    first = {run.id: run for run in state.waiting} | {
        run.id: Waiting(
            id=run.id,
            project=run.project,
            priority=run.priority,
            queued_at=run.queued_at,
            ask=run.ask,
            expected_s=max(1.0, run.ends_at - now),
            preemptions=run.preemptions,
        )
        for run in state.holding
    }
    starts: dict[str, float] = {}
    boundaries = sorted({each.end for each in state.reserved if each.end > now})
    for _ in range(steps):
        for decision in scheduler.decide(now):
            if isinstance(decision, Start):
                starts.setdefault(decision.id, now)
        if not scheduler.waiting:
            return Outlook(starts, now, True)
        moments = [max(run.ends_at, now + 1.0) for run in scheduler.holding.values()]
        moments += [moment for moment in boundaries if moment > now]
        if not moments:
            return Outlook(starts, now, True)
        now = min(moments)
        for run_id in sorted(run.id for run in scheduler.holding.values() if max(run.ends_at, 0.0) <= now):
            run = scheduler.end(run_id)
            if run.stopping:
                scheduler.enqueue(first[run_id])
    return Outlook(starts, now, False)


def would_start_now(state: PoolState, now: float, run_id: str) -> str:
    """What could be asked for instead so that the run starts now, in words: `with 6 accelerators`; "" if nothing."""
    run = next(each for each in state.waiting if each.id == run_id)
    others = tuple(each for each in state.waiting if each.id != run_id)
    for words, changed in _smaller(state, run):
        tried = replace(state, waiting=(*others, changed))
        if any(isinstance(each, Start) and each.id == run_id for each in Scheduler(tried).decide(now)):
            return words
    return ""


def _smaller(state: PoolState, run: Waiting) -> Iterator[tuple[str, Waiting]]:
    """Smaller asks, the largest of each sort first: fewer accelerators, fewer nodes, fewer CPUs, less time."""
    ask = run.ask
    for count in _fewer(ask.accelerators):
        # CPUs and memory belong to the accelerators: half of these needs half of those.
        part = replace(
            ask,
            accelerators=count,
            cpus_milli=max(1, ask.cpus_milli * count // ask.accelerators),
            memory_bytes=max(1, ask.memory_bytes * count // ask.accelerators),
        )
        each = " on each node" if ask.nodes > 1 else ""
        yield f"with {format_count(count, 'accelerator')}{each}", replace(run, ask=part)
    for count in _fewer(ask.nodes):
        yield f"with {format_count(count, 'node')}", replace(run, ask=replace(ask, nodes=count))
    if not ask.accelerators:
        for cpus_milli in _fewer_cpus(state, ask):
            words = f"with {format_count(cpus_milli / 1000, 'CPU')}"
            yield words, replace(run, ask=replace(ask, cpus_milli=cpus_milli))
    for seconds in (run.expected_s / 2, run.expected_s / 4, 3600.0, 900.0, 300.0):
        if 60.0 <= seconds < run.expected_s:
            yield f"with max_duration {_duration(seconds)}", replace(run, expected_s=seconds)


def _fewer(count: int) -> Iterator[int]:
    if count <= 16:
        yield from range(count - 1, 0, -1)
        return
    while count > 1:
        count //= 2
        yield count


def _fewer_cpus(state: PoolState, ask: Ask) -> list[int]:
    """What is free on the nodes, where that is less than asked for; the largest first."""
    free = {node.name: round(node.cpus * 1000) for node in state.nodes if node.takes_work}
    for run in state.holding:
        for place in run.places:
            if place.node in free:
                free[place.node] -= run.ask.cpus_milli
    return sorted({each for each in free.values() if 100 <= each < ask.cpus_milli}, reverse=True)[:8]


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m"
