"""Models that scripts have logged, and the files below runs and models: kept by content in the artifact store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from groundplane.domain.model import ManifestFile, path_fault
from groundplane.domain.tracking import records as domain
from groundplane.domain.tracking.filter import matches, ordered, page, parse_filter, parse_order
from groundplane.domain.tracking.records import (
    Listed,
    LoggedFile,
    LoggedModel,
    LoggedState,
    Stage,
    TrackedRun,
)
from groundplane.domain.tracking.search import LOGGED_MODELS, logged_model_facts
from groundplane.errors import Forbidden, InvalidInput, NotFound
from groundplane.identity import Actor
from groundplane.ports import BlobStore, Clock, Ids, Store, Tx
from groundplane.services.artifacts import demand_quota
from groundplane.services.tracking import Search, Tracking

FILES_MAX = 10_000
RUNS, LOGGED = "runs", "logged"
"""The two folders of what was logged: `runs/<run>/…` and `logged/<model>/…`."""


class LoggedModels:
    """Use cases over logged models and logged files."""

    def __init__(self, *, store: Store, clock: Clock, ids: Ids, blobs: BlobStore, tracking: Tracking) -> None:
        self._store, self._clock, self._ids, self._blobs = store, clock, ids, blobs
        self._tracking = tracking

    # ------------------------------------------------------------ models

    async def create(
        self,
        actor: Actor,
        experiment_id: str,
        *,
        name: str,
        run_id: str,
        model_type: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> LoggedModel:
        """A model whose files come next. Raises NotFound for an unseen experiment or run."""
        experiment = await self._tracking.experiment(actor, experiment_id)
        if run_id:
            await self._tracking.run(actor, run_id)
        now = self._clock.now()
        model_id = self._ids.new("m")
        model = LoggedModel(
            id=model_id,
            experiment_id=experiment.id,
            project=experiment.project,
            name=domain.check_key(name or model_id, "logged model"),
            run_id=run_id,
            model_type=model_type,
            params=domain.with_params({}, params),
            tags=domain.with_tags({}, tags),
            created_by=actor.name,
            created_at=now,
            updated_at=now,
        )
        async with self._store.transaction() as tx:
            await tx.insert(model)
        return model

    async def get(self, actor: Actor, model_id: str, *, deleted_too: bool = False) -> LoggedModel:
        async with self._store.transaction() as tx:
            return await self._model(tx, actor, model_id, deleted_too=deleted_too)

    async def finalize(self, actor: Actor, model_id: str, state: LoggedState) -> LoggedModel:
        """Its files have all come, or will not. Twice is once."""
        return await self._change(actor, model_id, state=state)

    async def set_tags(self, actor: Actor, model_id: str, tags: Mapping[str, str]) -> LoggedModel:
        model = await self.get(actor, model_id)
        return await self._change(actor, model_id, tags=domain.with_tags(model.tags, tags))

    async def delete_tag(self, actor: Actor, model_id: str, key: str) -> LoggedModel:
        """Raises NotFound when there is no such tag."""
        model = await self.get(actor, model_id)
        return await self._change(actor, model_id, tags=domain.without_tag(model.tags, key))

    async def add_params(self, actor: Actor, model_id: str, params: Mapping[str, str]) -> LoggedModel:
        """Parameters are written once. InvalidInput where one would change."""
        model = await self.get(actor, model_id)
        return await self._change(actor, model_id, params=domain.with_params(model.params, params))

    async def delete(self, actor: Actor, model_id: str) -> LoggedModel:
        """Hides it; its files stay for versions that were made of them."""
        return await self._change(actor, model_id, stage=Stage.DELETED)

    async def search(
        self, actor: Actor, experiment_ids: Sequence[str], search: Search
    ) -> tuple[list[LoggedModel], str]:
        """Logged models of these experiments, newest first unless ordered otherwise, and the next page's token."""
        conditions, orders = parse_filter(search.filter, LOGGED_MODELS), parse_order(search.order, LOGGED_MODELS)
        ids = tuple([(await self._tracking.experiment(actor, each)).id for each in experiment_ids])
        async with self._store.transaction() as tx:
            where = {"experiment_id": ids, "stage": Stage.ACTIVE}
            found = await tx.find(LoggedModel, where, order="-created_at") if ids else []
        found = [each for each in found if actor.sees(each.project) and matches(conditions, logged_model_facts(each))]
        question = (ids, search.filter, tuple(search.order))
        return page(ordered(found, orders, logged_model_facts), search.token, search.limit, question)

    async def _change(self, actor: Actor, model_id: str, **changes: object) -> LoggedModel:
        async with self._store.transaction() as tx:
            model = await self._model(tx, actor, model_id, lock=True)
            await self._may_write(tx, actor, LOGGED, model_id)
            return await tx.update(replace(model, updated_at=self._clock.now(), **changes))  # type: ignore[arg-type]

    async def _model(
        self, tx: Tx, actor: Actor, model_id: str, *, lock: bool = False, deleted_too: bool = False
    ) -> LoggedModel:
        found = await tx.get(LoggedModel, model_id, lock=lock)
        if found is None or not actor.sees(found.project) or (found.stage is Stage.DELETED and not deleted_too):
            raise NotFound(f"there is no logged model {model_id[:80]}", "ground experiments show lists its runs")
        return found

    # ------------------------------------------------------------ files

    async def put(self, actor: Actor, folder: str, owner: str, path: str, source: Path) -> LoggedFile:
        """Keeps a file below a run or a logged model; what was there under its path is replaced.

        Raises InvalidInput for a path that could leave the folder, Refusal over the project's quota.
        """
        if (fault := path_fault(path)) is not None:
            raise InvalidInput(f"the path {path[:200]!r} {fault}", "log plain relative paths such as plots/loss.png")
        async with self._store.transaction() as tx:
            project = await self._may_write(tx, actor, folder, owner)
        sha256, size_bytes = await self._blobs.put_file(source)
        root = f"{folder}/{owner}"
        row = LoggedFile(
            id=f"{root}/{path}",
            root=root,
            project=project,
            path=path,
            sha256=sha256,
            size_bytes=size_bytes,
            created_at=self._clock.now(),
        )
        async with self._store.transaction() as tx:
            known = await tx.get(LoggedFile, row.id, lock=True)
            await demand_quota(tx, project, row.files)
            count = (await tx.total(LoggedFile, "*", where={"root": root})).get((), 0)
            if known is None and count >= FILES_MAX:
                raise InvalidInput(f"{root} has {count:,} files; {FILES_MAX:,} is the most", "log an archive")
            if known is None:
                await tx.insert(row)
                return row
            return await tx.update(replace(row, version=known.version))

    async def files(self, actor: Actor, folder: str, owner: str) -> list[LoggedFile]:
        """Every file below a run or a logged model, by path. Raises NotFound."""
        async with self._store.transaction() as tx:
            await self._project_of(tx, actor, folder, owner)
            return await tx.find(LoggedFile, {"root": f"{folder}/{owner}"}, order="path")

    async def listing(self, actor: Actor, folder: str, owner: str, path: str) -> list[Listed]:
        """What lies right below a path."""
        found = await self.files(actor, folder, owner)
        return domain.listing([(file.path, file.size_bytes) for file in found], path)

    async def file(self, actor: Actor, folder: str, owner: str, path: str) -> ManifestFile:
        """One file. Raises NotFound."""
        async with self._store.transaction() as tx:
            await self._project_of(tx, actor, folder, owner)
            found = await tx.get(LoggedFile, f"{folder}/{owner}/{path}")
        if found is None:
            raise NotFound(f"{owner} has no file {path[:200]}", "list its artifacts to see what it has")
        return found.files[0]

    async def remove(self, actor: Actor, folder: str, owner: str, path: str) -> int:
        """Removes a file, or a folder with all that is in it; how many files went. Zero is no error."""
        async with self._store.transaction() as tx:
            await self._may_write(tx, actor, folder, owner)
            found = await tx.find(LoggedFile, {"root": f"{folder}/{owner}"})
            gone = [each for each in found if not path or each.path == path or each.path.startswith(f"{path}/")]
            for each in gone:
                await tx.delete(LoggedFile, each.id)
        return len(gone)

    async def lay(self, files: Sequence[LoggedFile], below: str, target: Path) -> None:
        """Writes the files below a path into a folder, verified. Raises IntegrityFailure, NotFound."""
        prefix = f"{below}/" if below else ""
        for file in files:
            if file.path.startswith(prefix):
                place = target / file.path[len(prefix) :]
                place.parent.mkdir(parents=True, exist_ok=True)
                await self._blobs.fetch(file.sha256, place)

    async def _project_of(self, tx: Tx, actor: Actor, folder: str, owner: str) -> str:
        if folder == LOGGED:
            return (await self._model(tx, actor, owner, deleted_too=True)).project
        found = await tx.get(TrackedRun, owner) if folder == RUNS else None
        if found is None or not actor.sees(found.project):
            raise NotFound(f"there is no {folder[:40]}/{owner[:80]} that files could lie below")
        return found.project

    async def _may_write(self, tx: Tx, actor: Actor, folder: str, owner: str) -> str:
        project = await self._project_of(tx, actor, folder, owner)
        if not actor.run_id:
            return project
        run_id = owner
        if folder == LOGGED:
            run_id = (await self._model(tx, actor, owner)).run_id
        run = await tx.get(TrackedRun, run_id) if run_id else None
        if run is None or run.job != actor.run_id:
            raise Forbidden(f"the key of {actor.run_id}'s job writes below its own runs, not {folder}/{owner}")
        return project
