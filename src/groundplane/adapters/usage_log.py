"""The gateways' write-ahead logs as the control plane reads them: settled requests, each until acknowledged.

Format: `domain/usage_records`. What was acknowledged is one cursor file, so a restart repeats at most the last batch;
the ledger posts each request id once.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from groundplane.adapters.atomic_file import replace_durably
from groundplane.domain.ledger import UsageRecord
from groundplane.domain.serving.usage_records import (
    FRAME_MAX_BYTES,
    SETTLED,
    Frames,
    Settled,
    Tail,
    parse_segment_name,
    read_frames,
    segment_name,
)
from groundplane.errors import IntegrityFailure, Unavailable

_CURSOR = "cursor.json"
_KEEP_S = 30.0
"""How long an acknowledged segment stays: a gateway that restarts meanwhile, still on the snapshot before, reads from
it what it has spent since."""
_SEALED_BYTES, _OPEN_BYTES = 1 << 20, 2 * FRAME_MAX_BYTES
"""Read at once. An open segment ends in zeros, which are looked through each time; a frame has to fit."""
_decode_settled = msgspec.json.Decoder(Settled).decode


@dataclass(slots=True)
class _Position:
    """The first unread byte of a gateway's log."""

    segment: int
    offset: int


class FolderUsageLog:
    """Implements `ports.UsageLog` over a directory of segments. One reader at a time."""

    def __init__(self, directory: Path, *, keep_s: float = _KEEP_S) -> None:
        self._directory = directory
        self._keep_s = keep_s
        self._cursor: dict[str, int] | None = None
        self._read_ahead: dict[str, list[Settled]] = {}
        self._positions: dict[str, _Position] = {}
        self._last_seq: dict[tuple[str, int], int] = {}
        self._finished_at_s: dict[Path, float] = {}
        self._offered: list[tuple[str, int]] = []
        self._lock = asyncio.Lock()

    async def read(self, limit: int) -> list[UsageRecord]:
        """Raises IntegrityFailure naming a damaged segment, Unavailable when the directory can't be read."""
        async with self._lock:
            return await asyncio.to_thread(self._read, limit)

    async def acknowledge(self, count: int) -> None:
        """Persists the cursor, then deletes sealed segments nobody needs any more."""
        async with self._lock:
            await asyncio.to_thread(self._acknowledge, count)

    async def ingested(self) -> dict[str, int]:
        """Per gateway id, the sequence number up to which everything was acknowledged."""
        async with self._lock:
            return dict(await asyncio.to_thread(self._load_cursor))

    # ------------------------------------------------------------ reading

    def _load_cursor(self) -> dict[str, int]:
        if self._cursor is None:
            path = self._directory / _CURSOR
            try:
                value = json.loads(path.read_bytes())
                self._cursor = {str(gateway_id): int(seq) for gateway_id, seq in value.items()}
            except FileNotFoundError:
                self._cursor = {}
            except (ValueError, AttributeError, TypeError) as error:
                raise IntegrityFailure(
                    f"{path} can't be read: {error}",
                    "delete it: usage is read again from the start, and the ledger takes each request once",
                ) from error
        return self._cursor

    def _read(self, limit: int) -> list[UsageRecord]:
        cursor = self._load_cursor()
        segments = self._segments()
        for gateway_id, numbers in segments.items():
            self._fill(gateway_id, numbers, limit, cursor.get(gateway_id, 0))
        chosen: list[Settled] = []
        self._offered = []
        waiting = {gateway_id: iter(records) for gateway_id, records in self._read_ahead.items()}
        heads = {gateway_id: next(records, None) for gateway_id, records in waiting.items()}
        while len(chosen) < limit:
            # Within a gateway the order is its log's; between gateways, when the request began.
            ready = [(one.started_at, gateway_id, one) for gateway_id, one in heads.items() if one is not None]
            if not ready:
                break
            _, gateway_id, oldest = min(ready, key=lambda item: item[:2])
            chosen.append(oldest)
            self._offered.append((gateway_id, oldest.seq))
            heads[gateway_id] = next(waiting[gateway_id], None)
        return [_record(one) for one in chosen]

    def _segments(self) -> dict[str, list[int]]:
        """Segment numbers per gateway, ascending; the last one is open."""
        found: dict[str, list[int]] = {}
        try:
            names = [path.name for path in self._directory.iterdir()]
        except FileNotFoundError:
            return found
        except OSError as error:
            raise Unavailable(f"the usage log {self._directory} can't be read: {error.strerror}") from error
        for name in names:
            parsed = parse_segment_name(name)
            if parsed is not None:
                found.setdefault(parsed[0], []).append(parsed[1])
        return {gateway_id: sorted(numbers) for gateway_id, numbers in found.items()}

    def _fill(self, gateway_id: str, numbers: list[int], limit: int, after_seq: int) -> None:
        """Reads on until `limit` records of this gateway are ahead, or its log ends."""
        ahead = self._read_ahead.setdefault(gateway_id, [])
        position = self._positions.setdefault(gateway_id, _Position(numbers[0], 0))
        for number in numbers:
            if number < position.segment:
                continue
            if number > position.segment:
                position.segment, position.offset = number, 0
            sealed = number != numbers[-1]
            while len(ahead) < limit:
                if not self._read_on(gateway_id, position, sealed, ahead, after_seq):
                    break
            if len(ahead) >= limit or not sealed:
                return

    def _read_on(
        self, gateway_id: str, position: _Position, sealed: bool, ahead: list[Settled], after_seq: int
    ) -> bool:
        """Reads one piece of a segment; False when there is nothing more in it for now."""
        path, most = self._path(gateway_id, position.segment), _SEALED_BYTES if sealed else _OPEN_BYTES
        frames, more = _frames(path, position.offset, most)
        if frames.tail is Tail.DAMAGED:
            # What is written while it is read can look like it: a later record was there when an earlier one was not.
            frames, more = _frames(path, position.offset, most)
        if frames.tail is Tail.DAMAGED:
            raise IntegrityFailure(
                f"{path} is damaged at byte {position.offset + frames.end}",
                "restore the file from a backup, or move it aside and accept the loss of what follows",
            )
        position.offset += frames.end
        last = self._last_seq.get((gateway_id, position.segment), 0)
        for payload in frames.payloads:
            if payload[:1] == SETTLED:
                settled = _decode_settled(payload[1:])
                last = max(last, settled.seq)
                if settled.seq > after_seq:
                    ahead.append(settled)
        self._last_seq[gateway_id, position.segment] = last
        # A torn last frame of a sealed segment is where its writer died; nothing was answered on it.
        return more and bool(frames.payloads)

    # ------------------------------------------------------------ acknowledging

    def _acknowledge(self, count: int) -> None:
        if count > len(self._offered):
            raise ValueError(f"{count} records are acknowledged, {len(self._offered)} were read")
        cursor = self._load_cursor()
        moved = dict(cursor)
        for gateway_id, seq in self._offered[:count]:
            moved[gateway_id] = seq
        if moved != cursor:
            try:
                replace_durably(self._directory / _CURSOR, json.dumps(moved, sort_keys=True).encode())
            except OSError as error:
                raise Unavailable(f"the usage log's cursor can't be written: {error.strerror}") from error
            self._cursor = moved
        self._offered = self._offered[count:]
        for gateway_id, ahead in self._read_ahead.items():
            self._read_ahead[gateway_id] = [one for one in ahead if one.seq > moved.get(gateway_id, 0)]
        self._delete_finished(moved)

    def _delete_finished(self, cursor: dict[str, int]) -> None:
        now_s = time.monotonic()
        for gateway_id, numbers in self._segments().items():
            position = self._positions.get(gateway_id)
            for number in numbers[:-1]:
                if position is None or number >= position.segment:
                    break
                if self._last_seq.get((gateway_id, number), 0) > cursor.get(gateway_id, 0):
                    break
                path = self._path(gateway_id, number)
                if now_s - self._finished_at_s.setdefault(path, now_s) >= self._keep_s:
                    path.unlink(missing_ok=True)
                    self._finished_at_s.pop(path)
                    self._last_seq.pop((gateway_id, number), None)

    def _path(self, gateway_id: str, number: int) -> Path:
        return self._directory / segment_name(gateway_id, number)


def _frames(path: Path, offset: int, most: int) -> tuple[Frames, bool]:
    """Those in the next bytes of a segment, and whether there may be more."""
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(most)
    return read_frames(data), len(data) == most


def _record(settled: Settled) -> UsageRecord:
    return UsageRecord(
        id=settled.id,
        key_id=settled.key_id,
        project=settled.project,
        model=settled.model,
        endpoint=settled.endpoint,
        revision=settled.revision,
        status=settled.status,
        prompt_tokens=settled.prompt_tokens,
        completion_tokens=settled.completion_tokens,
        cached_tokens=settled.cached_tokens,
        amount_microusd=settled.amount_microusd,
        estimated=settled.estimated,
        ttft_ms=settled.ttft_ms,
        duration_ms=settled.duration_ms,
        started_at=datetime.fromtimestamp(settled.started_at, UTC),
        written_tokens=settled.written_tokens,
        saved_microusd=settled.saved_microusd,
        cache=settled.cache,
    )
