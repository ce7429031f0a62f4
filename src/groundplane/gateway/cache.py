"""Answers that a worker keeps, and requests that wait for one that is on its way: one upstream call for all of them.

A request *leads* when it goes upstream for an answer that may be kept; equal ones that come meanwhile *follow* it. Is
the answer kept, all of them get it; does the leader fail, the next of them leads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from enum import StrEnum
from functools import partial
from time import time
from typing import Protocol

import msgspec

from groundplane.domain.serving.response_cache import CacheRule, Kept, Shelf, Wish, answer_name
from groundplane.gateway.protocol.doors import Door
from groundplane.gateway.targets import RouteState
from groundplane.gateway.telemetry.flow_metrics import FlowMetrics

ANSWER_MAX_BYTES = 2**20
_CERTAIN = frozenset({b"/v1/embeddings", b"/v1/moderations", b"/v1/rerank"})
"""Paths whose answers depend on nothing but the request."""


class Result(StrEnum):
    """How a request fared, as the metric says it."""

    HIT = "hit"
    MISS = "miss"
    STALE = "stale"
    BYPASS = "bypass"


_TOLD = {Result.MISS: b"fwd=uri-miss", Result.STALE: b"fwd=stale", Result.BYPASS: b"fwd=request"}
"""In the words of RFC 9211, 2.2."""


class Follower(Protocol):
    """A request that waits for another one's answer."""

    def serve(self, kept: Kept, *, collapsed: bool) -> None:
        """Here it is."""

    def lead(self, flight: Flight) -> None:
        """There is none: it goes itself, and others may follow."""

    def go_alone(self) -> None:
        """There is one that can't be kept: it goes itself."""


class _Sampling(msgspec.Struct):
    """What a body says of chance, and of what upstreams keep between requests."""

    temperature: float | None = None
    store: bool | None = None
    background: bool | None = None


_SAMPLING = msgspec.json.Decoder(_Sampling)


class Flight:
    """An answer on its way: what came of it so far, and who waits for it. `kept` once it is whole and fit to keep."""

    __slots__ = (
        "_answers", "_pieces", "_size_bytes", "_ttl_s", "followers", "kept", "may_store", "model", "name", "unfit"
    )  # fmt: skip

    def __init__(self, answers: Answers, name: bytes, model: str, ttl_s: int, *, may_store: bool) -> None:
        self._answers = answers
        self._pieces: list[bytes] = []
        self._size_bytes = 0
        self.name = name
        self.model = model
        self._ttl_s = ttl_s
        self.may_store = may_store
        self.unfit = False
        self.kept: Kept | None = None
        self.followers: deque[Follower] = deque()

    def take(self, piece: bytes) -> None:
        """A piece of a stream that is relayed. More than 1 MiB is not kept."""
        if self.unfit:
            return
        self._size_bytes += len(piece)
        self._pieces.append(piece)
        if self._size_bytes > ANSWER_MAX_BYTES:
            self.unfit, self._pieces = True, []

    def keep(self, kept: Kept) -> None:
        """The answer is whole and good. `kept.body` of a stream is empty: its pieces were taken one by one."""
        if self.unfit or len(kept.body) > ANSWER_MAX_BYTES:
            self.unfit = True
            return
        if kept.streamed:
            kept = replace(kept, body=b"".join(self._pieces))
        self.kept = replace(kept, until_s=kept.at_s + self._ttl_s)
        if self.may_store:
            self._answers.store(self.name, self.kept, self.model)

    def again(self) -> Flight:
        """The same once more, from the beginning."""
        return Flight(self._answers, self.name, self.model, self._ttl_s, may_store=self.may_store)

    def over(self) -> None:
        """The leader is done: whoever follows is served, or goes."""
        self._answers.landed(self)


