"""One request from admission to settlement: a small state machine that upstream and caller push forward.

Law: money and tokens are reserved before the request leaves, and settled exactly once, in the log before the last
bytes of the answer go to the caller.
"""

from __future__ import annotations

from time import monotonic_ns

import msgspec

from groundplane.domain.serving.snapshot import Target
from groundplane.domain.serving.usage import NOTHING, Usage, estimated_tokens, find_usage, rate, rate_special, saved
from groundplane.gateway.hedging import Hedge
from groundplane.gateway.lanes import Lane
from groundplane.gateway.protocol.doors import Door
from groundplane.gateway.protocol.errors import REASONS, Fault, error_event, upstream_fault
from groundplane.gateway.protocol.http1 import ResponseHead
from groundplane.gateway.protocol.json_body import read_usage, splice
from groundplane.gateway.protocol.sse import EventStream, FrameTooLarge
from groundplane.gateway.records import settled_members
from groundplane.gateway.replay import Replay
from groundplane.gateway.selection import Selection
from groundplane.gateway.targets import TargetState
from groundplane.gateway.telemetry.metrics import Times
from groundplane.gateway.upstream import AnswerReader, UpstreamConnection
from groundplane.gateway.wal import LogUnavailable

CLIENT_GONE = 499
_HOLD_MAX_BYTES = 2**20
"""A whole answer up to this size is held until it is complete: a cut one becomes a clean 502."""
_TAIL_BYTES = 65_536
_RETRIED = frozenset({502, 503, 504, 529})
"""529 is how Anthropic says that it is overloaded."""
_KEY_REFUSED = frozenset({401, 403})
_EMPTY = frozenset({204, 205})
_ENDLESS = (b"text/event-stream", b"audio/")
"""What is not held back: its beginning is of use before its end is there."""


