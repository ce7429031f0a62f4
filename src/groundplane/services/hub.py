"""The registry read as a Hugging Face hub: versions by repository and revision, files by byte range."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from groundplane.domain import hub
from groundplane.domain.model import ManifestFile, ModelVersion
from groundplane.domain.model_card import CARD, facts_of
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, NotFound
from groundplane.identity import Actor
from groundplane.ports import BlobStore
from groundplane.services.models import Models

CHUNK_BYTES = 2**20
MAX_LISTED = 1_000


class RevisionNotFound(NotFound):
    """The repository exists, the revision does not."""


class Hub:
    """What unmodified hub clients read. Every version seen here was registered with a certificate."""

    def __init__(self, *, models: Models, blobs: BlobStore) -> None:
        self._models = models
        self._blobs = blobs

    async def versions(self, actor: Actor, project: str, name: str) -> list[ModelVersion]:
        """A repository's versions, newest first. NotFound where there is none, or none that the actor sees."""
        try:
            found = await self._models.versions(actor, name)
        except NotFound as error:
            raise NotFound(f"there is no repository {project}/{name}", error.hint) from None
        own = [version for version in found if version.project == project]
        if not own:
            raise NotFound(f"there is no repository {project}/{name}", f"did you mean {found[0].project}/{name}?")
        return own

    async def version(self, actor: Actor, project: str, name: str, revision: str) -> ModelVersion:
        """One version. NotFound for the repository, RevisionNotFound for its revision."""
        versions = await self.versions(actor, project, name)
        found = hub.at_revision(versions, revision, await self.aliases(name))
        if found is None:
            newest = f"{hub.MAIN} or v{versions[0].number}"
            raise RevisionNotFound(f"{project}/{name} has no revision {revision}", f"try {newest}")
        return found

    async def aliases(self, name: str) -> Mapping[str, int]:
        """Names that stand for a number, now."""
        return await self._models.aliases(name)

    async def search(self, actor: Actor, *, text: str, project: str, limit: int) -> list[ModelVersion]:
        """The newest version of each repository whose name holds the text, by name."""
        newest: dict[str, ModelVersion] = {}
        for version in await self._models.versions(actor):
            newest.setdefault(version.name, version)
        wanted = text.lower()
        return [
            version
            for version in newest.values()
            if wanted in f"{version.project}/{version.name}" and project in ("", version.project)
        ][: min(limit, MAX_LISTED)]

    async def parent(self, actor: Actor, project: str, name: str, commit: str) -> ModelVersion | None:
        """The version that a push builds on: the newest, or None for a new repository.

        Conflict when the push was made for another commit; NotFound for a project the actor does not see.
        """
        if not actor.sees(project):
            raise NotFound(f"there is no repository {project}/{name}", "ground projects list shows the ones you see")
        try:
            newest = (await self.versions(actor, project, name))[0]
        except NotFound:
            newest = None
        if commit and (newest is None or not hub.commit_of(newest).startswith(commit)):
            have = hub.commit_of(newest) if newest else "no commit yet"
            raise Conflict(f"{project}/{name} is at {have}, not at {commit}", "fetch it and push again")
        return newest

    async def push(
        self, actor: Actor, project: str, name: str, *, tree: Path, kept: Sequence[ManifestFile], message: str
    ) -> ModelVersion:
        """Registers what lies in `tree` with the parent's `kept` files beside it; facts are read from its README.md.

        Raises Refusal with every file that may not enter and every fact that is missing, as `Models.register` does.
        """
        for file in kept:
            await self._blobs.fetch(file.sha256, tree / file.path)
        try:
            card = (tree / CARD).read_text(encoding="utf-8") if (tree / CARD).is_file() else ""
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{CARD} is not UTF-8 at byte {error.start:,}", "save it as UTF-8") from None
        return await self._models.register(
            actor, name=name, project=project, source=tree, facts=facts_of(card), reason=message
        )

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
