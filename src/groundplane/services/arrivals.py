"""Arrivals: pushes that are stored whole and get their files' SHA-256 afterwards, in turn or when somebody asks.

The row is the record of what is owed: after a crash the next look finds it, and giving a name twice is giving it once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from groundplane.audit import EventDraft
from groundplane.domain.artifact import Arrival, Artifact
from groundplane.domain.model import ManifestFile, manifest, manifest_sha256
from groundplane.errors import Conflict, IntegrityFailure, NotFound, Unavailable
from groundplane.identity import Actor
from groundplane.ports import Clock, Store, Tx
from groundplane.units import format_bytes

RETRY = timedelta(minutes=10)
"""An arrival that could not get its SHA-256 rests that long, unless somebody asks for it."""
log = logging.getLogger(__name__)


class Namer(Protocol):
    """A store that holds files without their SHA-256."""

    async def name(self, recipes: Sequence[str]) -> list[str]:
        """The SHA-256 (hex) of each, found by reading it again, verified; the store knows the files by it then.

        Twice is the same as once. NotFound, IntegrityFailure naming the piece, Unavailable on a full disk.
        """
        ...


class Arrivals:
    """Lists them, and turns each into the artifact it is to be."""

    def __init__(self, *, store: Store, clock: Clock, blobs: Namer) -> None:
        self._store, self._clock, self._blobs = store, clock, blobs
        self._locks: dict[str, asyncio.Lock] = {}
        self._again_at: dict[str, datetime] = {}

    async def arrivals(self, actor: Actor, *, project: str | None = None) -> list[Arrival]:
        """Oldest first; only those the actor sees."""
        where: dict[str, object] = {} if project is None else {"project": project}
        async with self._store.transaction() as tx:
            found = await tx.find(Arrival, where, order="created_at")
        return [arrival for arrival in found if actor.sees(arrival.project)]

    async def step(self) -> None:
        """Names what has arrived, oldest first."""
        async with self._store.transaction() as tx:
            waiting = await tx.find(Arrival, order="created_at")
        for arrival in waiting:
            if self._again_at.get(arrival.id, self._clock.now()) > self._clock.now():
                continue
            try:
                await self.name(arrival.id)
            except (NotFound, IntegrityFailure, Unavailable) as failure:
                # What is damaged here must not keep the others waiting.
                log.error("artifact %s has no SHA-256 yet: %s", arrival.id, failure.message)
                self._again_at[arrival.id] = self._clock.now() + RETRY
                await self._note(arrival.id, failure.message)

    async def name(self, arrival_id: str) -> None:
        """Makes the artifact; nothing when it is one already. NotFound, IntegrityFailure, Unavailable."""
        async with self._locks.setdefault(arrival_id, asyncio.Lock()):
            async with self._store.transaction() as tx:
                arrival = await tx.get(Arrival, arrival_id)
            if arrival is not None:
                sha256s = await self._blobs.name([file.recipe for file in arrival.files])
                await self._become(arrival, sha256s)
        self._locks.pop(arrival_id, None)
        self._again_at.pop(arrival_id, None)

    async def _become(self, arrival: Arrival, sha256s: Sequence[str]) -> None:
        named = [
            ManifestFile(path=file.path, sha256=sha256, size_bytes=file.size_bytes)
            for file, sha256 in zip(arrival.files, sha256s, strict=True)
        ]
        files = manifest(named)
        artifact = Artifact(
            id=arrival.id,
            name=arrival.name,
            project=arrival.project,
            files=files,
            manifest_sha256=manifest_sha256(files),
            size_bytes=arrival.size_bytes,
            created_by=arrival.created_by,
            created_at=arrival.created_at,
            keep_until=arrival.keep_until,
            pinned=arrival.pinned,
        )
        async with self._store.transaction() as tx:
            if not await tx.delete(Arrival, arrival.id):
                return  # deleted meanwhile
            await tx.insert(artifact)
            await tx.append_event(push_event(artifact, self._clock.now()))

    async def _note(self, arrival_id: str, problem: str) -> None:
        async with self._store.transaction() as tx:
            arrival = await tx.get(Arrival, arrival_id, lock=True)
            if arrival is not None and arrival.problem != problem:
                await tx.update(replace(arrival, problem=problem))


def push_event(artifact: Artifact, at: datetime) -> EventDraft:
    """What the audit trail keeps of a new artifact."""
    return EventDraft(
        at=at,
        actor=artifact.created_by,
        action="artifact.push",
        object_kind="artifact",
        object_id=artifact.id,
        project=artifact.project,
        after={"name": artifact.name, "files": len(artifact.files), "size_bytes": artifact.size_bytes},
    )


async def demand_arrived(tx: Tx, ref: str, project: str) -> None:
    """Raises Conflict while the project's artifact of this id or name still lacks its files' SHA-256."""
    for key in ("id", "name"):
        for arrival in await tx.find(Arrival, {key: ref, "project": project}, limit=1):
            size = format_bytes(arrival.size_bytes)
            raise Conflict(
                f"artifact {ref} is arriving: {size} are stored, their SHA-256 is not known yet",
                f"ground artifacts show {ref} waits for it; then try again",
            )
