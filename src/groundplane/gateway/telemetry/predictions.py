"""Writes the prediction log: a file of JSON lines an hour and gateway, below a folder a day, below the project's.

Format: `domain/prediction.Prediction`. The control plane rewrites and removes these files (retention, erasure) under
the same lock, so a file is opened for each batch, and opened anew where it was replaced meanwhile.
"""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import msgspec

from groundplane.domain.serving.prediction import (
    Prediction,
    clean,
    dialect_of,
    file_name,
    pseudonym,
    read_answer,
    read_request,
    writer_of,
)
from groundplane.gateway.telemetry.sighting import CONTENT, OWN, REDACT, Sighting

SALT_FILE = ".salt"
_SALT_BYTES = 32
_FLUSH_S = 0.2
_BATCH_MAX = 256


class PredictionWriter:
    """One gateway's writer. `counts` gets `prediction/kept` and `prediction/failed`."""

    def __init__(self, folder: Path, gateway_id: str, counts: dict[str, int]) -> None:
        self._folder = folder
        self._gateway_id = gateway_id
        self._counts = counts
        self._salt = b""
        self._lines: dict[Path, list[bytes]] = {}
        self._waiting = 0
        self._flushed_at = monotonic()
        self._encode = msgspec.json.Encoder().encode
        self.trouble = ""

    def add(self, seen: Sighting) -> None:
        """Puts one record in the next batch."""
        if not self._salt:
            try:
                self._salt = read_salt(self._folder)
            except OSError as error:
                self._failed(1, error)
                return
        record = record_of(seen, self._salt)
        at = datetime.fromtimestamp(seen.at_s, UTC)
        writer = writer_of(self._gateway_id, seen.model if seen.flags & OWN else "")
        name = file_name(at.strftime("%Y-%m-%d"), at.strftime("%H"), writer, "jsonl")
        self._lines.setdefault(self._folder / seen.project / name, []).append(self._encode(record) + b"\n")
        self._waiting += 1
        if self._waiting >= _BATCH_MAX:
            self._write()

    def flush(self) -> None:
        """Writes what waits, unless that was done a moment ago."""
        if self._waiting and monotonic() - self._flushed_at >= _FLUSH_S:
            self._write()

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        lines, self._lines, self._waiting = self._lines, {}, 0
        self._flushed_at = monotonic()
        for path, batch in lines.items():
            try:
                _append(path, b"".join(batch))
            except OSError as error:
                self._failed(len(batch), error)
                continue
            self.trouble = ""
            self._counts["prediction/kept"] = self._counts.get("prediction/kept", 0) + len(batch)

    def _failed(self, count: int, error: OSError) -> None:
        self.trouble = f"the prediction log can't be written: {error.strerror or error}"
        self._counts["prediction/failed"] = self._counts.get("prediction/failed", 0) + count


def _append(path: Path, data: bytes) -> None:
    """Adds whole lines. A full disk leaves no part of them."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                current = path.stat().st_ino == os.fstat(fd).st_ino
            except FileNotFoundError:
                current = False
            if not current:
                continue  # rewritten or removed while we waited
            size = _whole_bytes(fd)
            try:
                written = 0
                while written < len(data):
                    written += os.write(fd, data[written:])
            except OSError:
                os.ftruncate(fd, size)
                raise
            return
        finally:
            os.close(fd)


def _whole_bytes(fd: int) -> int:
    """The file's size up to its last whole line. Half a line is of a writer of this name that died: it goes."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        size = os.pread(fd, size, 0).rfind(b"\n") + 1
        os.ftruncate(fd, size)
    return size


def read_salt(folder: Path) -> bytes:
    """This installation's salt of pseudonyms, made once by whoever needs it first."""
    path = folder / SALT_FILE
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        draft = folder / f"{SALT_FILE}.{os.getpid()}.{os.urandom(4).hex()}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(fd, os.urandom(_SALT_BYTES))
        os.fsync(fd)
        os.close(fd)
        try:
            os.link(draft, path)  # fails where another one was faster: its salt counts
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        return path.read_bytes()


def record_of(seen: Sighting, salt: bytes) -> Prediction:
    """The record of a request: read, cleaned, and without what the rule does not keep."""
    asked, answered = read_request(seen.request), read_answer(seen.answer)
    content = bool(seen.flags & CONTENT)
    record = Prediction(
        id=seen.id,
        at=datetime.fromtimestamp(seen.at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        project=seen.project,
        key_id=seen.key_id,
        owner=seen.owner,
        model=seen.model,
        target=seen.target,
        revision=seen.revision,
        upstream_model=seen.upstream_model,
        endpoint=seen.path,
        dialect=dialect_of(seen.path),
        stream=seen.stream,
        status=seen.status,
        error=seen.error,
        parameters=asked.parameters if content else {},
        messages=asked.messages if content else [],
        answer=answered.answer if content else [],
        answer_model=answered.model,
        answer_id=answered.id,
        finish_reasons=answered.finish_reasons,
        prompt_tokens=seen.prompt_tokens,
        completion_tokens=seen.completion_tokens,
        cached_tokens=seen.cached_tokens,
        estimated=seen.estimated,
        amount_microusd=seen.microusd,
        queue_ms=seen.queue_us / 1000,
        connect_ms=seen.connect_us / 1000,
        first_byte_ms=None if seen.first_byte_us is None else seen.first_byte_us / 1000,
        relay_ms=None if seen.relay_us is None else seen.relay_us / 1000,
        ttft_ms=None if seen.ttft_us is None else seen.ttft_us / 1000,
        duration_ms=seen.duration_us / 1000,
        subject=pseudonym(salt, seen.project, seen.subject or asked.subject),
        trace_id=seen.trace_id,
        truncated=seen.truncated,
        from_cache=seen.cached,
    )
    if content:
        clean(record, redacted=bool(seen.flags & REDACT))
    return record
