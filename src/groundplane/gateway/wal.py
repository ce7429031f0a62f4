"""The write-ahead log of usage: what was admitted and what it came to, on disk before the caller has the whole answer.

A record is copied into a mapped file, so it survives the death of this process; a group `fdatasync` at most 50 ms later
makes it survive the death of the machine. Space is allocated before it is written to: a full disk is an error that can
be answered, not a signal. Format: `domain/usage_records`; an open segment ends in zeros.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec

from groundplane.domain.serving.usage_records import (
    FRAME_MAX_BYTES,
    HEADER,
    OPENED,
    RESERVED,
    SETTLED,
    Opened,
    Reserved,
    Settled,
    Tail,
    frame,
    parse_segment_name,
    read_frames,
    segment_name,
)
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput

SEGMENT_MAX_BYTES = 8 * 2**20
FREE_MIN_BYTES = 64 * 2**20
_GROW_BYTES = 65_536
_HEADER_BYTES = HEADER.size
_pack_header = HEADER.pack_into
_CLOSED = ".closed"
LOG_WAIT_S = 2.0
"""How long a log that starts waits for who just closes it for its earlier life, or lets go of what that held."""
_GATEWAY_ID = re.compile(r"[a-z0-9][a-z0-9_.-]{0,40}")
_WORKER_ID = re.compile(r"gw-(\d{1,3})r?")
_encode = msgspec.json.Encoder().encode
_decode_reserved = msgspec.json.Decoder(Reserved).decode
_decode_settled = msgspec.json.Decoder(Settled).decode
_decode_opened = msgspec.json.Decoder(Opened).decode


class LogUnavailable(Exception):
    """A record can't be written: serving now would go unmetered."""


class Spent(NamedTuple):
    """What one settlement says about money: the record's number, and whose limits it counts in."""

    seq: int
    microusd: int
    project: str
    key_id: str = ""
    model: str = ""
    endpoint: str = ""


class Closed(NamedTuple):
    """A log whose gateway is gone and that has all of it, settled: the number of the last settlement."""

    gateway_id: str
    seq: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """What earlier lives of this gateway left: settlements not deleted yet, and how many requests died unsettled."""

    settled: tuple[Spent, ...]
    orphans: int


