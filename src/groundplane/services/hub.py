"""The registry read as a Hugging Face hub: versions by repository and revision, files by byte range."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from groundplane.domain import hub
from groundplane.domain.access import Project
from groundplane.domain.conditions import Below, Between, Contains, Greatest
from groundplane.domain.dataset import DatasetVersion, digest_of
from groundplane.domain.gate import GateCheck
from groundplane.domain.hub import Document, Kind, Revision
from groundplane.domain.model import ManifestFile, ModelVersion
from groundplane.domain.provenance import model_card
from groundplane.domain.provenance.birth import Delivery
from groundplane.domain.registry import ModelAlias, RegistryEntry
from groundplane.errors import Conflict, IntegrityFailure, NotFound
from groundplane.identity import CROSS_PROJECT, Actor
from groundplane.ports import BlobStore, Store, Tx
from groundplane.services.aliases import standing
from groundplane.services.datasets import Datasets
from groundplane.services.models import Models
from groundplane.services.registration import card_text

CHUNK_BYTES = 2**20
PAGE_ROWS = 100
_BEHIND = "~"
"""Sorts after every character of a name, and of a digest."""

Stored = ModelVersion | DatasetVersion
_STATES: Mapping[Kind, tuple[type[Stored], Mapping[str, object]]] = {
    Kind.MODELS: (ModelVersion, {}),
    Kind.DATASETS: (DatasetVersion, {"kept": True}),
}
"""What a repository's states are rows of, and which of these count."""
_COMMITS = {Kind.MODELS: "certificate_sha256", Kind.DATASETS: "commit"}
"""The column that begins with the commit."""


class RevisionNotFound(NotFound):
    """The repository exists, the revision does not."""


