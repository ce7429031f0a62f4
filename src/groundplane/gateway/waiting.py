"""Where requests wait for what is full: one line per limit and per set of replicas, and one timer for all of them.

A line is there only while somebody stands in it. Its head asks again when its limit says so, or when something of it
came back; whoever comes meanwhile joins behind. Who waits has reserved nothing. Each worker keeps lines of its own.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import Protocol

from groundplane.domain.serving.limits import MINUTE_NS, Binding, Measure
from groundplane.domain.serving.queueing import Line, Place, Priority, QueueRule, RetryWatch
from groundplane.gateway.telemetry.flow_metrics import FlowMetrics

_POLL_NS = 1_000_000_000
"""How long a head waits for news of what comes back by itself, before it asks again all the same."""
_POLL_SHARED_NS = 50_000_000
_SOONEST_NS = 1_000_000
_LEARNING_RATE = 0.1
_CONTENDED = 1.5


class Waiter(Protocol):
    """A request, as the room sees it."""

    def turn(self) -> None:
        """It is first: it asks again, and tells the room with `admitted`, `still` or `leave`, now or later."""

    def shed(self, reason: str, wait_ns: int) -> None:
        """It has left the room unserved; waiting `wait_ns` more would have helped."""


@dataclass(slots=True)
class Need:
    """What a request waits for. `wait_ns`: how long until it alone would fit; None when nobody knows.

    `by_tokens`: what passes there is tokens, otherwise requests; `per_minute` of them, or 0 where nobody knows.
    `wakes`: names of what moves the line when it comes back.
    """

    line: str
    wait_ns: int | None
    per_minute: int = 0
    by_tokens: bool = False
    wakes: tuple[str, ...] = ()


def need_of(binding: Binding, line: str, per_minute: int, wakes: tuple[str, ...]) -> Need | None:
    """What waiting for a limit means; None where it does not help, or would not end today."""
    measure = binding.limit.measure
    if binding.store_down or binding.retry_after_ns is None or measure is Measure.TOKENS_DAY:
        return None
    wait = None if measure is Measure.CONCURRENT else binding.retry_after_ns
    per_minute = 0 if measure is Measure.CONCURRENT else per_minute
    return Need(line, wait, per_minute, measure is Measure.TOKENS, wakes)


@dataclass(slots=True, kw_only=True)
class Stay:
    """How a request may wait: its route's rule and name, its priority, tokens and bytes, and until when."""

    rule: QueueRule
    project: str
    model: str
    priority: Priority
    tokens: int
    size_bytes: int
    until_ns: int


@dataclass(slots=True, eq=False)
class Ticket:
    """A place in a line. `since_ns` and `until_ns` stay the same when it moves to another one."""

    waiter: Waiter
    stay: Stay
    queue: _Queue
    since_ns: int
    place: Place[Ticket] = field(init=False)
    is_out: bool = False


@dataclass(slots=True, eq=False)
class _Queue:
    name: str
    wakes: tuple[str, ...]
    line: Line[Ticket] = field(default_factory=Line)
    due_ns: int = 0
    per_minute: int = 0
    by_tokens: bool = False
    asking: Ticket | None = None
    pace_ns: float = 0.0
    """Between one served and the next, for each unit of cost, as it was of late."""
    served_ns: int = 0

    def wait_ns(self, stay: Stay, now_ns: int) -> int:
        """About how long somebody who joins now stands here."""
        cost = self.cost(stay)
        ahead = self.line.ahead(stay.priority, stay.project, cost, stay.rule.weight)
        head = self.line.first()
        due_ns = max(0, self.due_ns - now_ns) if self.per_minute else 0
        if not self.per_minute:
            return int(self.pace_ns * (ahead + cost))
        pace_ns = MINUTE_NS / self.per_minute
        if self.pace_ns > _CONTENDED * pace_ns:
            pace_ns = self.pace_ns  # other workers serve lines of their own from the same limit
        return due_ns + int((ahead + cost - (0 if head is None else head.cost)) * pace_ns)

    def cost(self, stay: Stay) -> int:
        return max(1, stay.tokens) if self.by_tokens else 1


@dataclass(frozen=True, slots=True)
class NoPlace:
    """Why somebody may not wait, and how long it would have been. `reason` is a label of the metric."""

    reason: str
    wait_ns: int
    waiting: int


