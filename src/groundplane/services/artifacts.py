"""Artifacts: files pushed and pulled under a name, and the upkeep of the store that everything with files shares."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from groundplane.audit import EventDraft
from groundplane.domain.access import Project
from groundplane.domain.artifact import (
    Arrival,
    ArrivedFile,
    Artifact,
    ArtifactCheck,
    Collected,
    DamagedSpot,
    ProjectStorage,
    Scrubbed,
    ScrubReport,
    StorageQuota,
    StoredPiece,
    StoreUsage,
    over_quota,
)
from groundplane.domain.dataset import DatasetVersion
from groundplane.domain.model import ManifestFile, ModelVersion, check_name, manifest, manifest_sha256, path_refusals
from groundplane.domain.oci_push import PushedManifest
from groundplane.domain.run import Checkpoint, CopyState
from groundplane.domain.tracking.records import LoggedFile
from groundplane.errors import IntegrityFailure, InvalidInput, NotFound, Problem, Refusal, Refused, Unavailable
from groundplane.identity import SYSTEM, Actor
from groundplane.ports import BlobStore, Clock, Ids, Store, Tx
from groundplane.services.arrivals import Arrivals, Namer, push_event
from groundplane.units import format_bytes

Holder = Artifact | ModelVersion | Checkpoint | DatasetVersion | LoggedFile | PushedManifest
HOLDERS: tuple[type[Holder], ...] = (Artifact, ModelVersion, Checkpoint, DatasetVersion, LoggedFile, PushedManifest)
"""Every kind of row whose `files` are in the store. What is missing here, a collection takes for nobody's."""

GRACE_MIN_S = 60.0
"""A row that refers to files is written after the files are stored: never less grace than that takes."""

MAX_LISTED = 1_000
_LOST_PERIOD_S = 3600.0


class ArtifactStore(BlobStore, Namer, Protocol):
    """A blob store that shares pieces between files, and what keeps it small and honest."""

    async def put_unnamed(self, paths: Sequence[Path]) -> list[tuple[str, int]]:
        """`put_files` that waits for no SHA-256: (recipe, size). A recipe (BLAKE3 hex) stands in a SHA-256's place
        wherever files are asked for here, until `name` has given them theirs and a collection takes it."""
        ...

    async def pieces(self, sha256: str) -> list[StoredPiece]:
        """Where a file's pieces lie, in order; empty for one that is stored whole. NotFound, IntegrityFailure."""
        ...

    async def address(self, pack: str) -> str:
        """Where a client reads a pack without us: an absolute path or a signed URL that ends; empty when nowhere."""
        ...

    async def shared(self, pieces: frozenset[str], among: frozenset[str]) -> frozenset[str]:
        """Those of the pieces (BLAKE3 hex) that lie here and belong to one of the files `among` (SHA-256 hex)."""
        ...

    async def piece(self, blake3: str, size_bytes: int) -> bytes:
        """One piece, verified. IntegrityFailure when no good copy of it is here."""
        ...

    async def landing(self, name: str) -> str:
        """Where a client puts bytes that are on their way here, without us: a signed URL that ends; empty: nowhere."""
        ...

    async def take_landing(self, name: str, limit_bytes: int) -> bytes:
        """What was put there; it is gone from there then. NotFound, TooLarge."""
        ...

    async def usage(self) -> StoreUsage:
        """What the store holds."""
        ...

    async def whole(self, sha256s: frozenset[str]) -> frozenset[str]:
        """Those of the files that the store can tell of with all their pieces. Reads no content."""
        ...

    async def collect(self, roots: frozenset[str], *, grace_s: float, thorough: bool = False) -> Collected:
        """Removes files that are no roots, what only they needed, and what dead pushes left.

        Spared is what a push is storing or has stored within `grace_s`. `thorough` leaves no dead byte in shared packs.
        A crash leaves copies, never holes. Unavailable when another process has the store open.
        """
        ...

    async def scrub(self, limit_bytes: int | None = None, after: str = "") -> Scrubbed:
        """Reads about `limit_bytes` of the store from where `after` says and names every spot that has changed."""
        ...

    async def cool(self, unread_s: float) -> int:
        """Moves packs that nobody has read for that long to the cold tier; bytes moved. 0 without a cold tier."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What is to become an artifact: relative path → a file this machine can read, and files stored before."""

    name: str
    project: str
    sources: Mapping[str, Path]
    known: Sequence[ManifestFile] = ()
    keep_until: datetime | None = None
    pinned: bool = False


