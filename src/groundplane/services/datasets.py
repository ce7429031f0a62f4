"""Datasets: versions registered once, compared, verified, followed to what came of them, erased with proof."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass, replace

from groundplane.audit import Event
from groundplane.domain.access import checked_text
from groundplane.domain.artifact import Arrival, Artifact
from groundplane.domain.canonical import parse_json
from groundplane.domain.dataset import (
    ERASURE_TYPE,
    FILES_MAX,
    DatasetCheck,
    DatasetDiff,
    DatasetFacts,
    DatasetVersion,
    Erasure,
    Lineage,
    LineageEdge,
    Pointer,
    Profile,
    compare,
    descendants,
    digest_of,
    missing_facts,
    pointer_of,
)
from groundplane.domain.evaluation import Evaluation
from groundplane.domain.hub import dataset_commit
from groundplane.domain.lineage import OutsideEdge
from groundplane.domain.model import ManifestFile, check_name, check_sha256, manifest, path_refusals
from groundplane.domain.provenance import certificate as cert
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, NotFound, Problem, Refusal, Refused
from groundplane.identity import Actor
from groundplane.ports import BlobStore, Clock, Ids, Signer, Store, Tx
from groundplane.services.access import visible_project
from groundplane.services.arrivals import demand_arrived
from groundplane.services.artifacts import HOLDERS, demand_quota
from groundplane.services.audit_trail import Teller
from groundplane.services.pins import dataset

MAX_LISTED = 1_000
MANAGED = "artifact:"
_STEPS_MAX = 50
_FILES_FOLLOWED_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """What is to become a version: where it lies, or the artifact that is its managed copy; and what was seen in it.

    `files` are declared by whoever hashed them; for a managed copy they are the artifact's, hashed here.
    """

    name: str
    project: str
    location: str = ""
    artifact_id: str = ""
    files: tuple[ManifestFile, ...] = ()
    profile: Profile = Profile()


class Datasets:
    """Use cases over datasets, their lineage and their end."""

    def __init__(self, *, store: Store, clock: Clock, ids: Ids, blobs: BlobStore, signer: Signer) -> None:
        self._store, self._clock, self._ids = store, clock, ids
        self._tell = Teller(clock, "dataset")
        self._blobs, self._signer = blobs, signer

    # ------------------------------------------------------------ registering

    async def register(self, actor: Actor, offered: Offered, facts: DatasetFacts) -> DatasetVersion:
        """Makes the next version of a dataset. The newest one comes back when nothing about it would differ.

        Raises Refusal with every fact that is missing and every path that can't be, NotFound for an unseen project or
        artifact, Conflict when another registration took the number.
        """
        check_name(offered.name, "dataset")
        now = self._clock.now()
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, offered.project)
            files, location, pointer = await self._place(tx, actor, offered)
            refusals = (*missing_facts(facts), *path_refusals([file.path for file in files]))
            if refusals:
                raise Refusal(refusals)
            newest = await tx.find(DatasetVersion, {"name": offered.name}, order="-number", limit=1)
            if newest and newest[0].project != offered.project:
                have, hint = f"{offered.name}, which belongs to another project", "choose another name"
                raise Refusal([Refused(rule="dataset-name", need="a name that is free", have=have, hint=hint)])
            number = newest[0].number + 1 if newest else 1
            managed = pointer is Pointer.MANAGED
            id, digest = f"{offered.name}@{number}", digest_of(files)
            row = DatasetVersion(
                id=id,
                name=offered.name,
                number=number,
                project=offered.project,
                owner=checked_text(facts.owner, "owner"),
                license=facts.license,
                classification=facts.classification,
                description=facts.description,
                digest=digest,
                how="measured" if managed else "declared",
                files=files,
                size_bytes=sum(file.size_bytes for file in files),
                pointer=pointer,
                location=location,
                profile=offered.profile,
                as_of=facts.as_of or now,
                fresh_for_s=facts.fresh_for_s,
                retain_until=facts.retain_until,
                created_by=actor.name,
                created_at=now,
                kept=managed,
                commit=dataset_commit(id, digest),
            )
            if newest and newest[0].erased_at is None and _same(newest[0], row, dated=facts.as_of is not None):
                return newest[0]
            if managed:
                await demand_quota(tx, offered.project, files)
            await tx.insert(row)
            await self._tell(tx, actor, "dataset.register", row.id, row.project, _registered(row))
        return row

    async def _place(self, tx: Tx, actor: Actor, offered: Offered) -> tuple[tuple[ManifestFile, ...], str, Pointer]:
        if offered.artifact_id:
            await demand_arrived(tx, offered.artifact_id, offered.project)
            artifact = await tx.get(Artifact, offered.artifact_id)
            if artifact is None or artifact.project != offered.project or not actor.sees(artifact.project):
                raise NotFound(f"project {offered.project} has no artifact {offered.artifact_id}", "push it first")
            return artifact.files, f"{MANAGED}{artifact.id}", Pointer.MANAGED
        if not 1 <= len(offered.files) <= FILES_MAX:
            raise InvalidInput(f"{len(offered.files):,} files", f"a version has 1 to {FILES_MAX:,}: pack small ones")
        for file in offered.files:
            check_sha256(file.sha256)
            if file.size_bytes < 0:
                raise InvalidInput(f"{file.path} has {file.size_bytes} bytes", "write its size")
        return manifest(offered.files), offered.location, pointer_of(offered.location)

    # ------------------------------------------------------------ reading

    async def datasets(self, actor: Actor, *, name: str = "", project: str = "") -> list[DatasetVersion]:
        """Versions the actor sees, by name, newest first. NotFound for a name of which there are none."""
        where = {key: value for key, value in (("name", name), ("project", project)) if value}
        async with self._store.transaction() as tx:
            found = [row for row in await tx.find(DatasetVersion, where) if actor.sees(row.project)]
        if name and not found:
            raise await self.unknown(actor, name)
        return sorted(found, key=lambda row: (row.name, -row.number))

    async def unknown(self, actor: Actor, name: str) -> NotFound:
        """That there is no such dataset, with the nearest names that the actor sees."""
        async with self._store.transaction() as tx:
            known = await tx.total(DatasetVersion, "*", by=("name", "project"))
        names = {str(each) for each, project in known if actor.sees(str(project))}
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "ground datasets list shows the ones you see"
        return NotFound(f"there is no dataset {name}", hint)

    async def get(self, actor: Actor, ref: str) -> DatasetVersion:
        """`corpus@2` or `corpus@latest`. Raises NotFound, InvalidInput."""
        async with self._store.transaction() as tx:
            return await dataset(tx, actor, ref)

    async def diff(self, actor: Actor, before: str, after: str) -> DatasetDiff:
        """Files, columns and facts that differ."""
        async with self._store.transaction() as tx:
            return compare(await dataset(tx, actor, before), await dataset(tx, actor, after))

    async def verify(self, actor: Actor, ref: str) -> DatasetCheck:
        """Reads every byte of a managed copy again, and holds the row against the trail. Damage is an answer.

        Conflict for what was erased, InvalidInput for what does not lie here.
        """
        found = await self.get(actor, ref)
        if found.erased_at is not None:
            raise Conflict(f"{found.id} was erased by {found.erasure_id}", f"ground datasets erasures {found.id}")
        if not found.kept:
            hint = f"hash {found.location} where it can be read: ground datasets verify {found.id} --path FOLDER"
            raise InvalidInput(f"{found.id} is not kept here", hint)
        async with self._store.transaction() as tx:
            problems = await _row_problems(tx, found)
        checked_bytes = 0
        for file in found.files:
            try:
                await self._blobs.verify(file.sha256, file.size_bytes)
                checked_bytes += file.size_bytes
            except (IntegrityFailure, NotFound) as failure:
                problems.append(Problem(field=f"file {file.path}", message=failure.message, hint=failure.hint))
        return DatasetCheck(
            id=found.id,
            ok=not problems,
            how="store",
            checked_files=len(found.files),
            checked_bytes=checked_bytes,
            problems=tuple(problems),
        )

    async def counts(self) -> dict[tuple[str, str], int]:
        """(project, pointer) → versions that are not erased."""
        async with self._store.transaction() as tx:
            rows = await tx.total(DatasetVersion, "*", by=("project", "pointer"), where={"erased_at": None})
        return Counter({(str(project), str(pointer)): number for (project, pointer), number in rows.items()})

    # ------------------------------------------------------------ lineage

    async def lineage(self, actor: Actor, ref: str) -> Lineage:
        """The runs that read a version, the models made from it, and the models made from these.

        What was named by the dataset counts, and what was hashed to the same bytes under any name. Edges of projects
        that the actor does not see are left out.
        """
        async with self._store.transaction() as tx:
            return await _lineage(tx, actor, await dataset(tx, actor, ref))

    # ------------------------------------------------------------ the end

    async def erase(self, actor: Actor, ref: str, *, records: str, reason: str, replacement: str = "") -> Erasure:
        """Takes a version's bytes away and signs what was done, what came of it, and what is left for others to do.

        A managed copy loses its names here at once, and its bytes with the next collection unless another holder needs
        them: who does is listed. A folder or a bucket is its owner's to clear. The row stays, marked: lineage needs it.
        """
        records, reason = checked_text(records, "records"), checked_text(reason, "reason")
        now = self._clock.now()
        async with self._store.transaction() as tx:
            named = await dataset(tx, actor, ref)
            found = await tx.get(DatasetVersion, named.id, lock=True)
            assert found is not None
            if found.erased_at is not None:
                raise Conflict(f"{found.id} was erased by {found.erasure_id}", f"ground datasets erasures {found.name}")
            other = await dataset(tx, actor, replacement) if replacement else None
            line = await _lineage(tx, actor, found)
            done, left = await self._let_go(tx, actor, found)
            done += [f"{found.id} can be used by no new run"]
            done += ["bounds and means of its columns are deleted"] if found.profile.columns else []
            left += await _quoting(tx, actor, found, line)
            left += [
                f"{model} was made from it: retrain it without these records, or say why not" for model in line.models
            ]
            draft = Erasure(
                id=self._ids.new("erase"),
                dataset_id=found.id,
                project=found.project,
                records=records,
                reason=reason,
                requested_by=actor.name,
                at=now,
                runs=line.runs,
                models=line.models,
                done=tuple(done),
                left=tuple(left),
                statement="",
                key_id=self._signer.key_id,
            )
            text = cert.seal(_statement(draft, found, other), self._signer.key_id, self._signer.sign)
            erasure = replace(draft, statement=text)
            await tx.insert(erasure)
            profile = found.profile.without_values()
            await tx.update(replace(found, kept=False, erased_at=now, erasure_id=erasure.id, profile=profile))
            told: dict[str, object] = {
                "erasure": erasure.id,
                "records": records,
                "runs": len(line.runs),
                "models": list(line.models),
                "left": len(left),
            }
            await self._tell(tx, actor, "dataset.erase", found.id, found.project, told, reason)
        return erasure

    async def erasures(self, actor: Actor, ref: str = "") -> list[Erasure]:
        """Erasures of projects the actor sees, newest first; of one version or name when given."""
        async with self._store.transaction() as tx:
            found = await tx.find(Erasure, order="-at", limit=MAX_LISTED)
        return [
            each
            for each in found
            if actor.sees(each.project) and (not ref or ref in (each.dataset_id, each.dataset_id.partition("@")[0]))
        ]

    async def proof(self, actor: Actor, erasure_id: str) -> dict[str, object]:
        """The signed envelope of an erasure, checked. IntegrityFailure when it is not what was signed."""
        async with self._store.transaction() as tx:
            found = await tx.get(Erasure, erasure_id)
        if found is None or not actor.sees(found.project):
            raise NotFound(f"there is no erasure {erasure_id}", "ground datasets erasures")
        opened = cert.open_envelope(found.statement)
        if not self._signer.verify(cert.pae(cert.PAYLOAD_TYPE, opened.payload), opened.signature, opened.key_id):
            raise IntegrityFailure(f"{found.id} is not what was signed", "restore the database from a backup")
        return {
            "envelope": parse_json(found.statement),
            "statement": opened.statement,
            "key_id": opened.key_id,
            "sha256": "",
        }

    async def _let_go(self, tx: Tx, actor: Actor, found: DatasetVersion) -> tuple[list[str], list[str]]:
        if found.pointer is not Pointer.MANAGED:
            return [], [f"delete the bytes at {found.location}: they are not kept here"]
        artifact_id = found.location.removeprefix(MANAGED)
        done = [
            f"{len(found.files)} files lost this name; bytes that nothing else holds go with the next collection: "
            "ground artifacts gc"
        ]
        if await tx.delete(Artifact, artifact_id):
            done.append(f"artifact {artifact_id} is deleted")
        mine = {file.sha256 for file in found.files if file.size_bytes}
        sizes = {file.size_bytes for file in found.files if file.size_bytes}
        left = [
            f"{arrival.id} is arriving, with files of the same size: {arrival.name} shows their SHA-256 soon"
            for arrival in await tx.find(Arrival)
            if actor.sees(arrival.project) and any(file.size_bytes in sizes for file in arrival.files)
        ]
        for kind in HOLDERS:
            for row in await tx.find(kind, {"kept": True} if kind is DatasetVersion else {}):
                shared = [file.path for file in row.files if file.sha256 in mine]
                if shared and row.id != found.id and actor.sees(row.project):
                    left.append(f"{row.id} holds {len(shared)} of the same files, such as {shared[0]}")
        return done, left


def _registered(row: DatasetVersion) -> dict[str, object]:
    """What the trail is told of a version, and what its row is held against."""
    return {
        "digest": row.digest,
        "files": len(row.files),
        "size_bytes": row.size_bytes,
        "pointer": str(row.pointer),
        "location": row.location,
        "classification": row.classification,
        "license": row.license,
        "owner": row.owner,
    }


async def _row_problems(tx: Tx, found: DatasetVersion) -> list[Problem]:
    """Where a row is not what was registered: its files come to its digest, the rest the trail was told."""
    hint = "restore the database from a backup"
    if digest_of(found.files) != found.digest:
        return [Problem(field="digest", message="is not the digest of its files", hint=hint)]
    if found.commit != dataset_commit(found.id, found.digest):
        return [Problem(field="commit", message="is not this version's", hint=hint)]
    asked = {"object_kind": "dataset", "object_id": found.id, "action": "dataset.register"}
    told = await tx.find(Event, asked, order="id", limit=1)
    if not told:
        return [Problem(field="row", message="its registration is not on the trail", hint="ground audit verify")]
    said, have = told[0].after, _registered(found)
    return [
        Problem(field=name, message=f"the row says {have[name]}, the trail {said[name]}", hint=hint)
        for name in have
        if name in said and said[name] != have[name]
    ]


async def _quoting(tx: Tx, actor: Actor, found: DatasetVersion, line: Lineage) -> list[str]:
    """What may hold rows of a version besides its own files: answers made from it, records of evaluations, caches."""
    made = dict.fromkeys(child.removeprefix("dataset:") for _, child in line.edges if child.startswith("dataset:"))
    left = [f"{each} was made from it: look whether it quotes these records" for each in made]
    for row in await tx.find(Evaluation, {"dataset": found.id}):
        if row.records_id and actor.sees(row.project):
            left.append(f"{row.records_id} holds what evaluation {row.name} asked of it: ground artifacts rm")
    if line.runs and found.pointer is Pointer.MANAGED:
        left.append(f"nodes where {', '.join(line.runs[:3])} ran may keep copies: ground data cache clear")
    return left


async def _lineage(tx: Tx, actor: Actor, found: DatasetVersion) -> Lineage:
    roots = [f"dataset:{found.id}", f"sha256:{found.digest}"]
    roots += [f"sha256:{file.sha256}" for file in found.files[:_FILES_FOLLOWED_MAX]]
    edges: dict[str, LineageEdge] = {}
    front = tuple(dict.fromkeys(roots))
    for _ in range(_STEPS_MAX):
        new = [edge for edge in await tx.find(LineageEdge, {"parent": front}) if edge.id not in edges]
        if not new:
            break
        edges |= {edge.id: edge for edge in new}
        front = tuple({edge.child for edge in new})
    seen = [edge for edge in descendants(roots, edges.values()) if actor.sees(edge.project)]
    children = list(dict.fromkeys(edge.child for edge in seen))
    named = tuple({f"dataset:{found.id}", *children})
    outside = await tx.find(OutsideEdge, {"parent": named}, order="at")
    return Lineage(
        id=found.id,
        runs=tuple(child.removeprefix("run:") for child in children if child.startswith("run:")),
        models=tuple(child.removeprefix("model:") for child in children if child.startswith("model:")),
        edges=tuple((edge.parent, edge.child) for edge in seen),
        outside=tuple(edge for edge in outside if actor.sees(edge.project)),
    )


def _same(old: DatasetVersion, new: DatasetVersion, *, dated: bool) -> bool:
    names = ("digest", "pointer", "owner", "license", "classification", "description", "fresh_for_s", "retain_until")
    place = old.pointer is Pointer.MANAGED or old.location == new.location
    return (
        place
        and all(getattr(old, name) == getattr(new, name) for name in names)
        and not (dated and old.as_of != new.as_of)
    )


def _statement(erasure: Erasure, found: DatasetVersion, replacement: DatasetVersion | None) -> dict[str, object]:
    """What is signed: an in-toto Statement whose subjects are the files that were erased."""
    return {
        "_type": cert.STATEMENT_TYPE,
        "subject": [{"name": file.path, "digest": {"sha256": file.sha256}} for file in found.files],
        "predicateType": ERASURE_TYPE,
        "predicate": {
            "id": erasure.id,
            "dataset": {"id": found.id, "digest": found.digest, "location": found.location, "owner": found.owner},
            "records": erasure.records,
            "reason": erasure.reason,
            "requested_by": erasure.requested_by,
            "at": erasure.at.isoformat(timespec="microseconds"),
            "replaced_by": replacement.id if replacement else None,
            "used_by": {"runs": list(erasure.runs), "models": list(erasure.models)},
            "done": list(erasure.done),
            "left": list(erasure.left),
        },
    }
