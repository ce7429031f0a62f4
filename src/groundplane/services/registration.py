"""How a draft becomes a version: scanned, stored, numbered and certified, in one transaction or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from groundplane.domain.dataset import DatasetVersion, LineageEdge, edge
from groundplane.domain.gate import scan_evidence
from groundplane.domain.model import ManifestFile, ModelVersion, manifest, manifest_sha256
from groundplane.domain.provenance import certificate as cert
from groundplane.domain.provenance.addendum import Addendum
from groundplane.domain.provenance.model_card import CARD
from groundplane.domain.provenance.required_facts import Known, Missing, RequiredFacts, Stage, judge_facts
from groundplane.domain.registry import adopted_label, entry_of, metric_labels
from groundplane.domain.scanning.report import ScanReport, judge_scan, refusals_of
from groundplane.errors import Conflict, InvalidInput, Refusal, Refused
from groundplane.identity import Actor
from groundplane.ports import BlobStore, Clock, FoundFile, ModelFiles, Signer, Store, Tx
from groundplane.services.ancestry import base_versions, unknown_bases
from groundplane.services.artifacts import demand_quota
from groundplane.services.audit_trail import Teller

NUMBER_TRIES = 100
"""How often a registration tries again after losing a version number to another one."""

_LOOKS_MAX = 16
"""So often are files looked at that get and lose other names meanwhile, as when several register the same folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What is to become a version: all but its files and its number."""

    name: str
    project: str
    owner: str
    license: str
    run_id: str
    metrics: dict[str, float]
    created_by: str
    birth: cert.Birth
    reason: str
    rows: Callable[[ModelVersion], Sequence[object]] = lambda _: ()


class Registration:
    """Makes versions of drafts. Numbers are taken in order; what stands against a draft is told at once."""

    def __init__(self, *, store: Store, clock: Clock, blobs: BlobStore, signer: Signer, files: ModelFiles) -> None:
        self._store = store
        self._clock = clock
        self._tell = Teller(clock, "model")
        self._blobs = blobs
        self._signer = signer
        self._files = files

    async def register(self, actor: Actor, draft: Draft, found: Sequence[FoundFile]) -> ModelVersion:
        """The next version of the draft's name, from these files. What a run has written becomes one version, once.

        Raises Refusal for what the scan, the quota or the project's required facts stand against, Conflict when a file
        changes meanwhile. Nothing is registered then.
        """
        report = await self._scanned(draft, found)
        return await self._commit(actor, draft, await stored(self._blobs, self._files, found), report)

    async def _scanned(self, draft: Draft, found: Sequence[FoundFile]) -> ScanReport:
        """What the scan says of all files together. Refusal for what stands against them.

        Licences are compared with those of the registered models and data that it was made from.
        """
        async with self._store.transaction() as tx:
            bases, data = await _terms(tx, draft.birth)
        report = judge_scan(
            draft.name,
            found,
            license=draft.license,
            base_licenses=bases,
            data_licenses=data,
            memory_bytes=draft.birth.target_memory_bytes,
        )
        if refused := refusals_of(report):
            raise Refusal(refused)
        return report

    async def _commit(
        self, actor: Actor, draft: Draft, files: tuple[ManifestFile, ...], report: ScanReport
    ) -> ModelVersion:
        """Takes the next number. Who loses it to a registration at the same time tries again with the one after."""
        lost = 0
        for _ in range(NUMBER_TRIES):
            number = 0
            try:
                async with self._store.transaction() as tx:
                    newest = await newest_version(tx, draft.name)
                    if newest is not None and newest.project != draft.project:
                        raise Refusal([taken(draft.name)])
                    if draft.run_id and (known := await output_of(tx, draft.run_id, draft.name)) is not None:
                        return known
                    await demand_quota(tx, draft.project, files)
                    number = 1 if newest is None else newest.number + 1
                    unknown = {*draft.birth.unknown, *await unknown_bases(tx, draft.birth.base_model)}
                    birth = replace(draft.birth, unknown=tuple(sorted(unknown)))
                    version = self._certified(replace(draft, birth=birth), files, number)
                    if missing := await missing_facts(tx, version, (), Stage.REGISTER):
                        raise Refusal([each.refused(version.name, version.project) for each in missing])
                    made_from = await _lineage(tx, version, draft.birth)  # before it is the newest one itself
                    await tx.insert(version)
                    await tx.insert(entry_of(version))
                    rules, at = self._files.rules_sha256(), version.created_at
                    await tx.insert(scan_evidence(f"{version.id}#scan", version, report, rules, actor.name, at))
                    await tx.insert_many_once(metric_labels(version))
                    if draft.birth.adopted_from:
                        await tx.insert(adopted_label(version.id, draft.birth.adopted_from))
                    await tx.insert_many_once(made_from)
                    for row in draft.rows(version):
                        await tx.insert(row)
                    told = _told(version, self._signer.key_id)
                    await self._tell(tx, actor, "model.register", version.id, version.project, told, draft.reason)
                    return version
            except Conflict:
                # Without a greater number since the last try, nobody took it: the conflict is about something else.
                if number <= lost:
                    raise
                lost = number
        raise Conflict(f"{draft.name}@{lost} and {NUMBER_TRIES - 1} numbers before it went to others", "try again")

    def _certified(self, draft: Draft, files: tuple[ManifestFile, ...], number: int) -> ModelVersion:
        row = ModelVersion(
            id=f"{draft.name}@{number}",
            name=draft.name,
            number=number,
            project=draft.project,
            owner=draft.owner,
            files=files,
            manifest_sha256=manifest_sha256(files),
            size_bytes=sum(file.size_bytes for file in files),
            certificate="",
            certificate_sha256="",
            run_id=draft.run_id,
            license=draft.license,
            metrics=draft.metrics,
            created_by=draft.created_by,
            created_at=self._clock.now(),
        )
        text = cert.seal(cert.statement(row, draft.birth), self._signer.key_id, self._signer.sign)
        return replace(row, certificate=text, certificate_sha256=hashlib.sha256(text.encode()).hexdigest())


async def stored(blobs: BlobStore, files: ModelFiles, found: Sequence[FoundFile]) -> tuple[ManifestFile, ...]:
    """What was looked at, put into the store: in manifest order. Conflict when a file changes meanwhile."""
    for _ in range(_LOOKS_MAX):
        put = await blobs.put_files([file.source for file in found])
        # The bytes that were stored are the bytes that were looked at only if nobody wrote in between.
        seen, found = found, await files.unchanged(found)
        if found == tuple(seen):
            break
    else:
        raise Conflict("what is registered was linked elsewhere again and again", "register again when that is done")
    return manifest(
        [
            ManifestFile(path=file.path, sha256=sha256, size_bytes=size_bytes)
            for file, (sha256, size_bytes) in zip(found, put, strict=True)
        ]
    )


def card_text(tree: Path) -> str:
    """What the README.md in a folder of model files says; nothing without one. InvalidInput unless it is UTF-8."""
    try:
        return (tree / CARD).read_text(encoding="utf-8") if (tree / CARD).is_file() else ""
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{CARD} is not UTF-8 at byte {error.start:,}", "save it as UTF-8") from None


async def newest_version(tx: Tx, name: str) -> ModelVersion | None:
    """The version of a name with the greatest number, if there is one."""
    found = await tx.find(ModelVersion, {"name": name}, order="-number", limit=1)
    return found[0] if found else None


async def output_of(tx: Tx, run_id: str, name: str) -> ModelVersion | None:
    """The version that a run's output became."""
    # Read after the newest number: a registration that is committed in between is then seen here, and one that is
    # committed later has taken the number and makes ours a conflict.
    found = await tx.find(ModelVersion, {"run_id": run_id, "name": name}, limit=1)
    return found[0] if found else None


