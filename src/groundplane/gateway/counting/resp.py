"""As much of the Redis protocol as limits need: commands out, one line or one string back, in order.

Source: RESP2, redis.io/docs/latest/develop/reference/protocol-spec.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import cast
from urllib.parse import unquote, urlsplit

_REPLY_MAX_BYTES = 1 << 20

Reply = Callable[[bytes | None], None]
"""Told the reply, or None when there will be none."""


class RespError(Exception):
    """The server said no, or something that is not understood."""


class RespConnection(asyncio.Protocol):
    """One connection: `send` commands, replies come in order. `lost` is told once, when it ends."""

    def __init__(self, lost: Callable[[], None]) -> None:
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._waiting: deque[Reply] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, reply: Reply, *words: bytes) -> None:
        """One command; `reply` is told what comes back."""
        if self._transport is None or self._transport.is_closing():
            reply(None)
            return
        self._waiting.append(reply)
        parts = [b"*%d\r\n" % len(words)]
        parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
        self._transport.write(b"".join(parts))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._buffer and self._take():
            pass
        if len(self._buffer) > _REPLY_MAX_BYTES:
            self.close()

    def _take(self) -> bool:
        """One reply from the buffer; False when it is not whole."""
        line, found, rest = self._buffer.partition(b"\r\n")
        if not found:
            return False
        kind, text = line[:1], line[1:]
        if kind == b"$" and text != b"-1":
            size = int(text)
            if len(rest) < size + 2:
                return False
            text, rest = rest[:size], rest[size + 2 :]
        self._buffer = rest
        if not self._waiting:
            self.close()
            return False
        reply = self._waiting.popleft()
        if kind == b"-":
            reply(None)
            self.close()  # a script that is not known any more, a wrong password: begin anew
            return False
        reply(text)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        waiting, self._waiting = self._waiting, deque()
        for reply in waiting:
            reply(None)
        self._lost()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def connect(url: str, lost: Callable[[], None]) -> RespConnection:
    """`redis://[user:password@]host[:port][/db]`, `rediss://…` or `unix:///path`. Raises OSError or RespError."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    if parts.scheme == "unix":
        _, connection = await loop.create_unix_connection(lambda: RespConnection(lost), parts.path)
    else:
        _, connection = await loop.create_connection(
            lambda: RespConnection(lost),
            parts.hostname or "127.0.0.1",
            parts.port or 6379,
            ssl=True if parts.scheme == "rediss" else None,
        )
    if parts.password is not None:
        words = [unquote(word).encode() for word in (parts.username, parts.password) if word]
        await call(connection, b"AUTH", *words)
    database = parts.path.strip("/") if parts.scheme != "unix" else ""
    if database:
        await call(connection, b"SELECT", database.encode())
    return connection


async def call(connection: RespConnection, *words: bytes) -> bytes:
    """One command and its reply. Raises RespError when the server refuses or leaves."""
    future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

    def told(reply: bytes | None) -> None:
        if not future.done():
            future.set_result(reply)

    connection.send(told, *words)
    reply = await future
    if reply is None:
        raise RespError(f"{words[0].decode()} was refused or not answered")
    return reply
