"""Who waits for whom: lines in front of limits and replicas, how many a replica is sent at once, and retry storms.

A line serves priorities 16 : 4 : 1 while all of them wait, and inside a priority projects by their weights, both by
start-time fair queueing: who was served last moves back by what that cost. So a flood of one project moves nobody
else, and the lowest priority is late, but never left out. Whoever was given a place keeps it until served or gone.
Source: Goyal, Vin and Cheng, SIGCOMM 1996 (start-time fair queueing).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from groundplane.errors import InvalidInput

_T = TypeVar("_T")
_SCALE = 1 << 20
_IDLE_FLOWS_KEPT = 64
QUEUE_SIZE_MAX = 100_000
QUEUE_WAIT_MAX_MS = 600_000
CONCURRENCY_MAX = 100_000
WEIGHT_MAX = 1_000
KEY_PRIORITIES_MAX = 1_000


class Priority(StrEnum):
    """How soon, among those that wait."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


PRIORITY_WEIGHTS = {Priority.HIGH: 16, Priority.NORMAL: 4, Priority.LOW: 1}
_RANKS = {priority: rank for rank, priority in enumerate(Priority)}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPriority:
    """What one key's requests have, and the most they may ask for."""

    key_id: str
    priority: Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRule:
    """How requests of a route wait for what is full. `size` requests at most, each `wait_ms` at most.

    `priority` is what requests have, and the most they may ask for, where `keys` says nothing else of their key.
    `weight`: the project's part of a replica that several projects wait for. `concurrency_max`: a replica is sent no
    more requests at once than its time to first token allows, and never more than this; None sends all.
    """

    size: int = 100
    wait_ms: int = 30_000
    priority: Priority = Priority.NORMAL
    keys: tuple[KeyPriority, ...] = ()
    weight: int = 1
    concurrency_max: int | None = None


def check_queue(rule: QueueRule) -> None:
    """InvalidInput when a route can't keep such a queue."""
    if not 0 <= rule.size <= QUEUE_SIZE_MAX:
        raise InvalidInput(f"a queue of {rule.size} is not between 0 and {QUEUE_SIZE_MAX}", "--queue-size 100")
    if not 0 <= rule.wait_ms <= QUEUE_WAIT_MAX_MS:
        raise InvalidInput(f"a wait of {rule.wait_ms} ms is not between 0 and {QUEUE_WAIT_MAX_MS}", "--queue-wait 30s")
    if not 1 <= rule.weight <= WEIGHT_MAX:
        raise InvalidInput(f"a weight of {rule.weight} is not between 1 and {WEIGHT_MAX}", "--queue-weight 1")
    if rule.concurrency_max is not None and not 1 <= rule.concurrency_max <= CONCURRENCY_MAX:
        raise InvalidInput(
            f"{rule.concurrency_max} requests at once are not between 1 and {CONCURRENCY_MAX}", "--concurrency-max 32"
        )
    if len(rule.keys) > KEY_PRIORITIES_MAX:
        raise InvalidInput(f"{len(rule.keys)} keys with a priority are over {KEY_PRIORITIES_MAX}", "name fewer")
    if len({one.key_id for one in rule.keys}) != len(rule.keys):
        raise InvalidInput("a key is given two priorities", "--queue-key KEY=high, once for each key")


def priority_of(allowed: Priority, asked: Priority | None) -> Priority:
    """What a request gets: what it asks for, and never more than its key may."""
    if asked is None or _RANKS[asked] < _RANKS[allowed]:
        return allowed
    return asked


_SECONDS = re.compile(rb"(\d{1,7}(?:\.\d{1,9})?)(ms|s)?")


def read_timeout_ns(text: bytes) -> int | None:
    """How long a caller waits, as `30`, `1.5`, `1.5s` or `1500ms`; None when it can't be understood."""
    match = _SECONDS.fullmatch(text)
    if match is None:
        return None
    return int(float(match[1]) * (1e6 if match[2] == b"ms" else 1e9))


# ---------------------------------------------------------------- a line


@dataclass(slots=True, eq=False)
class Place(Generic[_T]):
    """Somebody's place in a line. `cost` is what serving takes, in tokens."""

    who: _T
    priority: Priority
    project: str
    cost: int


