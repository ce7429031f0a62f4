"""The registry as OCI clients see it: what a repository holds, and what is pushed into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from groundplane.audit import EventDraft
from groundplane.domain import oci, oci_push
from groundplane.domain.access import Project
from groundplane.domain.gate import Gate
from groundplane.domain.model import LATEST, ManifestFile, ModelVersion, check_name, manifest
from groundplane.domain.oci_push import Packed, PushedManifest, PushedTag
from groundplane.domain.provenance.addendum import Addendum
from groundplane.domain.provenance.birth import Delivery
from groundplane.domain.provenance.model_card import CARD
from groundplane.domain.registry import ModelAlias
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, NotFound, Refusal, Refused
from groundplane.identity import Actor
from groundplane.ports import BlobStore, Clock, ModelFiles, Store
from groundplane.services.artifacts import demand_quota
from groundplane.services.models import Models


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A manifest whose blobs are all there: in `tree` under their paths, or, if `kept`, in the store already."""

    project: str
    name: str
    reference: str
    packed: Packed
    tree: Path
    kept: Sequence[ManifestFile] = ()

    @property
    def row_id(self) -> str:
        return oci_push.manifest_row_id(self.project, self.name, self.packed.digest)

    def __str__(self) -> str:
        return f"{self.project}/{self.name}"