class Artifacts:
    """Pushes, lists, proves, deletes; collects and scrubs the store."""

    def __init__(self, *, store: Store, clock: Clock, ids: Ids, blobs: ArtifactStore) -> None:
        self._store, self._clock, self._ids, self._blobs = store, clock, ids, blobs
        self.arriving = Arrivals(store=store, clock=clock, blobs=blobs)
        self._scrub_after = ""
        self._lost_asked_at = clock.now()
        self._collected_at = clock.now()
        self.freed_bytes = 0
        self.damaged_spots = 0

    # ------------------------------------------------------------ push and pull

    async def push(self, actor: Actor, pushed: Pushed) -> Artifact:
        """Stores the files and gives them a name. The same content twice is two artifacts and costs a row.

        Raises Refusal for paths that can't be and for a full quota, NotFound for an unseen project or for a file that
        is `known` to nobody the actor sees, Conflict when a file changes meanwhile. Nothing is named then.
        """
        await self._admit(actor, pushed)
        stored = await self._blobs.put_files(list(pushed.sources.values()))
        new = [
            ManifestFile(path=path, sha256=sha256, size_bytes=size_bytes)
            for path, (sha256, size_bytes) in zip(pushed.sources, stored, strict=True)
        ]
        files = manifest([*new, *pushed.known])
        artifact = Artifact(
            id=self._ids.new("art"),
            name=pushed.name,
            project=pushed.project,
            files=files,
            manifest_sha256=manifest_sha256(files),
            size_bytes=sum(file.size_bytes for file in files),
            created_by=actor.name,
            created_at=self._clock.now(),
            keep_until=pushed.keep_until,
            pinned=pushed.pinned,
        )
        async with self._store.transaction() as tx:
            await demand_quota(tx, pushed.project, files)
            await tx.insert(artifact)
            await tx.append_event(push_event(artifact, self._clock.now()))
        return artifact

    async def receive(self, actor: Actor, pushed: Pushed) -> Arrival:
        """`push` that waits for no SHA-256: returns when every byte is stored. The artifact of that id follows by
        itself, or as soon as somebody asks for it. Nothing may be `known`: that is asked by SHA-256.
        """
        if pushed.known:
            raise InvalidInput(f"{len(pushed.known)} files are known by their SHA-256", "send every file, or wait")
        await self._admit(actor, pushed)
        stored = await self._blobs.put_unnamed(list(pushed.sources.values()))
        files = tuple(
            ArrivedFile(path=path, recipe=recipe, size_bytes=size_bytes)
            for path, (recipe, size_bytes) in zip(pushed.sources, stored, strict=True)
        )
        arrival = Arrival(
            id=self._ids.new("art"),
            name=pushed.name,
            project=pushed.project,
            files=files,
            size_bytes=sum(file.size_bytes for file in files),
            created_by=actor.name,
            created_at=self._clock.now(),
            keep_until=pushed.keep_until,
            pinned=pushed.pinned,
        )
        async with self._store.transaction() as tx:
            await demand_quota(tx, pushed.project, [_of_recipe(file) for file in files])
            await tx.insert(arrival)
            after = {"name": arrival.name, "files": len(files), "size_bytes": arrival.size_bytes}
            await tx.append_event(self._event(actor, "artifact.arrive", arrival, after))
        return arrival

    async def _admit(self, actor: Actor, pushed: Pushed) -> None:
        """What can be said against a push before its bytes are read."""
        check_name(pushed.name)
        await self._see_project(actor, pushed.project)
        paths = [*pushed.sources, *(file.path for file in pushed.known)]
        if not paths:
            raise InvalidInput("there is nothing to push", "give a file, or a folder that holds some")
        refusals = path_refusals(paths)
        if refusals:
            raise Refusal(refusals)
        await self._check_known(actor, pushed.known)
        # Where the sizes alone say so; the quota is judged again when it is known what is new.
        sizes = await asyncio.to_thread(_sizes, pushed.sources)
        await self._check_quota(pushed.project, [*sizes, *pushed.known])

    async def known(self, actor: Actor, sha256s: Iterable[str]) -> tuple[str, ...]:
        """Those files that the actor need not send: they are whole in the store, and something they see has them."""
        asked = frozenset(sha256s)
        async with self._store.transaction() as tx:
            seen = {file.sha256 for _, file in await _held(tx, actor)}
        return tuple(sorted(await self._blobs.whole(asked & seen)))

    async def known_pieces(self, actor: Actor, pieces: frozenset[str]) -> frozenset[str]:
        """Those pieces that the actor need not send: something they see has them. Guessing one gives nothing else."""
        async with self._store.transaction() as tx:
            seen = frozenset(file.sha256 for _, file in await _held(tx, actor))
        return await self._blobs.shared(pieces, seen)

    async def piece(self, blake3: str, size_bytes: int) -> bytes:
        """One piece of the store, verified; the caller has asked `known_pieces` whether it may be had."""
        return await self._blobs.piece(blake3, size_bytes)

    async def landing(self, name: str) -> str:
        """Where a client puts a bundle of pieces without us; empty where the store has no such place."""
        return await self._blobs.landing(name)

    async def take_landing(self, name: str, limit_bytes: int) -> bytes:
        """What a client put there. NotFound, TooLarge."""
        return await self._blobs.take_landing(name, limit_bytes)

    async def artifacts(self, actor: Actor, *, project: str | None = None, limit: int = 100) -> list[Artifact]:
        """Newest first; only those the actor sees."""
        where: dict[str, object] = {}
        if project is not None or not actor.sees(""):
            where["project"] = project if project is not None else (actor.project or "")
        async with self._store.transaction() as tx:
            found = await tx.find(Artifact, where, order="-created_at", limit=min(limit, MAX_LISTED))
        return [artifact for artifact in found if actor.sees(artifact.project)]

    async def get(self, actor: Actor, ref: str) -> Artifact:
        """By id, or the newest of a name; one that is arriving is waited for. NotFound."""
        while True:
            async with self._store.transaction() as tx:
                found = await self._load(tx, actor, ref)
            if isinstance(found, Artifact):
                return found
            ref = found.id
            await self.arriving.name(ref)

    async def file(self, actor: Actor, ref: str, path: str) -> ManifestFile:
        """One of an artifact's files. NotFound."""
        artifact = await self.get(actor, ref)
        return named(artifact.files, path, artifact.id)

    async def pieces(self, actor: Actor, file: ManifestFile) -> tuple[list[StoredPiece], dict[str, str]]:
        """The pieces of a file that the actor may read, and for each pack where that can be done without us.

        A signed URL opens a whole pack, in which other projects' pieces may lie: only who sees every project gets one.
        A local path opens nothing that the file system would not.
        """
        found = await self._blobs.pieces(file.sha256)
        addresses = {pack: await self._blobs.address(pack) for pack in {piece.pack for piece in found}}
        return found, {
            pack: address for pack, address in addresses.items() if address.startswith("/") or actor.project is None
        }

    async def content(self, file: ManifestFile, offset: int, limit_bytes: int) -> bytes:
        """A range of a file that the caller was found to see, verified."""
        return await self._blobs.read(file.sha256, offset, limit_bytes)

    async def verify(self, actor: Actor, ref: str) -> ArtifactCheck:
        """Reads every piece of every file again. Damage is an answer, not an error."""
        artifact = await self.get(actor, ref)
        problems, checked_bytes = [], 0
        for file in artifact.files:
            try:
                await self._blobs.verify(file.sha256, file.size_bytes)
                checked_bytes += file.size_bytes
            except (IntegrityFailure, NotFound) as failure:
                problems.append(Problem(field=f"file {file.path}", message=failure.message, hint=failure.hint))
        return ArtifactCheck(
            id=artifact.id,
            ok=not problems,
            checked_files=len(artifact.files),
            checked_bytes=checked_bytes,
            problems=tuple(problems),
        )

    async def delete(self, actor: Actor, ref: str, reason: str = "") -> Artifact | Arrival:
        """Takes the name away; the bytes go with the next collection unless something else needs them."""
        async with self._store.transaction() as tx:
            artifact = await self._load(tx, actor, ref)
            if artifact.pinned:
                refused = Refused(
                    rule="pinned", need="an artifact that is not pinned", have=artifact.id, hint="push it unpinned"
                )
                raise Refusal([refused])
            await tx.delete(type(artifact), artifact.id)
            await tx.append_event(self._event(actor, "artifact.delete", artifact, {"name": artifact.name}, reason))
        return artifact

    # ------------------------------------------------------------ upkeep

    async def usage(self, actor: Actor) -> tuple[StoreUsage, list[ProjectStorage]]:
        """What the store holds, and what each project that the actor sees keeps."""
        async with self._store.transaction() as tx:
            arriving, held = await _arriving(tx), await _held(tx, actor)
            quotas = {quota.id: quota.limit_bytes for quota in await tx.find(StorageQuota)}
            projects = [project.id for project in await tx.find(Project) if actor.sees(project.id)]
        used = {
            project: _distinct_bytes(file for owner, file in [*held, *arriving] if owner == project)
            for project in projects
        }
        rows = [ProjectStorage(project=p, used_bytes=used[p], limit_bytes=quotas.get(p)) for p in sorted(projects)]
        return await self._blobs.usage(), rows

    async def totals(self, actor: Actor) -> tuple[StoreUsage, dict[str, int]]:
        """What the store holds, and the bytes each visible project refers to, shared ones as often as they are."""
        kept: dict[str, int] = {}
        async with self._store.transaction() as tx:
            for kind in (*HOLDERS, Arrival):
                sums = await tx.total(kind, "size_bytes", by=("project",), where=_with_files(kind))
                for (project,), size_bytes in sums.items():
                    if actor.sees(str(project)):
                        kept[str(project)] = kept.get(str(project), 0) + size_bytes
        return await self._blobs.usage(), kept

    async def set_quota(self, actor: Actor, project: str, limit_bytes: int | None) -> ProjectStorage:
        """None lifts it. A quota below what is kept deletes nothing: it refuses what comes."""
        await self._see_project(actor, project)
        async with self._store.transaction() as tx:
            before = await tx.get(StorageQuota, project, lock=True)
            if limit_bytes is None:
                await tx.delete(StorageQuota, project)
            elif before is None:
                await tx.insert(StorageQuota(id=project, limit_bytes=limit_bytes))
            else:
                await tx.update(replace(before, limit_bytes=limit_bytes))
            await tx.append_event(
                EventDraft(
                    at=self._clock.now(),
                    actor=actor.name,
                    action="storage.quota",
                    object_kind="project",
                    object_id=project,
                    project=project,
                    before={"limit_bytes": before.limit_bytes if before else None},
                    after={"limit_bytes": limit_bytes},
                )
            )
            used_bytes = _distinct_bytes((await _kept(tx, project)).values())
        return ProjectStorage(project=project, used_bytes=used_bytes, limit_bytes=limit_bytes)

    async def collect(self, actor: Actor, *, grace_s: float, thorough: bool = False) -> Collected:
        """Ends artifacts whose retention is over, then removes from the store what nothing refers to."""
        grace_s = max(grace_s, GRACE_MIN_S)
        now = self._clock.now()
        async with self._store.transaction() as tx:
            over = [a for a in await tx.find(Artifact) if a.keep_until and a.keep_until <= now and not a.pinned]
            for artifact in over:
                await tx.delete(Artifact, artifact.id)
                await tx.append_event(self._event(actor, "artifact.expire", artifact, {"name": artifact.name}))
        async with self._store.transaction() as tx:
            roots = frozenset(file.sha256 for _, file in [*await _arriving(tx), *await _held(tx, SYSTEM)])
        done = await self._blobs.collect(roots, grace_s=grace_s, thorough=thorough)
        self.freed_bytes += done.freed_bytes
        self._collected_at = now
        after: dict[str, object] = {
            "files": done.files,
            "freed_bytes": done.freed_bytes,
            "packs_deleted": done.packs_deleted,
            "packs_rewritten": done.packs_rewritten,
            "expired": len(over),
        }
        await self._note(actor, "storage.collect", after)
        return done

    async def scrub(self, actor: Actor, limit_bytes: int | None = None, after: str = "") -> ScrubReport:
        """Reads the store, or about `limit_bytes` of it from `after` on, and names what is damaged and what uses it."""
        return await self._scrub(actor, limit_bytes, after, lost_too=True)

    async def scrub_some(self, limit_bytes: int) -> ScrubReport:
        """The next stretch of an endless scrub: what a loop does, a little at a time. Looks for lost files hourly."""
        now = self._clock.now()
        lost_too = (now - self._lost_asked_at).total_seconds() >= _LOST_PERIOD_S
        if lost_too:
            self._lost_asked_at = now
        report = await self._scrub(SYSTEM, limit_bytes, self._scrub_after, lost_too=lost_too)
        self._scrub_after = report.next_after
        return report

    async def _scrub(self, actor: Actor, limit_bytes: int | None, after: str, *, lost_too: bool) -> ScrubReport:
        found = await self._blobs.scrub(limit_bytes, after)
        users: dict[str, list[str]] = {}
        if found.damage or lost_too:
            async with self._store.transaction() as tx:
                users = await _users(tx)
        lost = frozenset(users) - await self._blobs.whole(frozenset(users)) if lost_too else frozenset()
        spots = tuple(
            DamagedSpot(spot=spot, used_by=tuple(name for sha256 in spot.files for name in users.get(sha256, ())))
            for spot in found.damage
        )
        bad = [spot for spot in spots if not spot.spot.other_copy]
        self.damaged_spots = len(bad) + len(lost)
        if bad or lost:
            named = [name for spot in bad for name in spot.used_by][:20]
            await self._note(actor, "storage.damage", {"spots": len(bad), "lost": len(lost), "used_by": named})
        return ScrubReport(
            checked_bytes=found.checked_bytes,
            checked_pieces=found.checked_pieces,
            damage=spots,
            lost=tuple(name for sha256 in sorted(lost) for name in users[sha256]),
            next_after=found.next_after,
        )

    def collection_is_due(self, period_s: float) -> bool:
        """Whether the last collection of this process, or its start, is that long ago."""
        return (self._clock.now() - self._collected_at).total_seconds() >= period_s

    async def cool(self, unread_s: float) -> int:
        """Moves what nobody has read for that long to the cold tier; bytes moved."""
        return await self._blobs.cool(unread_s)

    # ------------------------------------------------------------ inside

    async def _load(self, tx: Tx, actor: Actor, ref: str) -> Artifact | Arrival:
        # Arrivals first: one that becomes an artifact between two looks is met by the second.
        found: Artifact | Arrival | None = await tx.get(Arrival, ref) or await tx.get(Artifact, ref)
        if found is None:
            where: dict[str, object] = {"name": ref} | ({} if actor.sees("") else {"project": actor.project})
            arriving = await tx.find(Arrival, where, order="-created_at", limit=1)
            newest = await tx.find(Artifact, where, order="-created_at", limit=1)
            rows: list[Artifact | Arrival] = [*newest, *arriving]
            found = max(rows, key=lambda row: row.created_at, default=None)
        if found is None or not actor.sees(found.project):
            raise NotFound(f"there is no artifact {ref}", "ground artifacts ls shows the ones you see")
        return found

    async def _see_project(self, actor: Actor, project: str) -> None:
        async with self._store.transaction() as tx:
            found = await tx.get(Project, project) if actor.sees(project) else None
        if found is None:
            raise NotFound(f"there is no project {project}", "ground projects list shows the ones you see")

    async def _check_known(self, actor: Actor, known: Sequence[ManifestFile]) -> None:
        """A digest is no proof of having the bytes: only files of what the actor sees may be taken over."""
        async with self._store.transaction() as tx:
            seen = {(file.sha256, file.size_bytes) for _, file in await _held(tx, actor)} if known else set()
        for file in known:
            if (file.sha256, file.size_bytes) not in seen:
                raise NotFound(f"{file.path} is not stored under sha256:{file.sha256}", "send the file")
        if len(await self._blobs.whole(frozenset(file.sha256 for file in known))) < len({f.sha256 for f in known}):
            raise Unavailable("a file that was stored before is damaged", "send every file again: that heals it")

    async def _check_quota(self, project: str, files: Sequence[ManifestFile]) -> None:
        async with self._store.transaction() as tx:
            quota = await tx.get(StorageQuota, project)
            if quota is not None and sum(file.size_bytes for file in files) > quota.limit_bytes:
                raise Refusal([_quota_refusal(project, files, quota, 0)])

    async def _note(self, actor: Actor, action: str, after: dict[str, object]) -> None:
        async with self._store.transaction() as tx:
            await tx.append_event(
                EventDraft(
                    at=self._clock.now(),
                    actor=actor.name,
                    action=action,
                    object_kind="storage",
                    object_id="store",
                    project="",
                    after=after,
                )
            )

    def _event(
        self, actor: Actor, action: str, artifact: Artifact | Arrival, after: Mapping[str, object], reason: str = ""
    ) -> EventDraft:
        return EventDraft(
            at=self._clock.now(),
            actor=actor.name,
            action=action,
            object_kind="artifact",
            object_id=artifact.id,
            project=artifact.project,
            after=dict(after),
            reason=reason,
        )


