"""Jobs that put a dataset's rows to a model: their order, their key, their cost, and what becomes of their files."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import msgspec

from groundplane.domain.access import Key, is_active
from groundplane.domain.conditions import AtLeast
from groundplane.domain.dataset import DatasetVersion, LineageEdge, edge
from groundplane.domain.endpoint import Endpoint
from groundplane.domain.ledger import LedgerEntry, UsageRecord
from groundplane.domain.order import Order
from groundplane.domain.run import Attempt, Observation, Run
from groundplane.domain.serving.provider import RouteRule
from groundplane.domain.spec.inference import Asking, BatchNeed, EvaluationNeed
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, NotFound, Refusal, Unavailable
from groundplane.identity import SYSTEM, Role
from groundplane.jobs.order import ORDER_FILE, PROBLEM_FILE, ProgramOrder
from groundplane.ports import Clock, ModelServer, RunFiles, Store, Tx
from groundplane.services.access import Access
from groundplane.services.models import Models
from groundplane.services.reach import Reach, models_asked, stage_of
from groundplane.units import format_duration

KEY_SLACK_S = 600
PROGRAM_FILE = "program.zip"
LEDGER_PATIENCE_S = 60.0
_OK = 200
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What asking cost. `source`: `ledger` (what the gateway charged for the target) or `compute` (the whole run)."""

    amount_microusd: int
    source: str


class Collector(Protocol):
    """Makes something lasting of what such a job wrote."""

    async def collect(self, run: Run) -> str:
        """What was made, by name. Twice is the same as once. Raises InvalidInput, Refusal; Unavailable to be asked
        again."""
        ...


class Keeper(Collector, Protocol):
    """The same for a batch, whose finished shards another run may take up."""

    async def keep(self, before: Run, taker: Run) -> None:
        """Brings the finished shards of a run that is over, and stores them until their taker ends. Twice is the same
        as once. Raises Refusal; Unavailable while their node is silent."""
        ...


