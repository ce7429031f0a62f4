"""Watchdogs over the fleet: the storm brake, what follows from a hang, and who is told that a run idles."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta

from groundplane.domain import watchdogs
from groundplane.domain.node import NodeHealth
from groundplane.domain.run import Attempt, EndReason, Observation, Run
from groundplane.domain.watchdogs import Fleet
from groundplane.errors import Unavailable
from groundplane.identity import SYSTEM
from groundplane.ports import Clock, Executor, Notice, Notifier, Store, Tx
from groundplane.services.audit_trail import Teller
from groundplane.services.cordons import Cordons

NODE_AT_FAULT = {EndReason.HUNG, EndReason.NODE_LOST, EndReason.NODE_UNFIT, EndReason.RUNNER_LOST}
LOCAL = "local"
log = logging.getLogger(__name__)


class Watchdogs:
    """Remembers in this process whether silence means anything; what it decides is in rows and on the trail."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        executors: Mapping[str, Executor],
        cordons: Cordons,
        notify: Notifier,
        storm_percent: int = 30,
        settle_s: int = 60,
        idle_notice_s: int = 900,
    ) -> None:
        self._store, self._clock, self._executors = store, clock, executors
        self._tell_fleet = Teller(clock, "fleet")
        self._tell_run = Teller(clock, "run")
        self._cordons, self._notify = cordons, notify
        self._storm_percent, self._settle = storm_percent, timedelta(seconds=settle_s)
        self._idle_notice = timedelta(seconds=idle_notice_s)
        self._braked_until: datetime | None = None
        self._unsent: list[Notice] = []
        self.storm = ""
        self.counts: dict[str, int] = {"storms": 0, "hangs": 0, "idle": 0}

    # ------------------------------------------------------------ the storm brake

    async def watch(self) -> bool:
        """Counts who is silent, and sends what is to be told. Unavailable when a notice could not be sent."""
        fleet = await self._fleet()
        now, before = self._clock.now(), self.storm
        self.storm = fleet.storm(self._storm_percent)
        if self.storm:
            # Nodes come back one after the other: whoever is still silent then has not been given its time yet.
            self._braked_until = now + self._settle
        if self.storm and not before:
            await self._storm_begins(fleet, now)
        while self._unsent:
            await self._notify.send(self._unsent[0])
            self._unsent.pop(0)
        return False

    def braked(self) -> bool:
        """Whether silence proves nothing now."""
        return self._braked_until is not None and self._clock.now() < self._braked_until

    async def _fleet(self) -> Fleet:
        """Machines that are watched over a network; this one is not."""
        seen = [node for name, pool in sorted(self._executors.items()) if name != LOCAL for node in await pool.nodes()]
        return Fleet(nodes=len(seen), silent=sum(node.health is NodeHealth.SILENT for node in seen))

    async def _storm_begins(self, fleet: Fleet, now: datetime) -> None:
        self.counts["storms"] += 1
        log.error("%s; no run is given up meanwhile", self.storm)
        async with self._store.transaction() as tx:
            seen = {"nodes": fleet.nodes, "silent": fleet.silent}
            await self._tell_fleet(tx, SYSTEM, "fleet.storm", "fleet", "", seen, self.storm)
        text = "Nothing is killed or started again while it lasts. Look at the control plane's own network first."
        self._unsent.append(Notice(at=now, kind="fleet.storm", project="", title=self.storm, text=text))

    # ------------------------------------------------------------ hangs, lost nodes

    async def after_end(self, tx: Tx, run: Run, attempt: Attempt, seen: Observation | None) -> None:
        """Cordons the node that a hang is due to, or that is taken back. In the transaction that records the end."""
        taken = attempt.end_reason is EndReason.SPOT_RECLAIMED and seen is not None and seen.unfit_node
        if taken and seen is not None and "simulated" not in seen.message:
            hint = "ground nodes uncordon when it, or another of its name, is back"
            await self._cordons.cordon_in(tx, SYSTEM, attempt.pool, seen.unfit_node, seen.message, hint)
        if attempt.end_reason is not EndReason.HUNG or seen is None:
            return
        self.counts["hangs"] += 1
        named = watchdogs.suspect(seen.hangs)
        if named is None:
            return
        reason = f"{run.id} hung: {named.sentence}"
        hint = "look at its links, then ground nodes uncordon"
        await self._cordons.cordon_in(tx, SYSTEM, attempt.pool, named.node, reason, hint)

    async def nodes_for(self, run: Run, attempt: Attempt | None) -> int:
        """How many nodes it asks for next: fewer after a lost one, where its spec allows; 0 leaves it as it is."""
        need = run.spec.resources
        if not need.nodes_min or attempt is None or attempt.end_reason not in NODE_AT_FAULT:
            return 0
        cordoned = await self._cordons.of_pool(run.pool)
        try:
            nodes = await self._executors[run.pool].nodes()
        except Unavailable:
            return 0
        fit = sum(node.takes_work and node.name not in cordoned for node in nodes)
        return watchdogs.fewer_nodes(need.nodes, min(need.nodes_min, need.nodes), fit)

    # ------------------------------------------------------------ idling

    def idle_since(self, attempt: Attempt, seen: Observation, now: datetime) -> datetime | None:
        """Since when a run at work has done nothing, once that is long enough to tell somebody."""
        if seen.state != "running" or seen.active_at is None or now - seen.active_at < self._idle_notice:
            return None if seen.state != "unknown" else attempt.idle_since
        return attempt.idle_since or seen.active_at

    async def note_idle(self, tx: Tx, run: Run, attempt: Attempt, now: datetime) -> None:
        """Its idle clock begins: on the trail now, and its owner is told by the next `watch`."""
        self.counts["idle"] += 1
        words = watchdogs.idle_sentence(run, attempt, now)
        after = {"attempt": attempt.number, "idle_since": str(attempt.idle_since)}
        await self._tell_run(tx, SYSTEM, "run.idle", run.id, run.project, after, words)
        title = f"{run.name} ({run.id}) of {run.owner} idles"
        text = f"{words}. Checkpoints and outputs are kept when it is stopped: ground stop {run.id}"
        self._unsent.append(Notice(at=now, kind="run.idle", project=run.project, title=title, text=text))
