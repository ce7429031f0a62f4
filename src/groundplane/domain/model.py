"""Models and their immutable versions: files by digest, one manifest, one signed certificate."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    """One file of a version: relative POSIX path, SHA-256 hex, size."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """An immutable version. id = `<name>@<number>`. `certificate` is the signed envelope as JSON text."""

    id: str
    name: str
    number: int
    project: str
    owner: str
    files: tuple[ManifestFile, ...]
    manifest_sha256: str
    size_bytes: int
    certificate: str
    certificate_sha256: str
    run_id: str = ""
    license: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    created_by: str
    created_at: datetime
    version: int = 0
