"""Staged data: what nodes are asked to fetch, what is brought to them from our own store, how far and how fast."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from groundplane.domain import staging
from groundplane.domain.artifact import Artifact
from groundplane.domain.batch import kept_name
from groundplane.domain.model import ManifestFile, ModelVersion
from groundplane.domain.preflight import CheckResult, PreflightReport
from groundplane.domain.run import Attempt, Observation, Run, RunStatus
from groundplane.domain.spec import DataSource, JobSpec
from groundplane.domain.spec.sources import in_store
from groundplane.domain.staging import NodeCache, SourceSpeed, StagedData, StagedFile, StagingNeed, StagingProgress
from groundplane.errors import Conflict, InvalidInput, NotFound, Unavailable
from groundplane.identity import Actor
from groundplane.ports import BlobStore, Clock, Executor, Store, Tx
from groundplane.services.arrivals import demand_arrived
from groundplane.services.audit_trail import Teller

PIECE_BYTES = 4 * 2**20
log = logging.getLogger(__name__)


class DataExecutor(Executor, Protocol):
    """An executor whose nodes stage data."""

    async def missing_files(self, attempt_id: str) -> list[dict[str, int]]:
        """Per member: staged files that wait for the control plane, {sha256: bytes that are there}. Unavailable."""
        ...

    async def put_file(self, attempt_id: str, rank: int, sha256: str, size_bytes: int, offset: int, data: bytes) -> int:
        """Gives a member a piece of such a file; how much it then has. Twice is once; the whole is verified.

        Raises Unavailable, also when it arrived damaged and begins anew; Conflict when there is no room for it.
        """
        ...

    async def data_caches(self, scratch: str, limit_bytes: int, *, node: str, clear: bool) -> Sequence[NodeCache]:
        """What each node's cache of staged data holds, or the named one's; with `clear`, without what no run uses.

        A node that does not answer says so in `problem`. Twice is the same as once.
        """
        ...


class Staging:
    """Furnishes orders with data, brings files of our own store to nodes, and keeps what was measured.

    Progress is kept in memory as it is observed: after a restart it is there again with the first look.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        blobs: BlobStore,
        executors: Mapping[str, DataExecutor],
        scratch: str,
        cache_bytes: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._tell = Teller(clock, "pool")
        self._blobs = blobs
        self._executors = executors
        self._scratch = scratch
        self._cache_bytes = cache_bytes
        self._seen: dict[str, StagingProgress] = {}
        self.fetched_bytes = self.cached_bytes = 0

    # ------------------------------------------------------------ before the start

    async def need(self, spec: JobSpec) -> StagingNeed | None:
        """What a node of this spec is asked to stage. NotFound when our own store has no such thing.

        Shards of another run are in the store when an order names them: a plan need not wait for that.
        """
        files: dict[str, tuple[StagedFile, ...]] = {}
        for source in spec.data:
            if in_store(source):
                files[source.name] = tuple(
                    StagedFile(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes)
                    for file in await self._kept(source, spec.metadata.project)
                )
        return staging.need_of(spec, files, scratch=self._scratch, cache_bytes=self._cache_bytes)

    async def _kept(self, source: DataSource, project: str) -> tuple[ManifestFile, ...]:
        name = source.source.partition(":")[2]
        shards = in_store(source) == "shards"
        async with self._store.transaction() as tx:
            if in_store(source) == "model":
                found: Artifact | ModelVersion | None = await tx.get(ModelVersion, name)
            else:
                name = kept_name(name) if shards else name
                await demand_arrived(tx, name, project)
                found = await tx.get(Artifact, name)
                if found is None:
                    newest = await tx.find(Artifact, {"name": name, "project": project}, order="-created_at", limit=1)
                    found = newest[0] if newest else None
        if found is None and shards:
            return ()
        if found is None or found.project != project:
            what = in_store(source)
            raise NotFound(f"project {project} has no {what} {name}", f"ground {what}s list shows what there is")
        return found.files

    # ------------------------------------------------------------ while it goes on

    def note(self, run: Run, seen: Observation) -> None:
        """Keeps how far a run's data is, as long as it is on its way."""
        if seen.state == "starting" and seen.staging is not None:
            self._seen[run.id] = seen.staging
        else:
            self._seen.pop(run.id, None)

    def told(self, run: Run) -> Run:
        """The run, with what it stages as its message."""
        progress = self._seen.get(run.id)
        if progress is None or run.status not in {RunStatus.STARTING, RunStatus.PENDING}:
            return run
        return replace(run, message=progress.sentence)

    async def data(self, actor: Actor, run_id: str) -> StagedData:
        """How far a run's data is, and what came of each source. NotFound."""
        async with self._store.transaction() as tx:
            run = await tx.get(Run, run_id)
            if run is None or not actor.sees(run.project):
                raise NotFound(f"no run {run_id}", "ground ps lists the runs you can see")
            subjects = tuple(f"{run_id}-{number}" for number in range(1, run.attempt + 1))
            reports = await tx.find(PreflightReport, {"subject": subjects}, order="at") if subjects else []
        results = tuple(each for report in reports for each in report.results if each.name.startswith("stage:"))
        return StagedData(run_id=run_id, status=run.status.value, progress=self._seen.get(run_id), results=results)

    async def bring(self) -> bool:
        """One round of bringing files to nodes that wait for them; whether anything was brought."""
        brought = False
        async with self._store.transaction() as tx:
            runs = [run for run in await tx.find(Run, {"status": RunStatus.STARTING}) if _waits_for_us(run.spec)]
        for run in runs:
            try:
                brought = await self._bring(run) or brought
            except (Unavailable, NotFound, Conflict) as error:
                # One node that is silent or full must not keep the others from getting theirs.
                log.warning("data for %s is not brought: %s", run.id, error.message)
        return brought

    async def _bring(self, run: Run) -> bool:
        executor, attempt_id = self._executors.get(run.pool), f"{run.id}-{run.attempt}"
        need = await self.need(run.spec)
        if executor is None or need is None:
            return False
        sizes = {file.sha256: file.size_bytes for source in need.sources for file in source.files}
        brought = False
        for rank, missing in enumerate(await executor.missing_files(attempt_id)):
            for sha256, have in missing.items():
                await self._put(executor, attempt_id, rank, sha256, sizes.get(sha256, 0), have)
                brought = True
        return brought

    async def _put(
        self, executor: DataExecutor, attempt_id: str, rank: int, sha256: str, size_bytes: int, have: int
    ) -> None:
        while True:
            piece = await self._blobs.read(sha256, have, PIECE_BYTES) if size_bytes else b""
            have = await executor.put_file(attempt_id, rank, sha256, size_bytes, have, piece)
            if have >= size_bytes:
                return

    # ------------------------------------------------------------ how fast it was

    async def measured(self, tx: Tx, run: Run, attempt: Attempt, results: Sequence[CheckResult], node: str) -> None:
        """Keeps the speed of each source that was read, for the next plan. In the caller's transaction."""
        for result in results:
            if result.name.startswith("stage:"):
                self.fetched_bytes += int(result.figures.get("fetched_bytes", 0))
                self.cached_bytes += int(result.figures.get("cached_bytes", 0))
        for source, result in staging.measured_in(run.spec, results):
            place = staging.speed_id(attempt.pool, source)
            before = await tx.get(PreflightReport, place, lock=True)
            report = PreflightReport(
                id=place,
                subject="speed",
                pool=attempt.pool,
                node=node,
                project=run.project,
                results=(result,),
                at=self._clock.now(),
                version=before.version if before else 0,
            )
            await (tx.update(report) if before else tx.insert(report))

    async def speeds(self, spec: JobSpec) -> dict[str, SourceSpeed]:
        """How fast this pool read the spec's sources the last time, by the source's name."""
        found: dict[str, SourceSpeed] = {}
        async with self._store.transaction() as tx:
            for source in spec.data:
                report = await tx.get(PreflightReport, staging.speed_id(spec.pool, source))
                if report is not None:
                    speed = report.results[0].figures["bytes_per_s"]
                    found[source.name] = SourceSpeed(bytes_per_s=int(speed), node=report.node, at=report.at)
        return found

    # ------------------------------------------------------------ caches

    async def caches(self, *, pool: str = "", node: str = "") -> list[NodeCache]:
        """What the nodes' caches hold."""
        return await self._caches(pool, node, clear=False)

    async def clear(self, actor: Actor, *, pool: str, node: str = "", reason: str = "") -> list[NodeCache]:
        """Removes from a pool's nodes, or one of them, all staged data that no run uses."""
        found = await self._caches(pool, node, clear=True)
        async with self._store.transaction() as tx:
            cleared = {each.node: each.cleared_bytes for each in found}
            await self._tell(tx, actor, "data.clear", pool, "", cleared, reason)
        return found

    async def _caches(self, pool: str, node: str, *, clear: bool) -> list[NodeCache]:
        if pool and pool not in self._executors:
            raise NotFound(f"no pool {pool}", "ground pools lists them")
        if clear and not pool:
            raise InvalidInput("a cache is cleared pool by pool", "name it: --pool")
        found: list[NodeCache] = []
        for name, executor in sorted(self._executors.items()):
            if pool in ("", name):
                found += await executor.data_caches(self._scratch, self._cache_bytes, node=node, clear=clear)
        if node and not found:
            raise NotFound(f"no node {node}", "ground nodes list shows them")
        return found


def _waits_for_us(spec: JobSpec) -> bool:
    return any(in_store(source) for source in spec.data)
