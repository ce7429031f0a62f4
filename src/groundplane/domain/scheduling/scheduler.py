"""The scheduler: what starts now, what gives way, what is planned for later, and why the rest waits.

Order: class, then projects within their own quota before borrowers, then runs that waited too long (oldest first), then
the smaller share of the pool, then the older run. The first runs that find no room are given the earliest time and
place that all running ends allow; what comes after them starts only where that delays none of them (backfill).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

from groundplane.domain.scheduling.capacity import Capacity
from groundplane.domain.scheduling.quotas import Quotas
from groundplane.domain.scheduling.reasons import Reason, reason_of
from groundplane.domain.scheduling.shares import dominant
from groundplane.domain.scheduling.state import (
    Amount,
    Ask,
    Decision,
    Holding,
    PoolState,
    Preempt,
    Start,
    Wait,
    Waiting,
)
from groundplane.domain.scheduling.victims import choose_for_nodes, choose_for_quota

Group = tuple[int, str, Ask, int]
"""Priority, project, ask, expected duration to the power of two: runs of one group wait in one line."""

Key = tuple[int, int, float, float, str]


def schedule(state: PoolState, now: float) -> list[Decision]:
    """What to do now: every start, every preemption, and for each run that waits on, why. Same input, same answer.

    Lists come in any order; nodes, runs and projects are told apart by their names alone.
    """
    scheduler = Scheduler(state)
    decisions: list[Decision] = list(scheduler.decide(now))
    return decisions + scheduler.waits()


@dataclass(frozen=True, slots=True)
class _Plan:
    """A start planned for later: when, and whether it waits for runs that were asked to give way."""

    at: float
    preempting: bool


class Scheduler:
    """One pool, told of every arrival and end; `decide` takes what it decides for done."""

    def __init__(self, state: PoolState) -> None:
        self.rules = state.rules
        self.capacity = Capacity(state.nodes, state.reserved)
        self.total = self.capacity.total()
        self.usage = dict(state.usage)
        self.quotas = Quotas(state.quotas, state.elsewhere)
        self.waiting: dict[str, Waiting] = {}
        self.holding: dict[str, Holding] = {}
        self._here: dict[str, Amount] = {}
        self._lines: dict[Group, list[tuple[float, str]]] = {}
        self._reserving = {each.project for each in state.reserved}
        self._failed: dict[tuple[Ask, str], float] = {}
        self._plans: dict[str, _Plan] = {}
        self._stuck: dict[Group, Waiting] = {}
        for run in sorted(state.holding, key=lambda run: run.id):
            self.begin(run)
        for each in sorted(state.waiting, key=lambda each: each.id):
            self.enqueue(each)

    # ------------------------------------------------------------ what happened

    def enqueue(self, run: Waiting) -> None:
        self.waiting[run.id] = run
        heappush(self._lines.setdefault(_group(run), []), (run.queued_at, run.id))

    def withdraw(self, run_id: str) -> None:
        """It waits no more, whatever the reason."""
        self.waiting.pop(run_id, None)

    def begin(self, run: Holding) -> None:
        self.holding[run.id] = run
        self.capacity.hold(run)
        self.quotas.take(run.project, run.ask.total)
        self._here[run.project] = self._here.get(run.project, Amount()).plus(run.ask.total)

    def end(self, run_id: str) -> Holding:
        run = self.holding.pop(run_id)
        self.capacity.give_back(run)
        self.quotas.give_back(run.project, run.ask.total)
        self._here[run.project] = self._here[run.project].minus(run.ask.total)
        return run

    # ------------------------------------------------------------ deciding

    def decide(self, now: float) -> list[Start | Preempt]:
        """One pass over the queue."""
        self.capacity.drop_claims()
        self._failed.clear()
        self._plans.clear()
        self._stuck.clear()
        decisions: list[Start | Preempt] = []
        for group, run in self._in_order(now):
            started = self._try(group, run, now, decisions)
            if not started and self._plans and not self.rules.backfill:
                break
        return decisions

    def waits(self) -> list[Decision]:
        """Why each run that still waits does, as of the last `decide`; by id."""
        found: list[Decision] = []
        reasons = {group: reason_of(self, run) for group, run in self._stuck.items()}
        for run_id in sorted(self.waiting):
            run = self.waiting[run_id]
            plan = self._plans.get(run_id)
            reason = reasons.get(_group(run))
            if plan is not None and plan.preempting:
                reason = Reason("preempting", "runs of a lower class checkpoint and make room for it")
            elif reason is None:
                reason = Reason("queue", "other runs are before it")
            found.append(
                Wait(id=run_id, layer=reason.layer, reason=reason.text, starts_at=plan.at if plan is not None else None)
            )
        return found

    def share(self, project: str) -> float:
        """A project's share of the pool now plus its average of late, over its weight."""
        held = dominant(self._here.get(project, Amount()), self.total)
        return (self.usage.get(project, 0.0) + held) / self.quotas.weight(project)

    def _in_order(self, now: float) -> Iterator[tuple[Group, Waiting]]:
        """The head of each line, best first. A line goes on while its heads start, and is dropped when one does not."""
        by_class: dict[int, list[Group]] = {}
        for group in list(self._lines):
            if self._head(group) is None:
                del self._lines[group]
            else:
                by_class.setdefault(group[0], []).append(group)
        for priority in sorted(by_class, reverse=True):
            heap = [(self._key(group, now), group) for group in by_class[priority]]
            heapify(heap)
            while heap:
                key, group = heappop(heap)
                run = self._head(group)
                if run is None:
                    continue
                # Shares grow as runs start: a key that is out of date is put back where it now belongs.
                if (fresh := self._key(group, now)) > key:
                    heappush(heap, (fresh, group))
                    continue
                yield group, run
                if run.id not in self.waiting and self._head(group) is not None:
                    heappush(heap, (self._key(group, now), group))

    def _head(self, group: Group) -> Waiting | None:
        line = self._lines[group]
        while line:
            run = self.waiting.get(line[0][1])
            if run is not None and run.queued_at == line[0][0] and _group(run) == group:
                return run
            heappop(line)
        return None

    def _key(self, group: Group, now: float) -> Key:
        run = self._head(group)
        if run is None:
            return (0, 0, 0.0, 0.0, "")
        if not self.rules.fair:
            return (0, 0, 0.0, run.queued_at, run.id)
        # Borrowers come last, however old: an owner that took its own back would lose it to them again.
        borrows = int(self.quotas.judge(run.project, run.ask.total).borrows)
        if now - run.queued_at >= self.rules.aged_s:
            return (borrows, 0, 0.0, run.queued_at, run.id)
        return (borrows, 1, self.share(run.project), run.queued_at, run.id)

    def _try(self, group: Group, run: Waiting, now: float, decisions: list[Start | Preempt]) -> bool:
        """Starts it, or plans it, or notes why not."""
        standing = self.quotas.judge(run.project, run.ask.total)
        if standing.blocked:
            self._stuck[group] = run
            if self.rules.preempt:
                self._preempt_for_quota(run, now, decisions)
            return False
        memo = (run.ask, run.project if run.project in self._reserving else "")
        if run.expected_s >= self._failed.get(memo, float("inf")):
            self._stuck[group] = run
            return False
        numbers = self.capacity.find(run.ask, run.project, now, run.expected_s)
        if numbers is None:
            self._failed[memo] = run.expected_s
            if len(self._plans) < self.rules.depth:
                self._plan(run, now, decisions)
            self._stuck[group] = run
            return False
        places = self.capacity.places(numbers, run.ask)
        del self.waiting[run.id]
        self.begin(
            Holding(
                id=run.id,
                project=run.project,
                priority=run.priority,
                queued_at=run.queued_at,
                ask=run.ask,
                places=places,
                started_at=now,
                ends_at=now + run.expected_s,
                preemptions=run.preemptions,
            )
        )
        decisions.append(Start(id=run.id, places=places, backfilled=bool(self._plans)))
        return True

    def _plan(self, run: Waiting, now: float, decisions: list[Start | Preempt]) -> None:
        """A time and place of its own for a run that finds no room, with room made for it where that is worth it."""
        plan = self.capacity.plan(run.ask, run.project, now, run.expected_s)
        preempting = plan is not None and self._waits_for_leavers(plan[0], now)
        if self.rules.preempt and (plan is None or plan[0] > now + max(self.rules.worth_s, self.rules.grace_s)):
            victims = choose_for_nodes(self, run, now)
            for victim in victims:
                self._make_way(victim, run, now, "priority" if victim.priority < run.priority else "reclaim", decisions)
            if victims:
                plan, preempting = self.capacity.plan(run.ask, run.project, now, run.expected_s), True
        if plan is None:
            return
        at, numbers = plan
        self.capacity.claim(numbers, run.ask, at, at + run.expected_s)
        self._plans[run.id] = _Plan(at, preempting)
        # Room for one of its kind is spoken for: what fits no more is found out by trying, not remembered from before.

    def _waits_for_leavers(self, at: float, now: float) -> bool:
        return at <= now + self.rules.grace_s and any(run.stopping for run in self.holding.values())

    def _preempt_for_quota(self, run: Waiting, now: float, decisions: list[Start | Preempt]) -> None:
        for victim in choose_for_quota(self, run, now):
            self._make_way(victim, run, now, "quota" if victim.project == run.project else "reclaim", decisions)

    def _make_way(self, victim: Holding, run: Waiting, now: float, why: str, decisions: list[Start | Preempt]) -> None:
        leaving = replace(victim, stopping=True, ends_at=now + self.rules.grace_s)
        self.holding[victim.id] = leaving
        self.capacity.end_at(leaving, leaving.ends_at)
        lost_s = now - (victim.kept_at if victim.kept_at is not None else victim.started_at)
        decisions.append(Preempt(id=victim.id, for_id=run.id, why=why, lost_s=max(0.0, lost_s)))

    # ------------------------------------------------------------ asked by forecasts and explanations

    def plan_of(self, run_id: str) -> float | None:
        """When the last `decide` planned a waiting run to start, if it did."""
        plan = self._plans.get(run_id)
        return None if plan is None else plan.at

    def planned(self) -> list[str]:
        """The runs that have a planned start, best first."""
        return list(self._plans)


def _group(run: Waiting) -> Group:
    return (run.priority, run.project, run.ask, int(run.expected_s).bit_length())
