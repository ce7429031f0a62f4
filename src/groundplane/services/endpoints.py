"""Endpoints: a verified model version behind a served name, kept ready, restarted, stopped.

An endpoint owns one run (its replica). The run's own reconcile starts, bills and restarts it; this one only
asks whether it answers a real prompt, and says where the gateway finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from groundplane.domain.dataset import edge
from groundplane.domain.endpoint import Endpoint, EndpointStatus
from groundplane.domain.planning.plan import Plan
from groundplane.domain.provenance.required_facts import Stage
from groundplane.domain.run import Attempt, EndReason, Run, RunStatus
from groundplane.domain.spec import EndpointSpec, JobSpec, Retry
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, NotFound, Unavailable
from groundplane.identity import SYSTEM, Actor
from groundplane.ports import Clock, ModelServer, RunFiles, Store, Tx
from groundplane.services.approvals import Approvals
from groundplane.services.audit_trail import Teller
from groundplane.services.models import Models
from groundplane.services.plans import Plans
from groundplane.services.runs import Runs
from groundplane.units import format_duration

READY_CHECK_PERIOD_S = 0.3
REPLICA_ATTEMPTS = 10
LAST_WORDS_BYTES = 65_536


class Endpoints:
    """Use cases over endpoints, and the step their loop takes."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        plans: Plans,
        approvals: Approvals,
        runs: Runs,
        models: Models,
        engines: Mapping[str, ModelServer],
        files: RunFiles,
        period_s: float,
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._tell = Teller(clock, "endpoint")
        self._plans = plans
        self._approvals = approvals
        self._runs = runs
        self._models = models
        self._engines = engines
        self._files = files
        self._period_s = period_s
        self._wake = wake

    async def deploy(self, actor: Actor, plan_id: str) -> Endpoint:
        """Verifies the version, lays it out, then admits the replica and the endpoint in one transaction.

        Raises IntegrityFailure for a version that is not what was signed, Conflict while the name is in use.
        """
        plan = await self._plans.get(actor, plan_id)
        if plan.endpoint is None:
            raise InvalidInput(f"{plan_id} plans a job, not an endpoint", "ground apply runs it")
        spec = plan.endpoint
        engine = self._engine(spec)
        await self._approvals.require(plan)  # before gigabytes are verified and laid out; `admit` asks again
        changes = tuple(await self._plans.recheck(plan))
        version = await self._models.get(actor, spec.model)
        checked = await self._models.verify(actor, version.id)
        if not checked.ok:
            raise IntegrityFailure(
                f"{version.id} is not what was signed: {checked.problems[0]}",
                f"ground models verify {version.id} lists every problem; register it anew",
            )
        await self._models.demand_facts(version, Stage.DEPLOY)
        directory = await self._models.materialise(version.id, self._files.model_dir(version.id))
        name = spec.metadata.name
        command = engine.command(
            model_dir=directory,
            name=name,
            port="{port}",
            threads=max(1, int(spec.resources.cpus)),
            cache_dir=self._files.engine_cache(),
        )
        now = self._clock.now()
        async with self._store.transaction() as tx:
            old = await tx.get(Endpoint, name, lock=True)
            if old is not None and old.status not in {EndpointStatus.STOPPED, EndpointStatus.FAILED}:
                raise Conflict(f"endpoint {name} is {old.status}", f"ground stop {name}, then apply again")
            if old is not None and old.project != plan.project:
                raise Conflict(f"the name {name} belongs to another project", "choose another name")
            run = await self._runs.admit(tx, actor, plan, _replica(spec, command), changes, endpoint=name)
            endpoint = _endpoint(plan, spec, version.id, run.id, actor, now, old)
            if old is None:
                await tx.insert(endpoint)
            else:
                endpoint = await tx.update(endpoint)
            made = edge(f"model:{version.id}", f"endpoint:{name}", plan.project, now)
            await tx.insert_many_once([made])
            after = {"model": version.id, "revision": endpoint.revision}
            await self._tell(tx, actor, "endpoint.deploy", endpoint.id, endpoint.project, after)
        self._wake()
        return endpoint

    async def endpoints(self, actor: Actor, project: str | None = None) -> list[Endpoint]:
        """By name; only those of projects the actor sees."""
        where = {"project": project} if project is not None else None
        async with self._store.transaction() as tx:
            return [e for e in await tx.find(Endpoint, where, order="id") if actor.sees(e.project)]

    async def get(self, actor: Actor, name: str) -> Endpoint:
        """Raises NotFound."""
        async with self._store.transaction() as tx:
            return await self._visible(tx, actor, name)

    async def stop(self, actor: Actor, name: str, reason: str = "") -> Endpoint:
        """Takes the name out of the gateway and ends its replica. Twice is the same as once."""
        async with self._store.transaction() as tx:
            endpoint = await self._visible(tx, actor, name)
            if endpoint.stop_requested or endpoint.status is EndpointStatus.STOPPED:
                return endpoint
            now = self._clock.now()
            stopped = await tx.update(
                replace(
                    endpoint,
                    stop_requested=True,
                    status=EndpointStatus.STOPPING,
                    base_url="",
                    due_at=now,
                    lease_owner="",
                    lease_expires_at=None,
                )
            )
            after = {"status": stopped.status.value}
            await self._tell(tx, actor, "endpoint.stop", stopped.id, stopped.project, after, reason)
        self._wake()
        return stopped

    async def step(self, endpoint: Endpoint) -> None:
        """One look at one claimed endpoint: follow its run, ask whether it answers, say where it is."""
        async with self._store.transaction() as tx:
            run = await tx.get(Run, endpoint.run_id)
            attempt = await tx.get(Attempt, f"{endpoint.run_id}-{run.attempt}") if run else None
        now = self._clock.now()
        if run is None or run.status.is_over:
            await self._over(endpoint, run, now)
        elif endpoint.stop_requested:
            await self._runs.stop(SYSTEM, run.id, f"endpoint {endpoint.id} stopped", because=EndReason.ENDPOINT_STOPPED)
            await self._commit(endpoint, now, READY_CHECK_PERIOD_S)
        elif run.status is not RunStatus.RUNNING or attempt is None:
            # What is being stopped has its reason on the endpoint already: the run would only say that it stops.
            why = endpoint.message if run.status is RunStatus.STOPPING else run.message
            if run.status is RunStatus.PENDING:
                why = why or f"{run.id} waits for its turn: ground explain {run.id}"
            waiting = replace(endpoint, status=EndpointStatus.DEPLOYING, base_url="", message=why)
            await self._commit(waiting, now, READY_CHECK_PERIOD_S)
        else:
            await self._follow(endpoint, attempt, now)

    async def _follow(self, endpoint: Endpoint, attempt: Attempt, now: datetime) -> None:
        url = f"http://127.0.0.1:{attempt.port}"
        if endpoint.status is EndpointStatus.READY and endpoint.base_url == url:
            await self._commit(endpoint, now, self._period_s)
            return
        readiness = await self._engine(endpoint.spec).ready(url, endpoint.id)
        if readiness.ok and not await self._may_load(endpoint, attempt, now):
            return
        if readiness.ok:
            ready = replace(
                endpoint,
                status=EndpointStatus.READY,
                base_url=url,
                ready_at=now,
                message=f"answered a test prompt in {readiness.latency_s or 0:.2f} s",
            )
            await self._commit(ready, now, self._period_s, event="endpoint.ready")
            return
        waited_s = (now - (attempt.started_at or attempt.created_at)).total_seconds()
        if waited_s > endpoint.spec.ready_timeout_s:
            limit = format_duration(endpoint.spec.ready_timeout_s)
            await self._runs.stop(SYSTEM, attempt.run_id, "never ready", because=EndReason.NEVER_READY)
            failed = replace(endpoint, message=f"did not answer a test prompt within {limit}: {readiness.detail}")
            await self._commit(failed, now, READY_CHECK_PERIOD_S)
            return
        waiting = replace(endpoint, status=EndpointStatus.DEPLOYING, base_url="", message=readiness.detail)
        await self._commit(waiting, now, READY_CHECK_PERIOD_S)

    async def _may_load(self, endpoint: Endpoint, attempt: Attempt, now: datetime) -> bool:
        """Whether every required fact is still known; else its replica ends before it answers anybody."""
        version = await self._models.get(SYSTEM, endpoint.model_version)
        missing = await self._models.missing_facts(version, Stage.LOAD)
        if not missing:
            return True
        await self._runs.stop(SYSTEM, attempt.run_id, "a required fact is missing", because=EndReason.NEVER_READY)
        why = "; ".join(f"{each.fact}: {each.have} ({each.supply})" for each in missing)
        text = f"project {version.project} requires facts that {version.id} lacks: {why}"
        await self._commit(replace(endpoint, message=text), now, READY_CHECK_PERIOD_S)
        return False

    async def _over(self, endpoint: Endpoint, run: Run | None, now: datetime) -> None:
        why = run.message if run is not None else "its run is gone"
        status = EndpointStatus.STOPPED if endpoint.stop_requested else EndpointStatus.FAILED
        if run is not None and run.end_reason is EndReason.NEVER_READY:
            why = endpoint.message or why
        elif run is not None and run.end_reason is EndReason.COMMAND_FAILED:
            why = ": ".join(filter(None, (why, await self._last_words(run))))
        over = replace(endpoint, status=status, base_url="", message=why)
        await self._commit(over, now, None, event=f"endpoint.{status.value}")

    async def _last_words(self, run: Run) -> str:
        """Why an engine ended, as its log has it in the end. "" for a long log, and where nobody can read it now."""
        try:
            chunk, _ = await self._runs.log(SYSTEM, run.id, offset=0, limit_bytes=LAST_WORDS_BYTES)
        except (NotFound, Unavailable):
            return ""
        text = chunk.data.decode(errors="replace").strip() if chunk.complete else ""
        said = text.rpartition("error: ")[2].replace("\nhint: ", "; ").splitlines()
        return said[-1][:300] if said else ""

    async def _commit(self, endpoint: Endpoint, now: datetime, again_in_s: float | None, *, event: str = "") -> None:
        due = now + timedelta(seconds=again_in_s) if again_in_s is not None else None
        async with self._store.transaction() as tx:
            updated = await tx.update(replace(endpoint, due_at=due, lease_owner="", lease_expires_at=None))
            if event:
                after = {"status": updated.status.value, "message": updated.message}
                await self._tell(tx, SYSTEM, event, updated.id, updated.project, after)
        if event:
            self._wake()

    def _engine(self, spec: EndpointSpec) -> ModelServer:
        engine = self._engines.get(spec.engine)
        if engine is None:
            raise InvalidInput(f"unknown engine {spec.engine!r}", f"known engines: {', '.join(sorted(self._engines))}")
        if reason := engine.unavailable():
            raise Unavailable(f"engine {spec.engine} can't be used here: {reason}", "pip install 'groundplane[engine]'")
        return engine

    async def _visible(self, tx: Tx, actor: Actor, name: str) -> Endpoint:
        endpoint = await tx.get(Endpoint, name)
        if endpoint is None or not actor.sees(endpoint.project):
            raise NotFound(f"no endpoint {name}", "ground endpoints lists those you can see")
        return endpoint


def _replica(spec: EndpointSpec, command: tuple[str, ...]) -> JobSpec:
    return JobSpec(
        metadata=spec.metadata,
        command=command,
        resources=spec.resources,
        end_date=spec.end_date,
        max_cost_microusd=spec.max_cost_microusd,
        max_duration_s=spec.max_duration_s,
        env={"OMP_NUM_THREADS": str(max(1, int(spec.resources.cpus)))},
        pool=spec.pool,
        # A replica that dies is started again; one that can't live stops costing after a few tries.
        retry=Retry(max_attempts=REPLICA_ATTEMPTS),
    )


def _endpoint(
    plan: Plan, spec: EndpointSpec, version_id: str, run_id: str, actor: Actor, now: datetime, old: Endpoint | None
) -> Endpoint:
    return Endpoint(
        id=spec.metadata.name,
        project=plan.project,
        owner=plan.owner,
        cost_center=spec.metadata.cost_center,
        spec=spec,
        model_version=version_id,
        revision=old.revision + 1 if old else 1,
        run_id=run_id,
        created_by=actor.name,
        created_at=now,
        end_date=spec.end_date,
        due_at=now,
        version=old.version if old else 0,
    )
