"""The registry as OCI clients see it: what a repository holds, and what is pushed into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from groundplane.domain import oci, oci_push
from groundplane.domain.access import Project
from groundplane.domain.conditions import Below, Between
from groundplane.domain.gate import Gate
from groundplane.domain.model import LATEST, ManifestFile, ModelVersion, check_name
from groundplane.domain.oci_push import Packed, PushedManifest, PushedTag
from groundplane.domain.provenance.addendum import Addendum
from groundplane.domain.provenance.birth import Delivery
from groundplane.domain.registry import LabelKind, ModelAlias, RegistryEntry, VersionLabel
from groundplane.errors import Conflict, IntegrityFailure, NotFound, Refusal, Refused
from groundplane.identity import Actor
from groundplane.ports import BlobStore, Clock, ModelFiles, Store, Tx
from groundplane.services.aliases import standing
from groundplane.services.artifacts import demand_quota
from groundplane.services.audit_trail import Teller
from groundplane.services.models import Models
from groundplane.services.registration import card_text, stored

PAGE_ROWS = 100
_BEHIND = "~"
"""Sorts after every character of a tag."""


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
        self._tell = Teller(clock, "model")
        self._models = models
        self._blobs = blobs
        self._files = files
        self.outcomes: Counter[str] = Counter()

    # ------------------------------------------------------------ reading

    async def newest(self, actor: Actor, project: str, name: str) -> int:
        """The number of a repository's newest version; 0 where there are only manifests without one.

        NotFound where there is nothing, or nothing that the actor sees.
        """
        if actor.sees(project):
            where = {"name": name, "project": project}
            async with self._store.transaction() as tx:
                number = await _newest(tx, project, name)
                if number or await tx.count(PushedManifest, where, most=1):
                    return number
        raise NotFound(f"there is no repository {project}/{name}", "ground models list shows the ones you see")

    async def tags(self, actor: Actor, project: str, name: str, *, after: str, limit: int) -> list[str]:
        """Up to `limit` tags behind one, by their bytes. NotFound."""
        if after:
            oci_push.check_tag(after)
        newest = await self.newest(actor, project, name)
        first, last = (oci_push.tag_row_id(project, name, each) for each in (after, _BEHIND))
        async with self._store.transaction() as tx:
            aliases = await tx.find(ModelAlias, {"name": name}) if newest else []
            pushed = await tx.find(PushedTag, {"id": Between(first, last)}, limit=limit + 1)
        named = (*(row.alias for row in aliases), *(row.tag for row in pushed))
        return [tag for tag in oci.tags(newest, named) if tag > after][:limit]

    async def manifest(self, actor: Actor, project: str, name: str, reference: str) -> oci.Blob | None:
        """By tag or digest, or what refers to one by its fallback tag; None where nothing is meant.

        IntegrityFailure where it stands for a version that is not what was signed.
        """
        if not actor.sees(project):
            return None
        subject = oci.fallback_subject(reference)
        shelf = await self._referred(project, name, subject) if subject else await self._about(project, name, reference)
        found = oci.find_manifest(shelf, reference)
        version = oci.stands_for(shelf, found) if found else None
        if found is not None and version is not None:
            self._models.demand(version)
            if said := oci.unlike(found, version):
                hint = f"ground models verify {version.id}"
                raise IntegrityFailure(f"{version.id} is not what was signed: {said}", hint)
        return found

    async def blobs(self, actor: Actor, project: str, name: str, digests: Collection[str]) -> dict[str, oci.Blob]:
        """Those of the digests that a manifest of the repository names, each with what it is."""
        if not actor.sees(project):
            return {}
        shelf, wanted = await self._holders(project, name, digests), set(digests)
        found: dict[str, oci.Blob] = {}
        for blob in oci.blobs(shelf):
            if blob.digest in wanted:
                found.setdefault(blob.digest, blob)  # files come first: a small document may be the same bytes
        return found

    async def referrers(self, actor: Actor, project: str, name: str, digest: str, artifact_type: str) -> bytes:
        """The index of what refers to a manifest. NotFound for the repository."""
        await self.newest(actor, project, name)
        return oci.referrers(await self._referred(project, name, digest), digest, artifact_type)

    async def packages(self, actor: Actor, project: str, name: str, *, limit: int, below: int = 0) -> list[oci.Package]:
        """Every manifest of the newest `limit` versions, or of those before `below`, and what refers to them.

        With the newest versions come as many manifests that were pushed last. NotFound.
        """
        newest = await self.newest(actor, project, name)
        where: dict[str, object] = {"name": name, "project": project}
        async with self._store.transaction() as tx:
            asked = {**where, "number": Below(below)} if below else where
            versions = await tx.find(ModelVersion, asked, order="-number", limit=limit)
            alone = {**where, "version_id": ""}
            pushed = [] if below else await tx.find(PushedManifest, alone, order="-at", limit=limit)
            return await _packages(tx, project, name, await _shelf(tx, project, name, versions, pushed), newest)

    async def packages_of(self, version: ModelVersion) -> list[oci.Package]:
        """A version's manifests, and what refers to them."""
        project, name = version.project, version.name
        async with self._store.transaction() as tx:
            newest = await _newest(tx, project, name)
            return await _packages(tx, project, name, await _shelf(tx, project, name, [version]), newest)

    async def demand_push(self, actor: Actor, project: str, name: str) -> None:
        """NotFound for an unseen project, InvalidInput for a name that no version may have."""
        check_name(name)
        async with self._store.transaction() as tx:
            known = await tx.get(Project, project) if actor.sees(project) else None
        if known is None:
            raise NotFound(f"there is no repository {project}/{name}", "ground projects list shows the ones you see")

    async def _about(self, project: str, name: str, reference: str) -> oci.Shelf:
        """As much of a repository as says what a tag or a digest stands for."""
        if oci_push.is_digest(reference):
            return await self._holders(project, name, [reference])
        if not oci_push.is_tag(reference):
            return oci.Shelf()
        async with self._store.transaction() as tx:
            alias = await standing(tx, f"{name}@{reference}")
            tag = await tx.get(PushedTag, oci_push.tag_row_id(project, name, reference))
            if alias is not None or tag is None:
                number = alias.number if alias else oci_push.numbered(reference)
                asked = {"name": name, "project": project, **({} if reference == LATEST else {"number": number or 0})}
                versions = await tx.find(ModelVersion, asked, order="-number", limit=1)
                shelf = await _shelf(tx, project, name, versions)
                return replace(shelf, aliases={alias.alias: alias.number} if alias else {})
        return replace(await self._holders(project, name, [tag.digest]), tags=[tag])

    async def _holders(self, project: str, name: str, digests: Collection[str]) -> oci.Shelf:
        """The versions and the manifests of a repository that lead to these digests."""
        wanted = {digest for digest in digests if oci_push.is_digest(digest)}
        rows = tuple(oci_push.manifest_row_id(project, name, digest) for digest in wanted)
        async with self._store.transaction() as tx:
            pushed = await tx.find(PushedManifest, {"id": rows})
            labels = await _labels(tx, project, name, wanted)
        left = wanted - {row.digest for row in pushed} - labels.keys()
        if left and await self._label_new(project, name):
            async with self._store.transaction() as tx:
                labels |= await _labels(tx, project, name, left)
        held = {label.version_id for label in labels.values()} | {row.version_id or row.id for row in pushed}
        async with self._store.transaction() as tx:
            asked = {"id": tuple(held), "name": name, "project": project}
            versions = await tx.find(ModelVersion, asked, order="-number")
            return await _shelf(tx, project, name, versions, await tx.find(PushedManifest, asked))

    async def _label_new(self, project: str, name: str) -> bool:
        """Labels what came since the last time; whether anything did.

        Versions come through many doors, and few are asked for by digest: who asks for one that is not labelled pays
        for those before it, once.
        """
        any_new = False
        while await self._label_page(project, name):
            any_new = True
        return any_new

    async def _label_page(self, project: str, name: str) -> bool:
        where: dict[str, object] = {"name": name, "project": project}
        async with self._store.transaction() as tx:
            newest = await _newest(tx, project, name)
            mark = await tx.get(VersionLabel, oci.digest_label_id(project, name, ""), lock=True)
            if mark is None:
                alone = await tx.find(PushedManifest, {**where, "version_id": ""})
                if newest or alone:
                    await tx.insert_many_once(oci.digest_labels(project, name, oci.Shelf(pushed=alone)))
                    await tx.insert_once(oci.made_up_to(project, name))
                return bool(newest or alone)
            if (mark.value or 0) >= newest:
                return False
            number = int(mark.value or 0) + 1
            asked = {**where, "number": Between(number, number + PAGE_ROWS)}
            shelf = await _shelf(tx, project, name, await tx.find(ModelVersion, asked, order="-number"))
            await tx.insert_many_once(oci.digest_labels(project, name, shelf))
            await tx.update(replace(mark, value=float(min(number + PAGE_ROWS - 1, newest))))
            return True

    async def _referred(self, project: str, name: str, digest: str) -> oci.Shelf:
        """What a digest leads to, with what refers to it."""
        if not oci_push.is_digest(digest):
            return oci.Shelf()
        shelf = await self._holders(project, name, [digest])
        async with self._store.transaction() as tx:
            return await _with_referrers(tx, project, name, shelf, {digest})

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
        facts = oci_push.stated_facts(packed.annotations, card_text(arrived.tree))
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
        packed, reference, project, name = arrived.packed, arrived.reference, arrived.project, arrived.name
        shelf = await self._holders(project, name, [packed.digest])
        computed = [version for version in shelf.versions if oci.manifest(version).digest == packed.digest]
        stands = None
        if reference != LATEST:
            stands = oci.find_manifest(await self._about(project, name, reference), reference)
        async with self._store.transaction() as tx:
            asked = {"name": name, "project": project, "content_sha256": packed.content_sha256}
            same = await tx.find(PushedManifest, asked, order="at")
            tagged = await tx.get(PushedTag, oci_push.tag_row_id(project, name, reference))
        if stands is not None and stands.digest not in {packed.digest, *(row.digest for row in same)}:
            raise Conflict(
                f"{arrived}:{reference} stands for other content, {stands.digest}",
                "versions never change: push under another tag, or under latest for the next version",
            )
        if not same and not computed:
            return False
        if tagged is None:
            await self._demand_no_alias(arrived)
        version_id = computed[0].id if computed else same[0].version_id
        number = int(version_id.rpartition("@")[2])
        if oci_push.numbered(reference) not in (None, number):
            raise Refusal([_other_number(arrived, number)])
        async with self._store.transaction() as tx:
            if not computed and await tx.insert_once(self._row(actor, arrived, version_id=version_id)):
                version = await tx.get(ModelVersion, version_id)
                await _label(tx, project, name, await _shelf(tx, project, name, [version] if version else []))
            for tag in _tags(arrived, number):
                if await tx.insert_once(tag):
                    await self._tell(tx, actor, "model.tag", version_id, project, {"tag": tag.tag})
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
        files = await stored(self._blobs, self._files, found)
        shelf = await self._about(arrived.project, arrived.name, reference)
        stands = oci.find_manifest(shelf, reference) if oci_push.is_label(reference) else None
        if stands is not None and stands.digest != packed.digest:
            raise Conflict(f"{arrived}:{reference} stands for {stands.digest}", "push under another tag")
        row = self._row(actor, arrived, files=files)
        async with self._store.transaction() as tx:
            await demand_quota(tx, row.project, row.files)
            if await tx.insert_once(row):
                await _label(tx, row.project, row.name, oci.Shelf(pushed=[row]))
                for tag in _tags(arrived, 0):
                    await tx.insert(tag)
                said: dict[str, object] = {"subject": row.subject, "artifact_type": row.artifact_type}
                await self._tell(tx, actor, "model.refer", row.id, row.project, said)
        self.outcomes["referred"] += 1

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


