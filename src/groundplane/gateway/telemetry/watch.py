"""What is told of requests besides their bill: the prediction log, traces, and whoever follows requests as they come.

The loop only notes what it has in hand anyway and appends one object to a bounded buffer; where nothing is wanted it
looks at one flag. A thread passes the buffer to a process of its own (`recorder`), which reads, redacts, writes and
exports: a regular expression over a long prompt would hold the interpreter's lock. What does not fit the buffer is
dropped and counted, never waited for.
"""

from __future__ import annotations

import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from groundplane.domain.serving.limits import Binding
from groundplane.domain.serving.prediction import Keeping
from groundplane.domain.serving.usage import Usage
from groundplane.gateway.telemetry.metrics import Metrics, Times

if TYPE_CHECKING:
    from groundplane.gateway.approach import Approach
    from groundplane.gateway.lanes import Lane
    from groundplane.gateway.protocol.errors import Fault
    from groundplane.gateway.protocol.http1 import RequestHead

KEEP, TRACE, TAIL, CONTENT, REDACT, OWN = 1, 2, 4, 8, 16, 32
"""What a request is told for; whether with its texts, redacted, and by a rule of its model's own."""
ANSWER_MAX_BYTES = 2**20
TRACED_MAX_BYTES = 65_536
LENGTH = struct.Struct("<I")
_BUFFER_MAX_BYTES = 64 * 2**20
_BUFFER_MAX = 20_000
_SIGHTING_BYTES = 1024
"""What one costs besides the bytes of request and answer, roughly."""
_RESTART_AFTER_S = 1.0
_CLOSE_LIMIT_S = 8.0
_PARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_PARENT_LINE = re.compile(rb"traceparent: [^\r]*\r\n")
_NO_TIMES: tuple[Times, int] = ((0, 0, None, None, None), 0)


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


class Watch:
    """One request that something is told of: what for, its place in a trace, and its answer as far as it is wanted."""

    __slots__ = (
        "_left_bytes",
        "_pieces",
        "cached",
        "flags",
        "parent_id",
        "passed",
        "span_id",
        "subject",
        "trace_id",
        "truncated",
    )

    def __init__(self, flags: int, head: RequestHead) -> None:
        self.flags = flags
        self.passed = head.passed
        self.subject = head.headers.get(b"x-subject", b"")
        self.trace_id = self.parent_id = self.span_id = ""
        self.truncated = self.cached = False
        self._pieces: list[bytes] = []
        self._left_bytes = ANSWER_MAX_BYTES if flags & CONTENT else TRACED_MAX_BYTES if flags & (KEEP | TRACE) else 0

    def note(self, data: bytes) -> None:
        """A piece of an answer on its way to the caller."""
        if self._left_bytes > 0:
            self._pieces.append(data)
            self._left_bytes -= len(data)
        elif self.flags & CONTENT:
            self.truncated = True

    def answer(self, whole: bytes) -> bytes:
        """The pieces together, or the whole answer where it was not relayed in pieces."""
        if not self.flags & (KEEP | TRACE):
            return b""
        return b"".join(self._pieces) if self._pieces else whole[:ANSWER_MAX_BYTES]


