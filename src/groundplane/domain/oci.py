"""Model versions as OCI artifacts: a manifest per version; its birth certificate and each addendum are referrers.

Manifests are computed from the version alone, the same bytes every time, so their digests may be pinned; a version that
was pushed keeps the manifest of its push as well. Layers are the version's own files. Sources: OCI image and
distribution specifications 1.1; CNCF ModelPack model-spec (media types, `org.cncf.model.filepath`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from posixpath import splitext

from groundplane.domain.canonical import canonical_json
from groundplane.domain.model import LATEST, ManifestFile, ModelVersion
from groundplane.domain.oci_push import MANIFEST as MANIFEST
from groundplane.domain.oci_push import OURS, PushedManifest, PushedTag, numbered
from groundplane.domain.provenance.addendum import PREDICATE_TYPE, Addendum
from groundplane.domain.registry import LabelKind, VersionLabel

INDEX = "application/vnd.oci.image.index.v1+json"
MODEL = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
CERTIFICATE = "application/vnd.in-toto+dsse"
ADDENDUM = "application/vnd.groundplane.addendum.v1+dsse"
ENVELOPE = "application/vnd.dsse.envelope.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
EMPTY_BYTES = b"{}"

_FALLBACK = re.compile(r"sha256-([0-9a-f]{64})")
_LAYER = "application/vnd.cncf.model.{kind}.v1.raw"
_KINDS = {
    "weight.config": {".json", ".txt", ".model", ".jinja", ".yaml", ".yml", ".vocab", ".merges"},
    "doc": {".md", ".rst", ".png", ".jpg", ".jpeg", ".svg"},
    "code": {".py", ".sh", ".toml", ".cfg"},
}

Document = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Bytes a client may ask for by digest: a file of the version, or a small document made from it."""

    digest: str
    size_bytes: int
    media_type: str
    file: ManifestFile | None = None
    content: bytes = b""


def digest_of(content: bytes) -> str:
    """As OCI writes it: `sha256:` and 64 hex digits."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def manifest(version: ModelVersion) -> Blob:
    """The version's manifest."""
    config = _config(version)
    document: Document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": MODEL,
        "config": _descriptor(config),
        "layers": [_layer(file) for file in version.files],
        "annotations": {
            "org.opencontainers.image.created": version.created_at.isoformat(),
            "org.opencontainers.image.version": str(version.number),
            "org.opencontainers.image.title": version.id,
            **({"org.opencontainers.image.licenses": version.license} if version.license else {}),
        },
    }
    return _small(canonical_json(document), MANIFEST)


def certificate_manifest(version: ModelVersion, subject: Blob | None = None) -> Blob:
    """The manifest whose one layer is the signed envelope and whose subject is the version's manifest, or `subject`."""
    said = {"org.opencontainers.image.created": version.created_at.isoformat()}
    return _attached(CERTIFICATE, "birth-certificate.json", _certificate(version), subject or manifest(version), said)


def addendum_manifest(addendum: Addendum, subject: Blob) -> Blob:
    """The manifest whose one layer is a later fact as it was signed, and whose subject is the version's manifest."""
    return _attached(
        ADDENDUM, f"addendum-{addendum.sequence:04}.json", _addendum(addendum), subject, _addendum_says(addendum)
    )


def _attached(kind: str, title: str, envelope: Blob, subject: Blob, annotations: Mapping[str, str]) -> Blob:
    document: Document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": kind,
        "config": _descriptor(_small(EMPTY_BYTES, EMPTY)),
        "layers": [{**_descriptor(envelope), "annotations": {"org.opencontainers.image.title": title}}],
        "subject": _descriptor(subject),
        "annotations": dict(annotations),
    }
    return _small(canonical_json(document), MANIFEST)


