"""Artifacts: named sets of files that people push and pull, how much a project may keep, and what the store says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from groundplane.domain.model import ManifestFile
from groundplane.errors import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A pushed file or folder, immutable. `keep_until` is its retention: after it, collection may take it.

    None keeps it until it is deleted. `pinned` keeps it whatever its retention says.
    """

    id: str
    name: str
    project: str
    files: tuple[ManifestFile, ...]
    manifest_sha256: str
    size_bytes: int
    created_by: str
    created_at: datetime
    keep_until: datetime | None = None
    pinned: bool = False
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivedFile:
    """A stored file whose SHA-256 is not known yet. `recipe` (BLAKE3 hex) stands for its pieces in their order."""

    path: str
    recipe: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A push whose bytes are all stored and flushed, on its way to be the artifact of the same id.

    It is one when its files have their SHA-256, which nothing had to wait for. `problem` says why they still lack it.
    """

    id: str
    name: str
    project: str
    files: tuple[ArrivedFile, ...]
    size_bytes: int
    created_by: str
    created_at: datetime
    keep_until: datetime | None = None
    pinned: bool = False
    problem: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageQuota:
    """The most bytes a project may keep, each file counted once. id is the project."""

    id: str
    limit_bytes: int
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPiece:
    """A piece of a file: its BLAKE3 hex, and where it lies."""

    blake3: str
    size_bytes: int
    pack: str
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUsage:
    """What the store holds. `file_bytes` is what its files would take without sharing pieces; 0 quota means none.

    `free_bytes` is what its disk could still take; None for a bucket, which says no such thing.
    """

    files: int
    file_bytes: int
    pieces: int
    packs: int
    stored_bytes: int
    legacy_bytes: int
    quota_bytes: int
    free_bytes: int | None
    damaged_packs: tuple[str, ...]

    @property
    def sharing(self) -> float:
        """How many bytes of files each stored byte carries; 1 when nothing is shared."""
        return self.file_bytes / self.stored_bytes if self.stored_bytes else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection removed. `waiting_bytes` is what nothing refers to and is still in packs or too young."""

    files: int
    freed_bytes: int
    packs_deleted: int
    packs_rewritten: int
    waiting_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A damaged spot in the store, and the files (SHA-256 hex) that need it. An empty `piece` is a pack's directory."""

    pack: str
    piece: str
    offset: int
    size_bytes: int
    why: str
    files: tuple[str, ...] = ()
    other_copy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrubbed:
    """What a scrub read and found. `next_after` is where to go on; empty when everything was read."""

    checked_bytes: int
    checked_pieces: int
    damage: tuple[Damage, ...]
    next_after: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactCheck:
    """Whether an artifact's bytes still are what was pushed; `problems` name the file and the piece."""

    id: str
    ok: bool
    checked_files: int
    checked_bytes: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectStorage:
    """What a project keeps, each file once. `limit_bytes` is None without a quota."""

    project: str
    used_bytes: int
    limit_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedSpot:
    """A damaged spot with everything that needs it: model versions and artifacts, by id and file."""

    spot: Damage
    used_by: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubReport:
    """What a scrub found. `lost` are files that something refers to and the store can't tell of.

    It is ok when nothing is missing: a damaged copy beside a good one needs nobody.
    """

    checked_bytes: int
    checked_pieces: int
    damage: tuple[DamagedSpot, ...]
    lost: tuple[str, ...]
    next_after: str = ""

    @property
    def ok(self) -> bool:
        return not self.lost and all(found.spot.other_copy for found in self.damage)


def over_quota(used_bytes: int, coming_bytes: int, quota: StorageQuota | None) -> int:
    """By how many bytes a project would be over its quota; 0 when it fits or has none."""
    return max(0, used_bytes + coming_bytes - quota.limit_bytes) if quota is not None else 0