async def demand_quota(tx: Tx, project: str, files: Sequence[ManifestFile]) -> None:
    """Raises Refusal when these files would take a project over its quota; what it keeps already costs nothing."""
    quota = await tx.get(StorageQuota, project, lock=True)
    if quota is None:
        return
    held = await _kept(tx, project)
    used_bytes = _distinct_bytes(held.values())
    coming_bytes = _distinct_bytes(file for file in files if file.sha256 not in held)
    if over_quota(used_bytes, coming_bytes, quota):
        raise Refusal([_quota_refusal(project, files, quota, used_bytes)])


def _with_files(kind: type) -> dict[str, object]:
    """Checkpoints have rows before they have copies, and datasets that lie elsewhere have none here."""
    if kind is DatasetVersion:
        return {"kept": True}
    return {"copy": CopyState.COPIED} if kind is Checkpoint else {}


async def _held(tx: Tx, actor: Actor) -> list[tuple[str, ManifestFile]]:
    """(project, file) of everything with files that the actor sees."""
    rows: list[Holder] = [row for kind in HOLDERS for row in await tx.find(kind, _with_files(kind))]
    return [(row.project, file) for row in rows if actor.sees(row.project) for file in row.files]


async def _arriving(tx: Tx) -> list[tuple[str, ManifestFile]]:
    """(project, file) of every arrival, by what stands for its SHA-256 in the store. Asked before `_held`, so that
    one that becomes an artifact meanwhile is in one of the two."""
    return [(row.project, _of_recipe(file)) for row in await tx.find(Arrival) for file in row.files]