class Inference:
    """What evaluations and batches share. `command` starts the program on this machine; `program` is all of it as one
    file, for others."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        access: Access,
        models: Models,
        engines: Mapping[str, ModelServer],
        files: RunFiles,
        gateway_url: str,
        command: tuple[str, ...],
        program: Callable[[], bytes],
        reach: Reach,
        evaluations: Collector,
        batches: Keeper,
    ) -> None:
        self._store, self._clock, self._access = store, clock, access
        self._models, self._engines, self._files = models, engines, files
        self._gateway_url, self._command = gateway_url, command
        self._program, self._reach = program, reach
        self._evaluations, self._batches = evaluations, batches

    async def prepare(self, run: Run) -> None:
        """What the order of such a job will name is then in the store. Unavailable for what is not there now."""
        need = run.spec.batch
        if need is None or not need.resume:
            return
        try:
            async with self._store.transaction() as tx:
                before = await tx.get(Run, need.resume)
            await self._batches.keep(refuse_other_work(before, run.project, need, run.spec.data[0].sha256), run)
        except (NotFound, InvalidInput, Conflict, Refusal) as error:
            raise Unavailable(error.message, error.hint) from error

    async def furnish(self, run: Run, order: Order) -> Order:
        """The order of such a job, with the program, a key that ends by itself, and the model laid out where one is
        served beside it; any other order as it is. Unavailable for what is not there now."""
        need = run.spec.inference
        if need is None:
            return order
        try:
            told = await self._told(run, need)
        except (NotFound, IntegrityFailure, InvalidInput, Conflict, Refusal) as error:
            raise Unavailable(error.message, error.hint) from error
        command, secrets = self._command, {**order.secrets, ORDER_FILE: msgspec.json.encode(told).decode()}
        if python := self._reach.python_of(run.pool):
            command = ("sh", "-c", f'exec {python} "$GROUND_SECRETS_DIR/{PROGRAM_FILE}"')
            secrets[PROGRAM_FILE] = self._program().decode("utf-8", "surrogateescape")
        # Our own program on registered rows: it needs our libraries and the gateway, as a replica's server does.
        return replace(order, command=command, isolation=replace(order.isolation, mode="none"), secrets=secrets)

    async def attend(self, run: Run, attempt: Attempt, seen: Observation) -> None:
        """What such a job needs while it is at work, at each look."""
        await self._reach.attend(run, attempt, seen)

    async def collect(self, run: Run, attempt: Attempt) -> list[str]:
        """What became of a run that succeeded: names of what was made. Unavailable while its node is silent."""
        if run.spec.inference is not None:
            await self._reach.bring(run, attempt)
        if run.spec.evaluation is not None:
            return [await self._evaluations.collect(run)]
        return [await self._batches.collect(run)] if run.spec.batch is not None else []

    async def why_failed(self, run: Run, attempt: Attempt | None, message: str) -> str:
        """The message with what the program itself said, where it could."""
        if run.spec.inference is None:
            return message
        try:
            if attempt is not None:
                await self._reach.bring(run, attempt)  # what was answered is there to be taken up
        except (Unavailable, Conflict, InvalidInput) as error:
            log.warning("what %s wrote stays on its node: %s", run.id, error.message)
        try:
            said = await read_json(self._files.output_path(run.id, PROBLEM_FILE))
        except InvalidInput:
            return message
        hint = f" ({said['hint']})" if said.get("hint") else ""
        return f"{said.get('message', message)}{hint}"

    async def release(self, run: Run) -> None:
        """Revokes the run's keys. Twice is the same as once."""
        if run.spec.inference is None:
            return
        now = self._clock.now()
        async with self._store.transaction() as tx:
            keys = [key for key in await _keys(tx, run) if is_active(key, now)]
        for key in keys:
            await self._access.revoke_key(SYSTEM, key.id, f"{run.id} is over")

    async def _told(self, run: Run, need: EvaluationNeed | BatchNeed) -> ProgramOrder:
        source, asking = run.spec.data[0], need.asking
        async with self._store.transaction() as tx:
            dataset = await tx.get(DatasetVersion, source.dataset)
        if dataset is None or dataset.erased_at is not None:
            raise NotFound(f"dataset {source.dataset} is gone", "ground datasets list")
        called, far = models_asked(need), bool(self._reach.python_of(run.pool))
        return ProgramOrder(
            target=asking.endpoint or asking.model,
            gateway_url="" if far else self._gateway_url,
            key=await self._key(run, called) if called else "",
            files={file.path: file.sha256 for file in dataset.files},
            path=source.path,
            serve=await self._serve(run, asking, far) if asking.model else (),
            evaluation=run.spec.evaluation,
            batch=run.spec.batch,
        )

    async def _key(self, run: Run, models: tuple[str, ...]) -> str:
        until = min(run.end_date, self._clock.now() + timedelta(seconds=run.spec.max_duration_s + KEY_SLACK_S))
        _, secret = await self._access.create_key(
            SYSTEM,
            name=run.id,
            project=run.project,
            owner=run.owner,
            role=Role.CALLER,
            models=models,
            expires_at=until,
        )
        return secret

    async def _serve(self, run: Run, asking: Asking, far: bool) -> tuple[str, ...]:
        engine = self._engines.get(asking.engine)
        if engine is None:
            known = f"known engines: {', '.join(sorted(self._engines))}"
            raise InvalidInput(f"unknown engine {asking.engine!r}", known)
        threads, stage = max(1, int(run.spec.resources.cpus)), stage_of(run.spec)
        if far:  # its files are brought by staging, each checked; what it may not be loaded for is known here
            version = await self._models.cleared(asking.model, stage)
            places = {"model_dir": Path("{model}"), "cache_dir": Path("{cache}")}
            argv = engine.command(name=version.id, port="{port}", threads=threads, **places)
            return tuple("{python}" if part == sys.executable else part for part in argv)
        if reason := engine.unavailable():
            hint = "pip install 'groundplane[engine]'"
            raise Unavailable(f"engine {asking.engine} can't be used here: {reason}", hint)
        version = await self._models.get(SYSTEM, asking.model)
        folder = await self._models.materialise(version.id, self._files.model_dir(version.id), stage=stage)
        return engine.command(
            model_dir=folder,
            name=version.id,
            port="{port}",
            threads=threads,
            cache_dir=self._files.engine_cache(),
        )


def refuse_other_work(before: Run | None, project: str, need: BatchNeed, data_sha256: str) -> Run:
    """The run. Raises NotFound for no batch of the project, Conflict while it runs, InvalidInput for other work."""
    if before is None or before.project != project or before.spec.batch is None:
        raise NotFound(f"project {project} has no batch {need.resume}", "ground ps --status failed lists what failed")
    if not before.status.is_over:
        raise Conflict(f"{before.id} is {before.status}", f"ground stop {before.id}, or wait until it is over")
    if not before.spec.batch.same_work(need) or before.spec.data[0].sha256 != data_sha256:
        hint = "leave out resume, or keep dataset, model, prompt, format and shard_rows as they were"
        raise InvalidInput(f"{before.id} was other work: its shards are none of this batch's", hint)
    return before


async def _keys(tx: Tx, run: Run) -> list[Key]:
    return await tx.find(Key, {"project": run.project, "name": run.id})


