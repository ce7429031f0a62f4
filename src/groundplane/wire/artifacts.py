"""What crosses the HTTP door about uploads, artifacts and their store, besides the domain's own records."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from groundplane.domain.artifact import ProjectStorage, StoredPiece, StoreUsage
from groundplane.domain.model import ManifestFile
from groundplane.wire.bounds import STRICT

KNOWN_MAX = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A landing place for files before they are registered; it is swept a day after its last use.

    `folder` is where it lies: who can write there is the control plane's own user and may name files instead of sending
    them, in `sources.json` (relative path → absolute path). `files` are those that arrived.
    """

    id: str
    folder: str = ""
    files: tuple[UploadedFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadedFile:
    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PushRequest:
    """An upload becomes an artifact. `known` are files that need not be sent: ask which with KnownRequest."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    upload_id: str
    name: str
    project: str
    known: tuple[ManifestFile, ...] = ()
    keep_until: datetime | None = None
    pinned: bool = False

    def __post_init__(self) -> None:
        if self.keep_until is not None and self.keep_until.utcoffset() is None:
            raise ValueError("keep_until has no time zone; write 2026-12-01T18:00:00Z")
        if len(self.known) > KNOWN_MAX:
            raise ValueError(f"known has {len(self.known)} files; {KNOWN_MAX} is the most")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRequest:
    """Which of these files (SHA-256 hex) are stored already, in something the caller sees?"""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    sha256s: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.sha256s) > KNOWN_MAX:
            raise ValueError(f"sha256s has {len(self.sha256s)} entries; {KNOWN_MAX} is the most")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Those that are."""

    sha256s: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingPieces:
    """Which pieces of a file have to be sent, by their place in it."""

    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle of pieces that is to come: its name, and where to put it without the control plane, if anywhere."""

    name: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePieces:
    """A file's pieces in order, and for packs that can be read without the control plane, where."""

    sha256: str
    size_bytes: int
    pieces: tuple[StoredPiece, ...]
    addresses: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageView:
    """The store as a whole, and what each visible project keeps."""

    store: StoreUsage
    sharing: float
    projects: tuple[ProjectStorage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectRequest:
    """`grace_s` spares what was pushed within it, a minute at least. `thorough` leaves no dead byte in shared packs."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    grace_s: float = 3600.0
    thorough: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.grace_s <= 10**8:
            raise ValueError(f"grace_s must be between 0 and 100000000, is {self.grace_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubRequest:
    """How much to read from where the last answer said; None reads everything."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    limit_bytes: int | None = None
    after: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRequest:
    """The most bytes a project may keep; None lifts it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    limit_bytes: int | None

    def __post_init__(self) -> None:
        if self.limit_bytes is not None and not 0 <= self.limit_bytes <= 2**60:
            raise ValueError(f"limit_bytes must be between 0 and {2**60}, is {self.limit_bytes}")
