"""The gateway's write-ahead log on disk: what its records say and how they are framed.

A segment `<gateway id>-<number>.log` is a run of frames: payload length and CRC-32 (u32, little endian), payload.
A payload is one kind byte and a JSON object, its number first. Sequence numbers grow by one per record over all
segments of a gateway. The newest segment of a gateway is open and ends in zeros; older ones are sealed and end with
their last record. A segment starts with `Opened` and carries over the reservations still in flight, so a sealed segment
whose settlements are in the ledger can be deleted.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import StrEnum

OPENED, RESERVED, SETTLED = b"O", b"R", b"S"
FRAME_MAX_BYTES = 65_536
HEADER = struct.Struct("<II")
_BEGIN = b'{"seq":'
"""Every record's text, after its kind; inside JSON strings quotes are escaped, so it stands nowhere else."""
_TEXT = bytes((0, *range(0x20, 0x100)))
"""What a record's text consists of, and what stands where it is not written yet."""


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
        payload = data[offset + HEADER.size : end]
        # An open segment ends in zeros, and a crash of the machine can leave some where the last writes should be.
        if not 0 < length <= FRAME_MAX_BYTES or end > size or zlib.crc32(payload) != crc:
            return Frames(payloads, offset, Tail.TORN if _is_one_record(data, offset) else Tail.DAMAGED)
        payloads.append(payload)
        offset = end
    return Frames(payloads, offset, Tail.CLEAN)


def _is_one_record(data: bytes, offset: int) -> bool:
    """Whether what follows can be a record on its way: its text comes before its header, and either may be there in
    part, because a writer can be ended between any two instructions. Where another record begins, this one was whole.
    """
    begun = data[offset + HEADER.size :].rstrip(b"\0")
    return len(begun) <= FRAME_MAX_BYTES and _BEGIN not in begun[2:] and not begun.translate(None, _TEXT)


def segment_name(gateway_id: str, number: int) -> str:
    return f"{gateway_id}-{number:08d}.log"


def parse_segment_name(name: str) -> tuple[str, int] | None:
    """(gateway id, number) of a segment's file name; None for any other file."""
    stem, dot, suffix = name.rpartition(".")
    gateway_id, dash, number = stem.rpartition("-")
    if not (dot and dash and gateway_id and suffix == "log" and number.isascii() and number.isdigit()):
        return None
    return gateway_id, int(number)