async def _newest(tx: Tx, project: str, name: str) -> int:
    found = await tx.find(RegistryEntry, {"name": name, "project": project}, order="-number", limit=1)
    return found[0].number if found else 0


async def _shelf(
    tx: Tx, project: str, name: str, versions: Sequence[ModelVersion], alone: Sequence[PushedManifest] = ()
) -> oci.Shelf:
    """Versions with what was pushed for them and became known of them, and manifests that were pushed `alone`."""
    if not versions:
        return oci.Shelf(pushed=alone)
    ids = tuple(version.id for version in versions)
    own = await tx.find(PushedManifest, {"name": name, "project": project, "version_id": ids}, order="at")
    addenda = await tx.find(Addendum, {"version_id": ids}, order="sequence")
    return oci.Shelf(versions=versions, pushed=[*own, *alone], addenda=addenda)


async def _with_referrers(tx: Tx, project: str, name: str, shelf: oci.Shelf, subjects: Collection[str]) -> oci.Shelf:
    """With what was pushed as referring to these, and to that. Addenda may be newer than the version's labels."""
    pushed = {row.id: row for row in shelf.pushed}
    while subjects:
        asked = {"name": name, "project": project, "subject": tuple(subjects)}
        found = [row for row in await tx.find(PushedManifest, asked, order="at") if row.id not in pushed]
        pushed |= {row.id: row for row in found}
        subjects = {row.digest for row in found}
    if shelf.addenda:
        await _label(tx, project, name, shelf)
    return replace(shelf, pushed=list(pushed.values()))