class Hub:
    """What unmodified hub clients read: models with their certificates, datasets whose bytes are kept here.

    A client asks for a commit with each file: a revision is looked up in the same time however many there are.
    """

    def __init__(self, *, store: Store, models: Models, datasets: Datasets, blobs: BlobStore) -> None:
        self._store = store
        self._models = models
        self._datasets = datasets
        self._blobs = blobs
        self._broken: dict[str, int] = {}  # SHA-256 of a file → the byte from which it could not be read

    async def newest(self, actor: Actor, kind: Kind, project: str, name: str) -> Revision:
        """A repository's newest state. NotFound where there is none, or none that the actor sees."""
        async with self._store.transaction() as tx:
            found = await _newest(tx, actor, kind, project, name)
        if found is None:
            raise await self._no_repository(actor, kind, project, name)
        return _shown(found)

    async def revision(self, actor: Actor, kind: Kind, project: str, name: str, revision: str) -> Revision:
        """One state. NotFound for the repository, RevisionNotFound for its revision.

        IntegrityFailure unless the version is what was registered: nothing of it is loaded then.
        """
        async with self._store.transaction() as tx:
            newest = await _newest(tx, actor, kind, project, name)
            found = await _named(tx, newest, revision) if newest else None
        if newest is None:
            raise await self._no_repository(actor, kind, project, name)
        if found is None:
            raise await self._no_revision(newest, revision)
        if isinstance(found, ModelVersion):
            self._models.demand(found)
        else:
            _demand_digest(found)
        return _shown(found)

    async def refs(self, actor: Actor, kind: Kind, project: str, name: str) -> Document:
        """The names for a repository's commits: a branch, numbers, and the aliases as they stand now."""
        await self.newest(actor, kind, project, name)
        async with self._store.transaction() as tx:
            commits = await _commits(tx, kind, name)
            aliases = await tx.find(ModelAlias, {"name": name}) if kind is Kind.MODELS else []
        return hub.refs(commits, {row.alias: row.number for row in aliases})

    async def history(self, until: Revision, *, start: int, limit: int) -> tuple[list[Revision], int]:
        """Up to `limit` states from `until` back to the first, after as many as `start`; and how many there are."""
        row, where = _STATES[until.kind]
        where = {**where, "name": until.name, "number": Below(until.number + 1)}
        async with self._store.transaction() as tx:
            total = await tx.total(row, "*", where=where)
            found = await tx.find(row, where, order="-number", limit=limit, offset=start)
        return [_shown(each) for each in found], total.get((), 0)

    async def dated(self, version: Revision, entries: Sequence[Document]) -> list[Document]:
        """A version's entries with the commit that last changed each: the first of those since which it is as it is."""
        alike = hub.states(entries)
        last = dict.fromkeys(alike, version)
        async for earlier in self._back(version):
            there = hub.states(hub.tree(earlier, "", recursive=True) or ())
            alike = {path: oid for path, oid in alike.items() if there.get(path) == oid}
            if not alike:
                break
            last |= dict.fromkeys(alike, earlier)
        return hub.dated(entries, last)

    async def held(self, newest: Revision | None, digests: Collection[str]) -> dict[str, ManifestFile]:
        """Of these SHA-256 the ones that a version of the repository has, each with such a file."""
        missing, found = set(digests), dict[str, ManifestFile]()
        if newest is None:
            return found
        _take(newest.files, missing, found)
        if missing:
            async for earlier in self._back(newest):
                _take(earlier.files, missing, found)
                if not missing:
                    break
        return found

    async def search(
        self,
        actor: Actor,
        kind: Kind,
        *,
        text: str,
        project: str,
        tags: Iterable[str],
        limit: int,
        newest_first: bool = False,
    ) -> list[Revision]:
        """The newest version of each repository whose name holds the text and that has all these tags, by name."""
        row: type[RegistryEntry | Stored]
        row, where = (RegistryEntry, {}) if kind is Kind.MODELS else _STATES[kind]
        where = {**where, "number": Greatest("name", where)}
        order = "-created_at" if newest_first else "name"
        async with self._store.transaction() as tx:
            projects = [each.id for each in await tx.find(Project) if actor.sees(each.id) and project in ("", each.id)]
            if wanted := {tag.lower() for tag in tags}:
                licences = [str(each) for (each,) in await tx.total(row, "*", by=("license",))]
                where["license"] = tuple(each for each in licences if each and wanted == {hub.licence_tag(each)})
            listed: dict[str, RegistryEntry | Stored] = {}
            everywhere = actor.role in CROSS_PROJECT and not project
            for asked in _holding(text.lower(), projects, everywhere=everywhere):
                listed |= {each.id: each for each in await tx.find(row, {**where, **asked}, order=order, limit=limit)}
            found = sorted(listed.values(), key=lambda each: each.name)
            if newest_first:
                found.sort(key=lambda each: each.created_at, reverse=True)
            ids = tuple(each.id for each in found[:limit])
            states = {each.id: each for each in await tx.find(_STATES[kind][0], {"id": ids})}
        return [_shown(states[id]) for id in ids]

    async def parent(self, actor: Actor, project: str, name: str, commit: str) -> Revision | None:
        """The version that a push builds on: the newest, or None for a new repository.

        Conflict when the push was made for another commit; NotFound for a project the actor does not see.
        IntegrityFailure unless it is what was signed: nothing is built on what is not.
        """
        if not actor.sees(project):
            raise NotFound(f"there is no repository {project}/{name}", "ground projects list shows the ones you see")
        async with self._store.transaction() as tx:
            version = await _newest(tx, actor, Kind.MODELS, project, name)
        newest = _shown(version) if version else None
        if commit and (newest is None or not newest.commit.startswith(commit)):
            have = newest.commit if newest else "no commit yet"
            raise Conflict(f"{project}/{name} is at {have}, not at {commit}", "fetch it and push again")
        if isinstance(version, ModelVersion):
            self._models.demand(version)
        return newest

    async def _back(self, version: Revision) -> AsyncIterator[Revision]:
        """The states before one, newest first."""
        row, where = _STATES[version.kind]
        number = version.number
        while number > 1:
            async with self._store.transaction() as tx:
                asked = {**where, "name": version.name, "number": Below(number)}
                found = await tx.find(row, asked, order="-number", limit=PAGE_ROWS)
            for each in found:
                yield _shown(each)
            number = found[-1].number if len(found) == PAGE_ROWS else 1

    async def _no_revision(self, newest: Stored, revision: str) -> RevisionNotFound:
        """Where a gate keeps an alias from standing: which, and why. Other names are no way around it."""
        said = f"{newest.project}/{newest.name} has no revision {revision}"
        wanted = hub.wanted(revision)
        if isinstance(newest, ModelVersion) and wanted is not None and wanted.alias:
            versions = Between(f"{newest.name}@", f"{newest.name}@{_BEHIND}")
            async with self._store.transaction() as tx:
                asked = {"project": newest.project, "alias": wanted.alias, "version_id": versions}
                checks = await tx.find(GateCheck, asked, order="-at", limit=1)
            refused = [verdict.refused() for check in checks for verdict in check.verdicts if verdict.open]
            if refused:
                (check,) = checks
                said = f"{said}: {check.version_id} may not stand there: {refused[0]}"
                return RevisionNotFound(said, f"ground gates checks {check.version_id} says what is missing")
        return RevisionNotFound(said, f"try {hub.MAIN} or v{newest.number}")

    async def _no_repository(self, actor: Actor, kind: Kind, project: str, name: str) -> NotFound:
        row, _ = _STATES[kind]
        async with self._store.transaction() as tx:
            rows = await tx.find(row, {"name": name}, order="-number", limit=1)
        newest = rows[0] if rows and actor.sees(rows[0].project) else None
        if kind is Kind.MODELS:
            hint = (
                f"did you mean {newest.project}/{name}?" if newest else (await self._models.unknown(actor, name)).hint
            )
            return NotFound(f"there is no repository {project}/{name}", hint)
        if isinstance(newest, DatasetVersion) and newest.project == project:
            where = f"{newest.id} was erased" if newest.erased_at else f"{newest.id} lies at {newest.location}"
            return NotFound(f"{where}: no bytes of it are kept here", "ground datasets register --managed keeps a copy")
        return NotFound(f"there is no dataset {project}/{name}", (await self._datasets.unknown(actor, name)).hint)

    async def push(
        self, actor: Actor, project: str, name: str, *, tree: Path, kept: Sequence[ManifestFile], message: str
    ) -> Revision:
        """Registers what lies in `tree` with the parent's `kept` files beside it; facts are read from its README.md.

        Raises Refusal with every file that may not enter and every fact that is missing, as `Models.register` does.
        """
        for file in kept:
            await self._blobs.fetch(file.sha256, tree / file.path)
        facts = model_card.facts_of(card_text(tree))
        made = await self._models.register(
            actor,
            name=name,
            project=project,
            source=tree,
            facts=facts,
            reason=message,
            delivery=Delivery(
                how=f"pushed by {actor.name} as to a hub", missing=model_card.missing_of(facts), rows=lambda _: ()
            ),
        )
        return hub.of_model(made)

    async def content(self, file: ManifestFile, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `stop`, a chunk at a time, each verified as it is read. IntegrityFailure.

        Where it broke off once is read first the next time: who asks again is told before the answer has begun.
        """
        at = self._broken.get(file.sha256, start)
        try:
            if start < at < stop:
                await self._chunk(file, at, stop)
                self._broken.pop(file.sha256, None)  # mended since
            at = start
            while at < stop:
                chunk = await self._chunk(file, at, stop)
                at += len(chunk)
                yield chunk
        except IntegrityFailure:
            self._broken[file.sha256] = at
            raise

    async def _chunk(self, file: ManifestFile, at: int, stop: int) -> bytes:
        chunk = await self._blobs.read(file.sha256, at, min(CHUNK_BYTES, stop - at))
        if not chunk:
            raise IntegrityFailure(
                f"{file.path} ends at byte {at:,} of {file.size_bytes:,} in the store", "ground models verify"
            )
        return chunk


def _shown(row: Stored) -> Revision:
    return hub.of_model(row) if isinstance(row, ModelVersion) else hub.of_dataset(row)


def _take(files: Iterable[ManifestFile], missing: set[str], found: dict[str, ManifestFile]) -> None:
    for file in files:
        if file.sha256 in missing:
            missing.remove(file.sha256)
            found[file.sha256] = file


async def _newest(tx: Tx, actor: Actor, kind: Kind, project: str, name: str) -> Stored | None:
    if not actor.sees(project):
        return None
    row, where = _STATES[kind]
    found = await tx.find(row, {**where, "name": name, "project": project}, order="-number", limit=1)
    return found[0] if found else None


async def _named(tx: Tx, newest: Stored, revision: str) -> Stored | None:
    """Which version of the same name the revision names. None where it names none, or a short commit fits two."""
    wanted = hub.wanted(revision)
    if wanted is None or wanted == hub.Wanted():
        return newest if wanted else None
    kind = Kind.MODELS if isinstance(newest, ModelVersion) else Kind.DATASETS
    row, where = _STATES[kind]
    asked: dict[str, object] = {**where, "name": newest.name, "number": wanted.number}
    if wanted.commit:
        del asked["number"]
        asked[_COMMITS[kind]] = Between(wanted.commit, wanted.commit + _BEHIND)
    if wanted.alias:
        alias = await standing(tx, f"{newest.name}@{wanted.alias}") if kind is Kind.MODELS else None
        asked["number"] = alias.number if alias else 0
    found = await tx.find(row, asked, limit=2)
    return found[0] if len(found) == 1 else None


async def _commits(tx: Tx, kind: Kind, name: str) -> dict[int, str]:
    """The commit of each version of a name, without reading files and certificates."""
    row, where = _STATES[kind]
    rows = await tx.total(row, "*", by=("number", _COMMITS[kind]), where={**where, "name": name})
    return {cast("int", number): str(text)[: hub.COMMIT_HEX] for number, text in rows}


def _holding(text: str, projects: Sequence[str], *, everywhere: bool) -> Iterator[Mapping[str, object]]:
    """What to ask for where `project/name` shall hold the text: in the one, in the other, or over the slash.

    Whoever sees every project is asked about none: then the store walks the names.
    """
    head, slash, tail = text.partition("/")
    if slash:
        ending = tuple(each for each in projects if each.endswith(head))
        yield {"project": ending, "name": Between(tail, tail + _BEHIND)}
        return
    scope: Mapping[str, object] = {} if everywhere else {"project": tuple(projects)}
    yield {**scope, "name": Contains(text)} if text else scope
    if text and (named := tuple(each for each in projects if text in each)):
        yield {"project": named}


def _demand_digest(version: DatasetVersion) -> None:
    if digest_of(version.files) != version.digest or version.commit != hub.dataset_commit(version.id, version.digest):
        raise IntegrityFailure(
            f"{version.id} is not what was registered: its files do not come to its digest",
            "restore the database from a backup",
        )
