"""Datasets: immutable versions by digest, where they lie, what is in them, who used them, and their erasure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from groundplane.domain.lineage import OutsideEdge
from groundplane.domain.model import ManifestFile, check_name, manifest_sha256
from groundplane.domain.spec import CLASSIFICATIONS, DataSource
from groundplane.errors import InvalidInput, Problem, Refused

FILES_MAX = 200_000
ERASURE_TYPE = "https://groundplane.dev/erasure/v1"
_REF = re.compile(r"[1-9][0-9]{0,8}")
_LOCATION = re.compile(r"(s3|gs|az|abfss|https)://\S{1,2000}|/[^\0]{0,2000}")


class Pointer(StrEnum):
    """Where the bytes are: a folder that nodes see, a bucket, or a copy in the artifact store."""

    FOLDER = "folder"
    BUCKET = "bucket"
    MANAGED = "managed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table. `kind`: integer, number, text, boolean, mixed or empty. Bounds are text, for any kind."""

    name: str
    kind: str
    nulls: int
    distinct: int
    low: str = ""
    high: str = ""
    mean: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What is in a dataset's tables: files read, rows, columns. `unread` says what was not looked into, and why."""

    rows: int = 0
    tables: int = 0
    columns: tuple[Column, ...] = ()
    unread: tuple[str, ...] = ()

    def without_values(self) -> Profile:
        """What an erased version may still say: columns by name and kind, and how many; nothing that a cell held."""
        shapes = (replace(column, low="", high="", mean=None) for column in self.columns)
        return replace(self, columns=tuple(shapes), unread=())


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetVersion:
    """An immutable version. id = `<name>@<number>`. `digest` is over all bytes: a file's SHA-256, or its manifest's.

    `how` says who hashed: `measured` here, or `declared` by whoever registered. `kept` is false once a managed copy
    was erased: its bytes are then nobody's. `as_of` is how old the data is; fresh for `fresh_for_s` from there on.
    `commit` is what hub clients call it (`domain.hub.dataset_commit`).
    """

    id: str
    name: str
    number: int
    project: str
    owner: str
    license: str
    classification: str
    description: str
    digest: str
    how: str
    files: tuple[ManifestFile, ...]
    size_bytes: int
    pointer: Pointer
    location: str
    profile: Profile
    as_of: datetime
    fresh_for_s: int | None
    retain_until: datetime | None
    created_by: str
    created_at: datetime
    kept: bool
    erased_at: datetime | None = None
    erasure_id: str = ""
    commit: str = ""
    version: int = 0

    def fresh_at(self, now: datetime) -> bool | None:
        """Whether the data is young enough; None without a limit."""
        if self.fresh_for_s is None:
            return None
        return now - self.as_of <= timedelta(seconds=self.fresh_for_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageEdge:
    """`child` was made from `parent`: `dataset:corpus@1`, `sha256:…`, `run:run-…`, `model:tiny@3`."""

    id: str
    parent: str
    child: str
    project: str
    at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """The erasure of a dataset's version or of some of its records: what was asked, found and done, signed."""

    id: str
    dataset_id: str
    project: str
    records: str
    reason: str
    requested_by: str
    at: datetime
    runs: tuple[str, ...]
    models: tuple[str, ...]
    done: tuple[str, ...]
    left: tuple[str, ...]
    statement: str
    key_id: str
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What somebody states about data that they register. `missing_facts` says what is still needed."""

    owner: str = ""
    license: str = ""
    classification: str = ""
    description: str = ""
    as_of: datetime | None = None
    fresh_for_s: int | None = None
    retain_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCheck:
    """Whether a dataset's bytes still are what was registered. `how`: `store`, or `declared` by who hashed them."""

    id: str
    ok: bool
    how: str
    checked_files: int
    checked_bytes: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What came of a dataset: the runs that read it, the models made from it, and those made from these.

    `outside` is what jobs outside were said to have made from it: nobody here verified that.
    """

    id: str
    runs: tuple[str, ...]
    models: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]
    outside: tuple[OutsideEdge, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetDiff:
    """How two versions differ, file by file and column by column."""

    before: str
    after: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    same_bytes: int
    facts: dict[str, tuple[str, str]] = field(default_factory=dict)


def digest_of(files: Sequence[ManifestFile]) -> str:
    """One file's SHA-256, or the digest of the manifest: what a run measures over the same path."""
    return files[0].sha256 if len(files) == 1 and "/" not in files[0].path else manifest_sha256(files)


def parse_dataset_ref(text: str) -> tuple[str, int | None]:
    """`corpus@2`, or `corpus@latest` as (name, None). InvalidInput otherwise."""
    name, at, number = text.partition("@")
    check_name(name, "dataset")
    if at and number == "latest":
        return name, None
    if at and _REF.fullmatch(number):
        return name, int(number)
    raise InvalidInput(f"{text!r} names no version of a dataset", f"write {name}@1, or {name}@latest for the newest")


def pointer_of(location: str) -> Pointer:
    """What a location is. InvalidInput for what is neither an absolute path nor an address."""
    if not _LOCATION.fullmatch(location):
        raise InvalidInput(f"{location[:80]!r} is no place of data", "write an absolute folder, or s3://bucket/prefix")
    return Pointer.FOLDER if location.startswith("/") else Pointer.BUCKET


_ASKED = {
    "owner": ("who answers for it?", "--owner NAME"),
    "license": ("under which terms may it be used?", "--license SPDX-ID"),
    "classification": (f"how confidential is it? {', '.join(CLASSIFICATIONS)}", "--classification LEVEL"),
}


def missing_facts(facts: DatasetFacts) -> tuple[Refused, ...]:
    """What is required and not given, in the order asked."""
    missing = [
        Refused(
            rule="dataset-facts",
            need=f"{name} ({question})",
            have="nothing",
            hint=f"add {flag} (facts.{name} in a request)",
        )
        for name, (question, flag) in _ASKED.items()
        if not getattr(facts, name).strip()
    ]
    if facts.classification and facts.classification not in CLASSIFICATIONS:
        have = facts.classification[:40]
        hint = f"one of: {', '.join(CLASSIFICATIONS)}"
        missing.append(Refused(rule="dataset-facts", need="a known classification", have=have, hint=hint))
    return tuple(missing)


def edge(parent: str, child: str, project: str, at: datetime) -> LineageEdge:
    """The edge of this pair: twice is the same row."""
    return LineageEdge(id=f"{parent}>{child}", parent=parent, child=child, project=project, at=at)


def run_edges(run_id: str, project: str, data: Sequence[DataSource], at: datetime) -> list[LineageEdge]:
    """What a run is made from: its datasets by name, its data by digest."""
    parents = [f"dataset:{source.dataset}" for source in data if source.dataset]
    parents += [f"sha256:{source.sha256}" for source in data if source.sha256]
    return [edge(parent, f"run:{run_id}", project, at) for parent in dict.fromkeys(parents)]


def descendants(roots: Iterable[str], edges: Iterable[LineageEdge]) -> tuple[LineageEdge, ...]:
    """Every edge on a way down from the roots."""
    below: dict[str, list[LineageEdge]] = {}
    for each in edges:
        below.setdefault(each.parent, []).append(each)
    found: dict[str, LineageEdge] = {}
    seen, ways = set[str](), list(roots)
    while ways:
        node = ways.pop()
        if node in seen:
            continue
        seen.add(node)
        for each in below.get(node, ()):
            found[each.id] = each
            ways.append(each.child)
    return tuple(sorted(found.values(), key=lambda each: (each.at, each.id)))


def compare(before: DatasetVersion, after: DatasetVersion) -> DatasetDiff:
    """Two versions side by side."""
    old = {file.path: file for file in before.files}
    new = {file.path: file for file in after.files}
    both = old.keys() & new.keys()
    facts = {
        name: (_said(before, name), _said(after, name))
        for name in ("digest", "license", "classification", "owner", "location", "as_of")
        if _said(before, name) != _said(after, name)
    }
    if before.profile.rows != after.profile.rows:
        facts["rows"] = (str(before.profile.rows), str(after.profile.rows))
    facts |= _columns(before.profile, after.profile)
    return DatasetDiff(
        before=before.id,
        after=after.id,
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(sorted(path for path in both if old[path].sha256 != new[path].sha256)),
        same_bytes=sum(new[path].size_bytes for path in both if old[path].sha256 == new[path].sha256),
        facts=facts,
    )


def _said(version: DatasetVersion, name: str) -> str:
    return str(getattr(version, name))


def _columns(before: Profile, after: Profile) -> Mapping[str, tuple[str, str]]:
    old = {column.name: column.kind for column in before.columns}
    new = {column.name: column.kind for column in after.columns}
    return {
        f"column {name}": (old.get(name, ""), new.get(name, ""))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    }
