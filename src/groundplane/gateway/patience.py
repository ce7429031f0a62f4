"""A request for which there is no room: it waits if its route lets it and its caller has the time, or is refused now.

Whoever is refused is told when it would have been its turn. What comes back before that, again and again, is told so.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import replace
from time import monotonic_ns

from groundplane.domain.serving.limits import Binding
from groundplane.domain.serving.queueing import Priority, QueueRule, Storm, priority_of, read_timeout_ns
from groundplane.gateway.admission import limit_headers, refusal
from groundplane.gateway.lanes import Lane
from groundplane.gateway.protocol.errors import Fault, bad_request
from groundplane.gateway.selection import Selection
from groundplane.gateway.state import GatewayState
from groundplane.gateway.tables import KeyState
from groundplane.gateway.waiting import Need, NoPlace, Stay, Ticket

_TIMEOUTS = (b"x-request-timeout", b"x-stainless-read-timeout", b"x-stainless-timeout")
"""How long the caller waits for an answer, in seconds. The official clients of OpenAI and Anthropic say so unasked."""
_WHY = {
    "too long": "the wait of {wait} is longer than this request may wait",
    "queue full": "{waiting} requests wait already, which is all that may",
    "memory": "waiting requests fill the gateway's memory",
    "displaced": "a request of a higher priority took its place in the queue",
    "expired": "it waited as long as it may",
}


class Patience(ABC):
    """The part of a request that knows how to wait."""

    __slots__ = (
        "_admitted", "_asked_only", "_began_ns", "_bound", "_digest", "_full", "_headers", "_limit_lines", "_over",
        "_selection", "_sent", "_state", "_ticket", "ask", "body", "key", "lane",
    )  # fmt: skip

    _state: GatewayState
    lane: Lane
    body: bytes
    _headers: dict[bytes, bytes]
    _began_ns: int
    _ticket: Ticket | None
    _digest: bytes
    _limit_lines: bytes
    _selection: Selection | None
    _asked_only: bool
    _full: Binding | None
    _bound: Binding | None
    _admitted: bool
    _over: bool
    _sent: bool
    key: KeyState
    ask: tuple[int, int]

    @abstractmethod
    def _begin(self) -> None:
        """Chooses a target and takes what the request needs; or says `_no_room`."""

    @abstractmethod
    def _begin_again(self) -> None:
        """Admitted already, and left by its target: chooses another one, and sends; or says `_no_room`."""

    @abstractmethod
    def _refuse(self, fault: Fault) -> None: ...

    @abstractmethod
    def _fail(self, fault: Fault) -> None: ...

    @abstractmethod
    def _unload(self) -> None: ...

    # ------------------------------------------------------------ waiting

    def _joins(self) -> bool:
        """Whether others wait for what this request needs: then it stands behind them, or is refused."""
        rule, room = self.lane.route.queue, self._state.room
        line = None if rule is None else room.line_of(self.lane.lines)
        if line is None:
            return False
        told = f"others wait for {_name(line)}"
        self._no_room(Need(line, None), Fault(429, told, "rate_limit_exceeded", type="requests"), self._binding(line))
        return True

    def _binding(self, line: str) -> Binding | None:
        """What there is to say of the limit that a line stands before, if it is one."""
        lane = self.lane
        for share in (*lane.ones, *lane.slots, *lane.tokens):
            limit = share.limit
            if limit.id == line:
                needs = self.ask[0] if share in lane.tokens else 1
                return Binding(limit, share.standing(monotonic_ns())[0], needs, 0)
        return None

    def _no_room(self, need: Need | None, fault: Fault, binding: Binding | None = None) -> None:
        """Waits for what is needed, or answers why not. `binding`: the limit that the fault tells of, if it is one."""
        rule, room = self.lane.route.queue, self._state.room
        self._bound = binding
        if need is None or rule is None:
            self._answer_full(fault, None if binding is None else binding.retry_after_ns)
            return
        told: Ticket | NoPlace | None
        if self._ticket is not None:
            told = room.still(self._ticket, need)
        else:
            try:
                stay = self._stay(rule)
            except Fault as wrong:
                self._refuse(wrong)
                return
            storm = self._seen()
            told = room.enter(self, stay, need)
            if isinstance(told, Ticket):
                self._ticket = told
                self._limit_lines += _storm_line(storm)
                self._sent = False
        if isinstance(told, NoPlace):
            self._ticket = None
            self._answer_no_place(told, fault, binding)

    def _stay(self, rule: QueueRule) -> Stay:
        """Raises Fault 400 for a priority that is none."""
        asked: Priority | None = None
        word = self._headers.get(b"x-priority")
        if word is not None:
            try:
                asked = Priority(word.decode("latin-1").lower())
            except ValueError:
                raise bad_request("x-priority is high, normal or low", "invalid_priority", "x-priority") from None
        route = self.lane.route
        wait_ns = rule.wait_ms * 1_000_000
        for name in _TIMEOUTS:
            said = self._headers.get(name)
            timeout_ns = None if said is None else read_timeout_ns(said)
            if timeout_ns is not None:
                wait_ns = min(wait_ns, timeout_ns)
        return Stay(
            rule=rule,
            project=route.route.project,
            model=route.route.model,
            priority=priority_of(route.priorities.get(self.key.key.id, rule.priority), asked),
            tokens=self.ask[0],
            size_bytes=len(self.body),
            until_ns=self._began_ns + wait_ns,
        )

    def turn(self) -> None:
        """Called by the room: it is first in its line. A key revoked meanwhile is none any more."""
        tables = self._state.tables
        self._selection, self._full, self._asked_only = None, None, False
        self._unload()
        if tables is not None and tables.key(self.key.key.secret_sha256.encode()) is None:
            gone = Fault(401, "this API key is wrong, revoked or expired", "invalid_api_key")
            self._end_wait(gone)
        elif self._admitted:
            self._begin_again()
        else:
            self._begin()

    def shed(self, reason: str, wait_ns: int) -> None:
        """Called by the room, which it has left."""
        ticket, self._ticket = self._ticket, None
        line = "what it needs" if ticket is None else _name(ticket.queue.name)
        fault = Fault(429, f"there was no room at {line}", "rate_limit_exceeded", type="requests")
        self._answer_no_place(NoPlace(reason, wait_ns, self._state.room.count), fault, self._bound)

    def _waited(self) -> None:
        """It has what it waited for."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._state.room.admitted(ticket)
            self._limit_lines += b"x-queue-time: %d\r\n" % ((monotonic_ns() - ticket.since_ns) // 1_000_000)

    # ------------------------------------------------------------ refusing

    def _answer_no_place(self, told: NoPlace, fault: Fault, binding: Binding | None) -> None:
        now = monotonic_ns()
        wait_ms = -(-told.wait_ns // 1_000_000)
        if binding is not None:
            fault = refusal(self.lane, replace(binding, retry_after_ns=told.wait_ns), now)
        else:
            fault.headers = limit_headers(self.lane, now)
            fault.headers += b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (-(-wait_ms // 1000), wait_ms)
        fault.message += "; " + _WHY[told.reason].format(wait=f"{wait_ms} ms", waiting=told.waiting)
        self._answer_full(fault, told.wait_ns)

    def _answer_full(self, fault: Fault, wait_ns: int | None) -> None:
        """The 429; with what is to be said to a caller that does not wait as long as it is told."""
        if fault.status == 429 and wait_ns is not None:
            now = monotonic_ns()
            storm = self._seen()
            key = self.key.key
            self._state.room.retries.refused(key.project, key.id, self._digest, now, now + wait_ns)
            if storm.told:
                fault.message += (
                    f"; within a minute this key came back {storm.early} times before the time it was given, and sent "
                    f"one body {storm.repeated} times: wait as long as retry-after says, and longer each time"
                )
                fault.headers += _storm_line(storm)
        self._end_wait(fault)

    def _end_wait(self, fault: Fault) -> None:
        if self._admitted:
            self._fail(fault)
        else:
            self._refuse(fault)

    def _seen(self) -> Storm:
        """Whether this request is one of too many that found no room. Counts it once."""
        room = self._state.room
        if self._digest:
            return Storm()
        self._digest = hashlib.blake2b(self.body, digest_size=16).digest()
        storm = room.retries.seen(self.key.key.project, self.key.key.id, self._digest, monotonic_ns())
        if storm.told:
            self._state.metrics.flow.stormed(storm)
        return storm


def _name(line: str) -> str:
    """What callers are told of: a limit, and never where replicas are."""
    return "a replica of the model" if line.startswith("replicas ") else line


def _storm_line(storm: Storm) -> bytes:
    return b"x-retry-storm: early=%d, repeated=%d\r\n" % (storm.early, storm.repeated) if storm.told else b""
