"""Connections that are read later, because what is refused on them comes too fast: see `domain/serving/queueing.py`."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import socket
from time import monotonic_ns
from typing import Protocol

from groundplane.domain.serving.queueing import RefusalPace
from groundplane.gateway.tables import KeyState
from groundplane.gateway.telemetry.flow_metrics import FlowMetrics


class Held(Protocol):
    """A connection that waits for its turn."""

    def read_on(self) -> None: ...


class Turns:
    """Whose turn comes when. Called on the event loop's thread only."""

    def __init__(self, flow: FlowMetrics, refusals_per_s: int) -> None:
        self.pace = RefusalPace(refusals_per_s)
        self._flow = flow
        self._held: list[tuple[int, int, Held]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    def refused(self, key: KeyState | None, peer: str, *, first: bool, now_ns: int) -> int:
        """A request was refused: of a key, or, where none is known, of an address. How late to read on, in ns; 0: now.

        The `first` one of a connection counts for its address too: who connects anew for each request gains nothing.
        """
        late_ns = 0
        if first or key is None:
            late_ns = self.pace.refused(("", network_of(peer)), now_ns)
        if key is not None:
            late_ns = self.pace.refused((key.key.project, key.key.id), now_ns)
        if late_ns:
            self._flow.read_late["address" if key is None else "key"] += 1
        return late_ns

    def came(self, peer: str, now_ns: int) -> int:
        """A new connection. How late to read it, in ns; 0: now."""
        late_ns = self.pace.came(("", network_of(peer)), now_ns)
        if late_ns:
            self._flow.read_late["address"] += 1
        return late_ns

    def hold(self, connection: Held, until_ns: int) -> None:
        """Lets it read on then."""
        heapq.heappush(self._held, (until_ns, next(self._order), connection))
        if self._held[0][2] is connection:
            self._set_timer()

    def _set_timer(self) -> None:
        """For who is first. One by one: the coarse clock would let many go on at once, for the others to wait for."""
        if self._timer is not None:
            self._timer.cancel()
        after_s = max(0, self._held[0][0] - monotonic_ns()) / 1e9
        self._timer = asyncio.get_running_loop().call_later(after_s, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        held, now_ns = self._held, monotonic_ns()
        while held and held[0][0] <= now_ns:
            heapq.heappop(held)[2].read_on()
        if held and self._timer is None:
            self._set_timer()


def network_of(peer: str) -> str:
    """What counts as one address: an IPv6 network of 64 bits, which one caller has all of."""
    if ":" not in peer:
        return peer
    return socket.inet_pton(socket.AF_INET6, peer.partition("%")[0])[:8].hex()
