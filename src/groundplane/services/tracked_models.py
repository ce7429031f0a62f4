"""The registry as MLflow clients see it: names, versions made of logged files or copied, stages and aliases."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from groundplane.domain.model import ManifestFile, ModelVersion, check_name
from groundplane.domain.provenance.certificate import DataFact, Facts, missing_facts
from groundplane.domain.provenance.model_card import facts_of
from groundplane.domain.registry import AliasMove, ModelAlias, RegistryEntry, check_tag
from groundplane.domain.run import Run
from groundplane.domain.tracking import records as domain
from groundplane.domain.tracking.facts import Shown, facts_of_tags, refusal_of
from groundplane.domain.tracking.records import LoggedModel, ModelName, VersionOrigin
from groundplane.errors import Conflict, GroundError, InvalidInput, NotFound, Refusal, Refused
from groundplane.identity import Actor
from groundplane.ports import Clock, Store
from groundplane.services.audit_trail import Teller
from groundplane.services.logged_models import LOGGED, RUNS, LoggedModels
from groundplane.services.models import Models
from groundplane.services.registration import card_text, newest_version, taken
from groundplane.services.registry import Registry
from groundplane.services.tracking import AlreadyThere, Told, Tracking, home

STAGES = {"production": "Production", "staging": "Staging"}
"""Alias → the stage that older clients call it."""
_SCHEME, _MODELS, _RUN = "mlflow-artifacts:/", "models:/", "runs:/"
MADE_TO_COPY_S = 60
"""A name so young, of which nothing was said, was made by the client that copies to it: its next call is the copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NameShown:
    """A registered model: its name, the number of its newest version (0 without one), what its aliases stand for."""

    name: ModelName
    newest: int
    aliases: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionShown:
    """A version with what moves around it."""

    version: ModelVersion
    origin: VersionOrigin
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    archived: bool

    @property
    def stage(self) -> str:
        if self.archived:
            return "Archived"
        return next((stage for alias, stage in STAGES.items() if alias in self.aliases), "None")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What a client says of the version that is to be made of what was logged."""

    text: str
    run_id: str
    model_id: str
    tags: Mapping[str, str]
    description: str


class TrackedModels:
    """Use cases of MLflow's registry. Versions are `Models`' own; aliases and stages move by `Registry.move` alone."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        models: Models,
        registry: Registry,
        tracking: Tracking,
        logged: LoggedModels,
        scratch: Path,
    ) -> None:
        self._store, self._clock = store, clock
        self._models, self._registry = models, registry
        self._tracking, self._logged = tracking, logged
        self._scratch = scratch
        self._tell = Teller(clock, "model-name")

    # ------------------------------------------------------------ names

    async def create_name(self, actor: Actor, name: str, description: str, tags: Mapping[str, str]) -> NameShown:
        """Keeps a name for the project before its first version. Raises AlreadyThere."""
        check_name(name)
        now = self._clock.now()
        async with self._store.transaction() as tx:
            project = await home(tx, actor)
            taken = await tx.get(ModelName, name) or await tx.find(ModelVersion, {"name": name}, limit=1)
            if taken:
                raise AlreadyThere(f"registered model {name} is there already", "take it, or another name")
            row = ModelName(
                id=name,
                project=project,
                description=description,
                tags=domain.with_tags({}, tags),
                created_by=actor.name,
                created_at=now,
                updated_at=now,
            )
            await tx.insert(row)
            await self._tell(tx, actor, "model-name.create", name, project, {"description": description})
        return NameShown(name=row, newest=0, aliases={})

    async def name(self, actor: Actor, name: str) -> NameShown:
        """Raises NotFound for a name that the actor does not see."""
        async with self._store.transaction() as tx:
            row = await tx.get(ModelName, name)
            newest = await newest_version(tx, name)
            first = await tx.get(ModelVersion, f"{name}@1") if row is None else None
            aliases = await tx.find(ModelAlias, {"name": name}, order="alias")
        project = newest.project if newest else row.project if row else ""
        if not project or not actor.sees(project):
            raise NotFound(f"there is no registered model {name[:80]}", "ground models list shows the ones you see")
        if row is None:
            assert newest is not None
            row = _implied(first or newest, newest)
        standing = {each.alias: each.number for each in aliases}
        return NameShown(name=row, newest=newest.number if newest else 0, aliases=standing)

    async def describe(
        self,
        actor: Actor,
        name: str,
        *,
        description: str | None = None,
        tags: Mapping[str, str | None] | None = None,
    ) -> NameShown:
        """Says something else of a name as a whole; a tag that is None goes."""
        shown = await self.name(actor, name)
        now = self._clock.now()
        async with self._store.transaction() as tx:
            before = await tx.get(ModelName, name, lock=True)
            kept = dict((before or shown.name).tags)
            for key, value in (tags or {}).items():
                kept = domain.without_tag(kept, key) if value is None else domain.with_tags(kept, {key: value})
            said = (before or shown.name).description if description is None else description
            after = replace(before or shown.name, description=said, tags=kept, updated_at=now)
            if before is None:
                await tx.insert(after)
            else:
                await tx.update(after)
            await self._tell(tx, actor, "model-name.describe", name, after.project, {"tags": kept})
        return replace(shown, name=after)

    async def delete_name(self, actor: Actor, name: str) -> None:
        """Lets go of a name without versions. Refused for others: versions are never deleted."""
        shown = await self.name(actor, name)
        if shown.newest:
            raise Refusal([_kept(f"{name} has {shown.newest} versions")])
        async with self._store.transaction() as tx:
            await tx.delete(ModelName, name)
            await self._tell(tx, actor, "model-name.delete", name, shown.name.project, {})

    # ------------------------------------------------------------ versions

    async def create_version(
        self,
        actor: Actor,
        name: str,
        *,
        source: str,
        run_id: str,
        model_id: str,
        tags: Mapping[str, str],
        description: str,
    ) -> VersionShown:
        """Registers what was logged, or a copy of a version, as the next version of a name, signed.

        Raises Refusal with every file that may not enter and every fact that is missing, and the tag that gives it.
        """
        check_name(name)
        for key, value in tags.items():
            check_tag(key, value)
        with self._tree() as tree:
            if (ref := _registered(source)) is not None:
                version, origin = await self._copied(actor, ref, name, tree, said=" by an MLflow client")
            else:
                logged = _Source(text=source, run_id=run_id, model_id=model_id, tags=tags, description=description)
                version, origin = await self._from_logged(actor, name, logged, tree)
        origin = replace(origin, source=source, description=description)
        async with self._store.transaction() as tx:
            await tx.insert_once(origin)
        if tags:
            await self._registry.tag(actor, version.id, dict(tags))
        return await self.version(actor, name, str(version.number))

    async def copy(self, actor: Actor, ref: str, name: str, *, project: str = "", reason: str = "") -> ModelVersion:
        """Makes the next version of `name` from one that the actor sees and that is in use, as `Models.copy` does.

        Its project is the name's own; a new name is the source's project's, unless `project` says another one.
        """
        check_name(name)
        with self._tree() as tree:
            said = f": {reason}" if reason else ""
            version, origin = await self._copied(actor, ref, name, tree, project=project, said=said)
        async with self._store.transaction() as tx:
            await tx.insert_once(origin)
        return version

    @contextmanager
    def _tree(self) -> Iterator[Path]:
        """A path for a folder that is gone afterwards."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch) as place:
            yield Path(place) / "model"

    async def _from_logged(
        self, actor: Actor, name: str, source: _Source, tree: Path
    ) -> tuple[ModelVersion, VersionOrigin]:
        folder, owner, below = _place(source.text, source.model_id)
        files = await self._logged.files(actor, folder, owner)
        if not any(not below or each.path.startswith(f"{below}/") for each in files):
            raise NotFound(
                f"nothing was logged below {source.text[:200]}", "log the model first: log_model or log_artifacts"
            )
        model = await self._logged.get(actor, owner) if folder == LOGGED else None
        run_id = source.run_id or (model.run_id if model else owner)
        told = await self._tracking.run(actor, run_id) if run_id else None
        project = await self._project_of(actor, name)
        tree.mkdir()
        await self._logged.lay(files, below, tree)
        facts = await self._facts(actor, tree, model, told, source)
        try:
            version = await self._models.register(
                actor,
                name=name,
                project=project,
                source=tree,
                facts=facts,
                reason=f"from {source.text} by an MLflow client",
            )
        except Refusal as error:
            by_tag = {each.refused(): refusal_of(each) for each in missing_facts(facts)}
            raise Refusal([by_tag.get(each, each) for each in error.refusals]) from None
        return version, replace(no_origin(version), run_id=run_id, model_id=model.id if model else "")

    async def _copied(
        self, actor: Actor, ref: str, name: str, tree: Path, *, project: str = "", said: str
    ) -> tuple[ModelVersion, VersionOrigin]:
        """A copy of a version that the actor sees. When there is none, the name that was made for it goes too."""
        try:
            source = await self.version(actor, *ref.split("@", 1))
            if source.archived:
                have, hint = f"{source.version.id}, which is archived", f"ground models unarchive {source.version.id}"
                raise Refusal([Refused(rule="archived", need="a version that is in use", have=have, hint=hint)])
            own = await self._project_of(actor, name, project or source.version.project)
            if project not in ("", own):
                raise Refusal([taken(name)])
            reason = f"copied from {source.version.id}{said}"
            version = await self._models.copy(actor, source.version, tree, name=name, project=own, reason=reason)
        except GroundError:
            await self._let_go(actor, name)
            raise
        told = source.origin
        return version, replace(
            told, id=version.id, name=name, source=f"{_MODELS}{source.version.name}/{source.version.number}",
            updated_at=self._clock.now(), version=0,
        )  # fmt: skip

    async def _let_go(self, actor: Actor, name: str) -> None:
        """Clients make the name right before they copy to it. A bare one of a moment ago is theirs, not a person's."""
        async with self._store.transaction() as tx:
            row = await tx.get(ModelName, name, lock=True)
            if row is None or row.created_by != actor.name or row.description or row.tags or row.version:
                return
            age_s = (self._clock.now() - row.created_at).total_seconds()
            if age_s > MADE_TO_COPY_S or await tx.find(RegistryEntry, {"name": name}, limit=1):
                return
            await tx.delete(ModelName, name)
            await self._tell(tx, actor, "model-name.delete", name, row.project, {}, "nothing could be copied to it")

    async def version(self, actor: Actor, name: str, number: str) -> VersionShown:
        """`number` may be an alias. Raises NotFound."""
        view = await self._registry.view(actor, f"{name}@{number}")
        async with self._store.transaction() as tx:
            origin = await tx.get(VersionOrigin, view.version.id)
        return VersionShown(
            version=view.version,
            origin=origin or no_origin(view.version),
            aliases=view.aliases,
            tags=view.tags,
            archived=view.archived,
        )

    async def describe_version(self, actor: Actor, name: str, number: str, description: str) -> VersionShown:
        """Says something else of a version. It is no part of what is signed."""
        shown = await self.version(actor, name, number)
        async with self._store.transaction() as tx:
            before = await tx.get(VersionOrigin, shown.version.id, lock=True)
            row = replace(before or shown.origin, description=description, updated_at=self._clock.now())
            if before is None:
                await tx.insert(row)
            else:
                await tx.update(row)
            told: dict[str, object] = {"description": description}
            await self._tell(tx, actor, "model-version.describe", shown.version.id, shown.version.project, told)
        return replace(shown, origin=row)

    async def tag_version(self, actor: Actor, name: str, number: str, key: str, value: str | None) -> None:
        """Sets a tag of a version; None takes it away."""
        await self._registry.tag(actor, f"{name}@{number}", {key: value})

    async def files(self, actor: Actor, name: str, number: str) -> tuple[ManifestFile, ...]:
        """A version's files, if it still is what was signed. Raises IntegrityFailure otherwise."""
        version = await self._models.get(actor, f"{name}@{number}")
        self._models.demand(version)
        return version.files

    # ------------------------------------------------------------ what moves

    async def move(self, actor: Actor, name: str, alias: str, number: str) -> AliasMove:
        """Lets an alias stand for a version, if its gates agree. Raises Refusal with every requirement not met."""
        return await self._registry.move(actor, name, alias, number, "set by an MLflow client")

    async def remove_alias(self, actor: Actor, name: str, alias: str) -> None:
        await self._registry.remove(actor, name, alias, "removed by an MLflow client")

    async def set_stage(
        self, actor: Actor, name: str, number: str, stage: str, *, archive_existing: bool
    ) -> VersionShown:
        """A stage is an alias: `Production` moves `production`, through its gates.

        `None` and `Archived` take the version's stages away.
        """
        wanted = stage.strip().lower()
        shown = await self.version(actor, name, number)
        why = f"to stage {stage} by an MLflow client"
        if wanted in STAGES:
            before = (await self.name(actor, name)).aliases.get(wanted)
            await self._registry.move(actor, name, wanted, str(shown.version.number), why)
            if archive_existing and before not in (None, shown.version.number):
                await self._registry.archive(actor, f"{name}@{before}", f"followed by {shown.version.id}")
        elif wanted in {"none", "archived"}:
            for alias in shown.aliases:
                if alias in STAGES:
                    await self._registry.remove(actor, name, alias, why)
            if wanted == "archived":
                await self._registry.archive(actor, shown.version.id, why)
        else:
            raise InvalidInput(f"{stage[:40]!r} is no stage", "use Staging, Production, Archived or None")
        return await self.version(actor, name, str(shown.version.number))

    # ------------------------------------------------------------ facts

    async def _project_of(self, actor: Actor, name: str, new: str = "") -> str:
        """The name's own, or for a name that nobody has `new`, or else the actor's."""
        try:
            return (await self.name(actor, name)).name.project
        except NotFound:
            async with self._store.transaction() as tx:
                if await tx.get(ModelName, name) is not None:
                    raise Conflict(f"{name} belongs to another project", "choose another name") from None
                return new or await home(tx, actor)

    async def _facts(
        self,
        actor: Actor,
        tree: Path,
        model: LoggedModel | None,
        told: Told | None,
        source: _Source,
    ) -> Facts:
        card = facts_of(card_text(tree))
        run = told.run if told else None
        metrics = {key: point.value for key, point in told.latest.items()} if told else {}
        if model is not None and model.metrics:
            metrics = {each.key: float(each.value) for each in model.metrics}
        shown = Shown(
            registrant=actor.name,
            run_id=run.id if run else "",
            metrics={key: value for key, value in metrics.items() if not key.startswith("system/")},
            datasets=run.datasets if run else (),
            params=run.params if run else {},
            job_data=await self._job_data(run.job) if run and run.job else (),
        )
        every = {**(run.tags if run else {}), **(model.tags if model else {}), **source.tags}
        facts = facts_of_tags(card, every, shown)
        return replace(facts, description=facts.description or source.description)

    async def _job_data(self, job: str) -> Sequence[DataFact]:
        async with self._store.transaction() as tx:
            run = await tx.get(Run, job)
        sources = run.spec.data if run is not None else ()
        return [DataFact(name=each.name, sha256=each.sha256) for each in sources if each.sha256]


