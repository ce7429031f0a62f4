"""What moves around immutable versions: aliases with their history, tags, archive; and how two versions differ.

A version never changes. A name such as `production` stands for one number at a time, and every move of it is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from groundplane.domain.canonical import part_of, rows_of
from groundplane.domain.model import ModelVersion
from groundplane.errors import InvalidInput

TAGS_MAX = 50
ADOPTED = "adopted"
_BOUND = re.compile(r"([^<>=\s]{1,64})(?:(>=|<=)(-?[0-9.]+(?:[eE][+-]?[0-9]+)?))?")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")


class MoveKind(StrEnum):
    SET = "set"
    ROLLBACK = "rollback"
    REMOVE = "remove"


class LabelKind(StrEnum):
    METRIC = "metric"
    TAG = "tag"
    ORIGIN = "origin"
    DIGEST = "digest"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAlias:
    """A name for one number of a model, now. id = `<name>@<alias>`."""

    id: str
    name: str
    alias: str
    number: int
    project: str
    moved_by: str
    moved_at: datetime
    reason: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMove:
    """One move of an alias, append-only. No `from_number`: it was new; no `to_number`: it was removed."""

    id: str
    alias_id: str
    project: str
    sequence: int
    kind: MoveKind
    from_number: int | None
    to_number: int | None
    by: str
    at: datetime
    reason: str
    check_id: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryEntry:
    """What the registry says of a version beside its certificate, and what a search reads. id is the version's."""

    id: str
    name: str
    number: int
    project: str
    owner: str
    license: str
    run_id: str
    size_bytes: int
    created_at: datetime
    archived: bool = False
    archived_by: str = ""
    archived_at: datetime | None = None
    archived_reason: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionLabel:
    """A metric's value, a tag's text or where it was adopted from, to be searched. id = `<version>#<kind>/<name>`.

    Or that a digest leads to it, which OCI clients ask for: see `oci.digest_labels`.
    """

    id: str
    version_id: str
    kind: LabelKind
    name: str
    text: str = ""
    value: float | None = None
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is searched for; what is empty limits nothing. `metrics`: (name, least, most), either may be None."""

    text: str = ""
    project: str = ""
    license: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    metrics: tuple[tuple[str, float | None, float | None], ...] = ()
    archived: bool = False
    limit: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that differs between two versions. `before` or `after` is empty where one has nothing of it."""

    part: str
    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDiff:
    """Everything that differs, by part: data, code, environment, metrics, cost, files, tensors, facts."""

    before: str
    after: str
    same_bytes: int
    new_bytes: int
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionView:
    """A version as the registry shows it: its row with what moves around it."""

    version: ModelVersion
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    archived: bool
    archived_reason: str = ""
    adopted_from: str = ""


def adopted_label(version_id: str, source: str) -> VersionLabel:
    """Says that a version was adopted, and from where."""
    label = label_id(version_id, LabelKind.ORIGIN, ADOPTED)
    return VersionLabel(id=label, version_id=version_id, kind=LabelKind.ORIGIN, name=ADOPTED, text=source)


def source_kind(source: str) -> str:
    """`hf`, `mlflow` or `file`."""
    return next((kind for kind in ("hf", "mlflow") if source.startswith(f"{kind}:")), "file")


def check_tag(name: str, text: str) -> None:
    """Raises InvalidInput for what is no tag."""
    if not _TAG.fullmatch(name):
        raise InvalidInput(f"{name[:80]!r} is no tag's name", "use 1 to 63 of letters, digits, '.', '_', '/' and '-'")
    if len(text) > 256 or not text.isprintable():
        raise InvalidInput(f"the text of tag {name} is too long or not printable", "write at most 256 characters")


def metric_bound(text: str) -> tuple[str, float | None, float | None]:
    """`f1>=0.9`, `loss<=2`, or `f1` for whatever has it. InvalidInput otherwise."""
    found = _BOUND.fullmatch(text)
    try:
        if found is None:
            raise ValueError(text)
        value = float(found[3]) if found[3] else None
    except ValueError:
        raise InvalidInput(f"{text[:80]!r} is no bound of a metric", "write f1>=0.9 or loss<=2") from None
    return found[1], value if found[2] == ">=" else None, value if found[2] == "<=" else None


def entry_of(version: ModelVersion) -> RegistryEntry:
    """The entry that a new version gets."""
    return RegistryEntry(
        id=version.id,
        name=version.name,
        number=version.number,
        project=version.project,
        owner=version.owner,
        license=version.license,
        run_id=version.run_id,
        size_bytes=version.size_bytes,
        created_at=version.created_at,
    )


