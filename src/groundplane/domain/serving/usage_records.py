"""The gateway's write-ahead log on disk: what its records say and how they are framed.

A segment `<gateway id>-<number>.log` is a run of frames: payload length and CRC-32 (u32, little endian), payload.
A payload is one kind byte and a JSON object. Sequence numbers grow by one per record over all segments of a gateway.
The newest segment of a gateway is open and ends in zeros; older ones are sealed and end with their last record. A
segment starts with `Opened` and carries over the reservations still in flight, so a sealed segment whose settlements
are in the ledger can be deleted.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import StrEnum

OPENED, RESERVED, SETTLED = b"O", b"R", b"S"
FRAME_MAX_BYTES = 65_536
HEADER = struct.Struct("<II")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The first record of a segment."""

    seq: int
    gateway_id: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """An admitted request about to go upstream. `if_cut_microusd` is charged if the gateway dies before it settles."""

    seq: int
    id: str
    key_id: str
    project: str
    model: str
    endpoint: str
    revision: int
    prompt_tokens: int
    if_cut_microusd: int
    started_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What a request came to, written before the last bytes of its answer leave. Times are epoch seconds."""

    seq: int
    id: str
    key_id: str
    project: str
    model: str
    endpoint: str
    revision: int
    status: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    amount_microusd: int
    estimated: bool
    ttft_ms: float | None
    duration_ms: float
    started_at: float
    written_tokens: int = 0
    saved_microusd: int = 0
    cache: str = ""


class Tail(StrEnum):
    """How a run of frames ends."""

    CLEAN = "clean"
    TORN = "torn"
    """The last frame is incomplete: still being written, or its writer died."""
    DAMAGED = "damaged"
    """A frame that is followed by more bytes fails its checksum: the disk changed it."""


@dataclass(frozen=True, slots=True)
class Frames:
    """Payloads found, where the first unread byte is, and how the run ends there."""

    payloads: list[bytes]
    end: int
    tail: Tail


def frame(payload: bytes) -> bytes:
    """One record as it stands on disk. ValueError when it is larger than FRAME_MAX_BYTES."""
    if len(payload) > FRAME_MAX_BYTES:
        raise ValueError(f"a usage record of {len(payload)} bytes is over {FRAME_MAX_BYTES}")
    return HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def read_frames(data: bytes, offset: int = 0) -> Frames:
    """Every whole frame from `offset` on."""
    payloads: list[bytes] = []
    size = len(data)
    while offset < size:
        if size - offset < HEADER.size:
            return Frames(payloads, offset, Tail.TORN)
        length, crc = HEADER.unpack_from(data, offset)
        end = offset + HEADER.size + length
        if length == 0 or length > FRAME_MAX_BYTES:
            # An open segment ends in zeros, and a crash of the machine can leave some where the last writes should be.
            return Frames(payloads, offset, Tail.DAMAGED if _has_bytes(data, offset) else Tail.TORN)
        if end > size:
            return Frames(payloads, offset, Tail.TORN)
        payload = data[offset + HEADER.size : end]
        if zlib.crc32(payload) != crc:
            # The last record may be half written; with others after it, it was changed.
            return Frames(payloads, offset, Tail.DAMAGED if _has_bytes(data, end) else Tail.TORN)
        payloads.append(payload)
        offset = end
    return Frames(payloads, offset, Tail.CLEAN)


def _has_bytes(data: bytes, offset: int) -> bool:
    """Whether anything but zeros follows."""
    return bool(data[offset:].strip(b"\0"))


def segment_name(gateway_id: str, number: int) -> str:
    return f"{gateway_id}-{number:08d}.log"


def parse_segment_name(name: str) -> tuple[str, int] | None:
    """(gateway id, number) of a segment's file name; None for any other file."""
    stem, dot, suffix = name.rpartition(".")
    gateway_id, dash, number = stem.rpartition("-")
    if not (dot and dash and gateway_id and suffix == "log" and number.isascii() and number.isdigit()):
        return None
    return gateway_id, int(number)
