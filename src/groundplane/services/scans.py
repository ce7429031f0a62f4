"""Scans of registered versions: the stored bytes are looked at anew, and what is found stays with the version.

A version was scanned when it was registered; the rules have grown since, and a target's memory is known only later.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from groundplane.audit import EventDraft
from groundplane.domain.gate import Evidence, Kind, scan_evidence
from groundplane.domain.registry import ADOPTED, LabelKind, RegistryEntry, VersionLabel
from groundplane.domain.scanning.report import ScanReport, judge_scan
from groundplane.identity import Actor
from groundplane.ports import BlobStore, Clock, Ids, ModelFiles, Store
from groundplane.services.models import Models

MAX_LISTED = 500


class Scans:
    """Scans versions and keeps the outcome as evidence."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        ids: Ids,
        models: Models,
        blobs: BlobStore,
        files: ModelFiles,
        scratch: Path,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._models = models
        self._blobs = blobs
        self._files = files
        self._scratch = scratch

    async def scan(
        self,
        actor: Actor,
        ref: str,
        *,
        base_licenses: Mapping[str, str] | None = None,
        memory_bytes: int | None = None,
    ) -> ScanReport:
        """Reads every stored file of the version. Twice gives two rows of evidence. NotFound; IntegrityFailure when

        a file is not what was signed. Needs room for one copy of the version, which goes away whatever happens.
        """
        version = await self._models.get(actor, ref)
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            source = await self._models.materialise(version.id, Path(folder) / "model", stage=None)
            found = await self._files.scan(source)
        report = judge_scan(
            version.id, found, license=version.license, base_licenses=base_licenses, memory_bytes=memory_bytes
        )
        now = self._clock.now()
        made = scan_evidence(self._ids.new("ev"), version, report, self._models.scan_rules(), actor.name, now)
        if memory_bytes is not None:
            made = replace(made, facts={**made.facts, "memory_bytes": str(memory_bytes)})
        after: dict[str, object] = {"ok": report.ok, "findings": len(report.findings), "evidence": made.id}
        event = EventDraft(
            at=now,
            actor=actor.name,
            action="model.scan",
            object_kind="model",
            object_id=version.id,
            project=version.project,
            after=after,
        )
        async with self._store.transaction() as tx:
            await tx.insert(made)
            await tx.append_event(event)
        return report

    async def scans(self, actor: Actor, *, ref: str = "", limit: int = 100) -> list[Evidence]:
        """What scans found, newest first: of one version, or of all that the actor sees."""
        where: dict[str, object] = {"kind": Kind.SCAN}
        if ref:
            where["version_id"] = (await self._models.get(actor, ref)).id
        elif actor.project is not None and not actor.sees(""):
            where["project"] = actor.project
        async with self._store.transaction() as tx:
            found = await tx.find(Evidence, where, order="-at", limit=min(limit, MAX_LISTED))
        return [each for each in found if actor.sees(each.project)]

    async def adoptions(self, actor: Actor) -> list[tuple[RegistryEntry, str]]:
        """Versions that were adopted, newest first, and from where."""
        async with self._store.transaction() as tx:
            labels = await tx.find(VersionLabel, {"kind": LabelKind.ORIGIN, "name": ADOPTED})
            sources = {label.version_id: label.text for label in labels}
            found = await tx.find(RegistryEntry, {"id": tuple(sources)}) if sources else []
        found.sort(key=lambda entry: (entry.created_at, entry.number), reverse=True)
        return [(entry, sources[entry.id]) for entry in found if actor.sees(entry.project)]

    async def outcomes(self) -> Counter[tuple[str, str]]:
        """(project, outcome) → scans that are kept."""
        async with self._store.transaction() as tx:
            found = await tx.total(Evidence, "*", by=("project", "name"), where={"kind": Kind.SCAN})
        return Counter({(str(project), str(name)): count for (project, name), count in found.items()})
