"""Bytes of models, what is found in them, who signs for them and who serves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from groundplane.domain.artifact import StoredPiece
from groundplane.domain.model import ManifestFile
from groundplane.domain.provenance.certificate import Circumstances, DataFact, Unknown
from groundplane.domain.spec import JobSpec
from groundplane.errors import Problem, Refused


class BlobStore(Protocol):
    """Content-addressed bytes: what is stored under a digest never changes."""

    async def put_file(self, path: Path) -> tuple[str, int]:
        """Stores a file's bytes; returns (SHA-256 hex, size). Twice stores once. A crash leaves nothing visible.

        Raises Unavailable when the store is full, naming bytes needed and free.
        """
        ...

    async def put_files(self, paths: Sequence[Path]) -> list[tuple[str, int]]:
        """`put_file` for many files at once, in their order: all of them or, when one fails, none."""
        ...

    async def fetch(self, sha256: str, target: Path) -> None:
        """Writes the blob to `target` by one rename, verified. NotFound, or IntegrityFailure when the bytes changed.

        Not flushed: whoever promises that it survives a power cut does that.
        """
        ...

    async def verify(self, sha256: str, size_bytes: int) -> None:
        """Re-hashes the stored bytes. Raises IntegrityFailure or NotFound, naming the blob."""
        ...

    async def read(self, sha256: str, offset: int, limit_bytes: int) -> bytes:
        """A range of a blob."""
        ...

    async def pieces(self, sha256: str) -> list[StoredPiece]:
        """Where a file's pieces lie, in order; empty for one that is stored whole. NotFound, IntegrityFailure."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A file of a model that wants in. `stamp` changes when the file does; `refused` says why it may not enter."""

    path: str
    source: Path
    size_bytes: int
    stamp: tuple[int, ...]
    format: str = ""
    details: Mapping[str, object] = field(default_factory=dict)
    refused: Refused | None = None


class ModelFiles(Protocol):
    """Folders of model files. Nothing in them is trusted, loaded or followed elsewhere."""

    async def scan(self, source: Path) -> tuple[FoundFile, ...]:
        """Every file below `source` (or `source` itself) with what it really is. Only reads. NotFound, InvalidInput."""
        ...

    def rules_sha256(self) -> str:
        """A digest of the rules that `scan` judges by; another one means that a scan would look for other things."""
        ...

    async def unchanged(self, found: Sequence[FoundFile]) -> tuple[FoundFile, ...]:
        """The files, looked at anew where one may have been touched: then the stamp differs and nothing else does.

        Raises Conflict naming the first file that is no longer the one that was looked at.
        """
        ...

    async def problems(self, folder: Path, files: Sequence[ManifestFile]) -> tuple[Problem, ...]:
        """How a laid-out folder differs from the manifest: re-hashes all of it. Empty when it is exactly that."""
        ...

    async def place(self, folder: Path, files: Sequence[ManifestFile], blobs: BlobStore) -> None:
        """Makes `folder` hold exactly these files, verified, by one rename. Nothing to do when it does already.

        Two callers at once: one works, the other waits and finds it done. A crash leaves the old folder or none; the
        next call clears up. Raises IntegrityFailure and NotFound like `BlobStore.fetch`, Unavailable on a full disk.
        """
        ...


class Provenance(Protocol):
    """What can be seen around a job on this machine. What can't be seen is stated as unknown, never guessed."""

    async def look(self, spec: JobSpec, observed: str) -> Circumstances:
        """Code, environment, hardware and data of a job, `observed` saying when. Never raises for what is not there."""
        ...

    async def look_at_data(self, spec: JobSpec, *, here: bool) -> tuple[tuple[DataFact, ...], tuple[Unknown, ...]]:
        """The job's data, and what of it is unknown; paths are read only when they are `here`, on this machine."""
        ...


class Signer(Protocol):
    """The installation's signing key."""

    @property
    def key_id(self) -> str:
        """A stable fingerprint of the public key."""
        ...

    def sign(self, payload: bytes) -> bytes:
        """An Ed25519 signature over the payload."""
        ...

    def verify(self, payload: bytes, signature: bytes, key_id: str) -> bool:
        """Whether a trusted key of that id signed exactly these bytes."""
        ...

    def public_keys(self) -> Mapping[str, str]:
        """key id → PEM of every trusted public key: what a stranger needs to check certificates."""
        ...

    def rotate(self) -> str:
        """Signs with a new key from now on and returns its id. What earlier keys signed stays trusted."""
        ...

    def interchange_public_key(self) -> str:
        """PEM of a second key, on P-256, for tools that know no Ed25519. Made on first use, kept from then on."""
        ...

    def sign_interchange(self, payload: bytes) -> bytes:
        """An ECDSA signature (SHA-256, DER) by that second key. It never signs birth certificates."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether a model server answered a real test prompt, how long it took, and what it said otherwise."""

    ok: bool
    detail: str
    latency_s: float | None = None


class ModelServer(Protocol):
    """A kind of engine that serves one model version as an OpenAI-compatible process.

    `packages` are what Python must have where it runs.
    """

    packages: tuple[str, ...]

    def unavailable(self) -> str | None:
        """Why this engine can't be used on this machine, with the fix; None when it can."""
        ...

    def command(self, *, model_dir: Path, name: str, port: str, threads: int, cache_dir: Path) -> tuple[str, ...]:
        """The argv that serves the model on 127.0.0.1:port. `port` may be a placeholder filled in at each start."""
        ...

    async def ready(self, base_url: str, model: str) -> Readiness:
        """Sends a test prompt. Never raises for a server that does not answer: that is `ok=False`."""
        ...
