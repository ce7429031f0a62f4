"""What an OCI client pushes, read: a manifest's layers as the files of a version, its annotations as facts.

Sources: OCI image and distribution specifications 1.1 (descriptors, `subject`, predefined annotation keys).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from groundplane.domain.canonical import canonical_json
from groundplane.domain.model import LATEST, ManifestFile
from groundplane.domain.provenance.certificate import DataFact, Facts, missing_facts
from groundplane.domain.provenance.model_card import facts_of
from groundplane.errors import InvalidInput, Problem, Refused

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MANIFEST_BYTES_MAX = 4 * 2**20
CONFIG_BYTES_MAX = 2**20
LAYERS_MAX = 10_000
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_NUMBERED = re.compile(r"v?([1-9][0-9]{0,8})")
_PACKED = re.compile(r"\+(gzip|zstd)$|cncf\.model\.[a-z.]+\.v1\.tar$")
"""Clients call a plain file a tar too, so only what says that it is compressed, or a ModelPack tar, is one."""
_TITLES = ("org.cncf.model.filepath", "org.opencontainers.image.title")
_CREATED = "org.opencontainers.image.created"
OURS = "dev.groundplane."

ANNOTATIONS: dict[str, tuple[str, ...]] = {
    "owner": (f"{OURS}owner", "org.opencontainers.image.authors"),
    "license": ("org.opencontainers.image.licenses",),
    "description": ("org.opencontainers.image.description",),
    "code_commit": ("org.opencontainers.image.revision",),
    "code_repository": ("org.opencontainers.image.source",),
    "base_model": (f"{OURS}base-model", "org.opencontainers.image.base.name"),
    "framework": (f"{OURS}framework",),
    "training_run": (f"{OURS}training-run",),
    "hardware": (f"{OURS}hardware",),
    "sla": (f"{OURS}sla",),
    "rollback_target": (f"{OURS}rollback-target",),
    "data": (f"{OURS}data",),
    "metrics": (f"{OURS}metrics",),
}
"""Fact → the annotations that state it, the first one given counting. The others are read from README.md."""

_SHOWN = {"data": "NAME=SHA256", "metrics": "NAME=VALUE"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedManifest:
    """A manifest as it was pushed, byte for byte: a model version's, or one that refers to another (`subject`).

    `files` are the layers of a referrer, kept in the artifact store; a version's layers are the version's own files.
    """

    id: str
    project: str
    name: str
    digest: str
    artifact_type: str
    subject: str
    content: str
    config: str
    config_digest: str
    content_sha256: str
    files: tuple[ManifestFile, ...]
    size_bytes: int
    version_id: str
    pushed_by: str
    at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedTag:
    """A tag that a push gave. It never moves to other content; `number` is 0 for what is no version."""

    id: str
    project: str
    name: str
    tag: str
    number: int
    digest: str
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A manifest that was read. `layers` lie under the paths that their annotations name."""

    digest: str
    content: bytes
    artifact_type: str
    subject: str
    config_digest: str
    layers: tuple[ManifestFile, ...]
    annotations: Mapping[str, str]
    content_sha256: str
    """SHA-256 over all of it but the time that clients write into it: equal when the same was pushed before."""
    config: str = ""
    """The config blob's text, once it is there."""


def manifest_row_id(project: str, name: str, digest: str) -> str:
    """Of a PushedManifest."""
    return f"{project}/{name}@{digest}"


def tag_row_id(project: str, name: str, tag: str) -> str:
    """Of a PushedTag."""
    return f"{project}/{name}:{tag}"


