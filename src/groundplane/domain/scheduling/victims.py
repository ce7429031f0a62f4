"""Who gives way: the cheapest runs of a lower class, or of a borrower, whose going makes the room that is needed.

Preemption ends: only a lower class is preempted, or a project that holds more than its own for one that waits for what
is its own; nobody can do that back. Nobody is asked unless the room is then really there.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nsmallest
from typing import Protocol

from groundplane.domain.scheduling.capacity import Capacity
from groundplane.domain.scheduling.quotas import Quotas
from groundplane.domain.scheduling.state import Amount, Holding, Rules, Waiting

_AGAIN_S = 600.0


class Pool(Protocol):
    """What is asked of the scheduler."""

    rules: Rules
    capacity: Capacity
    quotas: Quotas
    holding: dict[str, Holding]


def lost(run: Holding, now: float, rules: Rules) -> float:
    """What preempting a run costs, in accelerator-seconds (CPU-seconds without): work since its last checkpoint, a
    restart, and ten minutes more for each time it was preempted before, so that it is not always the same."""
    since = run.kept_at if run.kept_at is not None else run.started_at
    total = run.ask.total
    return (max(0.0, now - since) + rules.restart_s + _AGAIN_S * run.preemptions) * (
        total.accelerators or max(1, total.cpus_milli) / 1000
    )


def choose_for_nodes(pool: Pool, run: Waiting, now: float) -> list[Holding]:
    """The cheapest runs that make room on enough nodes; empty when no choice does."""
    borrowers = _borrowers_from(pool, run)
    candidates = {
        other.id: other
        for other in pool.holding.values()
        if other.preemptible
        and not other.stopping
        and (other.priority < run.priority or (other.priority == run.priority and other.project in borrowers))
    }
    if not candidates:
        return []
    per_node: list[tuple[int, float, int, tuple[str, ...]]] = []
    for number in pool.capacity.open_candidates(run.ask):
        here = [candidates[run_id] for run_id in pool.capacity.held_on(number) if run_id in candidates]
        chosen = _enough_on(pool, number, run, here, now)
        if chosen is not None:
            price = sum(lost(other, now, pool.rules) for other in chosen)
            worst = max((other.priority for other in chosen), default=-1)
            per_node.append((worst, price, number, tuple(other.id for other in chosen)))
    if len(per_node) < run.ask.nodes:
        return []
    ids = {run_id for *_, chosen_ids in nsmallest(run.ask.nodes, per_node) for run_id in chosen_ids}
    victims = _keep_owners_own(pool, run, [candidates[run_id] for run_id in sorted(ids)])
    return victims if victims and _makes_room(pool, run, victims, now) else []


def choose_for_quota(pool: Pool, run: Waiting, now: float) -> list[Holding] | None:
    """The cheapest runs whose end frees the quota that a run lacks: its own project's lower classes, then borrowers.

    None when nobody's end would let it start; empty when those that were asked before will do.
    """
    amount = run.ask.total
    leaving = _amounts(other for other in pool.holding.values() if other.stopping)
    if not pool.quotas.judge(run.project, amount, leaving=leaving).blocked:
        return [] if _makes_room(pool, run, [], now) else None
    borrowers = _borrowers_from(pool, run)
    own = [
        other
        for other in pool.holding.values()
        if other.preemptible
        and not other.stopping
        and (
            (other.project == run.project and other.priority < run.priority)
            or (other.project in borrowers and other.priority <= run.priority)
        )
    ]
    own.sort(key=lambda other: (other.priority, lost(other, now, pool.rules), other.id))
    chosen: list[Holding] = []
    for other in own:
        if other.project != run.project and not pool.quotas.borrowing(
            other.project, less=leaving.get(other.project, Amount())
        ):
            continue
        before = pool.quotas.judge(run.project, amount, leaving=leaving)
        gone = {**leaving, other.project: leaving.get(other.project, Amount()).plus(other.ask.total)}
        after = pool.quotas.judge(run.project, amount, leaving=gone)
        if after.blocked and after.short == before.short:
            continue  # its going would not help
        leaving = gone
        chosen.append(other)
        if not after.blocked:
            return chosen if _makes_room(pool, run, chosen, now) else None
    return None


def _borrowers_from(pool: Pool, run: Waiting) -> frozenset[str]:
    """Projects of the run's cohort that hold more than their own, while the run waits for what is its project's own."""
    quotas = pool.quotas
    own = quotas.quota(run.project)
    if own is None or not own.cohort or quotas.judge(run.project, run.ask.total).borrows:
        return frozenset()
    holders = {other.project for other in pool.holding.values()} - {run.project}
    return frozenset(
        project for project in holders if quotas.same_cohort(run.project, project) and quotas.borrowing(project)
    )


def _enough_on(pool: Pool, number: int, run: Waiting, here: list[Holding], now: float) -> list[Holding] | None:
    """The fewest, cheapest of these runs whose going leaves room on this node; None when all of them don't."""
    short = pool.capacity.shortage(number, run.ask)
    if not _is_short(short):
        return []
    here.sort(key=lambda other: (other.priority, lost(other, now, pool.rules), other.id))
    chosen: list[Holding] = []
    for other in here:
        chosen.append(other)
        short = short.minus(_on_node(pool, number, other))
        if not _is_short(short):
            break
    else:
        return None
    for other in sorted(chosen, key=lambda other: (-other.priority, -lost(other, now, pool.rules), other.id)):
        without = short.plus(_on_node(pool, number, other))
        if not _is_short(without):
            chosen.remove(other)
            short = without
    return chosen


def _keep_owners_own(pool: Pool, run: Waiting, victims: list[Holding]) -> list[Holding]:
    """Victims of the same class may only go while their project still borrows; if one would not, nobody goes."""
    gone: dict[str, Amount] = {}
    for other in victims:
        if other.priority == run.priority and not pool.quotas.borrowing(
            other.project, less=gone.get(other.project, Amount())
        ):
            return []
        gone[other.project] = gone.get(other.project, Amount()).plus(other.ask.total)
    return victims


def _makes_room(pool: Pool, run: Waiting, victims: list[Holding], now: float) -> bool:
    """Tried on the capacity itself: with these gone after their grace, the run starts right then."""
    ends_at = now + pool.rules.grace_s
    for other in victims:
        pool.capacity.end_at(other, ends_at)
    plan = pool.capacity.plan(run.ask, run.project, now, run.expected_s)
    if plan is not None and plan[0] <= max(ends_at, now + 1.0) + 1.0:
        return True
    for other in victims:
        pool.capacity.end_at(other, other.ends_at)
    return False


def _on_node(pool: Pool, number: int, run: Holding) -> Amount:
    release = pool.capacity.held_on(number)[run.id]
    return Amount(release.accelerators, release.cpus_milli, release.memory_bytes)


def _is_short(short: Amount) -> bool:
    return short.accelerators > 0 or short.cpus_milli > 0 or short.memory_bytes > 0


def _amounts(runs: Iterable[Holding]) -> dict[str, Amount]:
    sums: dict[str, Amount] = {}
    for run in runs:
        sums[run.project] = sums.get(run.project, Amount()).plus(run.ask.total)
    return sums
