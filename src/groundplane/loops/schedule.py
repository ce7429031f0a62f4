"""The schedule: every loop, how often it looks, and what it does. Level-triggered: each looks at what is due.

| loop      | period | does                                                              |
|-----------|--------|-------------------------------------------------------------------|
| runs      | 0.25 s | claims due runs and takes them one step further                     |
| queue     | 0.5 s  | a pass over each pool's queue: what starts, what gives way            |
| schedules | 1 s    | submits the jobs whose tick has come                                 |
| endpoints | 0.25 s | claims due endpoints and asks whether they answer                    |
| gateway   | 0.5 s  | takes usage into the ledger, reserves money ahead, publishes config  |
| budgets   | 5 s    | fires the thresholds that spending crossed                           |
| approvals | 1 s    | ends what waited too long, tells people of what waits and was decided  |
| beat      | 5 s    | tells runners that the control plane lives                           |
| sweep     | 60 s   | ends attempts that a pool knows and the database does not            |
| probe     | 10 s   | asks idle nodes for their chain of drivers, each once a while        |
| checkpoints | 1 s  | begins copies of checkpoints, takes away what need not be kept       |
| arrivals  | 1 s    | gives pushes that did not wait for it their SHA-256                    |
| data      | 0.5 s  | brings artifacts to nodes whose runs wait for them                    |
| watch     | 5 s    | counts silent nodes for the storm brake, tells owners of what idles    |
| alarms    | 5 s    | tells people what evaluations have raised                             |
| proofs    | 0.5 s  | takes resume proofs a step further                                    |
| lineage   | 1 s    | tells the OpenLineage receiver what happened since                    |
| predictions | 60 s | removes what is past its retention, converts hours that are over |
| storage   | 60 s   | re-reads a part of the artifact store, moves cold packs, collects; retentions |
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import Generic, TypeVar

from groundplane.domain.approval import Approval
from groundplane.domain.endpoint import Endpoint
from groundplane.domain.queue import Schedule
from groundplane.domain.run import Attempt, EndReason, Observation, Run
from groundplane.errors import Conflict, Unavailable
from groundplane.identity import SYSTEM
from groundplane.loops.worker import Loop, run_loop
from groundplane.ports import Executor
from groundplane.wiring import App

log = logging.getLogger(__name__)
CLAIM_LIMIT = 64
COLLECT_GRACE_S = 3600.0
LOOKS_BEFORE_REST, REST_S = 12, 1.0
Claimed = TypeVar("Claimed", Run, Endpoint, Approval, Schedule)


def schedule(app: App) -> tuple[Loop, ...]:
    """The table above, bound to an app."""

    due_runs, due_endpoints = _Due(app, Run), _Due(app, Endpoint)

    async def runs() -> bool:
        claimed = await due_runs.claim()
        if claimed:
            await app.reconcile.step(claimed)
        return len(claimed) == CLAIM_LIMIT

    async def queue() -> bool:
        return await app.queue.step() > 0

    async def schedules() -> bool:
        for kept in await _claim(app, Schedule):
            try:
                await app.schedules.step(kept)
            except Conflict:
                log.info("schedule %s changed while it was looked at", kept.id)
        return False

    async def endpoints() -> bool:
        for endpoint in await due_endpoints.claim():
            try:
                await app.endpoints.step(endpoint)
            except Conflict:
                log.info("endpoint %s changed while it was looked at", endpoint.id)
        return False

    async def gateway() -> bool:
        await app.gateway_config.refresh()
        return False

    async def budgets() -> bool:
        await app.costs.budget_actions()
        return False

    async def approvals() -> bool:
        for approval in await _claim(app, Approval):
            try:
                await app.approvals.step(approval)
            except Conflict:
                log.info("approval %s changed while it was looked at", approval.id)
        return False

    async def beat() -> bool:
        answers = await asyncio.gather(*(each.beat() for each in app.executors.values()), return_exceptions=True)
        for answer in answers:  # a pool that can't be told must not keep the others from hearing it
            if isinstance(answer, BaseException):
                raise answer
        return False

    async def sweep() -> bool:
        await end_orphans(app)
        return False

    async def data() -> bool:
        return await app.staging.bring()

    return (
        Loop(name="runs", period_s=0.25, step=runs, wakeable=True),
        Loop(name="queue", period_s=0.5, step=queue, wakeable=True),
        Loop(name="schedules", period_s=1.0, step=schedules),
        Loop(name="endpoints", period_s=0.25, step=endpoints, wakeable=True),
        Loop(name="gateway", period_s=0.5, step=gateway, wakeable=True),
        Loop(name="budgets", period_s=5.0, step=budgets),
        Loop(name="approvals", period_s=1.0, step=approvals),
        Loop(name="beat", period_s=5.0, step=beat),
        Loop(name="sweep", period_s=60.0, step=sweep),
        Loop(name="data", period_s=0.5, step=data),
        *_upkeep(app),
    )


def _upkeep(app: App) -> tuple[Loop, ...]:
    """What looks after nodes, checkpoints and the store: none of it waits for a wake-up."""

    async def probe() -> bool:
        await app.preflight.probe_idle()
        return False

    async def watch() -> bool:
        return await app.watchdogs.watch()

    async def alarms() -> bool:
        await app.evaluations.send_alarms()
        return False

    async def proofs() -> bool:
        return await app.proofs.step()

    async def lineage() -> bool:
        return await app.lineage.step()

    async def arrivals() -> bool:
        await app.artifacts.arriving.step()
        return False

    async def checkpoints() -> bool:
        return await app.checkpoints.step()

    async def predictions() -> bool:
        await app.predictions.upkeep()
        return False

    async def storage() -> bool:
        await app.retention.sweep()
        await keep_storage(app)
        return False

    return (
        Loop(name="probe", period_s=min(10.0, app.settings.preflight_idle_s), step=probe),
        Loop(name="watch", period_s=5.0, step=watch),
        Loop(name="alarms", period_s=5.0, step=alarms),
        Loop(name="proofs", period_s=0.5, step=proofs),
        Loop(name="lineage", period_s=1.0, step=lineage),
        Loop(name="arrivals", period_s=1.0, step=arrivals),
        Loop(name="checkpoints", period_s=1.0, step=checkpoints),
        Loop(name="predictions", period_s=60.0, step=predictions),
        Loop(name="storage", period_s=60.0, step=storage),
    )


async def run_forever(app: App, stop: asyncio.Event) -> None:
    """Runs every loop until `stop` is set, then lets steps under way finish."""
    await release_own_leases(app)
    loops = schedule(app)
    app.loops = loops
    app.on_wake(lambda: [loop.wake.set() for loop in loops if loop.wakeable])
    await asyncio.gather(*(run_loop(loop, stop) for loop in loops))


async def release_own_leases(app: App) -> None:
    """What this installation's last process had claimed when it died is due again at once.

    Only one control plane runs on a home, so nobody else can hold a lease under its name.
    """
    for kind in (Run, Endpoint, Approval, Schedule):
        async with app.store.transaction() as tx:
            for row in await tx.find(kind, {"lease_owner": app.lease_owner}):
                await tx.update(replace(row, lease_owner="", lease_expires_at=None))


async def end_orphans(app: App) -> None:
    """Stops and forgets attempts that a pool knows and that the database never wrote down or has ended."""
    for pool, executor in app.executors.items():
        try:
            known = await executor.attempts()
        except Unavailable as error:
            log.warning("pool %s is not swept: %s", pool, error)
            continue
        if not known:
            continue
        async with app.store.transaction() as tx:
            rows = {row.id: row for row in await tx.find(Attempt, {"id": tuple(known)})}
        # Rows are read after the pool was asked, and written before it is: what has none was ordered by nobody.
        observed = await executor.observe(known)
        for attempt_id in known:
            row = rows.get(attempt_id)
            if row is not None and row.end_reason is None:
                continue
            try:
                await _end_orphan(executor, pool, observed[attempt_id])
            except (Conflict, Unavailable) as error:
                # One that can't be ended now must not keep the others: the next sweep comes to it again.
                log.warning("pool %s keeps %s for now: %s", pool, attempt_id, error)


async def _end_orphan(executor: Executor, pool: str, seen: Observation) -> None:
    """One that nobody ordered, or whose run went on without it: stopped first, forgotten once it has ended."""
    if seen.state in {"starting", "running", "unknown"}:
        log.warning("pool %s has %s, which belongs to no run at work: stopping it", pool, seen.attempt_id)
        await executor.stop(seen.attempt_id, EndReason.STOPPED_BY_USER)
    else:
        await executor.release(seen.attempt_id)


class _Due(Generic[Claimed]):
    """Claims often while there is something to claim; else when something was written, and once a second.

    A look costs a transaction, which an installation where nothing runs would pay four times a second, for ever.
    """

    def __init__(self, app: App, kind: type[Claimed]) -> None:
        self._app, self._kind = app, kind
        self._looks_for_nothing = 0
        self._seen_writes, self._look_at_s = -1, 0.0

    async def claim(self) -> list[Claimed]:
        writes, now_s = self._app.store.writes, time.monotonic()
        resting = self._looks_for_nothing >= LOOKS_BEFORE_REST
        if resting and writes == self._seen_writes and now_s < self._look_at_s:
            return []
        found = await _claim(self._app, self._kind)
        self._looks_for_nothing = 0 if found else self._looks_for_nothing + 1
        self._seen_writes, self._look_at_s = writes, now_s + REST_S
        return found


async def _claim(app: App, kind: type[Claimed]) -> list[Claimed]:
    async with app.store.transaction() as tx:
        return await tx.claim(
            kind, now=app.clock.now(), owner=app.lease_owner, lease_s=app.settings.lease_s, limit=CLAIM_LIMIT
        )


async def keep_storage(app: App) -> None:
    """A stretch of the scrub; what is cold moves; a collection when its period is over, where it is switched on."""
    settings = app.settings
    if settings.store_scrub_bytes:
        report = await app.artifacts.scrub_some(settings.store_scrub_bytes)
        for found in report.damage:
            spot = found.spot
            log.error("artifact store: pack %s is damaged (%s); used by %s", spot.pack, spot.why, found.used_by)
    if settings.store_cold:
        await app.artifacts.cool(settings.store_cold_after_s)
    if settings.store_collect_period_s and app.artifacts.collection_is_due(settings.store_collect_period_s):
        await app.artifacts.collect(SYSTEM, grace_s=COLLECT_GRACE_S)
