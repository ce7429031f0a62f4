"""One step of a run's life: load → observe → decide (`domain.lifecycle`) → act → commit if still ours.

Crash anywhere: an attempt is written down before it is started, starting is idempotent by attempt id, and a
commit fails when the row's version moved on. What was not committed is decided again from what is then true.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from groundplane.domain import ledger, lifecycle
from groundplane.domain.ledger import LedgerEntry
from groundplane.domain.order import Order
from groundplane.domain.provenance.circumstances import AttemptCircumstances
from groundplane.domain.queue import QueueEntry
from groundplane.domain.run import (
    Attempt,
    Checkpoint,
    EndReason,
    FoundCheckpoint,
    Observation,
    Run,
    RunStatus,
)
from groundplane.errors import Conflict, GroundError, IntegrityFailure, InvalidInput, NotFound, Refusal, Unavailable
from groundplane.identity import SYSTEM
from groundplane.ports import Clock, Executor, RunFiles, Store, Tx, Unplaced
from groundplane.services.audit_trail import Teller
from groundplane.services.checkpoints import Checkpoints
from groundplane.services.costs import Costs
from groundplane.services.inference import Inference
from groundplane.services.models import Models
from groundplane.services.needs import input_env, needed_ids
from groundplane.services.preflight import Preflight
from groundplane.services.seats import adopt_seat, requeue, take_seat
from groundplane.services.tracking import JobTracking
from groundplane.services.watchdogs import Watchdogs
from groundplane.units import format_usd

BILLING_PERIOD_S = 60.0
STARTING_PERIOD_S = 0.1
QUEUED_PERIOD_S = 60.0
log = logging.getLogger(__name__)


class Reconcile:
    """Carries a batch of claimed runs one step further each."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        executors: Mapping[str, Executor],
        costs: Costs,
        models: Models,
        files: RunFiles,
        period_s: float,
        wake: Callable[[], None] = lambda: None,
        preflight: Preflight | None = None,
        checkpoints: Checkpoints | None = None,
        watchdogs: Watchdogs | None = None,
        inference: Inference | None = None,
        tracking: JobTracking | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._tell = Teller(clock, "run")
        self._executors = executors
        self._costs = costs
        self._models = models
        self._files = files
        self._period_s = period_s
        self._wake = wake
        self._preflight = preflight
        self._checkpoints = checkpoints
        self._watchdogs = watchdogs
        self._inference = inference
        self._tracking = tracking

    async def step(self, runs: Sequence[Run]) -> None:
        """Observes each pool once for all its runs, then advances every run by itself."""
        newest, seats, posted = await self._load(runs)
        observed = await self._observe(runs, newest)
        calm: list[tuple[Run, datetime]] = []
        for run in runs:
            seen = observed.get(run.id)
            try:
                due = await self._advance(run, newest.get(run.id), seen, seats.get(run.id), posted.get(run.id, 0))
                if due is not None:
                    calm.append((run, due))
            except Conflict:
                # Somebody asked for something else meanwhile (a stop): that row is due at once and decided anew.
                log.info("%s changed while it was reconciled", run.id)
            except Unplaced as error:
                await self._give_back(run, error)
            except Unavailable as error:
                await self._postpone(run, error)
        await self._look_again(calm)

    async def _load(self, runs: Sequence[Run]) -> tuple[dict[str, Attempt], dict[str, QueueEntry], dict[str, int]]:
        """Each run's newest attempt, its place in the queue and what the ledger holds against it, by run."""
        ids = tuple(f"{run.id}-{run.attempt}" for run in runs if run.attempt > 0)
        async with self._store.transaction() as tx:
            attempts = await tx.find(Attempt, {"id": ids}) if ids else []
            every = tuple(run.id for run in runs)
            seats = await tx.find(QueueEntry, {"id": every}) if runs else []
            sums = await tx.total(LedgerEntry, "amount_microusd", by=("run_id",), where={"run_id": every})
        posted = {str(run_id): microusd for (run_id,), microusd in sums.items()}
        return {attempt.run_id: attempt for attempt in attempts}, {seat.id: seat for seat in seats}, posted

    async def _observe(self, runs: Sequence[Run], newest: Mapping[str, Attempt]) -> dict[str, Observation]:
        by_pool: dict[str, list[Attempt]] = defaultdict(list)
        for run in runs:
            attempt = newest.get(run.id)
            if attempt is not None and attempt.end_reason is None:
                by_pool[attempt.pool].append(attempt)
        found: dict[str, Observation] = {}
        for pool, attempts in by_pool.items():
            if pool not in self._executors:
                continue  # an unregistered pool is silent, and silence is not an end
            seen = await self._executors[pool].observe([attempt.id for attempt in attempts])
            found.update({attempt.run_id: seen[attempt.id] for attempt in attempts if attempt.id in seen})
        return found

    async def _advance(
        self, run: Run, attempt: Attempt | None, seen: Observation | None, seat: QueueEntry | None, posted: int
    ) -> datetime | None:
        """One run's step. When there was nothing to do: when to look again; else that is committed already."""
        now = self._clock.now()
        before = attempt
        if seen is not None and attempt is not None:
            if self._preflight is not None and self._preflight.staging is not None:
                self._preflight.staging.note(run, seen)
            if self._inference is not None:
                await self._inference.attend(run, attempt, seen)
            attempt = await self._record(run, attempt, seen, now)
        homeless = seat is None and attempt is not None and attempt.end_reason is None and attempt.node
        if attempt is not before or homeless:
            async with self._store.transaction() as tx:
                posted = (await tx.total(LedgerEntry, "amount_microusd", where={"run_id": run.id})).get((), 0)
                if homeless and attempt is not None:
                    await adopt_seat(tx, run, attempt, await tx.find(Attempt, {"run_id": run.id}, order="number"))
        braked = self._watchdogs is not None and self._watchdogs.braked()
        actions = lifecycle.next_actions(run, attempt, seen, seat=seat, posted_microusd=posted, now=now, braked=braked)
        for action in actions:
            match action:
                case lifecycle.Enqueue():
                    await self._enqueue(run, now)
                    return None
                case lifecycle.BeginAttempt(number):
                    run, attempt = await self._begin(run, number, now)
                    await self._start(run, attempt, seat)
                case lifecycle.StartAgain() if attempt is not None:
                    await self._start(run, attempt, seat)
                case lifecycle.NoteRunning():
                    run = replace(run, status=RunStatus.RUNNING, started_at=run.started_at or now, message="")
                case lifecycle.AskToStop(reason) if attempt is not None:
                    await self._executors[attempt.pool].stop(attempt.id, reason)
                    run = replace(run, status=RunStatus.STOPPING)
                case lifecycle.EndAttempt() as ended if attempt is not None:
                    if seen is not None and seen.state == "unknown":
                        await self._stop_the_rest(attempt, ended.reason)
                    attempt = await self._end_attempt(run, attempt, ended, now, seen)
                case lifecycle.TryAgain() as again:
                    await self._requeue(run, now, again, attempt)
                    return None
                case lifecycle.Finish() as finish:
                    await self._finish(run, attempt, finish)
                    return None
        if run.status is RunStatus.PENDING and not actions:
            # It waits in the queue, which makes it due when it has a place; only its end date comes by itself.
            return min(now + timedelta(seconds=QUEUED_PERIOD_S), run.end_date)
        starting = run.status in {RunStatus.PENDING, RunStatus.STARTING, RunStatus.STOPPING}
        if seen is not None and seen.staging is not None:
            starting = False  # data takes its time
        due = now + timedelta(seconds=STARTING_PERIOD_S if starting else self._period_s)
        if not actions:
            return due
        await self._commit(run, due)
        return None

    async def _stop_the_rest(self, attempt: Attempt, reason: EndReason) -> None:
        """Members of a gang whose nodes still answer must not go on beside what comes after it."""
        try:
            await self._executors[attempt.pool].stop(attempt.id, reason)
        except Unavailable as error:
            log.info("%s is given up; not every member heard of it: %s", attempt.id, error.message)

    async def _look_again(self, calm: Sequence[tuple[Run, datetime]]) -> None:
        """Gives back the rows of runs that needed nothing, in one transaction: most runs need nothing most times."""
        if not calm:
            return
        async with self._store.transaction() as tx:
            for run, due in calm:
                try:
                    await tx.update(replace(run, due_at=due, lease_owner="", lease_expires_at=None))
                except Conflict:
                    log.info("%s changed while it was reconciled", run.id)

    async def _begin(self, run: Run, number: int, now: datetime) -> tuple[Run, Attempt]:
        """The intent is durable before the side effect."""
        async with self._store.transaction() as tx:
            newest = await tx.find(Checkpoint, {"run_id": run.id}, order="-step", limit=1)
            attempt = Attempt(
                id=f"{run.id}-{number}",
                run_id=run.id,
                number=number,
                pool=run.pool,
                port=self._files.free_port() if run.endpoint else 0,
                resumed_from_step=newest[0].step if newest else None,
                created_at=now,
            )
            await tx.insert(attempt)
            run = await tx.update(replace(run, attempt=number, status=RunStatus.STARTING))
            after = {"attempt": number, "resume_step": attempt.resumed_from_step}
            await self._tell(tx, SYSTEM, "run.attempt", run.id, run.project, after)
        return run, attempt

    async def _enqueue(self, run: Run, now: datetime) -> None:
        async with self._store.transaction() as tx:
            attempts = await tx.find(Attempt, {"run_id": run.id}, order="number")
            if await take_seat(tx, run, attempts):
                after = {"pool": run.pool, "priority": run.spec.priority}
                await self._tell(tx, SYSTEM, "run.queue", run.id, run.project, after)
            due = min(now + timedelta(seconds=QUEUED_PERIOD_S), run.end_date)
            await tx.update(replace(run, due_at=due, lease_owner="", lease_expires_at=None))
        self._wake()

    async def _requeue(self, run: Run, now: datetime, again: lifecycle.TryAgain, attempt: Attempt | None) -> None:
        """Capacity is given back in the transaction that says it is not used any more."""
        nodes = await self._watchdogs.nodes_for(run, attempt) if self._watchdogs is not None else 0
        async with self._store.transaction() as tx:
            attempts = await tx.find(Attempt, {"run_id": run.id}, order="number")
            await requeue(tx, run, attempts, now, again, nodes)
            due = min(now + timedelta(seconds=again.after_s or QUEUED_PERIOD_S), run.end_date)
            await tx.update(replace(run, status=RunStatus.PENDING, due_at=due, lease_owner="", lease_expires_at=None))
            if again.preempted:
                after = {"because": EndReason.PREEMPTED.value}
                await self._tell(tx, SYSTEM, "run.requeue", run.id, run.project, after)
        self._wake()

    async def _start(self, run: Run, attempt: Attempt, seat: QueueEntry | None) -> None:
        executor = self._executors.get(run.pool)
        if executor is None:
            raise Unavailable(f"pool {run.pool} is not registered", "ground status lists the pools")
        async with self._store.transaction() as tx:
            attempts = tuple(await tx.find(Attempt, {"run_id": run.id}, order="number"))
        spec = run.spec
        order = Order(
            attempt_id=attempt.id,
            run_id=run.id,
            number=attempt.number,
            command=tuple(part.replace("{port}", str(attempt.port)) for part in spec.command)
            if run.endpoint
            else spec.command,
            workdir=spec.workdir,
            env=(self._tracking.environment(run) if self._tracking else {}) | spec.env | self._inputs(seat),
            checkpoint_dir=self._files.checkpoint_dir(run.id),
            output_dir=self._files.output_dir(run.id),
            cpus=spec.resources.cpus,
            memory_bytes=spec.resources.memory_bytes,
            accelerators=spec.resources.accelerators,
            max_duration_s=lifecycle.remaining_duration_s(run, attempts),
            idle_limit_s=spec.idle_limit_s,
            control_plane_gone_limit_s=spec.control_plane_gone_limit_s,
            stop_grace_s=spec.stop_grace_s,
            not_after=run.end_date,
            nodes=len(seat.placements) if seat is not None and seat.placements else spec.resources.nodes,
            hang_limit_s=spec.hang_limit_s,
            spot=spec.spot,
            placements=seat.placements if seat is not None else (),
            observe=bool(spec.outputs),
        )
        if self._inference is not None:
            await self._inference.prepare(run)
        if self._preflight is not None:
            order = await self._preflight.furnish(run, order)
        if self._inference is not None:
            order = await self._inference.furnish(run, order)
        if self._checkpoints is not None:
            await self._checkpoints.ready(run, order)
        await executor.start(order)
        async with self._store.transaction() as tx:
            await tx.update(replace(attempt, started=True, nodes=order.nodes))

    def _inputs(self, seat: QueueEntry | None) -> dict[str, str]:
        """What the runs it needs have left for it."""
        if seat is None:
            return {}
        return input_env(seat, {run_id: self._files.output_dir(run_id) for run_id in needed_ids(seat)})

    async def _record(self, run: Run, attempt: Attempt, seen: Observation, now: datetime) -> Attempt:
        """What the executor told: times, node, new checkpoints; and the money spent since the last entry."""
        updated = replace(
            attempt,
            node=seen.node or attempt.node,
            started=attempt.started or seen.state in {"running", "ended"},
            # The first that was told stays: bills count from it, and a gang tells that of its latest member.
            started_at=attempt.started_at or seen.started_at,
            ended_at=seen.ended_at or attempt.ended_at,
            idle_since=self._watchdogs.idle_since(attempt, seen, now) if self._watchdogs is not None else None,
            last_step=max((c.step for c in seen.checkpoints), default=attempt.last_step),
        )
        until = seen.ended_at or now
        since = updated.billed_until or updated.started_at
        due = since is not None and (seen.state == "ended" or (until - since).total_seconds() >= BILLING_PERIOD_S)
        new = [c for c in seen.checkpoints if attempt.last_step is None or c.step > attempt.last_step]
        if updated == attempt and not due and not new:
            return attempt
        around = await self._circumstances(run, attempt, updated, now)
        async with self._store.transaction() as tx:
            if around is not None:
                await tx.insert_once(around)
            if seen.energy_j is not None and seen.ended_at is not None:
                await _note_energy(tx, updated, seen)
            if self._preflight is not None and attempt.started_at is None:
                await self._preflight.note(tx, run, updated, seen)
            if self._watchdogs is not None and updated.idle_since is not None and attempt.idle_since is None:
                await self._watchdogs.note_idle(tx, run, updated, now)
            for found in new:
                await self._note_checkpoint(tx, run, updated, found, now)
            if due and since is not None and until > since:
                await self._bill(tx, run, updated, since, until, now)
                updated = replace(updated, billed_until=until)
            return await tx.update(updated) if updated != attempt else attempt

    async def _circumstances(
        self, run: Run, before: Attempt, attempt: Attempt, now: datetime
    ) -> AttemptCircumstances | None:
        """What its nodes saw before the command started, once, for runs that leave a model behind.

        A node that does not answer puts the step off: it is asked again, before the start is on record.
        """
        executor = self._executors.get(attempt.pool)
        if not run.spec.outputs or before.started_at is not None or attempt.started_at is None or executor is None:
            return None
        members = tuple(await executor.circumstances(attempt.id))
        return AttemptCircumstances(id=attempt.id, run_id=run.id, project=run.project, at=now, members=members)

    async def _note_checkpoint(self, tx: Tx, run: Run, attempt: Attempt, found: FoundCheckpoint, now: datetime) -> None:
        fresh = Checkpoint(
            id=f"{run.id}:{found.step}",
            run_id=run.id,
            attempt_id=attempt.id,
            step=found.step,
            path=found.path,
            size_bytes=found.size_bytes,
            found_at=now,
            metrics=found.metrics,
            project=run.project,
            node=attempt.node.partition(",")[0],
        )
        await tx.insert_once(self._checkpoints.wanting(run, fresh) if self._checkpoints is not None else fresh)

    async def _bill(self, tx: Tx, run: Run, attempt: Attempt, since: datetime, until: datetime, now: datetime) -> None:
        entry = ledger.compute_entry(run, attempt, since=since, until=until, now=now)
        await self._costs.post(tx, entry)

    async def _end_attempt(
        self,
        run: Run,
        attempt: Attempt,
        ended: lifecycle.EndAttempt,
        now: datetime,
        seen: Observation | None = None,
    ) -> Attempt:
        async with self._store.transaction() as tx:
            updated = await tx.update(
                replace(
                    attempt,
                    end_reason=ended.reason,
                    exit_code=ended.exit_code,
                    message=ended.message,
                    ended_at=attempt.ended_at or now,
                )
            )
            if self._watchdogs is not None:
                await self._watchdogs.after_end(tx, run, updated, seen)
            after = {"attempt": attempt.number, "reason": ended.reason.value}
            await self._tell(tx, SYSTEM, "run.attempt-ended", run.id, run.project, after)
            return updated

    async def _finish(self, run: Run, attempt: Attempt | None, finish: lifecycle.Finish) -> None:
        """Registers declared outputs of a success, closes the hold, and ends the run: the last in one transaction."""
        status, reason, message = finish.status, finish.reason, finish.message
        if status is RunStatus.SUCCEEDED and attempt is not None:
            try:
                registered = await self._register_outputs(run, attempt)
                registered += await self._inference.collect(run, attempt) if self._inference is not None else []
                message = f"{message} Registered {', '.join(registered)}." if registered else message
            except (InvalidInput, Refusal, NotFound, IntegrityFailure) as error:
                status, reason, message = RunStatus.FAILED, EndReason.OUTPUT_REFUSED, _one_line(error)
        if self._inference is not None:
            if status is RunStatus.FAILED:
                message = await self._inference.why_failed(run, attempt, message)
            await self._inference.release(run)
        now = self._clock.now()
        async with self._store.transaction() as tx:
            await self._costs.close(tx, run.hold_id)
            await tx.delete(QueueEntry, run.id)
            if self._tracking is not None:
                await self._tracking.end(tx, replace(run, status=status))
            over = await tx.update(
                replace(
                    run,
                    status=status,
                    end_reason=reason,
                    message=message,
                    # A short one is over before anybody saw it run.
                    started_at=run.started_at or (attempt.started_at if attempt is not None else None),
                    ended_at=now,
                    due_at=None,
                    lease_owner="",
                    lease_expires_at=None,
                )
            )
            spent = (await tx.total(LedgerEntry, "amount_microusd", where={"run_id": run.id})).get((), 0)
            after = {"status": status.value, "reason": reason.value, "cost": format_usd(spent)}
            await self._tell(tx, SYSTEM, "run.end", over.id, over.project, after)
        self._wake()
        if attempt is not None and attempt.pool in self._executors:
            await self._executors[attempt.pool].release(attempt.id)

    async def _register_outputs(self, run: Run, attempt: Attempt) -> list[str]:
        if not run.spec.outputs:
            return []
        async with self._store.transaction() as tx:
            attempts = await tx.find(Attempt, {"run_id": run.id}, order="number")
            spent = (await tx.total(LedgerEntry, "amount_microusd", where={"run_id": run.id})).get((), 0)
            metrics, params = await self._tracking.told(tx, run) if self._tracking is not None else ({}, {})
        # What ran on another machine left its files there.
        executor = self._executors.get(attempt.pool)
        if executor is not None:
            await executor.bring_outputs(attempt.id, run.id, Path(self._files.output_dir(run.id)))
        registered = []
        for output in run.spec.outputs:
            version = await self._models.register_run_output(
                run,
                tuple(attempts),
                output,
                self._files.output_path(run.id, output.path),
                metrics=metrics | self._files.metrics(run.id),
                cost_microusd=spent,
                hyperparameters=params | self._files.hyperparameters(run.id),
            )
            registered.append(version.id)
        return registered

    async def _commit(self, run: Run, due_at: datetime) -> None:
        async with self._store.transaction() as tx:
            await tx.update(replace(run, due_at=due_at, lease_owner="", lease_expires_at=None))

    async def _give_back(self, run: Run, error: Unplaced) -> None:
        """The nodes it was given can't take it: that attempt is over, unstarted, and the queue finds others."""
        log.warning("%s goes back into the queue: %s", run.id, error)
        now = self._clock.now()
        async with self._store.transaction() as tx:
            current = await tx.get(Run, run.id)
            attempt = await tx.get(Attempt, f"{run.id}-{current.attempt}") if current is not None else None
        if current is None or attempt is None or current.status.is_over or attempt.end_reason is not None:
            return
        await self._end_attempt(current, attempt, lifecycle.EndAttempt(EndReason.NOT_PLACED, None, error.message), now)
        await self._commit(current, now)  # what follows from that end is decided by the next step

    async def _postpone(self, run: Run, error: Unavailable) -> None:
        """A part we need does not answer: say so on the run and look again later; nothing is decided by silence."""
        log.warning("%s waits: %s", run.id, error)
        async with self._store.transaction() as tx:
            current = await tx.get(Run, run.id)
            if current is None or current.status.is_over:
                return
            due = self._clock.now() + timedelta(seconds=max(5.0, self._period_s))
            await tx.update(
                replace(current, message=_one_line(error), due_at=due, lease_owner="", lease_expires_at=None)
            )


async def _note_energy(tx: Tx, attempt: Attempt, seen: Observation) -> None:
    """What its accelerators took in all, beside its circumstances."""
    kept = await tx.get(AttemptCircumstances, attempt.id)
    if kept is not None and kept.energy_j is None:
        await tx.update(replace(kept, energy_j=seen.energy_j, energy_how=seen.energy_how))


def _one_line(error: GroundError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message
