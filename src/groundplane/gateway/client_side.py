"""The protocol of one client connection: reads requests strictly and one at a time, and hands them on.

    HEAD ──(head is whole, key is good)──▶ BODY ──(body is whole)──▶ ANSWERING ──▶ HEAD …
      └────────(refused with bytes still to come)──▶ LINGER ──▶ closed

A key is checked before its body is read, so that only known callers use memory. Pipelined requests wait their turn:
each connection gets one request of every turn of the loop (TURN, then HEAD again). Where refusals come too fast, the
turn comes late.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from enum import Enum, auto
from typing import cast

from groundplane.gateway.exchange import Exchange
from groundplane.gateway.local import (
    LOCAL_PATHS,
    METRICS,
    answer_locally,
    answer_scrape,
    check_may_scrape,
    needs_key,
)
from groundplane.gateway.protocol.doors import DOORS, Door
from groundplane.gateway.protocol.errors import Fault, bad_request
from groundplane.gateway.protocol.http1 import (
    ChunkDecoder,
    Malformed,
    RequestHead,
    Shape,
    parse_request_head,
    refuse_early,
)
from groundplane.gateway.state import GatewayState
from groundplane.gateway.tables import KeyState
from groundplane.gateway.watch import refusal_of

_PIPELINE_MAX_BYTES = 65_536
_DISCARD_MAX_BYTES = 65_536
_BODY_BYTES_PER_S_MIN = 1024
_LAST_REQUEST_S = 1.0
"""How long an idle connection may take to send one more request when the gateway is draining."""
_FOREVER = float("inf")


class Phase(Enum):
    HEAD = auto()
    BODY = auto()
    ANSWERING = auto()
    TURN = auto()
    LINGER = auto()


_HEAD, _ANSWERING = Phase.HEAD, Phase.ANSWERING


class ClientConnection(asyncio.Protocol):
    """Is the `Caller` of its exchanges."""

    __slots__ = (
        "_body", "_body_began_s", "_body_bytes", "_buffer", "_came_late", "_chunks", "_door", "_exchange", "_head",
        "_is_new", "_key", "_peer", "_peer_is_local", "_phase", "_read_paused", "_refusal", "_shape", "_state",
        "_transport", "_write_paused", "closes", "deadline_s",
    )  # fmt: skip

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._is_new = True
        self._came_late = False
        self._phase = Phase.HEAD
        self._shape: Shape[RequestHead] | None = None
        self._head: RequestHead | None = None
        self._door: Door | None = None
        self._key: KeyState | None = None
        self._refusal: Fault | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._body_began_s = 0.0
        self._chunks: ChunkDecoder | None = None
        self._exchange: Exchange | None = None
        self._peer = ""
        self._peer_is_local = False
        self._read_paused = False
        self._write_paused = False
        self.closes = False
        self.deadline_s = _FOREVER

    # ------------------------------------------------------------ connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio.Transport.
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # An IPv4 address is the same one however we listen.
        peer = self._peer = str((transport.get_extra_info("peername") or ("",))[0]).removeprefix("::ffff:")
        self._peer_is_local = peer.startswith("127.") or peer == "::1"
        self._state.clients.add(self)
        self._state.no_clients.clear()
        self._state.metrics.connections += 1
        self.deadline_s = self._state.now_s + self._state.options.head_timeout_s
        if len(self._state.clients) > self._state.options.clients_max:
            # Beyond it there would be no descriptors left to ask upstreams with.
            self._refuse(Fault(503, "too many connections at once", "overloaded", "server_error"))
            return
        now_ns = time.monotonic_ns()
        late_ns = self._state.turns.came(peer, now_ns)
        if late_ns:
            # The transport begins to read right after this, so what comes is kept until then.
            self._came_late = True
            self._phase = Phase.TURN
            self._state.turns.hold(self, now_ns + late_ns)

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.clients.discard(self)
        if not self._state.clients:
            self._state.no_clients.set()
        self._state.metrics.connections -= 1
        self._drop_body()
        self._transport = None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.caller_gone()

    def eof_received(self) -> bool:
        """A caller that closes its side is gone: HTTP clients do not half-close, and waiting would cost compute."""
        if self._phase is Phase.TURN and self._buffer:
            self._stop_reading()  # the end comes again once what came before it has had its turn
            return True
        if self._exchange is not None:
            self.abort()
        return False

    def pause_writing(self) -> None:
        self._write_paused = True
        self.deadline_s = self._state.now_s + self._state.options.stalled_client_s
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._exchange is not None:
            self.deadline_s = _FOREVER
            self._exchange.resume()
        elif self._phase is Phase.HEAD:
            self.deadline_s = self._state.now_s + self._state.options.keep_alive_s
            self._go_on()

    def sweep(self, now_s: float) -> None:
        """Called by the coarse clock: ends what has taken too long."""
        if now_s <= self.deadline_s:
            return
        self.deadline_s = _FOREVER
        if self._transport is None:
            return
        if self._phase is Phase.BODY or (self._phase is Phase.HEAD and self._buffer):
            self._refuse(Fault(408, "the request did not arrive in time", "request_timeout"))
        elif self._phase is Phase.HEAD:
            self._transport.close()
        else:
            self._transport.abort()

    def close_when_idle(self) -> None:
        """Draining: a busy connection closes after its answer. An idle one may have a request on its way to us: it is
        answered as the last one."""
        self.closes = True
        self.read_on()
        if self._phase is Phase.HEAD and not self._buffer:
            self.deadline_s = self._state.now_s + _LAST_REQUEST_S

    def stop_now(self) -> None:
        """Draining has taken long enough: who still waits for an answer is told so."""
        self.closes = True
        if self._exchange is not None:
            self._exchange.stop()
        else:
            self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------ reading

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase is _HEAD:
            if not self._buffer and not self._write_paused and self._take_straight(data):
                return
            if not self._buffer:
                self.deadline_s = self._state.now_s + self._state.options.head_timeout_s
            self._buffer = self._buffer + data if self._buffer else data
            if not self._write_paused:
                self._advance()
            else:
                self._bound_buffer()
        elif phase is Phase.BODY:
            self._take_body(data)
        elif phase is not Phase.LINGER:
            self._buffer += data
            self._bound_buffer()
        # in LINGER bytes are read only so that the caller can read our answer

    def _take_straight(self, data: bytes) -> bool:
        """The usual case, in one go: one whole request with a good key, and nothing after it. False: not the case."""
        state = self._state
        try:
            known = state.request_heads.whole(data, self._shape)
        except Fault:
            return False
        if known is None:
            return False
        self._shape, begin = known
        head = self._shape.head
        tables, digest, door = state.tables, head.secret_sha256, DOORS.get(head.path)
        if digest is None or tables is None or not head.plain or self.closes or door is None:
            return False
        key = tables.key(digest)
        if (
            key is None
            or not key.may_call
            or key.expires_at <= time.time()
            or (key.networks and not key.admits(self._peer))
            or len(data) - begin > state.options.body_max_bytes
        ):
            return False
        self._phase = _ANSWERING
        self.deadline_s = _FOREVER
        self._door = door
        self._key = key
        self._head = head
        try:
            exchange = self._exchange = Exchange(state, self, key, door, data[begin:], head)
        except Fault as fault:
            self.fail(fault)
            return True
        exchange.start()
        return True

    def _bound_buffer(self) -> None:
        if len(self._buffer) > _PIPELINE_MAX_BYTES:
            self._stop_reading()

    def _stop_reading(self) -> None:
        if self._transport is not None:
            self._read_paused = True
            self._transport.pause_reading()

    def read_on(self) -> None:
        """Its turn has come."""
        if self._phase is Phase.TURN and self._transport is not None:
            self._phase = Phase.HEAD
            self._go_on()

    def _go_on(self) -> None:
        """Takes the next of what has come, and reads where there is room for more."""
        self._advance()
        if self._read_paused and self._phase is not Phase.TURN and self._transport is not None:
            self._read_paused = len(self._buffer) > _PIPELINE_MAX_BYTES
            if not self._read_paused:
                self._transport.resume_reading()

    def _advance(self) -> None:
        """Takes the next request from the buffer. One: what follows waits behind what others sent meanwhile."""
        if self._phase is Phase.HEAD and self._buffer and not self._write_paused and self._transport is not None:
            buffer = self._buffer
            if buffer.startswith(b"\r\n"):
                buffer = self._buffer = buffer[2:]  # one empty line before a request is tolerated (RFC 9112, 2.2)
            end = buffer.find(b"\r\n\r\n") + 4
            try:
                if end < 4:
                    refuse_early(buffer)
                    return
                head = parse_request_head(buffer, end)
            except Fault as fault:
                self._refuse(fault)
                return
            self._buffer = buffer[end:]
            self._begin(head)

    def _begin(self, head: RequestHead) -> None:
        """A head is whole: decides from it alone, then reads the body."""
        self._head = head
        self._door = DOORS.get(head.path)
        self.closes = self.closes or head.close or self._state.draining
        self._refusal = self._key = None
        try:
            self._key = self._admit_head(head)
        except Fault as fault:
            length = head.content_length
            if length is None or length > _DISCARD_MAX_BYTES or head.expects_continue:
                self._refuse(fault)
                return
            self._refusal = fault
        self._body_bytes = 0
        self._chunks = ChunkDecoder() if head.content_length is None else None
        self._phase = Phase.BODY
        data, self._buffer = self._buffer, b""
        if head.expects_continue and not data:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._body_began_s = self._state.now_s
        if len(data) == head.content_length and self._refusal is None:
            self._dispatch(head, data)  # the usual case: head and body came together
        else:
            self._take_body(data)

    def _admit_head(self, head: RequestHead) -> KeyState | None:
        """Path, method, key, size. Raises Fault. None where no key is needed."""
        path = head.path
        local = path in LOCAL_PATHS or path.startswith(b"/v1/models/")
        if not local and self._door is None:
            raise Fault(404, "there is nothing at this path", "not_found")
        methods = (b"GET", b"HEAD") if local else (b"POST",)
        if head.method not in methods:
            allowed = b", ".join(methods)
            message = f"this path takes {allowed.decode()} only"
            raise Fault(405, message, "method_not_allowed", headers=b"allow: %b\r\n" % allowed)
        if head.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Fault(415, "a compressed body is not read here; send it as it is", "unsupported_media_type")
        if head.content_length is not None and head.content_length > self._state.options.body_max_bytes:
            raise _too_large(head.content_length, self._state.options.body_max_bytes)
        if not needs_key(path, self._peer_is_local):
            return None
        key = self._authenticate(head)
        if not local and not key.may_call:
            raise Fault(403, f"keys of role {key.key.role} may not call models", "role_forbidden", "permission_error")
        return key

    def _authenticate(self, head: RequestHead) -> KeyState:
        tables = self._state.tables
        if tables is None:
            why = self._state.snapshot_trouble or "no configuration has been published yet"
            message = f"the gateway is waiting for its configuration: {why}"
            raise Fault(503, message, "no_snapshot", "server_error", headers=b"retry-after: 1\r\n")
        if head.secret_sha256 is None and not head.headers.get(b"authorization", b"").partition(b" ")[2]:
            message = "no API key was given; send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'"
            raise Fault(401, message, "invalid_api_key", headers=b"www-authenticate: Bearer\r\n")
        key = tables.key(head.secret_sha256) if head.secret_sha256 is not None else None
        if key is None or key.expires_at <= time.time():
            message = "this API key is wrong, revoked or expired"
            raise Fault(401, message, "invalid_api_key", headers=b"www-authenticate: Bearer\r\n")
        if not key.admits(self._peer):
            message = f"this API key may not be used from {self._peer}"
            raise Fault(403, message, "network_not_allowed", "permission_error")
        return key

    def _take_body(self, data: bytes) -> None:
        """Collects the body; when it is whole, answers."""
        head = self._head
        assert head is not None
        whole = False
        if self._chunks is not None:
            try:
                piece = self._chunks.feed(data) if data else b""
            except Malformed as error:
                self._refuse(bad_request(f"the chunked body is malformed: {error}", "bad_http"))
                return
            whole = self._chunks.done
            if whole:
                self._buffer = self._chunks.rest
        else:
            missing = (head.content_length or 0) - self._body_bytes
            piece = data if len(data) <= missing else data[:missing]
            whole = len(piece) == missing
            if whole:
                self._buffer = data[missing:]
        self._body_bytes += len(piece)
        # Who sends a byte now and then is as slow as who sends none.
        allowed_s = self._state.options.body_timeout_s
        slowest_s = self._body_began_s + allowed_s + self._body_bytes / _BODY_BYTES_PER_S_MIN
        self.deadline_s = min(self._state.now_s + allowed_s, slowest_s)
        if piece and self._refusal is None:
            self._state.bodies_bytes += len(piece)
            self._body.append(piece)
        limit = self._state.options.body_max_bytes
        if self._body_bytes > limit:
            self._refuse(_too_large(self._body_bytes, limit))
        elif self._state.bodies_bytes > self._state.options.bodies_max_bytes:
            self._refuse(Fault(503, "too many large requests at once", "overloaded", "server_error"))
        elif whole:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._drop_body()
            self._dispatch(head, body)

    def _drop_body(self) -> None:
        if self._refusal is None:
            self._state.bodies_bytes -= sum(map(len, self._body))
        self._body = []

    # ------------------------------------------------------------ answering

    def _dispatch(self, head: RequestHead, body: bytes) -> None:
        self._phase = Phase.ANSWERING
        self.deadline_s = _FOREVER
        try:
            if self._refusal is not None:
                raise self._refusal
            if self._door is None and head.path == METRICS:
                check_may_scrape(self._key)
                self._state.scrapes.ask(self._scraped)
                return
            if self._door is None:
                self._say(answer_locally(self._state, head, self._key, close=self.closes))
                self.finished()
                return
            assert self._key is not None
            exchange = Exchange(self._state, self, self._key, self._door, body, head)
        except Fault as fault:
            self.fail(fault)
            return
        self._exchange = exchange
        exchange.start()

    def _scraped(self, text: bytes) -> None:
        self._say(answer_scrape(self._state, text, close=self.closes))
        self.finished()

    def write(self, data: bytes) -> None:
        """Bytes of an answer; a connection that is closing drops them."""
        if self._transport is not None:
            self._transport.write(data)

    def _say(self, answer: bytes) -> None:
        """An answer of ours; to a HEAD it is its head alone."""
        if self._head is not None and self._head.method == b"HEAD":
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        self.write(answer)

    def fail(self, fault: Fault) -> None:
        """An error is the answer."""
        self._count_fault(fault)
        self._say(fault.answer(self._request_id(), close=self.closes, door=self._door))
        late_ns = self._note_refusal() if self._exchange is None or not self._exchange.admitted else 0
        self.finished(late_ns)

    def _note_refusal(self) -> int:
        """How late to read on, in nanoseconds. What came late has taken its address's place on the clock."""
        paid = self._is_new and self._came_late
        if paid and self._key is None:
            return 0
        first = self._is_new and not paid
        return self._state.turns.refused(self._key, self._peer, first=first, now_ns=time.monotonic_ns())

    def _request_id(self) -> bytes:
        """What an answer of ours calls the request: as its caller does, if it does."""
        if self._exchange is not None:
            return self._exchange.said_id
        said = b"" if self._head is None else self._head.request_id
        return said or self._state.new_request_id()

    def finished(self, late_ns: int = 0) -> None:
        """The answer is complete: on to the next request, so much later, or close."""
        self._exchange = self._door = self._head = None
        self._is_new = False
        self._phase = _HEAD
        state = self._state
        if self._transport is None:
            return
        if self.closes or state.draining:
            self._transport.close()
            return
        if not self._write_paused:
            self.deadline_s = state.now_s + state.options.keep_alive_s
        if late_ns:
            self._phase = Phase.TURN
            self._stop_reading()
            self._state.turns.hold(self, time.monotonic_ns() + late_ns)
        elif self._buffer:
            self._phase = Phase.TURN
            asyncio.get_running_loop().call_soon(self.read_on)
        elif self._read_paused:
            self._read_paused = False
            self._transport.resume_reading()

    def end_broken(self, last_words: bytes) -> None:
        """An answer can't be completed: the connection ends without what would make it look whole."""
        self._exchange = None
        if self._transport is not None:
            if last_words:
                self._transport.write(last_words)
                self._transport.close()
            else:
                self._transport.abort()

    def _refuse(self, fault: Fault) -> None:
        """Answers while the caller may still be sending: then reads on for a while, so that the answer is not lost."""
        self._count_fault(fault)
        self._note_refusal()
        self._drop_body()
        self._buffer = b""
        self.closes = True
        self._phase = Phase.LINGER
        self.deadline_s = self._state.now_s + self._state.options.linger_s
        self._say(fault.answer(self._request_id(), close=True, door=self._door))
        if self._transport is not None and self._transport.can_write_eof():
            with contextlib.suppress(OSError):  # the caller is gone, which `connection_lost` is about to say
                self._transport.write_eof()

    def _count_fault(self, fault: Fault) -> None:
        metrics = self._state.metrics
        exchange = self._exchange
        if exchange is None:
            metrics.no_model.answered(fault.status)
            if self._state.telemetry.active:
                project = "" if self._key is None else self._key.key.project
                self._state.telemetry.unknown(self._request_id(), project, fault)
        if fault.status == 429:
            metrics.limited[fault.type] += 1
        if fault.binding is not None and exchange is not None:
            metrics.refuse(refusal_of(exchange, fault.binding))


def _too_large(size_bytes: int, limit_bytes: int) -> Fault:
    return Fault(
        413, f"the request body of {size_bytes} bytes or more is over the limit of {limit_bytes}", "request_too_large"
    )
