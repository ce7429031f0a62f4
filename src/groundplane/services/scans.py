"""Scans of registered versions: the stored bytes are looked at anew, and what is found stays with the version.

A version was scanned when it was registered; the rules have grown since, and a target's memory is known only later.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from groundplane.audit import EventDraft
from groundplane.domain.gate import Evidence, Kind
from groundplane.domain.model_scan import ScanReport, judge_scan
from groundplane.identity import Actor
from groundplane.ports import BlobStore, Clock, Ids, ModelFiles, Store
from groundplane.services.models import Models

_KEPT_FINDINGS = 20


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
            source = await self._models.materialise(version.id, Path(folder) / "model")
            found = await self._files.scan(source)
        report = judge_scan(
            version.id, found, license=version.license, base_licenses=base_licenses, memory_bytes=memory_bytes
        )
        facts = {
            f"finding {number}": f"{finding.severity}: {finding.rule}: {finding.path or 'all files'}"
            for number, finding in enumerate(report.findings[:_KEPT_FINDINGS], 1)
        }
        refused = sum(finding.severity == "refused" for finding in report.findings)
        facts |= {"findings": str(len(report.findings)), "refused": str(refused)}
        if memory_bytes is not None:
            facts["memory_bytes"] = str(memory_bytes)
        now = self._clock.now()
        evidence = Evidence(
            id=self._ids.new("ev"),
            version_id=version.id,
            project=version.project,
            kind=Kind.SCAN,
            name="scan",
            source="measured",
            by=actor.name,
            at=now,
            successes=report.files
            - len({finding.path for finding in report.findings if finding.severity == "refused"}),
            trials=report.files,
            facts=facts,
        )
        after: dict[str, object] = {"ok": report.ok, "findings": len(report.findings), "evidence": evidence.id}
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
            await tx.insert(evidence)
            await tx.append_event(event)
        return report