class Answers:
    """What one worker keeps. Owned by the event loop's thread."""

    def __init__(self, metrics: FlowMetrics, most_bytes: int) -> None:
        self._metrics = metrics
        self._shelf = Shelf(most_bytes)
        self._flights: dict[bytes, Flight] = {}

    @staticmethod
    def may_keep(rule: CacheRule, door: Door, body: bytes) -> bool:
        """Whether the same request would have the same answer. Forms, and what leaves traces upstream, never."""
        if door.form or door.free:
            return False
        if door.path in _CERTAIN:
            return True
        if not door.generates:
            return False
        try:
            said = _SAMPLING.decode(body)
        except (msgspec.MsgspecError, RecursionError):
            return False
        if said.background or (door.path == b"/v1/responses" and said.store is not False) or said.store:
            return False
        return rule.sampled or said.temperature == 0

    @staticmethod
    def name(route: RouteState, door: Door, query: bytes, passed: bytes, body: bytes) -> bytes:
        """W3C trace context is no part of the question; versions of APIs are."""
        versions = b"".join(line for line in passed.splitlines(keepends=True) if not line.startswith(b"trace"))
        return answer_name(
            route.route.project, (route.route.model.encode(), route.print, door.path, query, versions, body)
        )

    def find(self, project: str, name: bytes, wish: Wish) -> tuple[Kept | None, Result]:
        """The answer, or why there is none."""
        now_s = time()
        if wish.fresh:
            return None, Result.BYPASS
        kept = self._shelf.find(project, name, now_s)
        if kept is None:
            return None, Result.MISS
        return (kept, Result.HIT) if kept.serves(wish, now_s) else (None, Result.STALE)

    def store(self, name: bytes, kept: Kept, model: str) -> None:
        """Puts it on the shelf."""
        if self._shelf.put(name, kept):
            self._metrics.cached(model, "stored")
        self._count()

    def drop_expired(self) -> None:
        """Called now and then: what nobody asks for again need not stay until it is pushed out."""
        self._shelf.drop_expired(time())
        self._count()

    def _count(self) -> None:
        self._metrics.kept_bytes, self._metrics.kept_answers = self._shelf.size_bytes, len(self._shelf)

    # ------------------------------------------------------------ single flight

    def flight(self, name: bytes) -> Flight | None:
        """The one that is on its way, if there is one."""
        return self._flights.get(name)

    def begin(self, name: bytes, model: str, rule: CacheRule, wish: Wish) -> Flight:
        """This request goes upstream for the answer. Who asked past the cache is followed by nobody."""
        flight = Flight(self, name, model, rule.ttl_s, may_store=wish.store)
        if not wish.fresh and name not in self._flights:
            self._flights[name] = flight
        return flight

    def landed(self, flight: Flight) -> None:
        """The leader of this flight is done."""
        if self._flights.get(flight.name) is flight:
            del self._flights[flight.name]
        followers, flight.followers = flight.followers, deque()
        if not followers:
            return
        loop = asyncio.get_running_loop()  # not from here: a leader that fails at once would nest without end
        if flight.kept is not None:
            for one in followers:
                loop.call_soon(partial(one.serve, flight.kept, collapsed=True))
        elif flight.unfit:
            for one in followers:
                loop.call_soon(one.go_alone)
        else:
            following = flight.again()
            leader = followers.popleft()
            following.followers = followers
            self._flights[flight.name] = following
            loop.call_soon(leader.lead, following)


def hit_lines(kept: Kept, *, collapsed: bool) -> bytes:
    """`age` (RFC 9111) and `cache-status` (RFC 9211) of an answer that was kept."""
    now_s = time()
    age_s = max(0, int(now_s - kept.at_s))
    status = b"groundplane; hit; ttl=%d" % max(0, int(kept.until_s - now_s))
    if collapsed:
        status = b"groundplane; fwd=uri-miss; collapsed"
    return b"age: %d\r\ncache-status: %b\r\n" % (age_s, status)


def miss_line(result: Result) -> bytes:
    """`cache-status` of an answer that comes from an upstream."""
    return b"cache-status: groundplane; %b\r\n" % _TOLD[result]
