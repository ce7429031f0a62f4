"""Requests told to whoever follows them: a datagram each, to the control plane's socket, or nowhere at all.

A datagram that finds the socket full is dropped and counted; nothing waits. The format is `domain/traffic.Passed`.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec

from groundplane.domain.traffic import Passed
from groundplane.gateway.telemetry import Sighting


class TailSender:
    """Sends while somebody has bound the socket."""

    def __init__(self, path: Path, counts: dict[str, int]) -> None:
        self._path = path
        self._counts = counts
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._encode = msgspec.json.Encoder().encode

    def send(self, seen: Sighting) -> None:
        passed = Passed(
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
            prompt_tokens=seen.prompt_tokens,
            completion_tokens=seen.completion_tokens,
            amount_microusd=seen.microusd,
            queue_ms=seen.queue_us / 1000,
            ttft_ms=None if seen.ttft_us is None else seen.ttft_us / 1000,
            duration_ms=seen.duration_us / 1000,
        )
        outcome = "sent"
        try:
            # A socket's path may be too long for an address: the folder is opened, and the name is short.
            folder = os.open(self._path.parent, os.O_PATH | os.O_CLOEXEC)
            try:
                self._socket.sendto(self._encode(passed), f"/proc/self/fd/{folder}/{self._path.name}")
            finally:
                os.close(folder)
        except ConnectionRefusedError:
            outcome = "dropped"
            self._path.unlink(missing_ok=True)  # whoever bound it died
        except OSError:
            outcome = "dropped"
        name = f"tail/{outcome}"
        self._counts[name] = self._counts.get(name, 0) + 1