class Telemetry:
    """The loop's side. All methods but `close` take microseconds and never wait."""

    def __init__(self, options: TelemetryOptions, metrics: Metrics) -> None:
        self._options = options
        self._metrics = metrics
        self._rules: dict[tuple[str, str], Keeping] = {}
        self._tracing = bool(options.traces_url)
        self._traced = options.traces_percent / 100
        self._tailed = False
        self._pipe: _Pipe | None = None
        self._reported: dict[str, int] = {}
        self.active = self._tracing

    @property
    def trouble(self) -> str:
        return "" if self._pipe is None else self._pipe.trouble

    def keep(self, rules: Sequence[Keeping]) -> None:
        """The rules of a new snapshot."""
        on = self._options.predictions is not None
        self._rules = {(rule.project, rule.model): rule for rule in rules} if on else {}
        self._look()

    def tick(self) -> None:
        """Called by the coarse clock: whether somebody follows, and what became of what was passed on."""
        tail = self._options.tail
        followed = tail is not None and tail.exists()
        if followed != self._tailed:
            self._tailed = followed
            self._look()
        if self._pipe is not None:
            self._pipe.wake()
            self._count(self._pipe.counts())

    def _look(self) -> None:
        self.active = bool(self._rules) or self._tracing or self._tailed
        if self.active and self._pipe is None:
            self._pipe = _Pipe(self._options)

    def _count(self, now: dict[str, int]) -> None:
        recorded = self._metrics.recorded
        for what, count in now.items():
            more = count - self._reported.get(what, 0)
            if more:
                recorded[what] = recorded.get(what, 0) + more
        self._reported = now

    def close(self) -> None:
        """Passes on what is left and waits for the recorder, a few seconds at most. Runs beside the loop."""
        if self._pipe is not None:
            self._pipe.close()
            self._count(self._pipe.counts())

    # ------------------------------------------------------------ requests

    def watch(self, lane: Lane, head: RequestHead) -> Watch | None:
        """Decides what is told of a request that begins."""
        flags = TAIL if self._tailed else 0
        if self._rules:
            key = lane.key.key
            rule = self._rules.get((key.project, lane.model)) or self._rules.get((key.project, ""))
            if rule is not None and _drawn(rule.sample_percent / 100):
                flags |= KEEP | (CONTENT if rule.content else 0) | (REDACT if rule.redact else 0)
                flags |= OWN if rule.model else 0
        if not self._tracing:
            return Watch(flags, head) if flags else None
        parent = _PARENT.fullmatch(head.headers.get(b"traceparent", b""))
        if (int(parent[3], 16) & 1) if parent is not None else _drawn(self._traced):
            flags |= TRACE
        if not flags:
            return None
        watch = Watch(flags, head)
        if flags & TRACE:
            _trace(watch, parent)
        return watch

    def refused(self, request: Approach, watch: Watch, fault: Fault) -> None:
        """A request that was not admitted."""
        self._add(_seen(request, watch, fault.status, _NO_TIMES), fault)

    def settled(
        self, request: Approach, watch: Watch, outcome: tuple[int, Usage, int], took: tuple[Times, int]
    ) -> None:
        """A request that is over: status, usage and micro-dollars, and how long its parts took."""
        status, usage, microusd = outcome
        seen = _seen(request, watch, status, took)
        target = request._target
        seen.target, seen.revision = target.target.endpoint, target.target.revision
        seen.upstream_model, seen.kind = target.target.upstream_model, target.target.kind
        seen.address = target.upstream.authority.decode()
        seen.prompt_tokens, seen.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        seen.cached_tokens, seen.estimated, seen.microusd = usage.cached_tokens, usage.estimated, microusd
        seen.answer = watch.answer(request._tail)
        seen.truncated, seen.cached = watch.truncated, watch.cached
        self._add(seen, None)

    def unknown(self, request_id: bytes, project: str, fault: Fault) -> None:
        """A request that got no further than the door: only who follows is told."""
        if self._tailed:
            self._add(Sighting(TAIL, request_id.decode(), time.time(), project, status=fault.status), fault)

    def _add(self, seen: Sighting, fault: Fault | None) -> None:
        if fault is not None:
            seen.error = fault.code
            if fault.binding is not None:
                seen.limit = fault.binding.limit.id
        assert self._pipe is not None
        if not self._pipe.add(seen):
            for flag, what in ((KEEP, "prediction"), (TRACE, "span"), (TAIL, "tail")):
                if seen.flags & flag:
                    name = f"{what}/dropped"
                    self._metrics.recorded[name] = self._metrics.recorded.get(name, 0) + 1


def _drawn(part: float) -> bool:
    return part >= 1 or random.random() < part  # noqa: S311 - a sample, not a secret


def _trace(watch: Watch, parent: re.Match[bytes] | None) -> None:
    """The request's place in its trace, and what is passed on: whoever answers is a child of our span."""
    watch.span_id = os.urandom(8).hex()
    if parent is None:
        watch.trace_id = os.urandom(16).hex()
    else:
        watch.trace_id, watch.parent_id = parent[1].decode(), parent[2].decode()
    line = f"traceparent: 00-{watch.trace_id}-{watch.span_id}-01\r\n".encode()
    watch.passed = line + _PARENT_LINE.sub(b"", watch.passed)


def _seen(request: Approach, watch: Watch, status: int, took: tuple[Times, int]) -> Sighting:
    (queue_us, connect_us, first_byte_us, relay_us, ttft_us), duration_us = took
    key = request.key.key
    return Sighting(
        watch.flags,
        request.request_id.decode(),
        float(request.started_at),
        key.project,
        key_id=key.id,
        owner=key.owner,
        model=request._lane.model,
        path=request._door.path.decode(),
        stream=request._streams,
        status=status,
        queue_us=queue_us,
        connect_us=connect_us,
        first_byte_us=first_byte_us,
        relay_us=relay_us,
        ttft_us=ttft_us,
        duration_us=duration_us,
        subject=watch.subject.decode("utf-8", "replace"),
        trace_id=watch.trace_id,
        parent_id=watch.parent_id,
        span_id=watch.span_id,
        request=request._request if watch.flags & (KEEP | TRACE) and not request._door.form else b"",
    )