async def spent(tx: Tx, run: Run, need: EvaluationNeed | BatchNeed, requests: int, now: datetime) -> Spent:
    """What asking the target cost. Unavailable while the ledger lacks some of `requests` answered ones, for a minute.

    Of a served name: what the gateway charged the run's keys for it. Of a version beside the job: the run's compute.
    """
    if need.asking.model:
        sums = await tx.total(LedgerEntry, "amount_microusd", where={"run_id": run.id})
        return Spent(amount_microusd=sums.get((), 0), source="compute")
    where: dict[str, object] = {
        "project": run.project,
        "key_id": tuple(key.id for key in await _keys(tx, run)),
        "model": need.asking.endpoint,
        "started_at": AtLeast(run.created_at),
    }
    counted = (await tx.total(UsageRecord, "*", where={**where, "status": _OK})).get((), 0)
    attempt = await tx.get(Attempt, f"{run.id}-{run.attempt}")
    ended = attempt.ended_at if attempt is not None and attempt.ended_at is not None else now
    whole = counted >= requests
    if not whole and (now - ended).total_seconds() < LEDGER_PATIENCE_S:
        waits = f"{counted:,} of {requests:,} answers are in the ledger"
        raise Unavailable(waits, "the gateway's log is read within seconds: ground status")
    amount = (await tx.total(UsageRecord, "amount_microusd", where=where)).get((), 0)
    return Spent(amount_microusd=amount, source="ledger" if whole else "ledger, incomplete")


async def asked_version(tx: Tx, run: Run, need: EvaluationNeed | BatchNeed) -> str:
    """The registered version that answered; empty for what is hosted elsewhere.

    InvalidInput when the endpoint was deployed anew meanwhile: then nobody knows who answered what.
    """
    if need.asking.model:
        return need.asking.model
    name = need.asking.endpoint
    rule = await tx.get(RouteRule, f"{run.project}:{name}")
    if rule is not None:
        places = {target.endpoint for target in rule.targets}
        if len(places) != 1 or "" in places:
            return ""
        name = places.pop()
    endpoint = await tx.get(Endpoint, name)
    if endpoint is None or endpoint.project != run.project:
        return ""
    replica = await tx.get(Run, endpoint.run_id)
    if replica is not None and run.started_at is not None and replica.created_at > run.started_at:
        raise InvalidInput(f"{name} was deployed anew while it was asked", "submit it again")
    return endpoint.model_version


async def asked_edges(
    tx: Tx, project: str, target: str, version_id: str, run_id: str, now: datetime
) -> list[LineageEdge]:
    """That a run asked this version, and through which endpoint where it asked one."""
    endpoint = await tx.get(Endpoint, target)
    through = [f"endpoint:{target}"] if endpoint is not None and endpoint.project == project else []
    return [edge(parent, f"run:{run_id}", project, now) for parent in (f"model:{version_id}", *through)]


async def data_age(tx: Tx, version_id: str, now: datetime) -> str:
    """How old the data is that a version was made from, in words."""
    edges = await tx.find(LineageEdge, {"child": f"model:{version_id}"})
    digests = tuple(edge.parent.removeprefix("sha256:") for edge in edges if edge.parent.startswith("sha256:"))
    runs = tuple(edge.parent for edge in edges if edge.parent.startswith("run:"))
    above = await tx.find(LineageEdge, {"child": runs}) if runs else []
    names = tuple(edge.parent.removeprefix("dataset:") for edge in above if edge.parent.startswith("dataset:"))
    known = {row.id: row for row in await tx.find(DatasetVersion, {"digest": digests})} if digests else {}
    known |= {row.id: row for row in await tx.find(DatasetVersion, {"id": names})} if names else {}
    if not known:
        return "nobody knows how old its data is"
    ages = sorted(known.values(), key=lambda row: row.as_of)
    return "made from " + ", ".join(
        f"{row.id}, {format_duration(max(0.0, (now - row.as_of).total_seconds()))} old" for row in ages[:3]
    )


async def read_json(path: Path) -> dict[str, object]:
    """A file that such a job wrote. InvalidInput when it is not there or not what it should be."""
    try:
        found = json.loads(await asyncio.to_thread(path.read_bytes))
    except FileNotFoundError:
        raise InvalidInput(f"the job has not written {path.name}", "ground logs shows what it said") from None
    except ValueError as error:
        raise InvalidInput(f"{path.name} can't be read: {error}", "submit it again") from None
    if not isinstance(found, dict):
        raise InvalidInput(f"{path.name} is no JSON object", "submit it again")
    return found
