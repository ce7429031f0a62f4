"""Preflight: what an order asks of its node before the start, what the node answered, and nodes asked while they idle.

The checks run on the node, inside the attempt: nothing here stands between a crash and the truth.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from groundplane.domain import isolation as walls
from groundplane.domain import preflight
from groundplane.domain.hardware import Hardware
from groundplane.domain.isolation import Isolation, IsolationPolicy, JobIsolation
from groundplane.domain.node import Node
from groundplane.domain.order import Order
from groundplane.domain.preflight import CheckResult, CheckStatus, PreflightNeed, PreflightReport
from groundplane.domain.run import Attempt, EndReason, Observation, Run
from groundplane.domain.spec import JobSpec
from groundplane.domain.spec.parse import parse
from groundplane.domain.staging import StagingNeed
from groundplane.errors import InvalidInput, NotFound, Unavailable
from groundplane.identity import SYSTEM, Actor
from groundplane.ports import Clock, Executor, Ids, SecretStore, Store, Tx
from groundplane.services.audit_trail import Teller
from groundplane.services.cordons import Cordons
from groundplane.services.staging import Staging

CHAIN = ("driver", "accelerators")
log = logging.getLogger(__name__)


class Preflight:
    """Furnishes orders with walls, secrets and checks; keeps what nodes answer; cordons what is unfit."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        ids: Ids,
        executors: Mapping[str, Executor],
        cordons: Cordons,
        secrets: SecretStore,
        hardware: Callable[[], Hardware],
        policy: IsolationPolicy,
        budget_s: int,
        idle_period_s: int,
        staging: Staging | None = None,
        packages: Callable[[JobSpec], Sequence[str]] = lambda spec: (),
    ) -> None:
        self._store = store
        self._clock = clock
        self._tell = Teller(clock, "preflight")
        self._ids = ids
        self._executors = executors
        self._cordons = cordons
        self._secrets = secrets
        self._hardware = hardware
        self.policy = policy
        self.staging = staging
        self._packages = packages
        self._budget_s = budget_s
        self._idle_period = timedelta(seconds=idle_period_s)
        self._probed_at: dict[str, datetime] = {}
        self.counts: dict[tuple[str, str], int] = {}

    # ------------------------------------------------------------ before the start

    async def furnish(self, run: Run, order: Order) -> Order:
        """The order with its walls, secrets and checks, away from cordoned nodes. Raises Unavailable."""
        cordoned = await self._cordons.of_pool(run.pool)
        if cordoned:
            nodes = await self._executors[run.pool].nodes()
            if nodes and all(node.name in cordoned for node in nodes):
                first = cordoned[nodes[0].name]
                raise Unavailable(
                    f"every node of pool {run.pool} is cordoned; {first.node}: {first.reason}",
                    f"mend it, then ground nodes uncordon {first.node} --pool {run.pool}",
                )
        furnished = await self._walled(order, run.spec, is_job=not run.endpoint)
        return replace(furnished, avoid=(*order.avoid, *sorted(cordoned)))

    async def _walled(self, order: Order, spec: JobSpec, *, is_job: bool) -> Order:
        policy = self.policy.in_pool(spec.pool)
        mode = walls.effective(spec.isolation, policy) if is_job else Isolation.NONE
        share = spec.checkpoint_dir.rstrip("/")
        return replace(
            order,
            isolation=JobIsolation(
                mode=mode.value,
                image=spec.image,
                network=spec.network,
                first_uid=policy.first_uid,
                uids=policy.uids,
            ),
            pids_limit=policy.pids_limit,
            readable=tuple(item.path for item in spec.data if item.path),
            secrets=await self._read_secrets(spec) if spec.secrets else {},
            preflight=self.need(spec) if spec.preflight else None,
            staging=await self._staging(spec) if is_job else None,
            dev=spec.dev if is_job else "",
            checkpoint_share=share,
            checkpoint_dir=f"{share}/{order.run_id}" if share else order.checkpoint_dir,
        )

    def need(self, spec: JobSpec) -> PreflightNeed:
        """What a node is asked to check for this spec, with the catalogue's figure for its accelerator."""
        card = self._hardware().accelerator(spec.resources.accelerator) if spec.resources.accelerator else None
        return preflight.need_of(
            spec,
            now=self._clock.now(),
            memory_bytes_per_s=float(card.bandwidth_bytes_per_s) if card else 0.0,
            budget_s=float(self._budget_s),
            packages=self._packages(spec),
        )

    async def _staging(self, spec: JobSpec) -> StagingNeed | None:
        try:
            return await self.staging.need(spec) if self.staging is not None else None
        except NotFound as error:
            raise Unavailable(error.message, error.hint) from error

    async def _read_secrets(self, spec: JobSpec) -> dict[str, str]:
        project = spec.metadata.project
        try:
            return {name: await self._secrets.read(project, name) for name in spec.secrets}
        except NotFound as error:
            raise Unavailable(error.message, error.hint) from error

    # ------------------------------------------------------------ what nodes answered

    async def note(self, tx: Tx, run: Run, attempt: Attempt, seen: Observation) -> None:
        """Keeps an attempt's answer once, and cordons the node whose fault it was. In the caller's transaction."""
        if not seen.preflight:
            return
        node = seen.unfit_node or seen.node
        report = PreflightReport(
            id=f"{attempt.id}/{node}",
            subject=attempt.id,
            pool=attempt.pool,
            node=node,
            project=run.project,
            results=seen.preflight,
            at=self._clock.now(),
            advice=preflight.advice_of(run.spec, seen.preflight),
        )
        if not await tx.insert_once(report):
            return
        self._count(report.results)
        if self.staging is not None:
            await self.staging.measured(tx, run, attempt, report.results, node)
        if seen.end_reason is EndReason.NODE_UNFIT and seen.unfit_node:
            wrong = next((each for each in report.failed if each.fault == "node"), None)
            if wrong is not None:
                reason = f"preflight {wrong.name}: {wrong.have}"
                await self._cordons.cordon_in(tx, SYSTEM, attempt.pool, seen.unfit_node, reason, wrong.hint)

    def _count(self, results: Sequence[CheckResult]) -> None:
        for each in results:
            key = (each.name.partition(":")[0], each.status.value)
            self.counts[key] = self.counts.get(key, 0) + 1

    # ------------------------------------------------------------ asked for

    async def check(self, actor: Actor, text: str, *, node: str = "") -> list[PreflightReport]:
        """Asks the nodes of each job's pool, or one of them, and starts nothing. Raises InvalidInput, NotFound,
        Unavailable; a refusal of `ground plan` is not repeated here."""
        specs = await asyncio.to_thread(parse, text, now=self._clock.now())
        reports: list[PreflightReport] = []
        for spec in specs:
            if not isinstance(spec, JobSpec):
                raise InvalidInput(f"{spec.metadata.name} is an endpoint", "preflight is for jobs: kind: Job")
            if not actor.sees(spec.metadata.project):
                raise NotFound(f"no project {spec.metadata.project}", "ground projects list shows yours")
            reports += await self._check(actor, spec, node)
        return reports

    async def _check(self, actor: Actor, spec: JobSpec, wanted: str) -> list[PreflightReport]:
        executor = self._executors.get(spec.pool)
        if executor is None:
            raise NotFound(f"no pool {spec.pool}", "ground status lists the pools")
        names = [each.name for each in await executor.nodes()]
        if wanted and wanted not in names:
            raise NotFound(f"pool {spec.pool} has no node {wanted}", f"it has {', '.join(names)}")
        subject = self._ids.new("preflight")
        order = await self._walled(self._bare_order(subject, spec), spec, is_job=True)
        order = replace(order, preflight=self.need(spec))
        asked = [wanted] if wanted else names
        answers = await asyncio.gather(*(executor.preflight(order, each) for each in asked), return_exceptions=True)
        reports = []
        for name, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Unavailable):
                reason = CheckResult(
                    name="node", status=CheckStatus.FAILED, need="an answer", have=answer.message, hint=answer.hint,
                    fault="node",
                )  # fmt: skip
                answer = [reason]
            elif isinstance(answer, BaseException):
                raise answer
            reports.append(await self._keep(subject, spec, name, tuple(answer)))
        async with self._store.transaction() as tx:
            failed = sorted({each.name for report in reports for each in report.failed})
            after = {"pool": spec.pool, "nodes": asked, "failed": failed}
            await self._tell(tx, actor, "preflight.check", subject, spec.metadata.project, after)
        return reports

    async def _keep(self, subject: str, spec: JobSpec, node: str, results: tuple[CheckResult, ...]) -> PreflightReport:
        report = PreflightReport(
            id=f"{subject}/{node}",
            subject=subject,
            pool=spec.pool,
            node=node,
            project=spec.metadata.project,
            results=results,
            at=self._clock.now(),
            advice=preflight.advice_of(spec, results),
        )
        async with self._store.transaction() as tx:
            await tx.insert_once(report)
        self._count(results)
        return report

    def _bare_order(self, subject: str, spec: JobSpec) -> Order:
        need = spec.resources
        return Order(
            attempt_id=subject,
            run_id=subject,
            number=1,
            command=spec.command,
            workdir=spec.workdir,
            env=spec.env,
            checkpoint_dir="",
            output_dir="",
            cpus=need.cpus,
            memory_bytes=need.memory_bytes,
            accelerators=need.accelerators,
            max_duration_s=spec.max_duration_s,
            idle_limit_s=None,
            control_plane_gone_limit_s=None,
            stop_grace_s=0.0,
            not_after=spec.end_date,
        )

    # ------------------------------------------------------------ by itself

    async def probe_idle(self) -> None:
        """Asks the chain of drivers of every node with accelerators that nobody uses; what is broken is cordoned.

        Each node once a period. A node that does not answer is left alone: silence is not a fault of its drivers.
        """
        now = self._clock.now()
        for pool, executor in sorted(self._executors.items()):
            cordoned = await self._cordons.of_pool(pool)
            for node in await executor.nodes():
                busy = any(card.held_by for card in node.accelerators)
                last = self._probed_at.get(f"{pool}/{node.name}")
                if node.name in cordoned or not node.takes_work or busy:
                    continue
                if last is None or not timedelta() <= now - last < self._idle_period:
                    await self._probe(executor, node)

    async def _probe(self, executor: Executor, node: Node) -> None:
        """A lost driver shows no accelerators at all: the last probe remembers how many there were."""
        place = f"{node.pool}/{node.name}"
        async with self._store.transaction() as tx:
            before = await tx.get(PreflightReport, f"probe/{place}")
        known = int(max((each.figures.get("count", 0.0) for each in before.results), default=0.0)) if before else 0
        cards = max(known, len(node.accelerators))
        self._probed_at[place] = self._clock.now()
        if not cards:
            return
        try:
            results = tuple(await executor.preflight(self._chain_order(cards), node.name))
        except Unavailable as error:
            log.info("node %s does not answer its probe: %s", place, error)
            return
        self._count(results)
        wrong = next((each for each in results if each.status is CheckStatus.FAILED), None)
        if wrong is not None:
            await self._cordons.cordon(SYSTEM, node.pool, node.name, f"probe {wrong.name}: {wrong.have}", wrong.hint)
        elif before is None or known != cards:
            fresh = PreflightReport(
                id=f"probe/{place}",
                subject="probe",
                pool=node.pool,
                node=node.name,
                project="",
                results=results,
                at=self._clock.now(),
                version=before.version if before else 0,
            )
            async with self._store.transaction() as tx:
                await (tx.update(fresh) if before else tx.insert(fresh))

    def _chain_order(self, cards: int) -> Order:
        now = self._clock.now()
        name = self._ids.new("probe")
        return Order(
            attempt_id=name,
            run_id=name,
            number=1,
            command=("true",),
            workdir="",
            env={},
            checkpoint_dir="",
            output_dir="",
            cpus=0.0,
            memory_bytes=0,
            accelerators=cards,
            max_duration_s=60.0,
            idle_limit_s=None,
            control_plane_gone_limit_s=None,
            stop_grace_s=0.0,
            not_after=now + timedelta(minutes=1),
            preflight=PreflightNeed(sent_at=now.isoformat(), budget_s=float(self._budget_s), only=CHAIN),
        )