def _addendum_says(addendum: Addendum) -> dict[str, str]:
    return {
        "in-toto.io/predicate-type": PREDICATE_TYPE,
        "org.opencontainers.image.created": addendum.at.isoformat(),
        f"{OURS}kind": str(addendum.kind),
        f"{OURS}sequence": str(addendum.sequence),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """What of a repository is asked for: versions, newest first, their aliases, and what was pushed, oldest first.

    With a version come its own pushed manifests and its addenda, in their order.
    """

    versions: Sequence[ModelVersion] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
    pushed: Sequence[PushedManifest] = ()
    tags: Sequence[PushedTag] = ()
    addenda: Sequence[Addendum] = ()

    def manifests(self, version: ModelVersion) -> list[Blob]:
        """All that stand for a version; the first is the one that its tags give: the push's own, where one made it."""
        own = [_as_pushed(row) for row in self.pushed if row.version_id == version.id]
        return [*own, manifest(version)]

    def addenda_of(self, version: ModelVersion) -> list[Addendum]:
        """In their order."""
        return [addendum for addendum in self.addenda if addendum.version_id == version.id]


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A manifest of a repository, as people look at it. `made_by` is empty for those that this registry computes."""

    digest: str
    artifact_type: str
    version_id: str
    subject: str
    tags: tuple[str, ...]
    made_by: str
    at: datetime


def packages(shelf: Shelf, newest: int) -> list[Package]:
    """Every manifest with its tags, newest first: of each version, pushed and computed, and what refers to them.

    `newest` is the number that `latest` stands for.
    """
    named: dict[str, list[str]] = {}
    for version in shelf.versions:
        aliases = [alias for alias, number in shelf.aliases.items() if number == version.number]
        numbers = [f"v{version.number}", *([LATEST] if version.number == newest else [])]
        named[shelf.manifests(version)[0].digest] = [*aliases, *numbers]
    for tag in shelf.tags:
        if tag.tag not in shelf.aliases:
            named.setdefault(tag.digest, []).append(tag.tag)
    rows = [
        Package(
            digest=row.digest,
            artifact_type=row.artifact_type,
            version_id=row.version_id,
            subject=row.subject,
            tags=tuple(sorted(named.get(row.digest, ()))),
            made_by=row.pushed_by,
            at=row.at,
        )
        for row in shelf.pushed
    ]
    for version in shelf.versions:
        own = manifest(version)
        labels = tuple(sorted(named.get(own.digest, ())))
        rows.append(_computed(own, MODEL, version, version.created_at, tags=labels))
        for subject in shelf.manifests(version):
            made = certificate_manifest(version, subject)
            rows.append(_computed(made, CERTIFICATE, version, version.created_at, subject.digest))
            for addendum in shelf.addenda_of(version):
                made = addendum_manifest(addendum, subject)
                rows.append(_computed(made, ADDENDUM, version, addendum.at, subject.digest))
    return sorted(rows, key=lambda row: (row.at, row.digest), reverse=True)


def _computed(
    made: Blob, kind: str, version: ModelVersion, at: datetime, subject: str = "", tags: tuple[str, ...] = ()
) -> Package:
    return Package(
        digest=made.digest,
        artifact_type=kind,
        version_id=version.id,
        subject=subject,
        tags=tags,
        made_by="",
        at=at,
    )


def referrers(shelf: Shelf, digest: str, artifact_type: str) -> bytes:
    """The index of what refers to a manifest: certificate, addenda, and what was pushed with it as the subject."""
    found: list[Document] = []
    for version in shelf.versions:
        subject = next((blob for blob in shelf.manifests(version) if blob.digest == digest), None)
        if subject is not None:
            found.append({**_descriptor(certificate_manifest(version, subject)), "artifactType": CERTIFICATE})
            for addendum in shelf.addenda_of(version):
                described = {**_descriptor(addendum_manifest(addendum, subject)), "artifactType": ADDENDUM}
                found.append({**described, "annotations": _addendum_says(addendum)})
    for row in shelf.pushed:
        if row.subject == digest:
            annotations = {**pushed_annotations(row), f"{OURS}pushed-by": row.pushed_by}
            described = {**_descriptor(_as_pushed(row)), "artifactType": row.artifact_type}
            found.append({**described, "annotations": annotations})
    chosen = [each for each in found if artifact_type in ("", each["artifactType"])]
    return canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": chosen})


def stands_for(shelf: Shelf, found: Blob) -> ModelVersion | None:
    """The version whose manifest this is; None for what refers to one, or is no manifest."""
    return next(
        (
            version
            for version in shelf.versions
            if any(blob.digest == found.digest for blob in shelf.manifests(version))
        ),
        None,
    )


def unlike(found: Blob, version: ModelVersion) -> str:
    """What a manifest says that its version does not: how a touched row of a push is seen. "" where they agree."""
    if hashlib.sha256(found.content).hexdigest() != found.digest.removeprefix("sha256:"):
        return "its manifest is not the one that was pushed"
    layers = {str(layer["digest"]).removeprefix("sha256:") for layer in json.loads(found.content)["layers"]}
    return "" if layers == {file.sha256 for file in version.files} else "its manifest lists other files"


def fallback_subject(reference: str) -> str:
    """The digest whose referrers are meant by the tag `sha256-…`, for clients without the referrers API; or ""."""
    found = _FALLBACK.fullmatch(reference)
    return f"sha256:{found[1]}" if found else ""


def find_manifest(shelf: Shelf, reference: str) -> Blob | None:
    """By tag (`v3`, `3`, `latest`, a pushed one, an alias, `sha256-…`) or by digest; None where nothing is meant."""
    subject = fallback_subject(reference)
    if subject:
        known = find_manifest(shelf, subject) is not None
        return _small(referrers(shelf, subject, ""), INDEX) if known else None
    if reference.startswith("sha256:"):
        return next((blob for blob in manifests(shelf) if blob.digest == reference), None)
    number = shelf.aliases.get(reference)
    own = next((tag for tag in shelf.tags if tag.tag == reference), None)
    # An alias was moved through the gates: what it stands for counts before what somebody pushed under its name.
    if own is not None and number is None:
        return find_manifest(shelf, own.digest)
    if reference == LATEST:
        number = max((version.number for version in shelf.versions), default=None)
    elif number is None:
        number = numbered(reference)
    return next((shelf.manifests(version)[0] for version in shelf.versions if version.number == number), None)


def blobs(shelf: Shelf) -> Iterator[Blob]:
    """Files, configs and envelopes: all that these manifests name. Nothing else is reachable by its digest."""
    holders: list[ModelVersion | PushedManifest] = [*shelf.versions, *shelf.pushed]
    for holder in holders:
        for file in holder.files:
            kind = _kind(file.path)
            yield Blob(digest=f"sha256:{file.sha256}", size_bytes=file.size_bytes, media_type=kind, file=file)
    for version in shelf.versions:
        yield from (_config(version), _certificate(version), *map(_addendum, shelf.addenda_of(version)))
    for row in shelf.pushed:
        yield _small(row.config.encode(), "application/octet-stream")
    if shelf.versions:
        yield _small(EMPTY_BYTES, EMPTY)


def tags(newest: int, named: Iterable[str]) -> list[str]:
    """Every tag, as the specification orders them: by their bytes. A version has each number up to the newest."""
    numbers = (f"v{number}" for number in range(1, newest + 1))
    return sorted({*numbers, *named, *([LATEST] if newest else [])})


def digest_labels(project: str, name: str, shelf: Shelf) -> list[VersionLabel]:
    """What leads from a digest to its version, or to the manifest that was pushed for itself; by their ids.

    A pointer and no more: what is handed out is computed from what it points to. The first version that has a file
    lends it to all later ones.
    """
    holders: dict[str, str] = {}
    for version in reversed(shelf.versions):
        own = [row for row in shelf.pushed if row.version_id == version.id]
        part = Shelf(versions=[version], pushed=own, addenda=shelf.addenda_of(version))
        for blob in (*blobs(part), *manifests(part)):
            holders.setdefault(blob.digest, version.id)
    for row in shelf.pushed:
        if not row.version_id:
            for blob in blobs(Shelf(pushed=[row])):
                holders.setdefault(blob.digest, row.id)
    return [
        # In one order everywhere: two who write the same labels never wait for each other.
        VersionLabel(
            id=digest_label_id(project, name, digest), version_id=holder, kind=LabelKind.DIGEST, name="leads-to"
        )
        for digest, holder in sorted(holders.items())
    ]


def made_up_to(project: str, name: str) -> VersionLabel:
    """The label whose value says up to which version there are others: none yet."""
    id = digest_label_id(project, name, "")
    return VersionLabel(id=id, version_id="", kind=LabelKind.DIGEST, name="made-up-to", value=0.0)


def digest_label_id(project: str, name: str, digest: str) -> str:
    """Of the label that says where a digest leads; of "", of the one that says up to which version they are made."""
    return f"{project}/{name}#{digest}"


def pushed_annotations(row: PushedManifest) -> dict[str, str]:
    """What the manifest's maker wrote into it."""
    said = json.loads(row.content).get("annotations") or {}
    return {str(key): str(value) for key, value in said.items()}


def manifests(shelf: Shelf) -> Iterator[Blob]:
    """All that stand for these versions or refer to them."""
    for version in shelf.versions:
        for blob in shelf.manifests(version):
            yield blob
            yield certificate_manifest(version, blob)
            for addendum in shelf.addenda_of(version):
                yield addendum_manifest(addendum, blob)
    for row in shelf.pushed:
        yield _as_pushed(row)


def _as_pushed(row: PushedManifest) -> Blob:
    return _small(row.content.encode(), MANIFEST)


def _config(version: ModelVersion) -> Blob:
    described: Document = {
        "name": version.name,
        "version": str(version.number),
        "createdAt": version.created_at.isoformat(),
        "vendor": version.project,
        "authors": [version.owner],
        **({"licenses": [version.license]} if version.license else {}),
    }
    modelfs: Document = {"type": "layers", "diffIds": [f"sha256:{file.sha256}" for file in version.files]}
    document: Document = {"descriptor": described, "config": {}, "modelfs": modelfs}
    return _small(canonical_json(document), MODEL_CONFIG)


def _certificate(version: ModelVersion) -> Blob:
    return _small(version.certificate.encode(), ENVELOPE)


def _addendum(addendum: Addendum) -> Blob:
    return _small(addendum.envelope.encode(), ENVELOPE)


def _layer(file: ManifestFile) -> Document:
    return {
        "mediaType": _kind(file.path),
        "digest": f"sha256:{file.sha256}",
        "size": file.size_bytes,
        "annotations": {"org.cncf.model.filepath": file.path, "org.opencontainers.image.title": file.path},
    }


def _kind(path: str) -> str:
    suffix = splitext(path)[1].lower()
    kind = next((kind for kind, suffixes in _KINDS.items() if suffix in suffixes), "weight")
    return _LAYER.format(kind=kind)


def _descriptor(blob: Blob) -> Document:
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size_bytes}


def _small(content: bytes, media_type: str) -> Blob:
    return Blob(digest=digest_of(content), size_bytes=len(content), media_type=media_type, content=content)