class WriteAheadLog:
    """The open segment of one gateway. Not thread-safe: the event loop owns it, `sync` works on duplicated files."""

    def __init__(
        self,
        directory: Path,
        gateway_id: str,
        *,
        segment_max_bytes: int = SEGMENT_MAX_BYTES,
        free_min_bytes: int = FREE_MIN_BYTES,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if not _GATEWAY_ID.fullmatch(gateway_id):
            raise InvalidInput(f"{gateway_id!r} is no gateway id", "use a-z, 0-9, dot, dash or underscore, at most 41")
        self._directory = directory
        self._gateway_id = gateway_id
        self._segment_max_bytes = segment_max_bytes
        self._free_min_bytes = free_min_bytes
        self._wall_clock = wall_clock
        self._closed_path = directory / f"{gateway_id}{_CLOSED}"
        self._fd = -1
        self._lock_fd = -1
        self._number = 0
        self._map: mmap.mmap | None = None
        self._size = 0
        self._allocated = 0
        self._carried = 0
        self._open: dict[bytes, bytes] = {}
        self._late: list[tuple[Spent, bytes]] = []
        self._sealed_fds: list[int] = []
        self.seq = self._settled_seq = 0
        self.dirty = False
        self.trouble = ""

    def open(self, wait_s: float = 0.0) -> Recovered:
        """Starts a new segment, settling what an earlier life left open. Raises Conflict when the id is in use."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock(wait_s)
        self._closed_path.unlink(missing_ok=True)
        settled: list[Spent] = []
        open_requests: dict[str, Reserved] = {}
        for number, payloads in self._own_segments():
            self._number = max(self._number, number)
            for payload in payloads:
                kind, text = payload[:1], payload[1:]
                if kind == SETTLED:
                    done = _decode_settled(text)
                    self.seq = max(self.seq, done.seq)
                    open_requests.pop(done.id, None)
                    settled.append(_spent(done))
                elif kind == RESERVED:
                    begun = _decode_reserved(text)
                    self.seq = max(self.seq, begun.seq)
                    open_requests[begun.id] = begun
                else:
                    self.seq = max(self.seq, _decode_opened(text).seq)
        orphans = [_settle_orphan(one, self._wall_clock()) for one in open_requests.values()]
        # Every record begins with its number, which is given when it is written.
        self._late = [(_spent(one), _encode(one).partition(b",")[2]) for one in orphans]
        self._start_segment(settled)
        self._settled_seq = max((one.seq for one in settled), default=0)
        return Recovered(tuple(settled), len(orphans))

    def _lock(self, wait_s: float) -> None:
        end_s = time.monotonic() + wait_s
        while (fd := _locked(self._directory, self._gateway_id)) is None:
            if time.monotonic() >= end_s:
                raise Conflict(
                    f"gateway id {self._gateway_id} is in use in {self._directory}",
                    "stop the other gateway, or give this one another --gateway-id",
                )
            time.sleep(0.01)
        self._lock_fd = fd

    def _own_segments(self) -> Iterator[tuple[int, list[bytes]]]:
        numbered = []
        for path in self._directory.iterdir():
            named = parse_segment_name(path.name)
            if named is not None and named[0] == self._gateway_id:
                numbered.append((named[1], path))
        for number, path in sorted(numbered):
            try:
                found = read_frames(path.read_bytes())
            except FileNotFoundError:
                continue  # everything in it was acknowledged meanwhile
            if found.tail is Tail.DAMAGED:
                raise IntegrityFailure(
                    f"{path} is damaged at byte {found.end}", "restore the file, or move it aside and accept the loss"
                )
            yield number, found.payloads

    def _start_segment(self, settled: list[Spent] | None = None) -> None:
        """Moves on to a new segment that carries over what is still open; it appears whole or not at all."""
        path = self._directory / segment_name(self._gateway_id, self._number + 1)
        draft = path.with_suffix(".tmp")
        seq = self.seq + 1
        opened = Opened(seq=seq, gateway_id=self._gateway_id, at=self._wall_clock())
        content = [frame(OPENED + _encode(opened))]
        for spent, members in self._late:
            seq += 1
            self._settled_seq = seq
            content.append(frame(_payload(SETTLED, seq, members)))
            if settled is not None:
                settled.append(spent._replace(seq=seq))
        for members in self._open.values():
            seq += 1
            content.append(frame(_payload(RESERVED, seq, members)))
        data = b"".join(content)
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            allocated = len(data) + min(_GROW_BYTES, self._segment_max_bytes)
            length = max(self._segment_max_bytes, len(data)) + FRAME_MAX_BYTES
            os.posix_fallocate(fd, 0, allocated)
            os.ftruncate(fd, length)
            mapped = mmap.mmap(fd, length)
            # Or the first write would read megabytes of nothing ahead, which takes as long as twenty requests.
            mapped.madvise(mmap.MADV_RANDOM)
            mapped[: len(data)] = data
            draft.rename(path)
        except OSError:
            os.close(fd)
            draft.unlink(missing_ok=True)
            raise
        self._seal()
        self._fd, self._map, self._size, self._allocated = fd, mapped, len(data), allocated
        self._carried = len(data)
        self._number += 1
        self.seq, self._late, self.dirty = seq, [], True

    def _seal(self) -> None:
        """Cuts the open segment to what was written; it is synced and closed in the background."""
        if self._map is not None:
            self._map.close()
            self._map = None
            os.ftruncate(self._fd, self._size)
            self._sealed_fds.append(self._fd)

    def reserved(self, request_id: bytes, members: bytes) -> None:
        """Notes an admitted request. Raises LogUnavailable; then it must not be served.

        `members` is the record as JSON from after `seq` on, closing brace included; `records` builds it.
        """
        if self.trouble:
            raise LogUnavailable(self.trouble)
        self._append(RESERVED, members)
        self._open[request_id] = members

    def settled(self, request_id: bytes, members: bytes, project: str, microusd: int) -> None:
        """Notes what a request came to. Raises LogUnavailable; the record is then written as soon as it can be."""
        self._open.pop(request_id, None)
        try:
            self._append(SETTLED, members)
            self._settled_seq = self.seq
        except LogUnavailable:
            self._late.append((Spent(0, microusd, project), members))
            raise

    def _append(self, kind: bytes, members: bytes) -> None:
        payload = b'%b{"seq":%d,%b' % (kind, self.seq + 1, members)
        length = len(payload)
        begin = self._size + _HEADER_BYTES
        end = begin + length
        if end > self._allocated or end > self._segment_max_bytes:
            self._make_room(end)
            if self._size + _HEADER_BYTES != begin:  # a new segment: its first records have taken numbers
                self._append(kind, members)
                return
        mapped = self._map
        assert mapped is not None
        # The header comes last: until then a reader sees the zeros of the end.
        mapped[begin:end] = payload
        _pack_header(mapped, begin - _HEADER_BYTES, length, crc32(payload))
        self.seq += 1
        self._size = end
        self.dirty = True

    def _make_room(self, end: int) -> None:
        """A new segment when this one is full, otherwise more of the disk for it. Raises LogUnavailable."""
        try:
            if end > self._segment_max_bytes and self._size > self._carried:
                self._start_segment()
            else:
                os.posix_fallocate(self._fd, self._allocated, max(_GROW_BYTES, end - self._allocated))
                self._allocated += max(_GROW_BYTES, end - self._allocated)
        except OSError as error:
            self.trouble = f"the usage log can't be written: {error.strerror or error}"
            raise LogUnavailable(self.trouble) from error

    def check_space(self) -> None:
        """Called every second: refuses new requests before the disk is full, takes them again when there is room."""
        status = os.statvfs(self._directory)
        free_bytes = status.f_bavail * status.f_frsize
        if free_bytes < self._free_min_bytes:
            self.trouble = f"the usage log's disk has {free_bytes} bytes free and needs {self._free_min_bytes}"
        elif self.trouble:
            try:
                self._start_segment()
            except OSError as error:
                self.trouble = f"the usage log can't be written: {error.strerror or error}"
            else:
                self.trouble = ""

    def sync_work(self) -> Callable[[], None] | None:
        """What a background thread has to do so that what was written survives a power cut; None if nothing."""
        if not self.dirty:
            return None
        try:
            fds = [*self._sealed_fds, os.dup(self._fd)]
        except OSError:
            return None  # no descriptor to spare: the next tick may have one
        self._sealed_fds, self.dirty = [], False
        return lambda: _sync_and_close(fds)

    def close(self) -> None:
        """Syncs and lets go. Where every request is settled, that is left to be read."""
        if self._map is not None:
            self._seal()
            _sync_and_close(self._sealed_fds)
            if not self._late and not self._open:
                self._closed_path.write_text(str(self._settled_seq))
            os.close(self._lock_fd)
            self._fd, self._sealed_fds = -1, []

    def gone(self, workers: int) -> list[Closed]:
        """Logs of others that are closed, after closing those that nobody else will. May run beside the loop."""
        adopt_abandoned(self._directory, self._gateway_id, workers)
        found = []
        for path in self._directory.glob(f"*{_CLOSED}"):
            if path != self._closed_path:
                with contextlib.suppress(FileNotFoundError):  # it is back
                    found.append(Closed(path.stem, int(path.read_text()), path.stat().st_mtime_ns))
        return found

    def hold(self, one: Closed) -> int | None:
        """Keeps a gateway from coming back until this descriptor is closed; None where it is back already."""
        fd = _locked(self._directory, one.gateway_id)
        if fd is not None:
            try:
                if (self._directory / f"{one.gateway_id}{_CLOSED}").stat().st_mtime_ns == one.at_ns:
                    return fd
            except FileNotFoundError:
                pass
            os.close(fd)
        return None


def adopt_abandoned(directory: Path, gateway_id: str, workers: int) -> list[str]:
    """Settles what a worker left open that nobody will start again: the other of two ids that take turns (`gw-0`,
    `gw-0r`), and, for the first worker, numbers that are no longer used. Returns the ids whose logs were closed."""
    mine = _WORKER_ID.fullmatch(gateway_id)
    if mine is None or not directory.is_dir():
        return []
    adopted = []
    for name in sorted({parsed[0] for path in directory.iterdir() if (parsed := parse_segment_name(path.name))}):
        other = _WORKER_ID.fullmatch(name)
        if other is None or name == gateway_id or (directory / f"{name}{_CLOSED}").exists():
            continue
        if other[1] == mine[1] or (mine[1] == "0" and int(other[1]) >= workers):
            log = WriteAheadLog(directory, name)
            try:
                recovered = log.open()
            except Conflict:
                continue  # it still drains, and settles itself
            log.close()
            if recovered.orphans:
                adopted.append(name)
    return adopted


def _locked(directory: Path, gateway_id: str) -> int | None:
    """A descriptor that locks the log; None when somebody else has it."""
    fd = os.open(directory / f"{gateway_id}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _spent(done: Settled) -> Spent:
    return Spent(done.seq, done.amount_microusd, done.project, done.key_id, done.model, done.endpoint)


def _payload(kind: bytes, seq: int, members: bytes) -> bytes:
    return b'%b{"seq":%d,%b' % (kind, seq, members)


def _sync_and_close(fds: list[int]) -> None:
    for fd in fds:
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)


def _settle_orphan(begun: Reserved, now: float) -> Settled:
    """A request whose gateway died: its caller never had the whole answer, so only the estimated prompt is charged."""
    return Settled(
        seq=0,
        id=begun.id,
        key_id=begun.key_id,
        project=begun.project,
        model=begun.model,
        endpoint=begun.endpoint,
        revision=begun.revision,
        status=502,
        prompt_tokens=begun.prompt_tokens,
        completion_tokens=0,
        cached_tokens=0,
        amount_microusd=begun.if_cut_microusd,
        estimated=True,
        ttft_ms=None,
        duration_ms=max(0.0, (now - begun.started_at) * 1000),
        started_at=begun.started_at,
    )