class Exchange(Replay):
    """An `AnswerReader` for its upstream connection. After `_over` nothing of it acts any more."""

    __slots__ = ()

    # ------------------------------------------------------------ towards the upstream

    def _send(self) -> None:
        """On the newest idle connection, or on a new one."""
        upstream = self.target.upstream
        if not self._sent_ns:
            self._sent_ns = monotonic_ns()
        if self._selection is not None:  # with one target there is nothing to choose, now or later
            self._load()
            self._may_hedge()
        connection = None if self._stale_retried else upstream.take_idle()
        if connection is None:
            upstream.connect(self)
        else:
            self.connected(connection)

    def connected(self, connection: UpstreamConnection) -> None:
        # The caller left while we were connecting, or a second target was faster.
        if self._over or self._connection is not None:
            self.keep(connection)
            return
        self._connection = connection
        self.send_to(self.target, connection, self)

    def keep(self, connection: UpstreamConnection) -> None:
        """Back to its pool, unused or done with."""
        connection.keep(self._state.now_s + self._state.options.upstream_keep_alive_s)

    def _second(self, target: TargetState, gate: Lane | None) -> Hedge:
        return Hedge(self, target, gate)

    def _body_for(self, target: Target) -> bytes:
        """The caller's bytes, with the model's name there, and with usage asked for where the caller does not."""
        model = target.upstream_model if target.upstream_model != self.lane.model else None
        inject = self.streams and not self._wants_usage
        if self.door.form and model is not None:
            start, end = self._model_span
            return self.body[:start] + model.encode() + self.body[end:]
        if not self.door.form and (model is not None or inject):
            return splice(self.body, self._members, model=model, include_usage=inject)
        return self.body

    def send_to(self, target: TargetState, connection: UpstreamConnection, reader: AnswerReader) -> None:
        """Sends the request, in this target's words; what comes back goes to the reader."""
        state, body = self._state, self._body_for(target.target)
        self._sent = True
        self._connected_ns = monotonic_ns()
        head = b"%bx-request-id: %b\r\n%bcontent-length: %d\r\n\r\n" % (
            target.request_head(self.door.path, self._content_type, self._query),
            self.said_id,
            target.passed(self._passed_headers),
            len(body),
        )
        # The coarse clock may be a tick behind; only the time-out's length depends on it.
        connection.send(reader, head, body, state.now_s + state.options.first_byte_timeout_s)

    def connect_failed(self, error: OSError) -> None:
        if not self._over and self._connection is None:
            self.target.upstream.circuit.failed(monotonic_ns())
            # Its address is nothing the caller needs to know.
            why = "no connection in time" if isinstance(error, TimeoutError) else "no connection"
            self._try_another(upstream_fault(502, f"the upstream can't be reached: {why}", "upstream_unreachable"))

    # ------------------------------------------------------------ what the upstream says

    def head(self, head: ResponseHead) -> None:
        assert self._connection is not None
        circuit = self.target.upstream.circuit
        if head.status in _RETRIED:
            circuit.failed(monotonic_ns())
            if self._hedge is not None or (self._selection is not None and not self._selection.none_left):
                self._connection.abort()
                status = 503 if head.status == 529 else head.status
                self._try_another(upstream_fault(status, "the upstream is not available", "upstream_unavailable"))
                return
        elif (unfit := _unfit(head, self.door)) is not None:
            self._connection.abort()
            self._try_another(unfit)
            return
        elif head.status in _KEY_REFUSED and self.target.target.kind:
            # Ours, not the caller's: it would look for the fault in its own key.
            circuit.failed(monotonic_ns())
            self._connection.abort()
            self._try_another(upstream_fault(502, "the provider refuses the gateway's key", "upstream_key_refused"))
            return
        else:
            circuit.succeeded()
            if head.status == 429 and self._spill_over(head):
                return
        if self._hedge is not None:
            self._end_hedging()
        self._head = head
        self._connection.deadline_s = self._state.now_s + self._state.options.idle_upstream_timeout_s
        if self.streams and head.status == 200 and head.content_type.startswith(b"text/event-stream"):
            assert self.door.stream is not None
            self._events = EventStream(remove_usage=not self._wants_usage, rules=self.door.stream)
        elif (head.content_length or 0) <= _HOLD_MAX_BYTES and not (
            head.status == 200 and head.content_type.startswith(_ENDLESS)
        ):
            self._held = []

    def _spill_over(self, head: ResponseHead) -> bool:
        """The target has no room for us: it is left alone for as long as it says, and another one is asked."""
        now, selection = monotonic_ns(), self._selection
        route = self.lane.route
        if selection is None and route.queue is None:
            return False
        self.target.standing.rest(now, head.retry_after_s)
        if len(route.targets) == 1 and route.queue is None:
            return False
        if selection is None:
            selection = self._selection = Selection(route, self.door, self.body, self._members, b"")
            selection.tried_only()
        selection.limited(self.target, head.retry_after_s)
        assert self._connection is not None
        self._connection.abort()
        self._state.metrics.spilled += 1
        self._try_another(None)
        return True

    def whole(self, head: ResponseHead, body: bytes) -> None:
        """All of an answer at once: what `head`, `content` and `ended` come to."""
        connection = self._connection
        assert connection is not None
        if head.status != 200 or head.encoded or (self.streams and head.content_type.startswith(b"text/event-stream")):
            self._whole_in_steps(head, body)
            return
        circuit = self.target.upstream.circuit
        if circuit.failures:
            circuit.succeeded()
        self._head = head
        self._connection = None
        self.keep(connection)
        self._ttft_us = (monotonic_ns() - self._began_ns) // 1000
        self._content_bytes = len(body)
        self.tail = body
        if self._settle(200):
            self._over = True
            self._caller.write(self._answer_head(head, len(body)) + body)
            self._finish()

    def _whole_in_steps(self, head: ResponseHead, body: bytes) -> None:
        connection = self._connection
        self.head(head)
        if self._connection is connection and body:
            self.content(body)
        if self._connection is connection and not self._over:
            self.ended()

    def content(self, data: bytes) -> None:
        connection, head = self._connection, self._head
        assert connection is not None and head is not None
        if self._ttft_us is None:
            self._last_ns = monotonic_ns()
            self._ttft_us = (self._last_ns - self._began_ns) // 1000
        elif self._events is not None:
            self._note_gap()
        connection.deadline_s = self._state.now_s + self._state.options.idle_upstream_timeout_s
        self._content_bytes += len(data)
        if self._events is not None:
            self._relay_events(self._events, data)
        elif self._held is not None:
            self._held.append(data)
            if self._content_bytes > _HOLD_MAX_BYTES:
                data, self._held = b"".join(self._held), None
                self._relay_piece(head, data)
        else:
            self._relay_piece(head, data)

    def content_chunk(self, data: bytes, start: int) -> None:
        """One chunk of a stream, as it came. Whole frames with nothing to look at go on without being touched."""
        events = self._events
        if events is None or not self._head_sent or not events.pass_on(data, start):
            self.content(data[start:-2])
            return
        state, connection = self._state, self._connection
        assert connection is not None
        self._note_gap()
        if self._watch is not None:
            self._watch.note(data[start:-2])
        if self._flight is not None:
            self._flight.take(data[start:-2])
        connection.deadline_s = state.now_s + state.options.idle_upstream_timeout_s
        self._content_bytes += len(data) - start - 2
        self._caller.write(data)

    def _note_gap(self) -> None:
        gaps = self._gaps
        if gaps is None:
            _, series = self.target.booked(self.key.key, self.lane.model, self._state.metrics)
            gaps = self._gaps = series.target.gaps
        now = monotonic_ns()
        gaps.note((now - self._last_ns) // 1000)
        self._last_ns = now

    def _relay_piece(self, head: ResponseHead, data: bytes) -> None:
        """A large answer passes through; its last piece waits for the settlement."""
        if self._watch is not None:
            self._watch.note(data)
        self.tail = (self.tail + data)[-_TAIL_BYTES:] if len(data) < _TAIL_BYTES else data[-_TAIL_BYTES:]
        if head.content_length is not None:
            start = b"" if self._head_sent else self._answer_head(head, head.content_length)
            if self._content_bytes >= head.content_length:
                self._held = [start, data]
                self._head_sent = True
                return
            self._write(start + data)
        else:
            start = b"" if self._head_sent else self._answer_head(head, None)
            self._write(b"%b%x\r\n%b\r\n" % (start, len(data), data))
        self._head_sent = True

    def _relay_events(self, events: EventStream, data: bytes) -> None:
        try:
            frames = events.feed(data)
        except FrameTooLarge:
            self._abort_upstream()
            self.cut("the upstream sent an event that does not end")
            return
        if frames:
            self._send_frames(events, frames)

    def _send_frames(self, events: EventStream, frames: bytes) -> None:
        if self._watch is not None:
            self._watch.note(frames)
        if self._flight is not None:
            self._flight.take(frames)
        # `[DONE]` tells the caller that all is there, so the settlement comes before it.
        if events.done and not self.settled and not self._settle(502 if events.failed else 200):
            return
        chunk = b"%x\r\n%b\r\n" % (len(frames), frames)
        if not self._head_sent:
            assert self._head is not None
            chunk = self._answer_head(self._head, None) + chunk
            self._head_sent = True
        self._write(chunk)

    def ended(self) -> None:
        """The upstream's answer is complete."""
        connection, head = self._connection, self._head
        assert connection is not None and head is not None
        self._connection = None
        self.keep(connection)
        if self._events is not None:
            self._end_stream(self._events)
        elif self._head_sent:
            self._end_large(head)
        else:
            self._end_whole(head)

    def _end_whole(self, head: ResponseHead) -> None:
        body = b"".join(self._held or ())
        if head.content_length is None and not head.chunked and not _looks_whole(body, head):
            self.cut("the upstream's answer ends in the middle")
            return
        self.tail = body
        if self._settle(head.status):
            self._over = True
            self._caller.write(self._answer_head(head, len(body)) + body)
            self._finish()

    def _end_large(self, head: ResponseHead) -> None:
        if head.content_length is None and not head.chunked and not _looks_whole(self.tail, head):
            self.cut("the upstream's answer ends in the middle")
            return
        if not self._settle(head.status):
            return
        self._over = True
        self._caller.write(b"".join(self._held or ()) if head.content_length is not None else b"0\r\n\r\n")
        self._finish()

    def _end_stream(self, events: EventStream) -> None:
        rest = events.finish()
        if rest:
            self._send_frames(events, rest)
        if not (events.done or events.failed):
            self.cut(f"the upstream ended its stream without {events.rules.end_name}")
        elif not self._over and (self.settled or self._settle(502)):
            self._over = True
            self._caller.write(b"0\r\n\r\n")
            self._finish()

    def cut(self, why: str) -> None:
        """The upstream is gone before its answer was complete."""
        if self._over:
            return
        connection, self._connection = self._connection, None
        late = connection is not None and connection.timed_out
        fault = upstream_fault(504 if late else 502, why, "upstream_timeout" if late else "upstream_cut")
        events = self._events
        if self._head is None and connection is not None and connection.reused and not late and not self._stale_retried:
            # An idle connection the upstream was just closing: the request was not read there.
            self._stale_retried = True
            self._send()
        elif self._head is None:
            self.target.upstream.circuit.failed(monotonic_ns())
            if late:
                self._fail(fault)  # whoever let one caller wait this long is not asked to make it wait twice
            else:
                self._try_another(fault)
        elif events is not None and events.done:
            self._over = True
            self._caller.write(b"0\r\n\r\n")
            self._finish()
        elif not self._head_sent:
            self.target.upstream.circuit.failed(monotonic_ns())
            self._fail(fault)
        elif self._settle(fault.status):
            self._break_off(fault)

    def stop(self) -> None:
        """The gateway ends before the answer does."""
        fault = upstream_fault(503, "the gateway stops; try again", "gateway_stopping", b"retry-after: 1\r\n")
        if self._over:
            return
        self._abort_upstream()
        if not self._admitted:
            self._refuse(fault)
        elif not self._head_sent:
            self._fail(fault)
        elif self.settled or self._settle(fault.status):
            self._break_off(fault)

    def _break_off(self, fault: Fault) -> None:
        """Part of the answer is out: an error event if it is a stream, and never the end a whole answer has."""
        self._over = True
        event = error_event(fault, self.door, self.said_id)
        words = b"%x\r\n%b\r\n" % (len(event), event) if self._events is not None else b""
        caller = self._caller
        self._finish(tell_caller=False)
        caller.end_broken(words)

    def _fail(self, fault: Fault) -> None:
        """Nothing is out: the caller gets the fault as its answer."""
        if self._settle(fault.status):
            self._over = True
            caller = self._caller
            self._finish(tell_caller=False)
            fault.headers = self._limit_lines + fault.headers
            caller.fail(fault)

    # ------------------------------------------------------------ towards the caller

    def _answer_head(self, head: ResponseHead, length: int | None) -> bytes:
        """The upstream's header fields as they came, without those that concern one connection only."""
        if length is not None and not self._caller.closes and not self._state.draining:
            return b"HTTP/1.1 %d %b\r\n%bx-request-id: %b\r\n%bcontent-length: %d\r\n\r\n" % (
                head.status,
                REASONS.get(head.status, b""),
                head.passed,
                self.said_id,
                self._limit_lines,
                length,
            )
        return b"HTTP/1.1 %d %b\r\n%bx-request-id: %b\r\n%b%b%b" % (
            head.status,
            REASONS.get(head.status, b""),
            head.passed,
            self.said_id,
            self._limit_lines,
            b"transfer-encoding: chunked\r\n" if length is None else b"content-length: %d\r\n" % length,
            b"connection: close\r\n\r\n" if self._caller.closes or self._state.draining else b"\r\n",
        )

    def _write(self, data: bytes) -> None:
        self._caller.write(data)

    def pause(self) -> None:
        """The caller's buffer is full."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()
            self._connection.deadline_s = self._state.now_s + self._state.options.idle_upstream_timeout_s

    def caller_gone(self) -> None:
        """Stops the upstream at once and settles what was relayed."""
        if self._over:
            return
        self._over = True
        self._abort_upstream()
        if self._admitted and not self.settled:
            self._settle(CLIENT_GONE)
        self._finish(tell_caller=False)

    def _abort_upstream(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    # ------------------------------------------------------------ settlement

    def _settle(self, status: int) -> bool:
        """Writes what the request came to. False when the log can't take it: the answer is then broken off."""
        usage = self._usage(status)
        state, lane, target = self._state, self.lane, self.target
        key = self.key.key
        tokens = usage.prompt_tokens + usage.completion_tokens
        price, written = target.target.price, usage.written_tokens
        if price.special is None:
            amount = rate(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, price, written)
        else:
            amount = rate_special(usage, price)
        cheaper = saved(usage, price) if usage.cached_tokens or written else 0
        times, duration_us = self._times()
        self.settled = True
        constant, series = target.booked(key, lane.model, state.metrics)
        series.settled(status, usage, amount, times)
        if self._watch is not None:
            state.telemetry.settled(self, self._watch, (status, usage, amount), (times, duration_us))
        lane.route.counters.settled(status, usage, amount, self._ttft_us)
        if self._unbounded and status == 200:
            lane.answers.learn(usage.completion_tokens)
        record = settled_members(
            self.request_id, constant, status, usage, amount, (self._ttft_us, duration_us, self.started_at), cheaper
        )
        try:
            state.log.settled(self.request_id, record, key.project, amount)
        except LogUnavailable:
            self._settle_limits(tokens, amount)
            # The log keeps the record and writes it as soon as it can; this answer must not look whole until then.
            if not self._over:
                self._over = True
                self._abort_upstream()
                caller = self._caller
                self._finish(tell_caller=False)
                caller.end_broken(b"")
            return False
        self._settle_limits(tokens, amount)
        if self._flight is not None and status == 200:
            self._keep_answer(amount)
        return True

    def _times(self) -> tuple[Times, int]:
        """How long each part took and all of it, in microseconds; what was never reached took none."""
        now, began, ttft_us = monotonic_ns(), self._began_ns, self._ttft_us
        duration_us = (now - began) // 1000
        queue_us = ((self._sent_ns or now) - began) // 1000
        if not self._sent_ns:
            return (queue_us, 0, None, None, ttft_us), duration_us
        connect_us = ((self._connected_ns or now) - self._sent_ns) // 1000
        if ttft_us is None:
            return (queue_us, connect_us, None, None, None), duration_us
        first_byte_us = max(0, ttft_us - queue_us - connect_us)
        return (queue_us, connect_us, first_byte_us, duration_us - ttft_us, ttft_us), duration_us

    def _usage(self, status: int) -> Usage:
        """What the upstream said, or an estimate of what was relayed, marked as such."""
        events = self._events
        if events is not None:
            said = events.usage
            if said is not None and events.usage_is_final:
                return said
            if not self._head_sent and status != CLIENT_GONE and not events.done:
                return NOTHING
            if said is not None:  # the prompt's part is known
                return msgspec.structs.replace(said, completion_tokens=events.frames, estimated=True)
            return Usage(self._prompt_tokens, events.frames, 0, estimated=True)
        if not self._sent or self.door.free:
            return NOTHING
        if status == CLIENT_GONE:
            # The upstream has read the prompt by now; nothing or little of the answer reached anybody.
            relayed = estimated_tokens(self._content_bytes) if self._head_sent else 0
            return Usage(self._prompt_tokens, relayed, 0, estimated=True)
        if self._head is None or self._head.status >= 400 or (status >= 400 and not self._head_sent):
            return NOTHING
        found = find_usage(self.tail) if self._head_sent else read_usage(self.tail)
        if found is not None:
            return found
        completion = estimated_tokens(self._content_bytes) if self.door.generates else 0
        return Usage(self._prompt_tokens, completion, 0, estimated=True)


def _unfit(head: ResponseHead, door: Door) -> Fault | None:
    """Answers that are none: nobody goes after them with the caller's request, and nobody pays for them."""
    if head.status < 300 and head.status not in _EMPTY:
        if not (head.encoded and door.generates):
            return None
        return upstream_fault(
            502, "the upstream compresses its answer, although it was asked not to", "upstream_encoded"
        )
    if head.status >= 400:
        return None
    return upstream_fault(502, f"the upstream says {head.status}, which answers no question", "upstream_no_answer")


def _looks_whole(body: bytes, head: ResponseHead) -> bool:
    """For an answer that ends with its connection: a cut and an end look alike, but JSON tells."""
    return not head.content_type.startswith(b"application/json") or body.rstrip()[-1:] in {b"}", b"]"}
