"""Batches: how far they are, and their answers registered as a dataset with where they come from."""

from __future__ import annotations

import asyncio

from groundplane.domain.artifact import Artifact
from groundplane.domain.batch import Batch, BatchProgress, cost_per_1000, kept_name
from groundplane.domain.dataset import DatasetFacts, DatasetVersion, Profile, edge
from groundplane.domain.run import Attempt, Run, RunStatus
from groundplane.errors import InvalidInput, NotFound, Refusal, Refused
from groundplane.identity import SYSTEM, Actor
from groundplane.jobs.batch import ANSWERS, PACK, PROGRESS, SHARDS, SUMMARY, pack_shards
from groundplane.ports import Clock, RunFiles, Store
from groundplane.services.artifacts import Artifacts, Pushed
from groundplane.services.audit_trail import Teller
from groundplane.services.datasets import Datasets, Offered
from groundplane.services.inference import asked_edges, asked_version, read_json, spent
from groundplane.services.reach import Reach

MAX_LISTED = 1_000


class Batches:
    """Use cases over batches. A batch that runs is a run like any other."""

    def __init__(
        self, *, store: Store, clock: Clock, files: RunFiles, artifacts: Artifacts, datasets: Datasets, reach: Reach
    ) -> None:
        self._store, self._clock, self._files = store, clock, files
        self._artifacts, self._datasets, self._reach = artifacts, datasets, reach
        self._tell = Teller(clock, "batch")

    async def collect(self, run: Run) -> str:
        """Registers the answers as the next version of the output dataset. Twice is the same as once."""
        need = run.spec.batch
        assert need is not None
        async with self._store.transaction() as tx:
            known = await tx.get(Batch, run.id)
        if known is not None:
            return f"dataset {known.output}"
        summary = await read_json(self._files.output_path(run.id, SUMMARY))
        names = ("rows", "errors", "total", "shards", "prompt_tokens", "completion_tokens", "taken", "taken_errors")
        figures = {name: value for name in names if isinstance(value := summary.get(name), int)}
        if len(figures) != len(names) or figures["rows"] != figures["total"]:
            have = f"{figures.get('rows', 0):,} of {figures.get('total', 0):,}"
            raise InvalidInput(f"the batch has answered {have} rows", "submit it again")
        if figures["errors"] > need.bad_rows:
            raise Refusal([_too_bad(figures["errors"], need.bad_rows)])
        now = self._clock.now()
        asked = figures["rows"] - figures["taken"]
        answered = asked - (figures["errors"] - figures["taken_errors"])
        async with self._store.transaction() as tx:
            version_id = await asked_version(tx, run, need)
            cost = await spent(tx, run, need, answered, now)
            source = await tx.get(DatasetVersion, run.spec.data[0].dataset)
        if source is None:
            raise NotFound(f"dataset {run.spec.data[0].dataset} is gone", "ground datasets list")
        output = await self._register(run, source, figures["rows"], figures["errors"])
        made = Batch(
            id=run.id,
            name=run.name,
            project=run.project,
            owner=run.owner,
            target=need.asking.endpoint or need.asking.model,
            model_version=version_id,
            dataset=source.id,
            output=output.id,
            artifact_id=output.location.partition(":")[2],
            rows=figures["rows"],
            errors=figures["errors"],
            shards=figures["shards"],
            prompt_tokens=figures["prompt_tokens"],
            completion_tokens=figures["completion_tokens"],
            cost_microusd=cost.amount_microusd,
            cost_microusd_per_1000=cost_per_1000(cost.amount_microusd, max(1, asked)),
            cost_source=cost.source,
            at=now,
        )
        parents = [f"run:{run.id}", f"dataset:{source.id}", *([f"model:{version_id}"] if version_id else [])]
        async with self._store.transaction() as tx:
            if await tx.insert_once(made):
                edges = [edge(each, f"dataset:{output.id}", run.project, now) for each in parents]
                if version_id:
                    edges += await asked_edges(tx, run.project, made.target, version_id, run.id, now)
                await tx.insert_many_once(edges)
                after: dict[str, object] = {
                    "output": output.id,
                    "rows": made.rows,
                    "errors": made.errors,
                    "cost_microusd": made.cost_microusd,
                }
                await self._tell(tx, SYSTEM, "batch.record", made.id, made.project, after)
        return f"dataset {output.id}"

    async def keep(self, before: Run, taker: Run) -> None:
        """Brings the finished shards of a run that is over, and stores them until their taker ends. Twice is the same
        as once. Raises Refusal; Unavailable while their node is silent."""
        name = kept_name(before.id)
        async with self._store.transaction() as tx:
            kept = await tx.find(Artifact, {"name": name, "project": taker.project}, order="-created_at", limit=1)
            attempt = await tx.get(Attempt, f"{before.id}-{before.attempt}")
        if kept and kept[0].keep_until is not None and kept[0].keep_until >= taker.end_date:
            return
        if attempt is not None:
            await self._reach.bring(before, attempt)
        packed = self._files.output_path(taker.id, PACK)
        await asyncio.to_thread(pack_shards, self._files.output_path(before.id, SHARDS), packed)
        try:
            sources, until = {PACK: packed}, taker.end_date
            await self._artifacts.push(
                SYSTEM, Pushed(name=name, project=taker.project, sources=sources, keep_until=until)
            )
        finally:
            packed.unlink()

    async def _register(self, run: Run, source: DatasetVersion, rows: int, errors: int) -> DatasetVersion:
        """The answers inherit licence and classification of the questions: they may quote them."""
        need = run.spec.batch
        assert need is not None
        answers = self._files.output_path(run.id, ANSWERS)
        pushed = Pushed(name=need.output, project=run.project, sources={ANSWERS: answers})
        artifact = await self._artifacts.push(SYSTEM, pushed)
        facts = DatasetFacts(
            owner=run.owner,
            license=source.license,
            classification=source.classification,
            description=f"answers of {need.asking.endpoint or need.asking.model} to {source.id}: {rows:,} rows, "
            f"{errors:,} in error, by {run.id}",
        )
        offered = Offered(
            name=need.output, project=run.project, artifact_id=artifact.id, profile=Profile(rows=rows, tables=1)
        )
        return await self._datasets.register(SYSTEM, offered, facts)

    # ------------------------------------------------------------ reading

    async def batches(self, actor: Actor, *, project: str = "", limit: int = 100) -> list[Batch]:
        """Those that ended well, newest first."""
        where = {"project": project} if project else {} if actor.sees("") else {"project": actor.project or ""}
        async with self._store.transaction() as tx:
            found = await tx.find(Batch, where, order="-at", limit=min(limit, MAX_LISTED))
        return [each for each in found if actor.sees(each.project)]

    async def progress(self, actor: Actor, run_id: str) -> BatchProgress:
        """How far a batch is, also when it failed: what was answered is kept. NotFound for another kind of run."""
        async with self._store.transaction() as tx:
            run = await tx.get(Run, run_id)
            result = await tx.get(Batch, run_id)
        if run is None or not actor.sees(run.project) or run.spec.batch is None:
            raise NotFound(f"there is no batch {run_id[:80]}", "ground batch list")
        told = BatchProgress(run_id=run.id, status=str(run.status), result=result)
        if run.status is RunStatus.PENDING and not run.attempt:
            return told
        await self._reach.refresh(run, PROGRESS)
        try:
            seen = await read_json(self._files.output_path(run.id, PROGRESS))
        except InvalidInput:
            return told  # nothing is answered yet
        figure = {name: int(str(seen.get(name, 0))) for name in ("rows", "done", "errors", "shards", "shards_done")}
        return BatchProgress(run_id=run.id, status=str(run.status), result=result, **figure)

    async def counts(self) -> dict[tuple[str, str], int]:
        """(project, `rows` or `errors`) → how many, of all batches that ended well."""
        async with self._store.transaction() as tx:
            found = {name: await tx.total(Batch, name, by=("project",)) for name in ("rows", "errors")}
        return {(str(project), name): number for name, sums in found.items() for (project,), number in sums.items()}


def _too_bad(errors: int, allowed: int) -> Refused:
    hint = "look at them: ground batch status; then mend the rows, or raise spec.bad_rows"
    return Refused(rule="bad-rows", need=f"at most {allowed:,} rows in error", have=f"{errors:,}", hint=hint)
