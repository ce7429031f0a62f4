"""Upstreams: a pool of kept-alive connections each, and the protocol that reads answers from one of them.

The newest idle connection is used first, so that the rest can grow old and close.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from ipaddress import ip_address
from typing import Protocol, cast
from urllib.parse import SplitResult

from groundplane.domain.serving.provider import address_fault
from groundplane.domain.serving.routing import Circuit
from groundplane.gateway.fairness import Pieces
from groundplane.gateway.protocol.http1 import (
    HEAD_MAX_BYTES,
    ChunkDecoder,
    HeadMemo,
    Malformed,
    ResponseHead,
    Shape,
    parse_response_head,
)

_ONE_CHUNK = re.compile(rb"([1-9A-Fa-f][0-9A-Fa-f]{0,7})\r\n").match
_LATE_MAX_BYTES = 65_536
"""What comes while a connection waits for its project's turn is kept; beyond this it is read later."""
_PORTS = {"http": 80, "https": 443}


class AnswerReader(Protocol):
    """Who is told about an answer. After `whole`, `ended` or `cut` the connection belongs to nobody.

    `whole` stands for `head`, `content`, `ended` when all came at once; `content_chunk` for `content` when the data is
    exactly one chunk, whose content is `data[start:-2]`. All of them may come late: when its `project` has its turn.
    """

    @property
    def project(self) -> str: ...

    def connected(self, connection: UpstreamConnection) -> None: ...
    def connect_failed(self, error: OSError) -> None: ...
    def head(self, head: ResponseHead) -> None: ...
    def whole(self, head: ResponseHead, body: bytes) -> None: ...
    def content(self, data: bytes) -> None: ...
    def content_chunk(self, data: bytes, start: int) -> None: ...
    def ended(self) -> None: ...
    def cut(self, why: str) -> None: ...


class Upstream:
    """One server behind routes. `base_url` is a root or ends in `/v1`; request paths carry `/v1` themselves."""

    def __init__(
        self,
        url: SplitResult,
        pieces: Pieces,
        connect_timeout_s: float,
        *,
        provider: bool = False,
        private: bool = True,
    ) -> None:
        self._provider = provider
        self._private = private
        self._host = url.hostname or ""
        self._port = url.port or _PORTS[url.scheme]
        self._tls = url.scheme == "https"
        self._context: ssl.SSLContext | None = None
        self._preparing = asyncio.Lock()
        self._connect_timeout_s = connect_timeout_s
        self.idle: list[UpstreamConnection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.retired = False
        self.connections: set[UpstreamConnection] = set()
        self.circuit = Circuit()
        self.heads = HeadMemo(parse_response_head)
        self.pieces = pieces
        self.authority = url.netloc.rpartition("@")[2].encode("ascii")
        self.path = url.path.rstrip("/").encode("ascii")
        self.prefix = url.path.rstrip("/").removesuffix("/v1").encode("ascii")

    def take_idle(self) -> UpstreamConnection | None:
        """The connection used last, if one is still open."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.is_closing():
                return connection
        return None

    def connect(self, reader: AnswerReader) -> None:
        """Opens a connection and tells the reader: `connected`, or `connect_failed`."""
        task = asyncio.get_running_loop().create_task(self._connect(reader))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: AnswerReader) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                connection = await self._reach(loop)
        except TimeoutError:
            reader.connect_failed(TimeoutError(f"no connection within {self._connect_timeout_s:g} s"))
        except OSError as error:
            reader.connect_failed(error)
        else:
            reader.connected(connection)

    async def _reach(self, loop: asyncio.AbstractEventLoop) -> UpstreamConnection:
        """A connection to the first of its addresses that takes one. Raises OSError."""
        async with self._preparing:
            if self._tls and self._context is None:
                # Reading the certificates of the world takes tens of milliseconds, so not on the loop, and once.
                self._context = await loop.run_in_executor(None, ssl.create_default_context)
        hosts = await self._addresses(loop) if self._provider else [self._host]
        while True:
            try:
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self),
                    hosts.pop(0),
                    self._port,
                    ssl=self._context,
                    server_hostname=self._host if self._tls else None,
                )
                return connection
            except OSError:
                if not hosts:
                    raise

    async def _addresses(self, loop: asyncio.AbstractEventLoop) -> list[str]:
        """Where a provider is, judged before it is connected to, so that a name can't lead into a private network."""
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        hosts = [str(address[0]) for *_, address in found]
        faults = {host: address_fault(ip_address(host), private=self._private) for host in hosts}
        good = [host for host in hosts if not faults[host]]
        if not good:
            raise PermissionError("; ".join(filter(None, faults.values())) or f"{self._host} has no address")
        return good

    def forget(self, connection: UpstreamConnection) -> None:
        self.connections.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)

    def sweep(self, now_s: float) -> None:
        """Ends what has taken too long."""
        for connection in list(self.connections):
            if connection.deadline_s < now_s and not connection.paused:
                connection.expire()

    def retire(self) -> None:
        """No route leads here any more: idle connections close now, busy ones when they are done."""
        self.retired = True
        for connection in list(self.idle):
            connection.abort()

    async def close(self) -> None:
        """Ends every connection and waits for attempts to connect."""
        self.retired = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self.connections):
            connection.abort()