async def missing_facts(
    tx: Tx, version: ModelVersion, addenda: Sequence[Addendum], stage: Stage
) -> tuple[Missing, ...]:
    """What its project requires at this stage and nobody knows."""
    rule = await tx.get(RequiredFacts, version.project)
    if rule is None:
        return ()
    known = Known(said=cert.open_envelope(version.certificate).predicate, addenda=addenda)
    return judge_facts(rule.required, known, stage)


def _told(version: ModelVersion, key_id: str) -> dict[str, object]:
    return {
        "files": len(version.files),
        "size_bytes": version.size_bytes,
        "manifest_sha256": version.manifest_sha256,
        "certificate_sha256": version.certificate_sha256,
        "key_id": key_id,
        "run_id": version.run_id,
        "owner": version.owner,
        "license": version.license,
    }


def taken(name: str) -> Refused:
    """That a name is another project's."""
    have, hint = f"{name}, which belongs to another project", "choose another name"
    return Refused(rule="model-name", need="a name that is free or the project's own", have=have, hint=hint)


async def _terms(tx: Tx, birth: cert.Birth) -> tuple[dict[str, str], dict[str, str]]:
    """The licences of the registered models, and of the registered data, that a version was made from."""
    bases, data = {}, {}
    for base in await base_versions(tx, birth.base_model):
        found = await tx.get(ModelVersion, base)
        if found is not None and found.license:
            bases[found.id] = found.license
    digests = tuple({each.sha256 for each in birth.circumstances.data if each.sha256})
    for row in await tx.find(DatasetVersion, {"digest": digests}) if digests else ():
        if row.license:
            data[row.id] = row.license
    return bases, data


async def _lineage(tx: Tx, version: ModelVersion, birth: cert.Birth) -> list[LineageEdge]:
    """What it was made from, one edge each: its run, its data by digest, the registered models it began as."""
    made_from = [f"run:{version.run_id}"] if version.run_id else []
    made_from += [f"sha256:{data.sha256}" for data in birth.circumstances.data if data.sha256]
    made_from += [f"model:{base}" for base in await base_versions(tx, birth.base_model)]
    made_from += [f"model:{birth.copy_of.id}"] if birth.copy_of else []
    edges = {parent: edge(parent, f"model:{version.id}", version.project, version.created_at) for parent in made_from}
    return list(edges.values())
