"""What people ask of the queue: who holds what, who waits, why one run waits, and what would start it now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from groundplane.domain.admission import needs_itself
from groundplane.domain.budget import Budget, budget_id, reserve
from groundplane.domain.lifecycle import Explanation
from groundplane.domain.planning.plan import Plan, PlanStatus
from groundplane.domain.planning.story import layer_of, prospect_sentence, refusal_sentence, status_sentence
from groundplane.domain.queue import QueueEntry
from groundplane.domain.queue_view import InLine, PoolUse, WaitStory, clock, in_line, node_uses
from groundplane.domain.run import Run
from groundplane.domain.scheduling.forecast import Outlook, outlook, would_start_now
from groundplane.domain.scheduling.scheduler import schedule
from groundplane.domain.scheduling.state import Preempt, Wait
from groundplane.errors import NotFound, Refused, Unavailable
from groundplane.identity import Actor
from groundplane.ports import Clock, Executor, Store
from groundplane.services.needs import find_circle
from groundplane.services.queue import Queue, View
from groundplane.services.seats import entry_of_plan
from groundplane.units import format_count

_HAS_ITS_TURN = "it has its turn; it begins in a moment"
_WORK = 400_000
"""Runs times steps that a forecast may look at: some seconds. A long queue is forecast less far ahead."""


class Standing:
    """Views of the queue. Nothing is changed by looking."""

    def __init__(self, *, store: Store, clock: Clock, executors: Mapping[str, Executor], queue: Queue) -> None:
        self._store = store
        self._clock = clock
        self._executors = executors
        self._queue = queue

    async def pools(self, actor: Actor, pool: str | None = None) -> list[PoolUse]:
        """Every pool, or one, with its nodes, who holds them and who waits. Raises NotFound for a pool there is not.

        Whoever may read runs sees which project and owner hold and wait; which run, of the own projects only.
        """
        if pool is not None and pool not in self._executors:
            raise NotFound(f"no pool {pool}", f"there is: {', '.join(sorted(self._executors))}")
        return [await self._pool(actor, name) for name in sorted(self._executors) if pool in (None, name)]

    async def story(self, run: Run) -> WaitStory | None:
        """Why a run waits in its pool's queue; None when it is not in one, or holds its place already."""
        async with self._store.transaction() as tx:
            entry = await tx.get(QueueEntry, run.id)
        return await self._story(entry) if entry is not None and not entry.holds else None

    async def _story(self, asked: QueueEntry, *, add: bool = False) -> WaitStory | None:
        """Why an entry waits; with `add` one that is not in the queue, as if it came now: None if it would start."""
        executor = self._executors.get(asked.pool)
        try:
            nodes = tuple(await executor.nodes()) if executor is not None else ()
            silent = "" if executor is not None else f"pool {asked.pool} is not registered"
        except Unavailable as error:
            nodes, silent = (), error.message
        async with self._store.transaction() as tx:
            seen = await self._queue.view(tx, asked.pool, nodes, also=asked if add else None)
        entry = next((each for each in seen.entries if each.id == asked.id), None)
        if entry is None or entry.holds:
            return None
        lines = await asyncio.to_thread(self._lines, seen, silent, dict.fromkeys([asked.project], True))
        line = next(each for each in lines if each.run == asked.id)
        if add and line.reason == _HAS_ITS_TURN:
            return None
        instead = ""
        if not silent and asked.id not in seen.held_back and line.layer != "preempting":
            now = self._clock.now().timestamp()
            instead = await asyncio.to_thread(would_start_now, seen.state, now, asked.id)
        return WaitStory(
            line=line,
            of=sum(each.position > 0 for each in lines),
            instead=instead,
            blockers=self._blockers(seen, entry),
        )

    async def explain_plan(self, plan: Plan) -> Explanation:
        """Why a plan is refused or waits; of one that could be applied, whether it would start, and what would help."""
        now = self._clock.now()
        refused = [verdict.refused for verdict in plan.verdicts if verdict.refused is not None]
        if plan.status in {PlanStatus.READY, PlanStatus.APPROVED} and plan.offer is not None:
            async with self._store.transaction() as tx:
                month = await tx.get(Budget, budget_id(plan.project, now))
                names = await find_circle(tx, plan.project, plan.job, now) if plan.job and plan.job.needs else ()
            short = reserve(month, plan.worst_case_microusd, "what it may cost") if month is not None else None
            refused += [short] if isinstance(short, Refused) else []
            refused += [needs_itself(names)] if names else []
        lines = tuple(f"{layer_of(each.rule)}: {each}; {each.hint}" for each in refused)
        if refused:
            return Explanation(sentence=refusal_sentence(plan.id, refused), lines=lines)
        if sentence := status_sentence(plan):
            return Explanation(sentence=sentence, lines=lines)
        if plan.job is None or plan.offer is None:
            sentence = f"{plan.id} is {plan.status}; ground apply {plan.id} carries it out."
            return Explanation(sentence=sentence, lines=lines)
        entry = entry_of_plan(plan, plan.job, now)
        story = await self._story(entry, add=True)
        blockers = story.blockers if story is not None else ()
        return Explanation(sentence=prospect_sentence(plan.id, entry.pool, story, now), lines=blockers)

    async def _pool(self, actor: Actor, pool: str) -> PoolUse:
        try:
            nodes, silent = tuple(await self._executors[pool].nodes()), ""
        except Unavailable as error:
            nodes, silent = (), error.message
        async with self._store.transaction() as tx:
            seen = await self._queue.view(tx, pool, nodes)
        sees = {entry.project: actor.sees(entry.project) for entry in seen.entries}
        holders = [entry for entry in seen.entries if entry.holds]
        return PoolUse(
            pool=pool,
            silent=silent,
            nodes=node_uses(seen.nodes, holders, sees),
            waiting=tuple(await asyncio.to_thread(self._lines, seen, silent, sees)),
        )

    def _lines(self, seen: View, silent: str, sees: Mapping[str, bool]) -> list[InLine]:
        """Everybody in line, first those that start first; then those that do not stand in line yet."""
        now = self._clock.now().timestamp()
        decisions = {} if silent else {each.id: each for each in schedule(seen.state, now)
                                       if not isinstance(each, Preempt)}  # fmt: skip
        runs = len(seen.state.waiting) + len(seen.state.holding)
        ahead = (
            Outlook({}, now, False) if silent else outlook(seen.state, now, steps=max(10, _WORK // max(1, runs * 10)))
        )
        waiting = [entry for entry in seen.entries if not entry.holds]
        waiting.sort(key=lambda entry: _place(entry, ahead, seen))
        found: list[InLine] = []
        for entry in waiting:
            visible = sees.get(entry.project, False)
            if entry.id in seen.held_back:
                layer, reason = seen.held_back[entry.id]
                found.append(in_line(entry, 0, layer, reason, (None, None), visible))
                continue
            position = sum(each.position > 0 for each in found) + 1
            starts = ahead.starts.get(entry.id)
            after = ahead.until if starts is None and not ahead.complete and not silent else None
            decision = decisions.get(entry.id)
            if silent:
                layer, reason = "backend", silent
            elif isinstance(decision, Wait):
                layer, reason = decision.layer, decision.reason
            else:
                layer, reason = "queue", _HAS_ITS_TURN
            found.append(in_line(entry, position, layer, reason, (starts, after), visible))
        return found

    def _blockers(self, seen: View, entry: QueueEntry) -> tuple[str, ...]:
        """Who holds what it waits for, the first to end first."""
        now = self._clock.now()
        holders = sorted((each for each in seen.entries if each.holds), key=lambda each: (each.ends_at or now, each.id))
        words = []
        for holder in holders[:5]:
            who = f"{holder.name} ({holder.id}) of {holder.owner}" if holder.project == entry.project else "a run"
            what = format_count(holder.ask.total.accelerators, "accelerator") if holder.accelerators else ""
            what = what or format_count(holder.ask.total.cpus_milli / 1000, "CPU")
            until = clock(holder.ends_at, now) if holder.ends_at else "unknown"
            words.append(f"{who} of project {holder.project} holds {what}, until {until} at the latest")
        return tuple(words)


def _place(entry: QueueEntry, ahead: Outlook, seen: View) -> tuple[int, float, int, float, str]:
    back = 1 if entry.id in seen.held_back else 0
    starts = ahead.starts.get(entry.id, float("inf"))
    return back, starts, -entry.priority, entry.queued_at.timestamp(), entry.id