async def _packages(tx: Tx, project: str, name: str, shelf: oci.Shelf, newest: int) -> list[oci.Package]:
    shelf = await _with_referrers(tx, project, name, shelf, {blob.digest for blob in oci.manifests(shelf)})
    digests = tuple({blob.digest for blob in oci.manifests(shelf)})
    tags = await tx.find(PushedTag, {"name": name, "project": project, "digest": digests})
    aliases = await tx.find(ModelAlias, {"name": name})
    standing = {row.alias: row.number for row in aliases}
    return oci.packages(replace(shelf, aliases=standing, tags=tags), newest)


async def _labels(tx: Tx, project: str, name: str, digests: Collection[str]) -> dict[str, VersionLabel]:
    """Where digests lead."""
    ids = {oci.digest_label_id(project, name, digest): digest for digest in digests}
    return {ids[row.id]: row for row in await tx.find(VersionLabel, {"id": tuple(ids), "kind": LabelKind.DIGEST})}


async def _label(tx: Tx, project: str, name: str, shelf: oci.Shelf) -> None:
    """Adds the labels that are missing. Whoever reads writes nothing where none is."""
    labels = oci.digest_labels(project, name, shelf)
    known = {row.id for row in await tx.find(VersionLabel, {"id": tuple(row.id for row in labels)})}
    await tx.insert_many_once([row for row in labels if row.id not in known])


def _tags(arrived: Arrived, number: int) -> list[PushedTag]:
    """The row of a tag that is a name of its own; `latest`, numbers and digests need none."""
    tag = arrived.reference
    if oci_push.is_digest(tag) or not oci_push.is_label(tag):
        return []
    row_id = oci_push.tag_row_id(arrived.project, arrived.name, tag)
    digest = arrived.packed.digest
    return [PushedTag(id=row_id, project=arrived.project, name=arrived.name, tag=tag, number=number, digest=digest)]


def _other_number(arrived: Arrived, number: int) -> Refused:
    return Refused(
        rule="version-number",
        need=f"the tag v{number}: what is pushed is that version of {arrived}",
        have=f"the tag {arrived.reference}",
        hint=f"push it as v{number} or latest",
    )