def metric_labels(version: ModelVersion) -> tuple[VersionLabel, ...]:
    """A label for each metric of a version."""
    return tuple(
        VersionLabel(
            id=label_id(version.id, LabelKind.METRIC, name),
            version_id=version.id,
            kind=LabelKind.METRIC,
            name=name,
            value=value,
        )
        for name, value in sorted(version.metrics.items())
    )


def label_id(version_id: str, kind: LabelKind, name: str) -> str:
    return f"{version_id}#{kind}/{name}"


def rollback_target(moves: Sequence[AliasMove], current: int) -> int | None:
    """Which number a rollback leads to: what the alias stood for before it came to where it is; None without one.

    `moves` are oldest first. Rolling back twice goes back twice: a rollback is no forward move to come back from.
    """
    stack: list[int] = []
    for move in moves:
        if move.to_number is None:
            stack.clear()
        elif move.kind is MoveKind.ROLLBACK and move.to_number in stack:
            while stack[-1] != move.to_number:
                stack.pop()
        elif not stack or stack[-1] != move.to_number:
            stack.append(move.to_number)
    while stack and stack[-1] == current:
        stack.pop()
    return stack[-1] if stack else None


# ---------------------------------------------------------------- what differs


def differences(
    before: ModelVersion, after: ModelVersion, said: Mapping[str, object], says: Mapping[str, object]
) -> VersionDiff:
    """Two versions held side by side; `said` and `says` are the predicates of their certificates."""
    found: list[Difference] = []
    found += _named("data", _data(said), _data(says))
    found += _named("code", part_of(said, "code"), part_of(says, "code"))
    found += _named("environment", _packages(said), _packages(says))
    found += _named("hardware", part_of(said, "hardware"), part_of(says, "hardware"))
    found += _named("metrics", before.metrics, after.metrics)
    found += _named("cost", {"cost_microusd": said.get("cost_microusd")}, {"cost_microusd": says.get("cost_microusd")})
    found += _named("facts", _facts(said), _facts(says))
    found += _named("files", _files(before), _files(after))
    found += _named("tensors", _tensors(said), _tensors(says))
    kept = {file.sha256 for file in before.files}
    same = sum(file.size_bytes for file in after.files if file.sha256 in kept)
    return VersionDiff(
        before=before.id,
        after=after.id,
        same_bytes=same,
        new_bytes=after.size_bytes - same,
        differences=tuple(found),
    )


def _named(part: str, before: Mapping[str, object], after: Mapping[str, object]) -> Iterable[Difference]:
    for name in sorted({*before, *after}):
        old, new = _text(before.get(name)), _text(after.get(name))
        if old != new:
            yield Difference(part=part, name=name, before=old, after=new)


def _text(value: object) -> str:
    if value is None or value == "" or value == []:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value)


def _files(version: ModelVersion) -> dict[str, object]:
    return {file.path: f"{file.size_bytes:,} bytes, sha256:{file.sha256[:16]}" for file in version.files}


def _data(predicate: Mapping[str, object]) -> dict[str, object]:
    rows = rows_of(predicate, "data")
    return {str(row.get("name")): f"sha256:{str(row.get('sha256'))[:16]} ({row.get('how')})" for row in rows}


def _packages(predicate: Mapping[str, object]) -> dict[str, object]:
    environment = part_of(predicate, "environment")
    listed = environment.get("packages")
    packages = [str(each).partition("==") for each in listed] if isinstance(listed, list) else []
    stated: dict[str, object] = {name: environment.get(name) for name in ("of", "python", "platform")}
    return {**stated, **{name: version for name, _, version in packages}}


def _facts(predicate: Mapping[str, object]) -> dict[str, object]:
    version = part_of(predicate, "version")
    names = ("owner", "license", "framework", "base_model", "description", "run_id")
    return {**{name: version.get(name) for name in names}, "origin": predicate.get("origin")}


def _tensors(predicate: Mapping[str, object]) -> dict[str, object]:
    """What the manifest knows of each file beyond its bytes: format, tensors, parameters, kinds of numbers."""
    rows = rows_of(part_of(predicate, "manifest"), "files")
    known = {"path", "sha256", "size_bytes"}
    return {f"{row.get('path')} {name}": value for row in rows for name, value in row.items() if name not in known}
