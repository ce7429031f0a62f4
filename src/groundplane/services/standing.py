"""What people ask of the queue: who holds what, who waits, why one run waits, and what would start it now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from groundplane.domain.node import Node
from groundplane.domain.queue import QueueEntry
from groundplane.domain.queue_view import InLine, PoolUse, WaitStory, clock, in_line, node_uses
from groundplane.domain.run import Run
from groundplane.domain.scheduling.forecast import Outlook, outlook, would_start_now
from groundplane.domain.scheduling.scheduler import schedule
from groundplane.domain.scheduling.state import Preempt, Wait
from groundplane.errors import NotFound, Unavailable
from groundplane.identity import Actor
from groundplane.ports import Clock, Executor, Store, Tx
from groundplane.services.queue import Queue, View

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
        executor = self._executors.get(run.pool)
        try:
            nodes = tuple(await executor.nodes()) if executor is not None else ()
            silent = "" if executor is not None else f"pool {run.pool} is not registered"
        except Unavailable as error:
            nodes, silent = (), error.message
        async with self._store.transaction() as tx:
            seen = await self._look(tx, run.pool, nodes)
        entry = next((each for each in seen.entries if each.id == run.id), None)
        if entry is None or entry.holds:
            return None
        lines = await asyncio.to_thread(self._lines, seen, silent, dict.fromkeys([run.project], True))
        line = next(each for each in lines if each.run == run.id)
        instead = ""
        if not silent and run.id not in seen.held_back and line.layer not in {"project-quota", "preempting"}:
            now = self._clock.now().timestamp()
            instead = await asyncio.to_thread(would_start_now, seen.state, now, run.id)
        return WaitStory(
            line=line,
            of=sum(each.position > 0 for each in lines),
            instead=instead,
            blockers=self._blockers(seen, entry),
        )

    async def _pool(self, actor: Actor, pool: str) -> PoolUse:
        try:
            nodes, silent = tuple(await self._executors[pool].nodes()), ""
        except Unavailable as error:
            nodes, silent = (), error.message
        async with self._store.transaction() as tx:
            seen = await self._look(tx, pool, nodes)
        sees = {entry.project: actor.sees(entry.project) for entry in seen.entries}
        holders = [entry for entry in seen.entries if entry.holds]
        return PoolUse(
            pool=pool,
            silent=silent,
            nodes=node_uses(seen.nodes, holders, sees),
            waiting=tuple(await asyncio.to_thread(self._lines, seen, silent, sees)),
        )

    async def _look(self, tx: Tx, pool: str, nodes: tuple[Node, ...]) -> View:
        return await self._queue.view(tx, pool, nodes)

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
                layer, reason = "queue", "it has its turn; it begins in a moment"
            found.append(in_line(entry, position, layer, reason, (starts, after), visible))
        return found

    def _blockers(self, seen: View, entry: QueueEntry) -> tuple[str, ...]:
        """Who holds what it waits for, the first to end first."""
        now = self._clock.now()
        holders = sorted((each for each in seen.entries if each.holds), key=lambda each: (each.ends_at or now, each.id))
        words = []
        for holder in holders[:5]:
            who = f"{holder.name} ({holder.id}) of {holder.owner}" if holder.project == entry.project else "a run"
            what = f"{holder.ask.total.accelerators} accelerators" if holder.accelerators else ""
            what = what or f"{holder.ask.total.cpus_milli / 1000:g} CPUs"
            until = clock(holder.ends_at, now) if holder.ends_at else "unknown"
            words.append(f"{who} of project {holder.project} holds {what}, until {until} at the latest")
        return tuple(words)


def _place(entry: QueueEntry, ahead: Outlook, seen: View) -> tuple[int, float, int, float, str]:
    back = 1 if entry.id in seen.held_back else 0
    starts = ahead.starts.get(entry.id, float("inf"))
    return back, starts, -entry.priority, entry.queued_at.timestamp(), entry.id