class OciRegistry:
    """Versions, tags and referrers by repository; a push becomes a version or a referrer, or is refused whole."""

    def __init__(self, *, store: Store, clock: Clock, models: Models, blobs: BlobStore, files: ModelFiles) -> None:
        self._store = store
        self._clock = clock
        self._models = models
        self._blobs = blobs
        self._files = files
        self.outcomes: Counter[str] = Counter()

    # ------------------------------------------------------------ reading

    async def shelf(self, actor: Actor, project: str, name: str) -> oci.Shelf:
        """What a repository holds. NotFound where there is nothing, or nothing that the actor sees."""
        found = await self._shelf(actor, project, name)
        if not found.versions and not found.pushed:
            raise NotFound(f"there is no repository {project}/{name}", "ground models list shows the ones you see")
        return found

    async def with_addenda(self, shelf: oci.Shelf) -> oci.Shelf:
        """The same shelf and what became known of its versions later: a query that pulling files does without."""
        if not shelf.versions:
            return shelf
        async with self._store.transaction() as tx:
            where = {"version_id": tuple(version.id for version in shelf.versions)}
            return replace(shelf, addenda=await tx.find(Addendum, where, order="sequence"))

    def demand_sound(self, shelf: oci.Shelf, found: oci.Blob) -> None:
        """IntegrityFailure where a manifest stands for a version that is not what was signed."""
        version = oci.stands_for(shelf, found)
        if version is None:
            return
        self._models.demand(version)
        if said := oci.unlike(found, version):
            raise IntegrityFailure(f"{version.id} is not what was signed: {said}", f"ground models verify {version.id}")

    async def demand_push(self, actor: Actor, project: str, name: str) -> oci.Shelf:
        """What a repository holds before a push into it, maybe nothing. NotFound for an unseen project."""
        check_name(name)
        async with self._store.transaction() as tx:
            known = await tx.get(Project, project) if actor.sees(project) else None
        if known is None:
            raise NotFound(f"there is no repository {project}/{name}", "ground projects list shows the ones you see")
        return await self._shelf(actor, project, name)

    async def _shelf(self, actor: Actor, project: str, name: str) -> oci.Shelf:
        async with self._store.transaction() as tx:
            where = {"name": name, "project": project}
            versions = await tx.find(ModelVersion, where, order="-number") if actor.sees(project) else []
            pushed = await tx.find(PushedManifest, where, order="at") if actor.sees(project) else []
            tags = await tx.find(PushedTag, where) if actor.sees(project) else []
        aliases = await self._models.aliases(name) if versions else {}
        return oci.Shelf(versions=versions, aliases=aliases, pushed=pushed, tags=tags)

    # ------------------------------------------------------------ pushing

    async def push(self, actor: Actor, arrived: Arrived) -> None:
        """Makes the next version from what arrived, or keeps it as a referrer when its manifest names a subject.

        The same content again changes nothing but the tag. Raises Refusal with every file that may not enter and every
        fact that is missing, Conflict when the tag stands for other content, InvalidInput for what can't be read.
        Nothing is kept then.
        """
        for file in arrived.kept:
            await self._blobs.fetch(file.sha256, arrived.tree / file.path)
        try:
            if arrived.packed.subject:
                await self._refer(actor, arrived)
            else:
                await self._register(actor, arrived)
        except (Refusal, Conflict):
            self.outcomes["refused"] += 1
            raise

    async def _register(self, actor: Actor, arrived: Arrived) -> None:
        packed = arrived.packed
        facts = oci_push.stated_facts(packed.annotations, _card(arrived.tree))
        how = f"pushed over OCI by {actor.name} as {arrived}@{packed.digest}"

        def rows(version: ModelVersion) -> Sequence[object]:
            wanted = oci_push.numbered(arrived.reference)
            if wanted is not None and wanted != version.number:
                raise Refusal([_other_number(arrived, version.number)])
            return [self._row(actor, arrived, version_id=version.id), *_tags(arrived, version.number)]

        delivery = Delivery(how=how, missing=oci_push.missing_of(facts), rows=rows)
        try:
            if await self._known(actor, arrived):
                return
            await self._demand_no_alias(arrived)
            await self._models.register(
                actor,
                name=arrived.name,
                project=arrived.project,
                source=arrived.tree,
                facts=facts,
                reason=how,
                delivery=delivery,
            )
        except Conflict:
            # Somebody may have pushed these very bytes, or this tag, meanwhile: what stands now decides.
            if not await self._known(actor, arrived):
                raise
            return
        self.outcomes["registered"] += 1

    async def _known(self, actor: Actor, arrived: Arrived) -> bool:
        """Whether this content is a version already; its tag is given to it then.

        Conflict when the tag stands for other content: what a tag or a number stands for never changes.
        """
        packed, reference = arrived.packed, arrived.reference
        shelf = await self._shelf(actor, arrived.project, arrived.name)
        computed = [version.id for version in shelf.versions if oci.manifest(version).digest == packed.digest]
        same = [row for row in shelf.pushed if row.content_sha256 == packed.content_sha256]
        stands = oci.find_manifest(shelf, reference) if reference != LATEST else None
        if stands is not None and stands.digest not in {packed.digest, *(row.digest for row in same)}:
            raise Conflict(
                f"{arrived}:{reference} stands for other content, {stands.digest}",
                "versions never change: push under another tag, or under latest for the next version",
            )
        if not same and not computed:
            return False
        if all(row.tag != reference for row in shelf.tags):
            await self._demand_no_alias(arrived)
        version_id = (computed or [same[0].version_id])[0]
        number = int(version_id.rpartition("@")[2])
        if oci_push.numbered(reference) not in (None, number):
            raise Refusal([_other_number(arrived, number)])
        async with self._store.transaction() as tx:
            if not computed:
                await tx.insert_once(self._row(actor, arrived, version_id=version_id))
            for tag in _tags(arrived, number):
                if await tx.insert_once(tag):
                    await tx.append_event(self._event(actor, arrived, version_id, "model.tag", {"tag": tag.tag}))
        self.outcomes["known"] += 1
        return True

    async def _demand_no_alias(self, arrived: Arrived) -> None:
        """Refusal where the tag is an alias, or a gate stands before it: aliases are moved and judged, not pushed."""
        tag, name = arrived.reference, arrived.name
        async with self._store.transaction() as tx:
            taken = await tx.get(ModelAlias, f"{name}@{tag}") is not None
            gates = [gate for gate in await tx.find(Gate, {"project": arrived.project}) if gate.guards(name, tag)]
        if taken or gates:
            have = f"the alias {tag}" + (f", behind the gate {gates[0].id}" if gates else "")
            hint = f"push under latest, then: ground models alias {name}@{tag} NUMBER"
            raise Refusal([Refused(rule="alias", need="a tag that is no alias", have=have, hint=hint)])

    async def _refer(self, actor: Actor, arrived: Arrived) -> None:
        packed, reference = arrived.packed, arrived.reference
        await self._demand_no_alias(arrived)
        found = await self._files.scan(arrived.tree)
        refused = [file.refused for file in found if file.refused is not None]
        if refused:
            raise Refusal(refused)
        stored = await self._blobs.put_files([file.source for file in found])
        await self._files.unchanged(found)
        files = [
            ManifestFile(path=file.path, sha256=sha256, size_bytes=size_bytes)
            for file, (sha256, size_bytes) in zip(found, stored, strict=True)
        ]
        shelf = await self._shelf(actor, arrived.project, arrived.name)
        stands = oci.find_manifest(shelf, reference) if oci_push.is_label(reference) else None
        if stands is not None and stands.digest != packed.digest:
            raise Conflict(f"{arrived}:{reference} stands for {stands.digest}", "push under another tag")
        row = self._row(actor, arrived, files=manifest(files))
        async with self._store.transaction() as tx:
            await demand_quota(tx, row.project, row.files)
            if await tx.insert_once(row):
                for tag in _tags(arrived, 0):
                    await tx.insert(tag)
                said: dict[str, object] = {"subject": row.subject, "artifact_type": row.artifact_type}
                await tx.append_event(self._event(actor, arrived, row.id, "model.refer", said))
        self.outcomes["referred"] += 1

    def _event(
        self, actor: Actor, arrived: Arrived, object_id: str, action: str, after: dict[str, object]
    ) -> EventDraft:
        return EventDraft(
            at=self._clock.now(),
            actor=actor.name,
            action=action,
            object_kind="model",
            object_id=object_id,
            project=arrived.project,
            after=after,
        )

    def _row(
        self, actor: Actor, arrived: Arrived, *, version_id: str = "", files: tuple[ManifestFile, ...] = ()
    ) -> PushedManifest:
        packed = arrived.packed
        return PushedManifest(
            id=arrived.row_id,
            project=arrived.project,
            name=arrived.name,
            digest=packed.digest,
            artifact_type=packed.artifact_type,
            subject=packed.subject,
            content=packed.content.decode(),
            config=packed.config,
            config_digest=packed.config_digest,
            content_sha256=packed.content_sha256,
            files=files,
            size_bytes=sum(file.size_bytes for file in files),
            version_id=version_id,
            pushed_by=actor.name,
            at=self._clock.now(),
        )


def _tags(arrived: Arrived, number: int) -> list[PushedTag]:
    """The row of a tag that is a name of its own; `latest`, numbers and digests need none."""
    tag = arrived.reference
    if oci_push.is_digest(tag) or not oci_push.is_label(tag):
        return []
    row_id = oci_push.tag_row_id(arrived.project, arrived.name, tag)
    digest = arrived.packed.digest
    return [PushedTag(id=row_id, project=arrived.project, name=arrived.name, tag=tag, number=number, digest=digest)]


def _card(tree: Path) -> str:
    try:
        return (tree / CARD).read_text(encoding="utf-8") if (tree / CARD).is_file() else ""
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{CARD} is not UTF-8 at byte {error.start:,}", "save it as UTF-8") from None


def _other_number(arrived: Arrived, number: int) -> Refused:
    return Refused(
        rule="version-number",
        need=f"the tag v{number}: what is pushed is that version of {arrived}",
        have=f"the tag {arrived.reference}",
        hint=f"push it as v{number} or latest",
    )
