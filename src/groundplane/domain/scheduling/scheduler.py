"""The scheduler: what starts now, what gives way, what is planned for later, and why the rest waits.

Order: class, then projects within their own quota before borrowers, then runs that waited too long (oldest first), then
the smaller share of the pool, then the older run. The first runs that find no room are given the earliest time and
place that all running ends allow; what comes after them starts only where that delays none of them (backfill).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

from groundplane.domain.scheduling.capacity import Capacity
from groundplane.domain.scheduling.quotas import Quotas
from groundplane.domain.scheduling.reasons import Counts, Reason, count_nodes, reason_of
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

Group = tuple[int, str, int, int]
"""Priority, project, number of the ask, magnitude of the expected duration: runs of one group wait in one line."""

Head = tuple[int, float, str, Group]
"""A line of a project by its first run: whether starting it would borrow, since when it waits, its id, the line."""

Key = tuple[int, int, float, float, str]


_NEVER = float("inf")
_SHORTEST_S = (0, *(1 << (2 * magnitude - 1) for magnitude in range(1, 64)))
"""By magnitude: no run of such a line is expected to last for less."""


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
        self._numbers: dict[Ask, int] = {}
        self._totals: list[Amount] = []
        self._lines: dict[Group, list[tuple[float, str]]] = {}
        self._fronts: dict[tuple[int, str], list[Head]] = {}
        self._ranked: dict[tuple[int, str], int] = {}
        self._shown: dict[Group, tuple[float, str]] = {}
        self._groups: dict[str, Group] = {}
        self._shares: dict[str, float] = {}
        self._moves: Counter[str] = Counter()
        self._asked_quota: set[tuple[int, str]] = set()
        self._reserving = {each.project for each in state.reserved}
        self._failed: dict[tuple[int, str], float] = {}
        self._plans: dict[str, _Plan] = {}
        self._stuck: dict[Group, Waiting] = {}
        for run in sorted(state.holding, key=lambda run: run.id):
            self.begin(run)
        for each in sorted(state.waiting, key=lambda each: each.id):
            self.enqueue(each)

    # ------------------------------------------------------------ what happened

    def enqueue(self, run: Waiting) -> None:
        """It waits from now on; one that waits already is replaced."""
        number = self._numbers.setdefault(run.ask, len(self._totals))
        if number == len(self._totals):
            self._totals.append(run.ask.total)
        # Durations within a factor of four share a line: what is behind a head is hardly easier to place.
        group = (run.priority, run.project, number, int(run.expected_s).bit_length() // 2)
        self.withdraw(run.id)
        self.waiting[run.id] = run
        self._groups[run.id] = group
        heappush(self._lines.setdefault(group, []), (run.queued_at, run.id))
        self._show(group)

    def withdraw(self, run_id: str) -> None:
        """It waits no more, whatever the reason."""
        if self.waiting.pop(run_id, None) is not None:
            del self._groups[run_id]

    def begin(self, run: Holding) -> None:
        """It holds its places: `decide` does this for what it starts, a caller for what ran before."""
        self.holding[run.id] = run
        self.capacity.hold(run)
        self.quotas.take(run.project, run.ask.total)
        self._here[run.project] = self._here.get(run.project, Amount()).plus(run.ask.total)
        self._shares.pop(run.project, None)
        self._moves[run.project] += 1

    def end(self, run_id: str) -> Holding:
        """It gives back what it held. KeyError when it held nothing."""
        run = self.holding.pop(run_id)
        self.capacity.give_back(run)
        self.quotas.give_back(run.project, run.ask.total)
        self._here[run.project] = self._here[run.project].minus(run.ask.total)
        self._shares.pop(run.project, None)
        self._moves[run.project] += 1
        return run

    # ------------------------------------------------------------ deciding

    def decide(self, now: float) -> list[Start | Preempt]:
        """One pass over the queue."""
        self.capacity.drop_claims()
        self._failed.clear()
        self._plans.clear()
        self._stuck.clear()
        self._asked_quota.clear()
        decisions: list[Start | Preempt] = []
        for group, run in self._in_order(now):
            if self._try(group, run, now, decisions):
                continue
            self._stuck[group] = run
            if self._plans and not self.rules.backfill:
                break
            if len(self._plans) >= self.rules.depth:
                # Nothing more is planned: from here on only what fits somewhere right now is worth a look.
                self._backfill(now, decisions)
                break
        return decisions

    def waits(self) -> list[Decision]:
        """Why each run that still waits does, as of the last `decide`; by id."""
        found: list[Decision] = []
        counts: dict[Ask, Counts] = {}
        reasons: dict[Group, Reason] = {}
        for run_id in sorted(self.waiting):
            run = self.waiting[run_id]
            plan = self._plans.get(run_id)
            group = self._groups[run_id]
            if group not in reasons:
                if run.ask not in counts:
                    counts[run.ask] = count_nodes(self.capacity, run.ask)
                reasons[group] = reason_of(self, self._stuck.get(group, run), counts[run.ask])
            reason = reasons[group]
            if plan is not None and plan.preempting:
                reason = Reason("preempting", "runs of a lower class checkpoint and make room for it")
            found.append(
                Wait(id=run_id, layer=reason.layer, reason=reason.text, starts_at=plan.at if plan is not None else None)
            )
        return found

    def share(self, project: str) -> float:
        """A project's share of the pool now plus its average of late, over its weight."""
        known = self._shares.get(project)
        if known is None:
            held = dominant(self._here.get(project, Amount()), self.total)
            known = (self.usage.get(project, 0.0) + held) / self.quotas.weight(project)
            self._shares[project] = known
        return known

    def use(self, usage: Mapping[str, float]) -> None:
        """New averages of what projects held of late."""
        self.usage = dict(usage)
        self._shares.clear()

    def _in_order(self, now: float) -> Iterator[tuple[Group, Waiting]]:
        """The head of each line, best first. A line goes on while its heads start, and is left when one does not."""
        left: list[tuple[tuple[int, str], Head]] = []
        try:
            for priority in sorted({priority for priority, _ in self._fronts}, reverse=True):
                heap = [self._entry(front, now) for front in list(self._fronts) if front[0] == priority]
                queue = [entry for entry in heap if entry is not None]
                heapify(queue)
                while queue:
                    key, front = heappop(queue)
                    entry = self._entry(front, now)
                    if entry is None:
                        continue
                    # Shares grow as runs start: a key that is out of date is put back where it now belongs.
                    if entry[0] > key:
                        heappush(queue, entry)
                        continue
                    *_, run_id, group = self._fronts[front][0]
                    run = self.waiting[run_id]
                    yield group, run
                    if run.id in self.waiting:
                        left.append((front, heappop(self._fronts[front])))
                    if (entry := self._entry(front, now)) is not None:
                        heappush(queue, entry)
        finally:
            for front, (_, queued_at, run_id, group) in left:
                heappush(self._fronts.setdefault(front, []), (self._rank(group), queued_at, run_id, group))

    def _backfill(self, now: float, decisions: list[Start | Preempt]) -> None:
        """Starts whatever fits now and delays no plan, in the same order."""
        asks = list(self._numbers)
        fits: dict[int, float] = {}
        fails: dict[int, float] = {}

        def may_start(group: Group) -> bool:
            """False only where nobody can: room shrinks during a pass, and what is too long stays so."""
            number = group[2]
            if group in self._stuck:
                return False
            if _SHORTEST_S[group[3]] >= fails.get(number, _NEVER) and group[1] not in self._reserving:
                # Nobody in this line is short enough: no need to look at its head.
                return self.quotas.judge(group[1], self._totals[number]).blocked
            run = self._head(group)
            if run is None:
                return False
            if run.expected_s <= fits.get(number, 0.0) or group[1] in self._reserving:
                return True
            if run.expected_s < fails.get(number, _NEVER):
                if self.capacity.find(asks[number], "", now, run.expected_s) is not None:
                    fits[number] = run.expected_s
                    return True
                fails[number] = run.expected_s
            return self.quotas.judge(run.project, self._totals[number]).blocked

        groups = [group for group in list(self._lines) if may_start(group)]
        for priority in sorted({group[0] for group in groups}, reverse=True):
            heap = [
                (self._key(run, now), group, self._moves[group[1]])
                for group in groups
                if group[0] == priority and (run := self._head(group)) is not None
            ]
            heapify(heap)
            while heap:
                key, group, moves = heappop(heap)
                run = self._head(group)
                if run is None:
                    continue
                # Only what a project holds moves its runs: most keys are as they were.
                now_at = self._moves[group[1]]
                if moves != now_at and (fresh := self._key(run, now)) > key:
                    heappush(heap, (fresh, group, now_at))
                elif self._try(group, run, now, decisions):
                    if (after := self._head(group)) is not None:
                        heappush(heap, (self._key(after, now), group, self._moves[group[1]]))
                else:
                    self._stuck[group] = run

    def _entry(self, front: tuple[int, str], now: float) -> tuple[Key, tuple[int, str]] | None:
        """A project's place in its class, by its oldest line within its own quota, else by its oldest; None when it has
        no line left. By a line that borrows it would come behind other borrowers with what is its own, take that back
        from them, and come behind them again.
        """
        heads = self._fronts.get(front, [])
        if heads and self._ranked.get(front) != self._moves[front[1]]:
            self._ranked[front] = self._moves[front[1]]
            heads[:] = [(self._rank(group), queued_at, run_id, group) for _, queued_at, run_id, group in heads]
            heapify(heads)
        while heads:
            _, queued_at, run_id, group = heads[0]
            if self._shown.get(group) != (queued_at, run_id):
                heappop(heads)
                continue
            run = self._head(group)
            if run is not None and (run.queued_at, run.id) == (queued_at, run_id):
                return self._key(run, now), front
            heappop(heads)
            self._shown.pop(group)
            self._show(group)
        self._fronts.pop(front, None)
        return None

    def _show(self, group: Group) -> None:
        """Puts a line where its project's oldest is looked for; each line stands there once, by its head."""
        run = self._head(group)
        if run is not None and self._shown.get(group) != (run.queued_at, run.id):
            self._shown[group] = (run.queued_at, run.id)
            heappush(self._fronts.setdefault(group[:2], []), (self._rank(group), run.queued_at, run.id, group))

    def _rank(self, group: Group) -> int:
        return int(self.rules.fair and self.quotas.judge(group[1], self._totals[group[2]]).borrows)

    def _head(self, group: Group) -> Waiting | None:
        line = self._lines.get(group, [])
        while line:
            run = self.waiting.get(line[0][1])
            if run is not None and run.queued_at == line[0][0] and self._groups[run.id] == group:
                return run
            heappop(line)
        self._lines.pop(group, None)
        return None

    def _key(self, run: Waiting, now: float) -> Key:
        if not self.rules.fair:
            return (0, 0, 0.0, run.queued_at, run.id)
        # Borrowers come last, however old: an owner that took its own back would lose it to them again.
        borrows = int(self.quotas.judge(run.project, self._totals[self._groups[run.id][2]]).borrows)
        if now - run.queued_at >= self.rules.aged_s:
            return (borrows, 0, 0.0, run.queued_at, run.id)
        return (borrows, 1, self.share(run.project), run.queued_at, run.id)

    def _try(self, group: Group, run: Waiting, now: float, decisions: list[Start | Preempt]) -> bool:
        """Starts it, or plans it, or notes why not."""
        standing = self.quotas.judge(run.project, self._totals[group[2]])
        if standing.blocked:
            if self.rules.preempt:
                self._preempt_for_quota(run, now, decisions)
            return False
        memo = (group[2], run.project if run.project in self._reserving else "")
        if run.expected_s >= self._failed.get(memo, _NEVER):
            return False
        numbers = self.capacity.find(run.ask, run.project, now, run.expected_s)
        if numbers is None:
            self._failed[memo] = run.expected_s
            if len(self._plans) < self.rules.depth:
                self._plan(run, now, decisions)
            return False
        places = self.capacity.places(numbers, run.ask)
        self.withdraw(run.id)
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
        if plan is not None:
            self._promise(run, plan, preempting=preempting)

    def _waits_for_leavers(self, at: float, now: float) -> bool:
        return at <= now + self.rules.grace_s and any(run.stopping for run in self.holding.values())

    def _preempt_for_quota(self, run: Waiting, now: float, decisions: list[Start | Preempt]) -> None:
        if (run.priority, run.project) in self._asked_quota:
            return  # one run of a project and class at a time makes others give way
        self._asked_quota.add((run.priority, run.project))
        victims = choose_for_quota(self, run, now)
        if victims is None:
            return
        for victim in victims:
            self._make_way(victim, run, now, "quota" if victim.project == run.project else "reclaim", decisions)
        if (plan := self.capacity.plan(run.ask, run.project, now, run.expected_s)) is not None:
            self._promise(run, plan, preempting=True)

    def _promise(self, run: Waiting, plan: tuple[float, tuple[int, ...]], *, preempting: bool) -> None:
        at, numbers = plan
        self.capacity.claim(numbers, run.ask, at, at + run.expected_s)
        self._plans[run.id] = _Plan(at, preempting)

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