def is_digest(text: str) -> bool:
    """Whether it is `sha256:` and 64 lower-case hex digits: the one algorithm in use here."""
    return _DIGEST.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether the specification allows it as a tag."""
    return _TAG.fullmatch(text) is not None


def check_tag(tag: str) -> str:
    """A tag as the specification allows it. InvalidInput otherwise."""
    if not is_tag(tag):
        raise InvalidInput(f"{tag[:80]!r} is no tag", "use 1 to 128 of letters, digits, '.', '_' and '-'")
    return tag


def numbered(tag: str) -> int | None:
    """The version that `v3` or `3` means; None for any other tag."""
    found = _NUMBERED.fullmatch(tag)
    return int(found.group(1)) if found else None


def is_label(tag: str) -> bool:
    """Whether a tag is a name of its own: neither `latest` nor a number, which follow from the versions."""
    return tag != LATEST and numbered(tag) is None


def read_manifest(content: bytes, media_type: str) -> Packed:
    """InvalidInput names everything that stands against the manifest of a push."""
    if media_type.partition(";")[0].strip() != MANIFEST:
        raise InvalidInput(
            f"a manifest of type {media_type or 'none'} is not taken", f"push {MANIFEST}: skopeo copy --format oci"
        )
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the manifest is no JSON: {error}") from None
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        raise InvalidInput("the manifest is no object with schemaVersion 2")
    problems: list[Problem] = []
    if document.get("mediaType", MANIFEST) != MANIFEST:
        problems.append(Problem(field="mediaType", message=f"is {document['mediaType']!r}, not {MANIFEST}"))
    config = _descriptor(document.get("config"), "config", problems)
    subject = _descriptor(document["subject"], "subject", problems) if document.get("subject") is not None else {}
    layers = _layers(document.get("layers"), model=not subject, problems=problems)
    annotations = document.get("annotations") or {}
    if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
        problems.append(Problem(field="annotations", message="is no object of texts"))
        annotations = {}
    if problems:
        raise InvalidInput(f"the manifest can't be taken: {problems[0]}", "push files one by one", problems)
    artifact_type = document.get("artifactType") or config.get("mediaType") or ""
    return Packed(
        digest=f"sha256:{hashlib.sha256(content).hexdigest()}",
        content=content,
        artifact_type=str(artifact_type),
        subject=str(subject.get("digest", "")),
        config_digest=str(config["digest"]),
        layers=layers,
        annotations=annotations,
        content_sha256=_timeless(document, annotations),
    )


def _timeless(document: dict[str, object], annotations: Mapping[str, str]) -> str:
    said = {name: value for name, value in annotations.items() if name != _CREATED}
    return hashlib.sha256(canonical_json({**document, "annotations": said})).hexdigest()


def _descriptor(value: object, field: str, problems: list[Problem]) -> dict[str, object]:
    if not isinstance(value, dict):
        problems.append(Problem(field=field, message="is no descriptor"))
        return {"digest": ""}
    digest, size_bytes = value.get("digest"), value.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        problems.append(Problem(field=f"{field}.digest", message=f"is {digest!r}, no sha256 digest"))
        value = {**value, "digest": ""}
    if not isinstance(size_bytes, int) or isinstance(size_bytes, bool) or size_bytes < 0:
        problems.append(Problem(field=f"{field}.size", message=f"is {size_bytes!r}, no number of bytes"))
    return value


def _layers(value: object, *, model: bool, problems: list[Problem]) -> tuple[ManifestFile, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= LAYERS_MAX:
        problems.append(Problem(field="layers", message=f"is no list of 1 to {LAYERS_MAX:,} descriptors"))
        return ()
    found = []
    for number, each in enumerate(value):
        before = len(problems)
        descriptor = _descriptor(each, f"layers.{number}", problems)
        if len(problems) > before:
            continue
        annotations = descriptor.get("annotations")
        titles = annotations if isinstance(annotations, dict) else {}
        path = next((str(titles[key]) for key in _TITLES if titles.get(key)), "" if model else f"layer-{number}")
        if not path:
            problems.append(Problem(field=f"layers.{number}", message=f"has no title: annotate it with {_TITLES[1]}"))
        elif model and _PACKED.search(str(descriptor.get("mediaType", ""))):
            what = f"{path} is a packed folder, which nobody looks into here"
            problems.append(Problem(field=f"layers.{number}", message=what))
        else:
            sha256 = str(descriptor["digest"]).removeprefix("sha256:")
            found.append(ManifestFile(path=path, sha256=sha256, size_bytes=int(str(descriptor["size"]))))
    return tuple(found)


# ---------------------------------------------------------------- facts


def stated_facts(annotations: Mapping[str, str], card: str) -> Facts:
    """What README.md says, and over it what the manifest's annotations say. InvalidInput for what can't be read."""
    given = {}
    for name, keys in ANNOTATIONS.items():
        text = next((annotations[key].strip() for key in keys if annotations.get(key, "").strip()), "")
        if text:
            given[name] = text
    stated: dict[str, object] = {name: text for name, text in given.items() if name not in _SHOWN}
    if "data" in given:
        stated["data"] = tuple(DataFact(name=name, sha256=value) for name, value in _pairs("data", given["data"]))
    if "metrics" in given:
        stated["metrics"] = {name: _number(name, value) for name, value in _pairs("metrics", given["metrics"])}
    return replace(facts_of(card), **stated)  # type: ignore[arg-type]


def missing_of(facts: Facts) -> tuple[Refused, ...]:
    """What is required and not stated, each with the annotation that states it."""
    refused = []
    for fact in missing_facts(facts):
        shown = _SHOWN.get(fact.name, "TEXT")
        hint = f"add the annotation {ANNOTATIONS[fact.name][0]}={shown} to the manifest, or state it in README.md"
        refused.append(replace(fact.refused(), hint=hint))
    return tuple(refused)


def _pairs(name: str, text: str) -> list[tuple[str, str]]:
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    if not all(key.strip() and value.strip() for key, _, value in pairs):
        raise InvalidInput(f"the annotation {OURS}{name} is {text[:80]!r}", f"write {_SHOWN[name]}, {_SHOWN[name]}")
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidInput(f"the metric {name} is {text[:40]!r}, no number", f"write {OURS}metrics=loss=1.5,f1=0.9")
    return number