class WaitingRoom:
    """All lines of one worker. Owned by the event loop's thread. `count` is all that the straight path looks at."""

    def __init__(self, metrics: FlowMetrics, *, workers: int, bytes_max: int) -> None:
        self.count = 0
        self.retries = RetryWatch()
        self._metrics = metrics
        self._workers = max(1, workers)
        self._bytes_max = bytes_max
        self._bytes = 0
        self._queues: dict[str, _Queue] = {}
        self._woken_by: dict[str, dict[str, _Queue]] = {}
        self._routes: dict[tuple[str, str], dict[Priority, dict[int, Ticket]]] = {}
        self._expiries: list[tuple[int, int, Ticket]] = []
        self._dues: list[tuple[int, int, _Queue]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0

    # ------------------------------------------------------------ coming

    def line_of(self, names: Iterable[str]) -> str | None:
        """The first of these lines that somebody stands in."""
        for name in names:
            if name in self._queues:
                return name
        return None

    def enter(self, waiter: Waiter, stay: Stay, need: Need) -> Ticket | NoPlace:
        """A place in the line, if the wait is short enough and there is room; the last of a lower priority makes it."""
        now = monotonic_ns()
        queue = self._queues.get(need.line)
        wait_ns = (need.wait_ns or 0) if queue is None else queue.wait_ns(stay, now)
        reason = "" if now + wait_ns <= stay.until_ns and now < stay.until_ns else "too long"
        if not reason and self._bytes + stay.size_bytes > self._bytes_max:
            reason = "memory"
        if not reason and not self._has_room(stay):
            reason = "queue full"
        if reason:
            self._metrics.shed(stay.model, reason)
            return NoPlace(reason, max(wait_ns, _SOONEST_NS), 0 if queue is None else len(queue.line))
        if queue is None or self._queues.get(need.line) is not queue:  # who was displaced may have been its last
            queue = self._open(need, now)
        ticket = Ticket(waiter, stay, queue, now)
        ticket.place = queue.line.join(ticket, stay.priority, stay.project, queue.cost(stay), stay.rule.weight)
        self.count += 1
        self._bytes += stay.size_bytes
        self._on_route(stay)[id(ticket)] = ticket
        heapq.heappush(self._expiries, (stay.until_ns, next(self._numbers), ticket))
        self._arm(stay.until_ns)
        return ticket

    def _open(self, need: Need, now: int) -> _Queue:
        queue = self._queues[need.line] = _Queue(need.line, need.wakes)
        for name in queue.wakes:
            self._woken_by.setdefault(name, {})[queue.name] = queue
        self._set(queue, need, now)
        return queue

    def _set(self, queue: _Queue, need: Need, now: int) -> None:
        queue.per_minute, queue.by_tokens = need.per_minute, need.by_tokens
        wait_ns = need.wait_ns
        if wait_ns is None:
            wait_ns = _POLL_NS if self._workers == 1 else _POLL_SHARED_NS
        self._due(queue, now + max(_SOONEST_NS, wait_ns))

    def _due(self, queue: _Queue, due_ns: int) -> None:
        """When its first one asks next."""
        queue.due_ns = due_ns
        heapq.heappush(self._dues, (due_ns, next(self._numbers), queue))
        self._arm(due_ns)

    def _on_route(self, stay: Stay) -> dict[int, Ticket]:
        levels = self._routes.get((stay.project, stay.model))
        if levels is None:
            levels = self._routes[stay.project, stay.model] = {priority: {} for priority in Priority}
        return levels[stay.priority]

    def _has_room(self, stay: Stay) -> bool:
        levels = self._routes.get((stay.project, stay.model))
        if levels is None:
            return stay.rule.size > 0
        if sum(map(len, levels.values())) < -(-stay.rule.size // self._workers):
            return True
        for priority in reversed(Priority):
            if priority is stay.priority:
                return False
            if levels[priority]:
                last = next(reversed(levels[priority].values()))
                self._shed(last, "displaced", monotonic_ns())
                return True
        return False

    # ------------------------------------------------------------ going

    def admitted(self, ticket: Ticket) -> None:
        """It got what it needs."""
        queue, now = ticket.queue, monotonic_ns()
        if ticket.is_out:
            return
        if queue.served_ns:
            gap = (now - queue.served_ns) / ticket.place.cost
            queue.pace_ns += _LEARNING_RATE * (gap - queue.pace_ns) if queue.pace_ns else gap
        queue.served_ns = now
        queue.line.served(ticket.place)
        self._forget(ticket)
        self._metrics.waited(ticket.stay.model, now - ticket.since_ns)
        self._answered(ticket, now)

    def still(self, ticket: Ticket, need: Need) -> NoPlace | None:
        """It does not fit yet, or something else is full now: it keeps its place, or gets one there.

        What there is to say when it would be too late: it has left then.
        """
        queue, now = ticket.queue, monotonic_ns()
        if need.line == queue.name:
            self._set(queue, need, now)
            if need.wait_ns is not None and now + need.wait_ns > ticket.stay.until_ns:
                return self._too_late(ticket, need.wait_ns, now)
            if queue.asking is ticket:
                queue.asking = None
            return None
        queue.line.leave(ticket.place)
        self._answered(ticket, now)
        other = self._queues.get(need.line) or self._open(need, now)
        ticket.queue, stay = other, ticket.stay
        wait_ns = max(need.wait_ns or 0, other.wait_ns(stay, now) if len(other.line) else 0)
        ticket.place = other.line.join(ticket, stay.priority, stay.project, other.cost(stay), stay.rule.weight)
        return self._too_late(ticket, wait_ns, now) if now + wait_ns > stay.until_ns else None

    def _too_late(self, ticket: Ticket, wait_ns: int, now: int) -> NoPlace:
        waiting = len(ticket.queue.line)
        self._out(ticket, now)
        self._metrics.shed(ticket.stay.model, "too long")
        return NoPlace("too long", wait_ns, waiting)

    def leave(self, ticket: Ticket) -> None:
        """Its caller is gone, or it was answered otherwise."""
        if not ticket.is_out:
            self._out(ticket, monotonic_ns())

    def _out(self, ticket: Ticket, now: int) -> None:
        ticket.queue.line.leave(ticket.place)
        self._forget(ticket)
        self._answered(ticket, now)

    def _forget(self, ticket: Ticket) -> None:
        stay = ticket.stay
        ticket.is_out = True
        self.count -= 1
        self._bytes -= stay.size_bytes
        levels = self._routes[stay.project, stay.model]
        del levels[stay.priority][id(ticket)]
        if not any(levels.values()):
            del self._routes[stay.project, stay.model]

    def _answered(self, ticket: Ticket, now: int) -> None:
        """Somebody is out of the line: the next one may ask."""
        queue = ticket.queue
        was_asking = queue.asking is ticket
        if was_asking:
            queue.asking = None
        if len(queue.line):
            if was_asking:
                self._due(queue, now)
        elif self._queues.get(queue.name) is queue:
            del self._queues[queue.name]
            for name in queue.wakes:
                woken = self._woken_by[name]
                del woken[queue.name]
                if not woken:
                    del self._woken_by[name]

    def _shed(self, ticket: Ticket, reason: str, now: int) -> None:
        wait_ns = max(_SOONEST_NS, ticket.queue.wait_ns(ticket.stay, now))
        self._out(ticket, now)
        self._metrics.shed(ticket.stay.model, reason)
        ticket.waiter.shed(reason, wait_ns)

    # ------------------------------------------------------------ moving on

    def came_back(self, names: Iterable[str]) -> None:
        """Something of these was given back: who waits for it asks at once."""
        now = monotonic_ns()
        for name in names:
            for queue in self._woken_by.get(name, {}).values():
                if queue.due_ns > now:
                    self._due(queue, now)

    def _arm(self, at_ns: int) -> None:
        """Sees to it that the timer goes off by then."""
        if self._timer is not None:
            if self._timer_ns <= at_ns:
                return
            self._timer.cancel()
        self._timer_ns = at_ns
        self._timer = asyncio.get_running_loop().call_later(max(0, at_ns - monotonic_ns()) / 1e9, self._go_off)

    def _go_off(self) -> None:
        self._timer = None
        now = monotonic_ns()
        while self._expiries and self._expiries[0][0] <= now:
            ticket = heapq.heappop(self._expiries)[2]
            if not ticket.is_out:
                self._shed(ticket, "expired", now)
        while self._dues and self._dues[0][0] <= now:
            queue = heapq.heappop(self._dues)[2]
            if queue.due_ns <= now and self._queues.get(queue.name) is queue:
                self._serve(queue)
        while self._expiries and self._expiries[0][2].is_out:
            heapq.heappop(self._expiries)
        for heap in (self._expiries, self._dues):
            if heap:
                self._arm(heap[0][0])

    def _serve(self, queue: _Queue) -> None:
        """Lets one after the other ask, until one has to wait or its answer takes time."""
        while queue.asking is None and queue.due_ns <= monotonic_ns():
            first = queue.line.first()
            if first is None:
                return
            ticket = first.who
            queue.asking = ticket
            ticket.waiter.turn()

    # ------------------------------------------------------------ what is told

    def depths(self) -> Iterator[tuple[str, str, dict[Priority, int], int]]:
        """Project, model, how many wait by priority, and for how long the first of them has, in nanoseconds."""
        now = monotonic_ns()
        for (project, model), levels in self._routes.items():
            since = [next(iter(one.values())).since_ns for one in levels.values() if one]
            yield project, model, {p: len(one) for p, one in levels.items()}, now - min(since, default=now)
