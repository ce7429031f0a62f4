"""What gateways of this machine tell: live requests over a socket, and figures in files they leave each other.

The socket exists only while somebody has asked within the last half minute: gateways look for it, and tell nothing
where there is none. The kernel keeps a few datagrams, this process the newest requests; the rest is lost and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from groundplane.domain.serving.traffic import DATAGRAM_MAX_BYTES, Live, Passed, merge

KEPT = 2000
_LINGER_S = 30.0
_RECEIVE_BYTES = 4 * 2**20
_decode = msgspec.json.Decoder(Passed).decode


class MemoryTail:
    """Implements `ports.traffic.RequestTail` over what it is told in this process."""

    def __init__(self) -> None:
        self._kept: deque[Passed] = deque(maxlen=KEPT)
        self._next = 1
        self._came = asyncio.Event()

    def tell(self, one: Passed) -> None:
        """A request that ended. The newest are kept."""
        self._kept.append(one)
        self._next += 1
        self._came.set()

    async def after(self, place: int | None, wait_s: float) -> tuple[list[tuple[int, Passed]], int, int]:
        begin = self._next if place is None or place > self._next else place
        if begin == self._next and wait_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrival(), wait_s)
        first = self._next - len(self._kept)
        found = [(number, one) for number, one in enumerate(self._kept, first) if number >= begin]
        return found, self._next, max(0, first - begin)

    async def _arrival(self) -> None:
        self._came.clear()
        await self._came.wait()

    async def close(self) -> None:
        """Nothing is held."""


class SocketTail(MemoryTail):
    """The same over a socket that gateways tell."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def after(self, place: int | None, wait_s: float) -> tuple[list[tuple[int, Passed]], int, int]:
        self._listen()
        return await super().after(place, wait_s)

    async def close(self) -> None:
        self._stop()

    # ------------------------------------------------------------ socket

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(_LINGER_S, self._stop)
        if self._socket is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.unlink(missing_ok=True)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        # The path may be too long for an address: the folder is opened, and the name is short.
        folder = os.open(self._path.parent, os.O_PATH | os.O_CLOEXEC)
        try:
            made.bind(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)
        self._path.chmod(0o600)
        self._socket = made
        loop.add_reader(made, self._receive)

    def _receive(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                data = self._socket.recv(DATAGRAM_MAX_BYTES + 1)
                for line in data.splitlines():
                    self.tell(_decode(line))

    def _stop(self) -> None:
        """Nobody asks any more: gateways have nothing to tell."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            self._path.unlink(missing_ok=True)


class MemoryFigures:
    """Implements `ports.traffic.GatewayFigures` over what each living gateway is said to have, by its name."""

    def __init__(self) -> None:
        self.told: dict[str, dict[str, Any]] = {}

    async def live(self) -> Live:
        return merge(self.told.values())


class FileFigures:
    """The same over the files of the gateways' metrics, a second old at most."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def live(self) -> Live:
        return await asyncio.to_thread(lambda: merge(self._figures()))

    def _figures(self) -> Iterator[dict[str, Any]]:
        for path in sorted(self._folder.glob("*.json")):
            if not is_alive(path.with_suffix(".alive")):
                continue
            with contextlib.suppress(OSError, msgspec.DecodeError):
                yield msgspec.json.decode(path.read_bytes(), type=dict[str, Any])


def is_alive(path: Path) -> bool:
    """A living gateway holds its lock."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