async def _kept(tx: Tx, project: str) -> dict[str, ManifestFile]:
    """What a project's quota counts."""
    found = [*await _arriving(tx), *await _held(tx, SYSTEM)]
    return {file.sha256: file for owner, file in found if owner == project}


async def _users(tx: Tx) -> dict[str, list[str]]:
    """SHA-256, or what stands for it, → what has it, as `tiny-lm@3 weights/model.safetensors`."""
    users: dict[str, list[str]] = {}
    rows: list[Holder] = [row for kind in HOLDERS for row in await tx.find(kind, _with_files(kind))]
    for row in rows:
        for file in row.files:
            users.setdefault(file.sha256, []).append(f"{row.id} {file.path}")
    for arrival in await tx.find(Arrival):
        for arrived in arrival.files:
            users.setdefault(arrived.recipe, []).append(f"{arrival.id} {arrived.path}")
    return users


def _of_recipe(file: ArrivedFile) -> ManifestFile:
    return ManifestFile(path=file.path, sha256=file.recipe, size_bytes=file.size_bytes)


def _distinct_bytes(files: Iterable[ManifestFile]) -> int:
    return sum({file.sha256: file.size_bytes for file in files}.values())


def named(files: Sequence[ManifestFile], path: str, ref: str) -> ManifestFile:
    """The file of an artifact or a model version at a path. NotFound."""
    found = next((file for file in files if file.path == path), None)
    if found is None:
        raise NotFound(f"{ref} has no file {path}", f"it has {len(files)}: show lists them")
    return found


def _sizes(sources: Mapping[str, Path]) -> list[ManifestFile]:
    """What is to come, by size alone."""
    try:
        return [
            ManifestFile(path=path, sha256=path, size_bytes=source.lstat().st_size) for path, source in sources.items()
        ]
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {error.filename}") from None


def _quota_refusal(project: str, files: Sequence[ManifestFile], quota: StorageQuota, used_bytes: int) -> Refused:
    coming = format_bytes(_distinct_bytes(files))
    return Refused(
        rule="storage-quota",
        need=f"{coming} within the {format_bytes(quota.limit_bytes)} of project {project}",
        have=f"{format_bytes(used_bytes)} kept already",
        hint="delete artifacts that are not needed, or raise the quota: ground artifacts quota PROJECT SIZE",
    )
