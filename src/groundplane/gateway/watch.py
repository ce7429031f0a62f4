"""What is told of requests besides their bill: the prediction log, traces, and whoever follows requests as they come.

The loop only notes what it has in hand anyway and appends one object to a bounded buffer; where nothing is wanted it
looks at one flag. A thread passes the buffer to a process of its own (`telemetry/recorder`), which reads, redacts,
writes and exports: a regular expression over a long prompt would hold the interpreter's lock.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Sequence
from typing import Any, Protocol

from groundplane.domain.serving.limits import Binding
from groundplane.domain.serving.prediction import Keeping
from groundplane.domain.serving.usage import Usage
from groundplane.gateway.lanes import Lane
from groundplane.gateway.protocol.doors import Door
from groundplane.gateway.protocol.errors import Fault
from groundplane.gateway.protocol.http1 import RequestHead
from groundplane.gateway.tables import KeyState
from groundplane.gateway.targets import TargetState
from groundplane.gateway.telemetry.metrics import Metrics, Times
from groundplane.gateway.telemetry.pipe import Pipe
from groundplane.gateway.telemetry.sighting import CONTENT, KEEP, OWN, REDACT, TAIL, TRACE, Sighting, TelemetryOptions

ANSWER_MAX_BYTES = 2**20
TRACED_MAX_BYTES = 65_536
_PARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_PARENT_LINE = re.compile(rb"traceparent: [^\r]*\r\n")
_NO_TIMES: tuple[Times, int] = ((0, 0, None, None, None), 0)


class Told(Protocol):
    """A request, as far as it is told of. `tail` is its answer where that came whole, and its end otherwise."""

    key: KeyState
    request_id: bytes
    started_at: bytes
    lane: Lane
    door: Door
    target: TargetState
    body: bytes
    tail: bytes
    streams: bool


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
        self._pipe: Pipe | None = None
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
            self._pipe = Pipe(self._options)

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
            key = lane.key
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

    def refused(self, request: Told, watch: Watch, fault: Fault) -> None:
        """A request that was not admitted."""
        self._add(_seen(request, watch, fault.status, _NO_TIMES), fault)

    def settled(self, request: Told, watch: Watch, outcome: tuple[int, Usage, int], took: tuple[Times, int]) -> None:
        """A request that is over: status, usage and micro-dollars, and how long its parts took."""
        status, usage, microusd = outcome
        seen = _seen(request, watch, status, took)
        target = request.target
        seen.target, seen.revision = target.target.endpoint, target.target.revision
        seen.upstream_model, seen.kind = target.target.upstream_model, target.target.kind
        seen.address = target.upstream.authority.decode()
        seen.prompt_tokens, seen.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        seen.cached_tokens, seen.estimated, seen.microusd = usage.cached_tokens, usage.estimated, microusd
        seen.answer = watch.answer(request.tail)
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


def _seen(request: Told, watch: Watch, status: int, took: tuple[Times, int]) -> Sighting:
    (queue_us, connect_us, first_byte_us, relay_us, ttft_us), duration_us = took
    key = request.key.key
    return Sighting(
        watch.flags,
        request.request_id.decode(),
        float(request.started_at),
        key.project,
        key_id=key.id,
        owner=key.owner,
        model=request.lane.model,
        path=request.door.path.decode(),
        stream=request.streams,
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
        request=request.body if watch.flags & (KEEP | TRACE) and not request.door.form else b"",
    )


def refusal_of(request: Told, binding: Binding) -> dict[str, Any]:
    """A limit's refusal as `domain/traffic.LimitRefusal` has it."""
    key, limit, wait_ns = request.key.key, binding.limit, binding.retry_after_ns
    return {
        "at_s": time.time(),
        "request_id": request.request_id.decode(),
        "project": key.project,
        "key_id": key.id,
        "owner": key.owner,
        "model": request.lane.model,
        "scope": limit.scope,
        "name": limit.name,
        "measure": limit.measure.value,
        "value": limit.value,
        "left": binding.left,
        "requested": binding.requested,
        "retry_after_ms": None if wait_ns is None else -(-wait_ns // 1_000_000),
    }