def refusal_of(request: Approach, binding: Binding) -> dict[str, Any]:
    """A limit's refusal as `domain/traffic.LimitRefusal` has it."""
    key, limit, wait_ns = request.key.key, binding.limit, binding.retry_after_ns
    return {
        "at_s": time.time(),
        "request_id": request.request_id.decode(),
        "project": key.project,
        "key_id": key.id,
        "owner": key.owner,
        "model": request._lane.model,
        "scope": limit.scope,
        "name": limit.name,
        "measure": limit.measure.value,
        "value": limit.value,
        "left": binding.left,
        "requested": binding.requested,
        "retry_after_ms": None if wait_ns is None else -(-wait_ns // 1_000_000),
    }


# ---------------------------------------------------------------- the way to the recorder


class _Pipe:
    """The buffer, and the thread that empties it into the recorder's socket. The loop adds, the thread takes."""

    def __init__(self, options: TelemetryOptions) -> None:
        self._options = options
        self._buffer: deque[Sighting] = deque()
        self._added_bytes = self._taken_bytes = 0
        self._event = threading.Event()
        self._closing = False
        self._counts: dict[str, int] = {}
        self._lives: dict[str, int] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._heard = b""
        self.trouble = ""
        # A daemon: it must not keep a gateway from ending that did not get to close it.
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def add(self, seen: Sighting) -> bool:
        size_bytes = _SIGHTING_BYTES + len(seen.request) + len(seen.answer)
        if len(self._buffer) >= _BUFFER_MAX or self._added_bytes - self._taken_bytes + size_bytes > _BUFFER_MAX_BYTES:
            return False
        self._added_bytes += size_bytes
        self._buffer.append(seen)
        return True

    def wake(self) -> None:
        """The thread looks once a tick, not once a request: waking it costs a system call."""
        if self._buffer:
            self._event.set()

    def counts(self) -> dict[str, int]:
        """What became of things, by `what/outcome`, since the start."""
        return dict(self._counts)

    def close(self) -> None:
        self._closing = True
        self._event.set()
        self._thread.join(_CLOSE_LIMIT_S)
        if self._child is not None and self._child.poll() is None:
            self._child.kill()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        encode = msgspec.msgpack.Encoder().encode
        while True:
            # Feedback is looked for even when there is nothing to pass on.
            self._event.wait(0.5)
            self._event.clear()
            while self._buffer:
                seen = self._buffer.popleft()
                self._taken_bytes += _SIGHTING_BYTES + len(seen.request) + len(seen.answer)
                data = encode(seen)
                if not self._send(LENGTH.pack(len(data)) + data):
                    self._lose(seen)
            self._hear()
            if self._closing:
                self._end()
                return

    def _send(self, data: bytes) -> bool:
        for _ in range(2):
            if self._socket is None and not self._start():
                return False
            assert self._socket is not None
            try:
                self._socket.sendall(data)
            except OSError:
                self._gone()
                continue
            return True
        return False

    def _start(self) -> bool:
        ours, theirs = socket.socketpair()
        options = self._options
        words: dict[str, Any] = {
            "gateway_id": options.gateway_id,
            "predictions": None if options.predictions is None else str(options.predictions),
            "tail": None if options.tail is None else str(options.tail),
            "traces_url": options.traces_url,
            "traces_headers": options.traces_headers,
        }
        command = [sys.executable, "-P", "-m", "groundplane.gateway.telemetry.recorder", "--fd", str(theirs.fileno())]
        try:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(theirs.fileno(),)
            )
        except OSError as error:
            self.trouble = f"the recorder can't be started: {error}"
            ours.close()
            time.sleep(_RESTART_AFTER_S)
            return False
        finally:
            theirs.close()
        self._socket, self._heard = ours, b""
        data = msgspec.msgpack.encode(words)
        try:
            ours.sendall(LENGTH.pack(len(data)) + data)
        except OSError:
            self._gone()
            return False
        self.trouble = ""
        return True

    def _gone(self) -> None:
        """The recorder died: another one is started for what comes next, not at once."""
        self._hear()
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        if self._child is not None:
            code = self._child.wait()
            self.trouble = f"the recorder ended with {code}"
        self._lives = dict(self._counts)
        time.sleep(_RESTART_AFTER_S)

    def _lose(self, seen: Sighting) -> None:
        for flag, what in ((KEEP, "prediction"), (TRACE, "span"), (TAIL, "tail")):
            if seen.flags & flag:
                name = f"{what}/lost"
                self._counts[name] = self._counts.get(name, 0) + 1
                self._lives[name] = self._lives.get(name, 0) + 1

    def _hear(self) -> None:
        """What the recorder counted since its start, as lines of JSON; the last line tells."""
        if self._socket is None:
            return
        try:
            while True:
                data = self._socket.recv(65_536, socket.MSG_DONTWAIT)
                if not data:
                    return
                self._heard += data
        except OSError:
            pass
        whole, _, self._heard = self._heard.rpartition(b"\n")
        if whole:
            told: dict[str, Any] = msgspec.json.decode(whole.rpartition(b"\n")[2])
            self.trouble = told.pop("trouble", "")
            merged = dict(self._lives)
            for what, count in told.items():
                merged[what] = merged.get(what, 0) + count
            self._counts = merged

    def _end(self) -> None:
        """Says that nothing more comes, and hears what became of the rest."""
        if self._socket is None or self._child is None:
            return
        self._socket.shutdown(socket.SHUT_WR)
        try:
            self._child.wait(_CLOSE_LIMIT_S - 2)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._hear()
        self._socket.close()
        self._socket = None
