"""The registry read as a Hugging Face hub: versions by repository and revision, files by byte range."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from groundplane.domain import hub
from groundplane.domain.dataset import DatasetVersion, digest_of
from groundplane.domain.hub import Kind, Revision
from groundplane.domain.model import ManifestFile, ModelVersion
from groundplane.domain.provenance.model_card import CARD, facts_of
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, NotFound
from groundplane.identity import Actor
from groundplane.ports import BlobStore
from groundplane.services.datasets import Datasets
from groundplane.services.models import Models

CHUNK_BYTES = 2**20
MAX_LISTED = 1_000


class RevisionNotFound(NotFound):
    """The repository exists, the revision does not."""


class Hub:
    """What unmodified hub clients read: models with their certificates, datasets whose bytes are kept here."""

    def __init__(self, *, models: Models, datasets: Datasets, blobs: BlobStore) -> None:
        self._models = models
        self._datasets = datasets
        self._blobs = blobs

    async def revisions(self, actor: Actor, kind: Kind, project: str, name: str) -> list[Revision]:
        """A repository's states, newest first. NotFound where there is none, or none that the actor sees."""
        if kind is Kind.MODELS:
            return [hub.of_model(version) for version in await self._model_versions(actor, project, name)]
        return [hub.of_dataset(version) for version in await self._dataset_versions(actor, project, name)]

    async def revision(self, actor: Actor, kind: Kind, project: str, name: str, revision: str) -> Revision:
        """One state. NotFound for the repository, RevisionNotFound for its revision.

        IntegrityFailure unless the version is what was registered: nothing of it is loaded then.
        """
        if kind is Kind.DATASETS:
            kept = await self._dataset_versions(actor, project, name)
            found = _named([hub.of_dataset(version) for version in kept], revision, {})
            _demand_digest(next(version for version in kept if version.id == found.id))
            return found
        versions = await self._model_versions(actor, project, name)
        found = _named([hub.of_model(version) for version in versions], revision, await self.aliases(kind, name))
        self._models.demand(next(version for version in versions if version.id == found.id))
        return found

    async def aliases(self, kind: Kind, name: str) -> Mapping[str, int]:
        """Names that stand for a number, now."""
        return await self._models.aliases(name) if kind is Kind.MODELS else {}

    async def search(self, actor: Actor, kind: Kind, *, text: str, project: str, tags: Sequence[str]) -> list[Revision]:
        """The newest version of each repository whose name holds the text and that has all these tags, by name."""
        newest: dict[str, Revision] = {}
        if kind is Kind.MODELS:
            for model in await self._models.versions(actor):
                newest.setdefault(model.name, hub.of_model(model))
        else:
            for data in await self._datasets.datasets(actor):
                if data.kept:
                    newest.setdefault(data.name, hub.of_dataset(data))
        wanted = {tag.lower() for tag in tags}
        return [
            version
            for version in newest.values()
            if text.lower() in version.repository
            and project in ("", version.project)
            and wanted <= {tag.lower() for tag in hub.tags(version)}
        ][:MAX_LISTED]

    async def parent(self, actor: Actor, project: str, name: str, commit: str) -> Revision | None:
        """The version that a push builds on: the newest, or None for a new repository.

        Conflict when the push was made for another commit; NotFound for a project the actor does not see.
        IntegrityFailure unless it is what was signed: nothing is built on what is not.
        """
        if not actor.sees(project):
            raise NotFound(f"there is no repository {project}/{name}", "ground projects list shows the ones you see")
        try:
            version = (await self._model_versions(actor, project, name))[0]
        except NotFound:
            version = None
        newest = hub.of_model(version) if version else None
        if commit and (newest is None or not newest.commit.startswith(commit)):
            have = newest.commit if newest else "no commit yet"
            raise Conflict(f"{project}/{name} is at {have}, not at {commit}", "fetch it and push again")
        if version is not None:
            self._models.demand(version)
        return newest

    async def _model_versions(self, actor: Actor, project: str, name: str) -> list[ModelVersion]:
        try:
            found = await self._models.versions(actor, name)
        except NotFound as error:
            raise NotFound(f"there is no repository {project}/{name}", error.hint) from None
        own = [version for version in found if version.project == project]
        if not own:
            raise NotFound(f"there is no repository {project}/{name}", f"did you mean {found[0].project}/{name}?")
        return own

    async def _dataset_versions(self, actor: Actor, project: str, name: str) -> list[DatasetVersion]:
        try:
            found = await self._datasets.datasets(actor, name=name, project=project)
        except NotFound as error:
            raise NotFound(f"there is no dataset {project}/{name}", error.hint) from None
        kept = [version for version in found if version.kept]
        if not kept:
            newest = found[0]
            where = f"{newest.id} was erased" if newest.erased_at else f"{newest.id} lies at {newest.location}"
            raise NotFound(f"{where}: no bytes of it are kept here", "ground datasets register --managed keeps a copy")
        return kept

    async def push(
        self, actor: Actor, project: str, name: str, *, tree: Path, kept: Sequence[ManifestFile], message: str
    ) -> Revision:
        """Registers what lies in `tree` with the parent's `kept` files beside it; facts are read from its README.md.

        Raises Refusal with every file that may not enter and every fact that is missing, as `Models.register` does.
        """
        for file in kept:
            await self._blobs.fetch(file.sha256, tree / file.path)
        try:
            card = (tree / CARD).read_text(encoding="utf-8") if (tree / CARD).is_file() else ""
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{CARD} is not UTF-8 at byte {error.start:,}", "save it as UTF-8") from None
        made = await self._models.register(
            actor, name=name, project=project, source=tree, facts=facts_of(card), reason=message
        )
        return hub.of_model(made)

    async def content(self, file: ManifestFile, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `stop`, a chunk at a time. IntegrityFailure when the store ends early."""
        at = start
        while at < stop:
            chunk = await self._blobs.read(file.sha256, at, min(CHUNK_BYTES, stop - at))
            if not chunk:
                raise IntegrityFailure(
                    f"{file.path} ends at byte {at:,} of {file.size_bytes:,} in the store", "ground models verify"
                )
            at += len(chunk)
            yield chunk


def _named(versions: Sequence[Revision], revision: str, aliases: Mapping[str, int]) -> Revision:
    found = hub.at_revision(versions, revision, aliases)
    if found is None:
        newest = versions[0]
        hint = f"try {hub.MAIN} or v{newest.number}"
        raise RevisionNotFound(f"{newest.repository} has no revision {revision}", hint)
    return found


def _demand_digest(version: DatasetVersion) -> None:
    if digest_of(version.files) != version.digest:
        raise IntegrityFailure(
            f"{version.id} is not what was registered: its files do not come to its digest",
            "restore the database from a backup",
        )