class UpstreamConnection(asyncio.Protocol):
    """Reads one answer at a time. A reader is attached from `send` to `ended` or `cut`."""

    __slots__ = (
        "_buffer",
        "_chunks",
        "_head",
        "_late",
        "_left",
        "_pieces",
        "_reader",
        "_shape",
        "_transport",
        "_upstream",
        "deadline_s",
        "paused",
        "reused",
        "timed_out",
    )

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._transport: asyncio.Transport | None = None
        self._reader: AnswerReader | None = None
        self._pieces = upstream.pieces
        self._late = b""
        self._buffer = b""
        self._shape: Shape[ResponseHead] | None = None
        self._head: ResponseHead | None = None
        self._chunks: ChunkDecoder | None = None
        self._left = 0
        self.deadline_s = float("inf")
        self.paused = False
        self.reused = False
        self.timed_out = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio.Transport.
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._upstream.connections.add(self)

    def is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def send(self, reader: AnswerReader, head: bytes, body: bytes, deadline_s: float) -> None:
        """Sends a request; what comes back goes to the reader."""
        assert self._transport is not None and self._reader is None
        self._reader = reader
        self._head = self._chunks = None
        self._buffer = b""
        self.deadline_s = deadline_s
        if len(body) < 65_536:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:
            self.abort()  # bytes nobody asked for: what follows could be taken for another request's answer
            return
        if self._late:
            self._late += data
            if len(self._late) > _LATE_MAX_BYTES and self._transport is not None:
                self._transport.pause_reading()
            return
        pieces = self._pieces
        if pieces.left:
            pieces.left -= 1
            if not pieces.left:
                pieces.used_up()
        elif pieces.waits(reader.project, self._take_late):
            self._late = data
            return
        self._take(reader, data)

    def _take_late(self) -> bool:
        """Its project's turn has come. False: nobody wants it any more, or it had to be taken before."""
        data, self._late = self._late, b""
        reader = self._reader
        if reader is None or not data:
            return False
        if len(data) > _LATE_MAX_BYTES and not self.paused and self._transport is not None:
            self._transport.resume_reading()
        self._take(reader, data)
        return True

    def _take(self, reader: AnswerReader, data: bytes) -> None:
        try:
            if self._chunks is not None:
                if self._chunks.at_size:
                    match = _ONE_CHUNK(data)
                    if match is not None and len(data) == match.end() + int(match[1], 16) + 2 and data[-2:] == b"\r\n":
                        reader.content_chunk(data, match.end())
                        return
                self._read_body(reader, data)
            elif self._head is None:
                if not self._buffer and self._read_whole(reader, data):
                    return
                self._read_head(reader, self._buffer + data if self._buffer else data)
            else:
                self._read_body(reader, data)
        except Malformed as error:
            self._cut(str(error))

    def _read_whole(self, reader: AnswerReader, data: bytes) -> bool:
        """The usual case, in one go: a whole answer of known length, and nothing after it. False: not the case."""
        known = self._upstream.heads.whole(data, self._shape)
        if known is None:
            return False
        self._shape, begin = known
        head = self._shape.head
        if head.status < 200 or head.close:
            return False
        self._head = head
        self._reader = None
        if self.paused:
            self.resume()
        reader.whole(head, data[begin:])
        return True

    def _read_head(self, reader: AnswerReader, data: bytes) -> None:
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                if len(data) > HEAD_MAX_BYTES:
                    raise Malformed(f"the upstream's answer has a head over {HEAD_MAX_BYTES} bytes")
                self._buffer = data
                return
            head = parse_response_head(data, end)
            data = data[end:]
            if head.status >= 200:
                break
            if head.status == 101:
                raise Malformed("the upstream switches protocols unasked")
        self._buffer = b""
        self._head = head
        self._chunks = ChunkDecoder() if head.chunked else None
        self._left = -1 if head.content_length is None else head.content_length
        reader.head(head)
        now = self._reader  # who was told of the head may have handed the rest over
        if now is not None and (data or self._left == 0):
            self._read_body(now, data)

    def _read_body(self, reader: AnswerReader, data: bytes) -> None:
        if self._chunks is not None:
            content = self._chunks.feed(data)
            if content:
                reader.content(content)
            if self._chunks.done and self._reader is reader:
                self._end(self._chunks.rest)
        elif self._left < 0:
            reader.content(data)
        else:
            content, rest = (data, b"") if len(data) <= self._left else (data[: self._left], data[self._left :])
            self._left -= len(content)
            if content:
                reader.content(content)
            if self._left == 0 and self._reader is reader:
                self._end(rest)

    def _end(self, rest: bytes) -> None:
        """The answer is complete: lets go of the reader, then tells it."""
        reader, head = self._reader, self._head
        assert reader is not None and head is not None
        self._reader = None
        self.resume()
        if rest or head.close:
            self.abort()
        reader.ended()

    def eof_received(self) -> None:
        """The upstream closes; `connection_lost` follows and decides what that means."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.forget(self)
        self._take_late()  # the end may not overtake it
        self._transport_lost(exc)

    def _transport_lost(self, exc: Exception | None) -> None:
        reader, self._reader = self._reader, None
        if reader is None:
            return
        by_close = self._head is not None and self._left < 0 and self._chunks is None
        if by_close and exc is None and not self.timed_out:
            reader.ended()
        else:
            reader.cut(f"the upstream closed the connection{'' if exc is None else f': {exc}'}")

    def _cut(self, why: str) -> None:
        reader, self._reader = self._reader, None
        self.abort()
        if reader is not None:
            reader.cut(why)

    def expire(self) -> None:
        """The deadline has passed: an idle connection closes, a busy one is cut."""
        self.timed_out = True
        self._cut("the upstream has been silent for too long")

    def pause(self) -> None:
        """The caller reads slowly: so do we."""
        if not self.paused and self._transport is not None:
            self.paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self.paused and self._transport is not None:
            self.paused = False
            self._transport.resume_reading()

    def hand_over(self, reader: AnswerReader) -> None:
        """Another reader gets the rest of the answer; after `whole` there is no rest."""
        if self._reader is not None:
            self._reader = reader

    def keep(self, until_s: float) -> None:
        """Back to the pool for the next request, until then at most; unless it is closing."""
        self.reused = True
        self.deadline_s = until_s
        if self._upstream.retired:
            self.abort()
        elif not self.is_closing():
            self._upstream.idle.append(self)

    def abort(self) -> None:
        """Drops the reader and the connection at once: the upstream stops working on it."""
        self._reader = None
        if self._transport is not None:
            self._transport.abort()
