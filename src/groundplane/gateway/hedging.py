"""The second copy of a request whose first one keeps the caller waiting: whoever answers first is relayed.

The caller is charged once; the target that lost may have worked in vain, and what was reserved of its limits counts as
used there.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import Protocol

from groundplane.gateway.lanes import Lane
from groundplane.gateway.protocol.http1 import ResponseHead
from groundplane.gateway.targets import TargetState
from groundplane.gateway.upstream import AnswerReader, UpstreamConnection


class Hedged(AnswerReader, Protocol):
    """The request, as the attempt beside its first one sees it."""

    @property
    def ask(self) -> tuple[int, int]: ...
    def send_to(self, target: TargetState, connection: UpstreamConnection, reader: AnswerReader) -> None: ...
    def keep(self, connection: UpstreamConnection) -> None: ...
    def hedge_won(self, hedge: Hedge, connection: UpstreamConnection) -> None: ...
    def hedge_lost(self) -> None: ...
    def charge_loser(self, gate: Lane | None) -> None: ...


class Hedge:
    """An `AnswerReader` until it wins; an answer that is an error loses."""

    __slots__ = ("_connection", "_exchange", "_over", "began_ns", "gate", "target")

    def __init__(self, exchange: Hedged, target: TargetState, gate: Lane | None) -> None:
        self._exchange = exchange
        self._connection: UpstreamConnection | None = None
        self._over = False
        self.began_ns = 0
        self.target = target
        self.gate = gate

    @property
    def project(self) -> str:
        return self._exchange.project

    def start(self) -> None:
        """Its limits are taken by now."""
        self.began_ns = monotonic_ns()
        self.target.standing.begin(self._exchange.ask[0])
        connection = self.target.upstream.take_idle()
        if connection is None:
            self.target.upstream.connect(self)
        else:
            self.connected(connection)

    def drop(self) -> None:
        """Somebody else answers, or nobody listens any more."""
        if self._over:
            return
        self._over = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        exchange = self._exchange
        self.target.standing.end(exchange.ask[0])
        exchange.charge_loser(self.gate)

    def connected(self, connection: UpstreamConnection) -> None:
        if self._over:
            self._exchange.keep(connection)
            return
        self._connection = connection
        self._exchange.send_to(self.target, connection, self)

    def connect_failed(self, error: OSError) -> None:
        if not self._over:
            self.target.upstream.circuit.failed(monotonic_ns())
            self._lose()

    def head(self, head: ResponseHead) -> None:
        if head.status >= 400:
            self._lose()
        else:
            self._win().head(head)

    def whole(self, head: ResponseHead, body: bytes) -> None:
        if head.status >= 400:
            self._lose()
        else:
            self._win().whole(head, body)

    def content(self, data: bytes) -> None:
        raise AssertionError("who won is read by the exchange")

    def content_chunk(self, data: bytes, start: int) -> None:
        raise AssertionError("who won is read by the exchange")

    def ended(self) -> None:
        raise AssertionError("who won is read by the exchange")

    def cut(self, why: str) -> None:
        if not self._over:
            self.target.upstream.circuit.failed(monotonic_ns())
            self._connection = None
            self._lose()

    def _win(self) -> Hedged:
        self._over = True
        connection, self._connection = self._connection, None
        assert connection is not None
        connection.hand_over(self._exchange)
        self._exchange.hedge_won(self, connection)
        return self._exchange

    def _lose(self) -> None:
        self.drop()
        self._exchange.hedge_lost()
