"""Runs as people use them: submit, list, explain, stop, read logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from groundplane.domain import admission, lifecycle, preflight, watchdogs
from groundplane.domain.access import Project
from groundplane.domain.approval import refusal
from groundplane.domain.dataset import run_edges
from groundplane.domain.ledger import LedgerEntry
from groundplane.domain.lifecycle import Explanation
from groundplane.domain.order import LogChunk, Sample
from groundplane.domain.planning.plan import Plan, PlanStatus
from groundplane.domain.preflight import PreflightReport
from groundplane.domain.run import Attempt, Checkpoint, EndReason, Run, RunStatus
from groundplane.domain.spec import JobSpec
from groundplane.errors import Conflict, InvalidInput, NotFound, Refusal, Refused, Unavailable
from groundplane.identity import Actor
from groundplane.ports import Clock, Executor, Ids, Store, Tx
from groundplane.services.approvals import Approvals
from groundplane.services.audit_trail import Teller
from groundplane.services.costs import Costs
from groundplane.services.needs import find_circle
from groundplane.services.plans import Plans
from groundplane.services.staging import Staging
from groundplane.services.standing import Standing


class Runs:
    """Use cases over runs. `wake` tells the loops that a row became due; missing it costs latency only."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        ids: Ids,
        plans: Plans,
        approvals: Approvals,
        costs: Costs,
        executors: Mapping[str, Executor],
        wake: Callable[[], None],
        standing: Standing | None = None,
        staging: Staging | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._tell = Teller(clock, "run")
        self._ids = ids
        self._plans = plans
        self._approvals = approvals
        self._costs = costs
        self._executors = executors
        self._wake = wake
        self._standing = standing
        self._staging = staging

    async def submit(self, actor: Actor, plan_id: str, *, idempotency_key: str = "") -> Run:
        """Admits a job plan: hold and run in one transaction. Raises Refusal, ApprovalNeeded, NotFound, InvalidInput.

        The same idempotency key from the same project gives the run it gave the first time.
        """
        plan = await self._plans.get(actor, plan_id)
        if plan.job is None:
            raise InvalidInput(f"{plan_id} plans an endpoint, not a job", "ground apply deploys it")
        async with self._store.transaction() as tx:
            if first := await self._first(tx, plan.project, idempotency_key):
                return first
        changes = tuple(await self._plans.recheck(plan))
        async with self._store.transaction() as tx:
            if idempotency_key:
                # Who sends it again may not have waited for the first answer: those of a project take turns here.
                await tx.get(Project, plan.project, lock=True)
            if first := await self._first(tx, plan.project, idempotency_key):
                return first
            run = await self.admit(tx, actor, plan, plan.job, changes, idempotency_key=idempotency_key)
        self._wake()
        return run

    async def admit(
        self,
        tx: Tx,
        actor: Actor,
        plan: Plan,
        job: JobSpec,
        changes: tuple[Refused, ...],
        *,
        endpoint: str = "",
        idempotency_key: str = "",
    ) -> Run:
        """Inside a caller's transaction: the plan is taken once, its worst case held, its run written down."""
        locked = await tx.get(Plan, plan.id, lock=True)
        if locked is None:
            raise NotFound(f"plan {plan.id} is gone", "make a new one: ground plan -f SPEC")
        if refused := (*admission.refusals(locked, changes), *await self._approvals.refusals(tx, locked)):
            raise refusal(refused)
        now = self._clock.now()
        run_id = self._ids.new("run")
        hold = await self._costs.hold(
            tx, project=plan.project, subject=f"run/{run_id}", amount_microusd=plan.worst_case_microusd
        )
        if isinstance(hold, Refused):
            raise Refusal([hold])
        # The hold has locked the project's budget: of two that would need each other, the second is seen here.
        if job.needs and (names := await find_circle(tx, plan.project, job, now)):
            raise Refusal([admission.needs_itself(names)])
        run = admission.admit(
            plan,
            job,
            run_id=run_id,
            hold_id=hold.id,
            created_by=actor.name,
            now=now,
            endpoint=endpoint,
            idempotency_key=idempotency_key,
        )
        await tx.insert(run)
        await tx.insert_many_once(run_edges(run.id, run.project, run.spec.data, run.created_at))
        await tx.update(replace(locked, status=PlanStatus.APPLIED, applied_to=endpoint or run_id))
        await self._approvals.used(tx, locked)
        after = {"plan": plan.id, "held_microusd": hold.amount_microusd, "spec_digest": plan.spec_digest}
        await self._tell(tx, actor, "run.submit", run_id, plan.project, after)
        return run

    async def runs(
        self, actor: Actor, *, project: str | None = None, status: str | None = None, limit: int = 100
    ) -> list[Run]:
        """Newest first. `status` is a RunStatus or `active` for every run that is not over."""
        where: dict[str, object] = {}
        if project is not None:
            where["project"] = project
        elif actor.project is not None and not actor.sees(""):
            where["project"] = actor.project
        if status == "active":
            where["status"] = tuple(s for s in RunStatus if not s.is_over)
        elif status is not None:
            if status not in set(RunStatus):
                known = ", ".join(["active", *RunStatus])
                raise InvalidInput(f"unknown run status {status!r}", f"one of: {known}")
            where["status"] = RunStatus(status)
        if project is not None and not actor.sees(project):
            return []
        async with self._store.transaction() as tx:
            found = await tx.find(Run, where, order="-created_at", limit=limit)
        return [self._told(run) for run in found]

    async def get(self, actor: Actor, run_id: str) -> Run:
        """Raises NotFound for a run that does not exist or belongs to a project the actor doesn't see."""
        async with self._store.transaction() as tx:
            return self._told(await self._visible(tx, actor, run_id))

    def _told(self, run: Run) -> Run:
        return self._staging.told(run) if self._staging is not None else run

    async def attempts(self, actor: Actor, run_id: str) -> list[Attempt]:
        """The run's attempts, first to last."""
        async with self._store.transaction() as tx:
            await self._visible(tx, actor, run_id)
            return await tx.find(Attempt, {"run_id": run_id}, order="number")

    async def checkpoints(self, actor: Actor, run_id: str) -> list[Checkpoint]:
        """The run's complete checkpoints by step."""
        async with self._store.transaction() as tx:
            await self._visible(tx, actor, run_id)
            return await tx.find(Checkpoint, {"run_id": run_id}, order="step")

    async def explain(self, actor: Actor, run_id: str) -> Explanation:
        """One sentence: where the run is and why; then its attempts and cost."""
        async with self._store.transaction() as tx:
            run = await self._visible(tx, actor, run_id)
            attempts = await tx.find(Attempt, {"run_id": run_id}, order="number")
            posted = await tx.total(LedgerEntry, "amount_microusd", where={"run_id": run_id})
            reports = await self._reports(tx, attempts)
            saved = await tx.find(Checkpoint, {"run_id": run_id}, order="step")
        now = self._clock.now()
        told = lifecycle.explain(run, tuple(attempts), posted_microusd=posted.get((), 0), now=now)
        if run.status is RunStatus.PENDING and run.stop_requested is None and self._standing is not None:
            story = await self._standing.story(run)
            if story is not None:
                told = replace(told, sentence=story.sentence(now), lines=(*story.blockers, *told.lines))
        if silent := await self._silence(run, attempts, now):
            told = replace(told, sentence=silent)
        run = self._told(run)
        waits = [run.message] if run.message and not run.status.is_over else []
        watched = watchdogs.lines(run, attempts, saved, now)
        return replace(told, lines=(*waits, *watched, *told.lines, *preflight.lines_of(reports)))

    async def _silence(self, run: Run, attempts: Sequence[Attempt], now: datetime) -> str:
        """What a run at work waits for when its node does not answer now; empty when it does."""
        executor = self._executors.get(run.pool)
        if run.status.is_over or executor is None or not attempts or attempts[-1].end_reason is not None:
            return ""
        try:
            seen = (await executor.observe([attempts[-1].id]))[attempts[-1].id]
        except Unavailable:
            return ""
        return lifecycle.waits_for_node(run, attempts[-1], seen, now)

    async def preflight(self, actor: Actor, run_id: str) -> list[PreflightReport]:
        """What the nodes answered before each attempt, first to last."""
        async with self._store.transaction() as tx:
            await self._visible(tx, actor, run_id)
            return await self._reports(tx, await tx.find(Attempt, {"run_id": run_id}, order="number"))

    async def _reports(self, tx: Tx, attempts: Sequence[Attempt]) -> list[PreflightReport]:
        subjects = tuple(attempt.id for attempt in attempts)
        return await tx.find(PreflightReport, {"subject": subjects}, order="at") if subjects else []

    async def stop(
        self, actor: Actor, run_id: str, reason: str = "", *, because: EndReason = EndReason.STOPPED_BY_USER
    ) -> Run:
        """Asks for the end; its reconcile carries it out. Stopping a run that is over or stopping changes nothing."""
        async with self._store.transaction() as tx:
            run = await self._visible(tx, actor, run_id)
            if run.status.is_over or run.stop_requested is not None:
                return run
            if run.endpoint and because is EndReason.STOPPED_BY_USER:
                raise Conflict(
                    f"{run_id} serves endpoint {run.endpoint}, which would start it again",
                    f"ground stop {run.endpoint}",
                )
            now = self._clock.now()
            # Giving up the lease is safe: a reconcile under way fails its commit on the new version.
            stopped = await tx.update(
                replace(
                    run,
                    stop_requested=because,
                    status=RunStatus.STOPPING,
                    due_at=now,
                    lease_owner="",
                    lease_expires_at=None,
                )
            )
            before = {"status": run.status.value}
            after = {"status": RunStatus.STOPPING.value, "because": because.value}
            await self._tell(tx, actor, "run.stop", run_id, run.project, after, reason, before=before)
        self._wake()
        return stopped

    async def log(
        self, actor: Actor, run_id: str, *, offset: int, limit_bytes: int, attempt: int | None = None, rank: int = 0
    ) -> tuple[LogChunk, int]:
        """A piece of one member's log in one attempt (the newest by default) and that attempt's number.

        `complete` is set once the attempt has ended and everything was read.
        """
        run = await self.get(actor, run_id)
        number = attempt or run.attempt
        if number < 1 or number > run.attempt:
            if attempt:
                raise NotFound(f"{run_id} has no attempt {number}", f"it has {run.attempt} so far")
            return LogChunk(data=b"", offset=0, next_offset=0, complete=run.status.is_over), 0
        members = run.spec.resources.nodes
        if rank >= members:
            raise NotFound(f"{run_id} has no rank {rank}", f"its ranks are 0 to {members - 1}")
        chunk = await self._executor(run).log(f"{run_id}-{number}", offset, limit_bytes, rank)
        return chunk, number

    async def samples(self, actor: Actor, run_id: str, limit: int = 120) -> list[Sample]:
        """The newest measurements of the newest attempt, oldest first."""
        run = await self.get(actor, run_id)
        if run.attempt == 0:
            return []
        return await self._executor(run).samples(f"{run_id}-{run.attempt}", limit)

    def _executor(self, run: Run) -> Executor:
        try:
            return self._executors[run.pool]
        except KeyError:
            raise NotFound(f"pool {run.pool} is not registered any more", "ground status lists the pools") from None

    async def _visible(self, tx: Tx, actor: Actor, run_id: str) -> Run:
        run = await tx.get(Run, run_id)
        if run is None or not actor.sees(run.project):
            raise NotFound(f"no run {run_id}", "ground ps lists the runs you can see")
        return run

    async def _first(self, tx: Tx, project: str, idempotency_key: str) -> Run | None:
        """The run that this key began, if any."""
        if not idempotency_key:
            return None
        found = await tx.find(Run, {"project": project, "idempotency_key": idempotency_key}, limit=1)
        return found[0] if found else None
