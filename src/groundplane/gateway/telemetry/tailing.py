"""Requests told to whoever follows them: lines of JSON in datagrams to the control plane's socket, or nowhere at all.

A datagram that finds the socket full for a moment is dropped and counted; no request waits. Format: a line is a
`domain/traffic.Passed`.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec

from groundplane.domain.serving.traffic import DATAGRAM_MAX_BYTES, Passed
from groundplane.gateway.telemetry.sighting import Sighting

_PATIENCE_S = 0.02


class TailSender:
    """Sends while somebody has bound the socket."""

    def __init__(self, path: Path, counts: dict[str, int]) -> None:
        self._path = path
        self._counts = counts
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_PATIENCE_S)
        self._encode = msgspec.json.Encoder().encode
        self._lines: list[bytes] = []
        self._size_bytes = 0

    def add(self, seen: Sighting) -> None:
        """Puts one request in the next datagram."""
        line = self._encode(_passed(seen)) + b"\n"
        if self._size_bytes + len(line) > DATAGRAM_MAX_BYTES:
            self.flush()
        self._lines.append(line)
        self._size_bytes += len(line)

    def flush(self) -> None:
        """Sends what was put together."""
        lines, self._lines, self._size_bytes = self._lines, [], 0
        if not lines:
            return
        outcome = "sent"
        try:
            # A socket's path may be too long for an address: the folder is opened, and the name is short.
            folder = os.open(self._path.parent, os.O_PATH | os.O_CLOEXEC)
            try:
                self._socket.sendto(b"".join(lines), f"/proc/self/fd/{folder}/{self._path.name}")
            finally:
                os.close(folder)
        except ConnectionRefusedError:
            outcome = "dropped"
            self._path.unlink(missing_ok=True)  # whoever bound it died
        except OSError:
            outcome = "dropped"
        name = f"tail/{outcome}"
        self._counts[name] = self._counts.get(name, 0) + len(lines)


def _passed(seen: Sighting) -> Passed:
    return Passed(
        id=seen.id,
        at_s=seen.at_s,
        project=seen.project,
        key_id=seen.key_id,
        owner=seen.owner,
        model=seen.model,
        target=seen.target,
        revision=seen.revision,
        endpoint=seen.path,
        stream=seen.stream,
        status=seen.status,
        error=seen.error,
        limit=seen.limit,
        from_cache=seen.cached,
        prompt_tokens=seen.prompt_tokens,
        completion_tokens=seen.completion_tokens,
        amount_microusd=seen.microusd,
        queue_ms=seen.queue_us / 1000,
        ttft_ms=None if seen.ttft_us is None else seen.ttft_us / 1000,
        duration_ms=seen.duration_us / 1000,
    )