@dataclass(slots=True)
class _Flow(Generic[_T]):
    """Those of one project in one priority, in the order they came."""

    weight: int = 1
    tag: int = 0
    cost: int = 0
    places: dict[int, Place[_T]] = field(default_factory=dict)


@dataclass(slots=True)
class _Class(Generic[_T]):
    """Those of one priority. `virtual`: the tag of who was served last."""

    weight: int
    tag: int = 0
    virtual: int = 0
    cost: int = 0
    count: int = 0
    flows: dict[str, _Flow[_T]] = field(default_factory=dict)


class Line(Generic[_T]):
    """Places in the order of fairness. `first` looks; `served` charges who was first and takes its place away."""

    __slots__ = ("_classes", "_count", "_virtual")

    def __init__(self) -> None:
        self._classes: dict[Priority, _Class[_T]] = {p: _Class(PRIORITY_WEIGHTS[p]) for p in Priority}
        self._virtual = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Place[_T]]:
        for one in self._classes.values():
            for flow in one.flows.values():
                yield from flow.places.values()

    def join(self, who: _T, priority: Priority, project: str, cost: int, weight: int = 1) -> Place[_T]:
        """A place behind those of the same project and priority."""
        place = Place(who, priority, project, max(1, cost))
        level = self._classes[priority]
        if not level.count:
            level.tag = max(level.tag, self._virtual)
        flow = level.flows.get(project)
        if flow is None:
            if len(level.flows) > _IDLE_FLOWS_KEPT:
                self._forget(level)
            flow = level.flows[project] = _Flow()
        flow.weight = max(1, weight)
        if not flow.places:
            flow.tag = max(flow.tag, level.virtual)
        flow.places[id(place)] = place
        flow.cost += place.cost
        level.cost += place.cost
        level.count += 1
        self._count += 1
        return place

    def first(self) -> Place[_T] | None:
        """Whose turn it is; None in an empty line."""
        waiting = [one for one in self._classes.values() if one.count]
        if not waiting:
            return None
        level = min(waiting, key=lambda one: one.tag)
        flow = min((one for one in level.flows.values() if one.places), key=lambda one: one.tag)
        return next(iter(flow.places.values()))

    def served(self, place: Place[_T]) -> None:
        """It is on its way: its project and its priority move back by what it cost."""
        level = self._classes[place.priority]
        flow = level.flows[place.project]
        self.leave(place)
        self._virtual, level.virtual = level.tag, flow.tag
        level.tag += -(-place.cost * _SCALE // level.weight)
        flow.tag += -(-place.cost * _SCALE // flow.weight)

    def leave(self, place: Place[_T]) -> None:
        """It is gone, and nobody pays for it. ValueError when it has no place here."""
        level = self._classes[place.priority]
        flow = level.flows.get(place.project)
        if flow is None or flow.places.pop(id(place), None) is None:
            raise ValueError("it has no place in this line")
        flow.cost -= place.cost
        level.cost -= place.cost
        level.count -= 1
        self._count -= 1

    def ahead(self, priority: Priority, project: str, cost: int, weight: int = 1) -> int:
        """About how much is served before somebody who joins now, itself left out: by its project's fair part."""
        level = self._classes[priority]
        flow = level.flows.get(project)
        mine = (0 if flow is None else flow.cost) + max(1, cost)
        inside = mine
        for name, other in level.flows.items():
            if name != project:
                inside += min(other.cost, mine * other.weight // max(1, weight))
        total = inside
        for other_priority, other_level in self._classes.items():
            if other_priority is not priority:
                total += min(other_level.cost, inside * other_level.weight // level.weight)
        return total - max(1, cost)

    @staticmethod
    def _forget(level: _Class[_T]) -> None:
        """Flows that wait for nothing and owe nothing: who comes back starts where all are."""
        for name, flow in list(level.flows.items()):
            if not flow.places and flow.tag <= level.virtual:
                del level.flows[name]


# ---------------------------------------------------------------- a replica

_START = 16
_WINDOW_MIN = 4
_TOLERANCE = 2.0
_SLACK_NS = 5_000_000
_BACK_OFF = 0.8
_DRIFT = 1.02


@dataclass(slots=True)
class Concurrency:
    """How many requests a replica is sent at once: additive increase, multiplicative decrease on time to first token.

    A window of as many answers as the limit is judged by its median. Over twice the best one seen, the limit falls by
    a fifth; else, if the limit was in the way, it grows by one. The best one is forgotten by 2 % a window, so that
    longer prompts are not taken for a slow replica forever. Always between 1 and `most`.
    """

    most: int
    limit: float = 0.0
    in_flight: int = 0
    _best_ns: float = 0.0
    _was_full: bool = False
    _window_ns: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.limit = float(min(self.most, self.limit or _START))

    @property
    def has_room(self) -> bool:
        return self.in_flight < int(self.limit)

    def bound(self, most: int) -> None:
        """Another upper bound."""
        self.most = most
        self.limit = min(self.limit, float(most))

    def began(self) -> None:
        self.in_flight += 1
        if self.in_flight >= int(self.limit):
            self._was_full = True

    def ended(self, ttft_ns: int | None) -> None:
        """One is over; None where it never had a first token, and so says nothing."""
        self.in_flight = max(0, self.in_flight - 1)  # one that began before this was set up is none of ours
        if ttft_ns is None:
            return
        self._window_ns.append(ttft_ns)
        if len(self._window_ns) < max(_WINDOW_MIN, int(self.limit)):
            return
        window, self._window_ns = sorted(self._window_ns), []
        median = window[len(window) // 2]
        self._best_ns = min(self._best_ns * _DRIFT, median) if self._best_ns else median
        if median > _TOLERANCE * self._best_ns + _SLACK_NS:
            self._back_off()
        elif self._was_full:
            self.limit = min(float(self.most), math.floor(self.limit) + 1.0)
        self._was_full = self.in_flight >= int(self.limit)

    def refused(self) -> None:
        """It answered that it has no room."""
        self._back_off()
        self._window_ns = []

    def _back_off(self) -> None:
        self.limit = max(1.0, self.limit * _BACK_OFF)


# ---------------------------------------------------------------- retry storms

_MINUTE_NS = 60_000_000_000
_ECHO_NS = 50_000_000
_BODIES_KEPT = 256
EARLY_TOLD = 3
REPEATED_TOLD = 10


@dataclass(frozen=True, slots=True)
class Storm:
    """How often in a minute a key came back before the time it was given, and how often its commonest body came."""

    early: int = 0
    repeated: int = 0

    @property
    def told(self) -> bool:
        return self.early >= EARLY_TOLD or self.repeated >= REPEATED_TOLD


@dataclass(slots=True)
class _Body:
    refused_at_ns: int = 0
    not_before_ns: int = 0
    times: int = 0


@dataclass(slots=True)
class _Caller:
    since_ns: int
    early: int = 0
    repeated: int = 0
    bodies: dict[bytes, _Body] = field(default_factory=dict)


class RetryWatch:
    """Remembers, per key, what was refused or had to wait in the last minute, by digest; the newest keys only.

    What comes within 50 ms of its like's refusal was on its way already, and is no retry.
    """

    __slots__ = ("_callers", "_keys_max")

    def __init__(self, keys_max: int = 4096) -> None:
        self._callers: dict[tuple[str, str], _Caller] = {}
        self._keys_max = keys_max

    def seen(self, project: str, key_id: str, digest: bytes, now_ns: int) -> Storm:
        """A request of the key found no room."""
        name = (project, key_id)
        caller = self._callers.get(name)
        if caller is None or now_ns - caller.since_ns > _MINUTE_NS:
            bodies = {} if caller is None else {d: b for d, b in caller.bodies.items() if b.not_before_ns > now_ns}
            for one in bodies.values():
                one.times = 0
            self._callers.pop(name, None)
            if len(self._callers) >= self._keys_max:
                del self._callers[next(iter(self._callers))]
            caller = self._callers[name] = _Caller(now_ns, bodies=bodies)
        body = caller.bodies.get(digest)
        if body is None:
            if len(caller.bodies) >= _BODIES_KEPT:
                del caller.bodies[next(iter(caller.bodies))]
            body = caller.bodies[digest] = _Body()
        body.times += 1
        caller.repeated = max(caller.repeated, body.times)
        if body.refused_at_ns + _ECHO_NS < now_ns < body.not_before_ns:
            caller.early += 1
        return Storm(caller.early, caller.repeated)

    def refused(self, project: str, key_id: str, digest: bytes, now_ns: int, not_before_ns: int) -> None:
        """It was told to come back then. To be called after `seen`."""
        caller = self._callers.get((project, key_id))
        body = None if caller is None else caller.bodies.get(digest)
        if body is not None:
            body.refused_at_ns, body.not_before_ns = now_ns, not_before_ns

    def storms(self, now_ns: int) -> dict[tuple[str, str], Storm]:
        """Projects and keys that are told of a storm at the moment."""
        found = {}
        for name, one in self._callers.items():
            storm = Storm(one.early, one.repeated)
            if storm.told and now_ns - one.since_ns <= _MINUTE_NS:
                found[name] = storm
        return found


# ---------------------------------------------------------------- the pace of refusals

REFUSALS_PER_S = 100
_SECOND_NS = 1_000_000_000
_LATE_MAX_NS = _SECOND_NS

Refused = tuple[str, str]
"""Who is refused: a project and a key of it; or nobody's project and an address."""


@dataclass(slots=True)
class _Clock:
    """`due_ns`: when everything refused so far would be over at the pace. `late`: how often since then."""

    due_ns: int = 0
    since_ns: int = 0
    late: int = 0


class RefusalPace:
    """How soon who was refused is listened to again, so that refusing one takes no time of the others.

    Everybody has a clock (GCRA, on integers): `per_s` refusals at once, then `per_s` a second. Who comes faster is read
    one interval after the other, each a second late at most: with more connections than `per_s`, each gets one refusal
    a second.
    """

    __slots__ = ("_burst_ns", "_clocks", "_interval_ns", "_names_max")

    def __init__(self, per_s: int = REFUSALS_PER_S, names_max: int = 4096) -> None:
        self._interval_ns = _SECOND_NS // per_s
        self._burst_ns = per_s * self._interval_ns
        self._names_max = names_max
        self._clocks: dict[Refused, _Clock] = {}

    def refused(self, name: Refused, now_ns: int) -> int:
        """Counts a refusal. Nanoseconds until its connection is read again; 0 is at once."""
        clock = self._clocks.get(name)
        if clock is None:
            if len(self._clocks) >= self._names_max:
                self._forget(now_ns)
            clock = self._clocks[name] = _Clock()
        due_ns = max(clock.due_ns, now_ns) + self._interval_ns
        clock.due_ns = min(due_ns, now_ns + self._burst_ns + _LATE_MAX_NS)
        late_ns = clock.due_ns - self._burst_ns - now_ns
        if late_ns <= 0:
            return 0
        if now_ns - clock.since_ns > _MINUTE_NS:
            clock.since_ns, clock.late = now_ns, 0
        clock.late += 1
        return late_ns

    def came(self, name: Refused, now_ns: int) -> int:
        """A new connection of somebody who may be ahead of the pace: then it takes the place of a refusal, and this is
        how many nanoseconds away that is. 0, and nothing counted, for everybody else."""
        clock = self._clocks.get(name)
        if clock is None or clock.due_ns - now_ns <= self._burst_ns:
            return 0
        return self.refused(name, now_ns)

    def late(self, now_ns: int) -> dict[Refused, int]:
        """Who was read late, and how often, in the last minute."""
        clocks = self._clocks.items()
        return {name: one.late for name, one in clocks if one.late and now_ns - one.since_ns <= _MINUTE_NS}

    def _forget(self, now_ns: int) -> None:
        """Clocks that say nothing any more; where all do, the oldest."""
        for name in [name for name, one in self._clocks.items() if one.due_ns <= now_ns]:
            del self._clocks[name]
        if len(self._clocks) >= self._names_max:
            del self._clocks[next(iter(self._clocks))]


# ---------------------------------------------------------------- what is told of them


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueView:
    """How requests of one route stand in line, over all workers. `longest_wait_ms`: of who waits at the moment."""

    project: str
    model: str
    waiting: int
    by_priority: dict[str, int]
    longest_wait_ms: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """A replica whose concurrency is adapted: requests in flight, and how many it may have, over all workers."""

    project: str
    model: str
    target: str
    in_flight: int
    limit: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StormView:
    """A key that retries too soon, sends one body over and over, or is refused so often that its connections are read
    late: how many times in the last minute."""

    project: str
    key_id: str
    early: int
    repeated: int
    read_late: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStanding:
    """What waits at the gateway at the moment. `workers` is how many have told."""

    workers: int
    queues: tuple[QueueView, ...] = ()
    replicas: tuple[ReplicaView, ...] = ()
    storms: tuple[StormView, ...] = ()