def _registered(source: str) -> str | None:
    """`models:/NAME/VERSION` and `models:/NAME@ALIAS` as a reference of ours; None for what was logged."""
    name, slash, version = source.removeprefix(_MODELS).partition("/")
    if not source.startswith(_MODELS) or not (slash or "@" in name):
        return None
    return f"{name}@{version.lower()}" if slash else name


def _place(source: str, model_id: str) -> tuple[str, str, str]:
    """(folder, owner, path below) of what a client calls the source of a version. Raises InvalidInput."""
    if model_id or source.startswith(f"{_MODELS}m-"):
        return LOGGED, model_id or source.removeprefix(_MODELS), ""
    if source.startswith(_RUN):  # as people write it; `mlflow.register_model` looks the place up first
        source = f"{_SCHEME}{RUNS}/{source.removeprefix(_RUN)}"
    parts = source.removeprefix(_SCHEME).strip("/").split("/")
    if source.startswith(_SCHEME) and len(parts) >= 2 and parts[0] in {RUNS, LOGGED}:
        return parts[0], parts[1], "/".join(parts[2:])
    raise InvalidInput(
        f"{source[:200]!r} is nothing that was logged here",
        "register runs:/RUN/PATH, models:/MODEL-ID or models:/NAME/VERSION; files elsewhere: ground models register",
    )


def _implied(first: ModelVersion, last: ModelVersion) -> ModelName:
    return ModelName(
        id=first.name,
        project=first.project,
        created_by=first.created_by,
        created_at=first.created_at,
        updated_at=last.created_at,
    )


def no_origin(version: ModelVersion | RegistryEntry) -> VersionOrigin:
    """Of a version that came by another door."""
    return VersionOrigin(id=version.id, name=version.name, run_id=version.run_id, updated_at=version.created_at)


def _kept(have: str) -> Refused:
    return Refused(
        rule="versions-stay", need="nothing that was registered", have=have, hint="archive what is not to be used"
    )
