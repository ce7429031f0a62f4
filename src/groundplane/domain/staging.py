"""Data brought to a node's own disk before a run starts: what is asked of the node, how far it is, how fast it was.

The node does it by itself (`runner/staging.py`): a run starts on verified data or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from groundplane.domain.preflight import CheckResult, CheckStatus
from groundplane.domain.spec import DataSource, JobSpec
from groundplane.units import format_bytes, format_duration

MEASURED = "speed/"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedFile:
    """A file that the control plane brings."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedSource:
    """One source: a path on the node, http(s) or s3 address, or `files` from the installation's store.

    `secret` names one of the run's secrets; `manifest` a file of `sha256sum` lines inside the source.
    """

    name: str
    source: str
    endpoint: str = ""
    region: str = ""
    secret: str = ""
    sha256: str = ""
    manifest: str = ""
    files: tuple[StagedFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingNeed:
    """What a node is asked to stage. Empty `scratch` and 0 bytes leave place and limit of its cache to the node."""

    sources: tuple[StagedSource, ...]
    scratch: str = ""
    cache_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingProgress:
    """How far a node is. `eta_s` is None while nothing can be said; `cached_bytes` were on the node already."""

    doing: str = ""
    source: str = ""
    bytes: int = 0
    done_bytes: int = 0
    files: int = 0
    done_files: int = 0
    cached_bytes: int = 0
    bytes_per_s: int = 0
    eta_s: float | None = None
    done: bool = False

    @property
    def sentence(self) -> str:
        """`staging corpus: 1.2 GiB of 4.0 GiB (30 %) at 60.0 MB/s, 48s left`."""
        if not self.files:
            return "staging: listing sources" if self.doing else "staging"
        share = f" ({100 * self.done_bytes // self.bytes} %)" if self.bytes else ""
        text = f"staging {self.source}: {format_bytes(self.done_bytes)} of {format_bytes(self.bytes)}{share}"
        if self.bytes_per_s:
            text += f" at {self.bytes_per_s / 1e6:.1f} MB/s"
        if self.eta_s is not None and not self.done:
            text += f", {format_duration(self.eta_s)} left"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedData:
    """A run's data: `progress` while it is on its way, and what was found for each source of each attempt."""

    run_id: str
    status: str
    progress: StagingProgress | None = None
    results: tuple[CheckResult, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCache:
    """What one node's data cache holds, in bytes. `pinned` is used by running work; `kept` is never taken of a disk."""

    pool: str
    node: str
    folder: str = ""
    files: int = 0
    bytes: int = 0
    pinned_bytes: int = 0
    partial_bytes: int = 0
    limit_bytes: int = 0
    disk_free_bytes: int = 0
    disk_kept_bytes: int = 0
    on_os_disk: bool = False
    cleared_files: int = 0
    cleared_bytes: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpeed:
    """How fast a source was read, on which node and when."""

    bytes_per_s: int
    node: str
    at: datetime


def is_staged(source: DataSource) -> bool:
    return bool(source.source)


def need_of(
    spec: JobSpec, files: Mapping[str, Sequence[StagedFile]], *, scratch: str, cache_bytes: int
) -> StagingNeed | None:
    """What the nodes of this spec are to stage; `files` has what the control plane brings, by source: none of a source
    is left out."""
    sources = tuple(
        StagedSource(
            name=each.name,
            source=each.source,
            endpoint=each.endpoint,
            region=each.region,
            secret=each.secret,
            sha256="" if each.name in files else each.sha256,
            manifest=each.manifest,
            files=tuple(files.get(each.name, ())),
        )
        for each in spec.data
        if is_staged(each) and files.get(each.name) != ()
    )
    return StagingNeed(sources=sources, scratch=scratch, cache_bytes=cache_bytes) if sources else None


def progress_of(document: Mapping[str, object] | None) -> StagingProgress | None:
    """A runner's words as a value; None when it stages nothing."""
    if not document:
        return None

    def number(name: str) -> int:
        value = document.get(name)
        return int(value) if isinstance(value, int | float) else 0

    eta_s = document.get("eta_s")
    return StagingProgress(
        doing=str(document.get("doing", "")),
        source=str(document.get("source", "")),
        bytes=number("bytes"),
        done_bytes=number("done_bytes"),
        files=number("files"),
        done_files=number("done_files"),
        cached_bytes=number("cached_bytes"),
        bytes_per_s=number("bytes_per_s"),
        eta_s=float(eta_s) if isinstance(eta_s, int | float) else None,
        done=bool(document.get("done")),
    )


def address_of(source: DataSource) -> str:
    """Where a source lies, however it is read: what a measured speed belongs to."""
    return source.source or source.url or source.path


def speed_id(pool: str, source: DataSource) -> str:
    """The id under which a measured speed is kept: a pool's way to one address."""
    words = f"{pool}\n{source.endpoint}\n{address_of(source).partition('?')[0]}"
    return MEASURED + hashlib.sha256(words.encode()).hexdigest()[:32]


def measured_in(spec: JobSpec, results: Sequence[CheckResult]) -> Iterator[tuple[DataSource, CheckResult]]:
    """The sources whose reading was timed, staged or by preflight's sample, with the result that says so."""
    by_name = {each.name: each for each in spec.data}
    for result in results:
        kind, _, name = result.name.partition(":")
        timed = result.status is CheckStatus.OK and result.figures.get("bytes_per_s", 0.0) > 0
        if kind in ("data", "stage") and timed and name in by_name:
            yield by_name[name], result
