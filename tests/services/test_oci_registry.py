"""A repository as OCI clients ask for it: each answer reads what it is made of, however many versions there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.services.model_house import ADA, EVE, NOW, House, Reading, built, doors_of

from groundplane.adapters.store.memory import MemoryStore
from groundplane.domain import oci
from groundplane.domain.model import ManifestFile, ModelVersion
from groundplane.domain.oci_push import PushedManifest, PushedTag, manifest_row_id, tag_row_id
from groundplane.domain.provenance.addendum import AddendumKind
from groundplane.domain.registry import VersionLabel
from groundplane.errors import NotFound
from groundplane.ports import Clock, Store
from groundplane.services import oci_registry
from groundplane.services.oci_registry import OciRegistry

REPOSITORY = ("vision", "tiny")
DIGEST = oci.digest_of(b'{"annotations": {}}')


def pushed_alone(subject: str, layer: ManifestFile) -> PushedManifest:
    content = '{"annotations": {}}'
    return PushedManifest(
        id=manifest_row_id(*REPOSITORY, DIGEST), project="vision", name="tiny", digest=DIGEST,
        artifact_type="application/spdx+json", subject=subject, content=content, config='{"of": 1}',
        config_digest=oci.digest_of(b'{"of": 1}'), content_sha256="c" * 64, files=(layer,), size_bytes=layer.size_bytes,
        version_id="", pushed_by="ada", at=NOW,
    )  # fmt: skip


async def registered(house: House, count: int) -> list[ModelVersion]:
    """Versions that differ in one file."""
    made = []
    for number in range(count):
        (house.source / "config.json").write_text(f'{{"layers": {number}}}')
        made.append(await house.register())
    return made


async def blob(registry: OciRegistry, digest: str) -> oci.Blob | None:
    return (await registry.blobs(ADA, *REPOSITORY, [digest])).get(digest)


async def test_what_is_asked_for_is_found_without_reading_the_other_versions(clock: Clock, tmp_path: Path) -> None:
    reading = Reading(MemoryStore())
    house = await built(reading, clock, tmp_path)  # type: ignore[arg-type]
    first = (await registered(house, 30))[0]
    await house.stand("best", 1)
    _, registry = doors_of(house, clock)
    made = oci.manifest(first)
    for reference in ("v1", "1", "best"):
        reading.rows = 0
        assert await registry.manifest(ADA, *REPOSITORY, reference) == made, reference
        assert reading.rows <= 5, reference
    assert await registry.manifest(ADA, *REPOSITORY, made.digest) == made  # from here on digests are labelled
    config = f"sha256:{next(file.sha256 for file in first.files if file.path == 'config.json')}"
    for asked in (
        registry.manifest(ADA, *REPOSITORY, made.digest),
        registry.manifest(ADA, *REPOSITORY, oci.certificate_manifest(first).digest),
        registry.manifest(ADA, *REPOSITORY, "latest"),
        registry.manifest(ADA, *REPOSITORY, "v31"),
        registry.manifest(ADA, *REPOSITORY, f"sha256:{'0' * 64}"),
        registry.blobs(ADA, *REPOSITORY, [config, f"sha256:{'0' * 64}"]),
        registry.referrers(ADA, *REPOSITORY, made.digest, ""),
        registry.tags(ADA, *REPOSITORY, after="v2", limit=3),
        registry.packages(ADA, *REPOSITORY, limit=1, below=5),
        registry.packages_of(first),
    ):
        reading.rows = 0
        await asked
        assert reading.rows <= 9, asked


async def test_every_digest_that_a_client_can_know_leads_to_its_version(
    store: Store, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci_registry, "PAGE_ROWS", 2)
    house = await built(store, clock, tmp_path)
    _, registry = doors_of(house, clock)
    versions = await registered(house, 5)
    subject, layer = oci.manifest(versions[0]).digest, replace(versions[0].files[0], sha256="a" * 64)
    async with store.transaction() as tx:  # pushed for itself, before there were labels
        await tx.insert(pushed_alone(subject, layer))
    assert (await blob(registry, f"sha256:{layer.sha256}") or oci.manifest(versions[0])).file == layer
    assert DIGEST in str(await registry.referrers(ADA, *REPOSITORY, subject, "application/spdx+json"))
    for version in reversed(versions):
        for made in (oci.manifest(version), oci.certificate_manifest(version)):
            assert await registry.manifest(ADA, *REPOSITORY, made.digest) == made
        for each in oci.blobs(oci.Shelf(versions=[version])):
            assert await blob(registry, each.digest) == each
    (later,) = await registered(house, 1)
    config = f"sha256:{later.files[0].sha256}"
    assert (await blob(registry, config) or oci.manifest(later)).file == later.files[0]
    # What became known after the labels were made is labelled when it is first shown.
    known = await house.addenda.add(ADA, "tiny@1", AddendumKind.SLA, {"sla": "soon"})
    await registry.referrers(ADA, *REPOSITORY, oci.manifest(versions[0]).digest, "")
    made = oci.addendum_manifest(known, oci.manifest(versions[0]))
    assert await registry.manifest(ADA, *REPOSITORY, made.digest) == made
    assert (await blob(registry, f"sha256:{known.sha256}") or made).content == known.envelope.encode()
    assert await registry.tags(ADA, *REPOSITORY, after="", limit=3) == ["latest", "v1", "v2"]
    assert await registry.tags(ADA, *REPOSITORY, after="v5", limit=3) == ["v6"]
    shown = await registry.packages(ADA, *REPOSITORY, limit=2, below=6)
    assert {row.version_id for row in shown} == {"tiny@5", "tiny@4"}
    shown = await registry.packages(ADA, *REPOSITORY, limit=1)
    assert [row.tags for row in shown if row.artifact_type == oci.MODEL] == [("latest", "v6")]


async def test_a_label_is_a_pointer_and_hands_out_nothing_that_is_not_there(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    house = await built(store, clock, tmp_path)
    _, registry = doors_of(house, clock)
    first, second = await registered(house, 2)
    made = oci.manifest(first)
    assert await registry.manifest(ADA, *REPOSITORY, made.digest) == made
    assert await registry.manifest(EVE, *REPOSITORY, made.digest) is None
    assert await registry.blobs(EVE, *REPOSITORY, [made.digest]) == {}
    async with store.transaction() as tx:
        label = await tx.get(VersionLabel, oci.digest_label_id(*REPOSITORY, made.digest))
        assert label is not None
        await tx.update(replace(label, version_id=second.id))
        tag = PushedTag(id=tag_row_id(*REPOSITORY, "gone"), project="vision", name="tiny", tag="gone", number=1,
                        digest=made.digest)  # fmt: skip
        await tx.insert(tag)
        before = await tx.count(VersionLabel, most=1_000)
    assert await registry.manifest(ADA, *REPOSITORY, made.digest) is None
    assert await registry.manifest(ADA, *REPOSITORY, "gone") is None
    for nothing in ("no\0tag", "sha256:short", "sha256-" + "0" * 64, "absent"):
        assert await registry.manifest(ADA, *REPOSITORY, nothing) is None
    assert await registry.blobs(ADA, "vision", "absent", [made.digest]) == {}
    async with store.transaction() as tx:
        assert await tx.count(VersionLabel, most=1_000) == before
    with pytest.raises(NotFound, match="no repository vision/absent"):
        await registry.tags(ADA, "vision", "absent", after="", limit=1)
