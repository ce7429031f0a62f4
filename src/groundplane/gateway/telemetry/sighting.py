"""What a worker passes on to its recorder: one request as it was seen, and where what is told of it goes."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

KEEP, TRACE, TAIL, CONTENT, REDACT, OWN = 1, 2, 4, 8, 16, 32
"""What a request is told for; whether with its texts, redacted, and by a rule of its model's own."""
LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryOptions:
    """Where things go; what is empty is off. `traces_percent` of requests that bring no decision of their own."""

    gateway_id: str = "gateway"
    predictions: Path | None = None
    tail: Path | None = None
    traces_url: str = ""
    traces_headers: str = field(default="", repr=False)
    traces_percent: float = 100.0


class Sighting(msgspec.Struct, array_like=True):
    """One request as the recorder gets it. Times are microseconds, but for `at_s`, which is epoch seconds."""

    flags: int
    id: str
    at_s: float
    project: str
    key_id: str = ""
    owner: str = ""
    model: str = ""
    target: str = ""
    revision: int = 0
    upstream_model: str = ""
    kind: str = ""
    address: str = ""
    path: str = ""
    stream: bool = False
    status: int = 0
    error: str = ""
    limit: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    estimated: bool = False
    microusd: int = 0
    queue_us: int = 0
    connect_us: int = 0
    first_byte_us: int | None = None
    relay_us: int | None = None
    ttft_us: int | None = None
    duration_us: int = 0
    subject: str = ""
    trace_id: str = ""
    parent_id: str = ""
    span_id: str = ""
    truncated: bool = False
    cached: bool = False
    request: bytes = b""
    answer: bytes = b""
