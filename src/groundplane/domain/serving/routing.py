"""Which target answers: among those that can, the ones of the lowest order, and among these by the route's policy.

Chance, time and hashes are passed in, so every choice can be repeated. A target of a higher order takes what lower
ones can't: what they fail at, what they answer 429 to, what their limits have no room for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from groundplane.domain.serving.queueing import Concurrency

_FAILURES_TO_OPEN = 5
_FIRST_PAUSE_NS = 1_000_000_000
_LONGEST_PAUSE_NS = 30_000_000_000
_SPREAD = 1.25
FAR_RETRY_S = 60.0
"""A target that asks for a longer wait than this is short of quota in its region: another region is asked first."""
_LONGEST_REST_S = 3600.0
_REST_UNTOLD_S = 1.0


class RoutePolicy(StrEnum):
    WEIGHTED = "weighted"
    """A draw by weight."""
    LEAST_LOADED = "least-loaded"
    """Of two draws by weight, the one with fewer tokens in flight for its weight."""
    PREFIX = "prefix"
    """Prompts that begin alike go to the same target, as long as it has not much more in flight than the others."""
    FAILOVER = "failover"
    """The first one that can."""


@dataclass(slots=True)
class Circuit:
    """An upstream's failures in a row. Open means: not before `closed_at_ns`.

    After that one more failure reopens it, for twice as long; one success forgets them all.
    """

    failures: int = 0
    closed_at_ns: int = 0
    pause_ns: int = _FIRST_PAUSE_NS

    def is_open(self, now_ns: int) -> bool:
        return now_ns < self.closed_at_ns

    def succeeded(self) -> None:
        self.failures = 0
        self.pause_ns = _FIRST_PAUSE_NS

    def failed(self, now_ns: int) -> None:
        self.failures += 1
        if self.failures >= _FAILURES_TO_OPEN and not self.is_open(now_ns):
            self.closed_at_ns = now_ns + self.pause_ns
            self.pause_ns = min(2 * self.pause_ns, _LONGEST_PAUSE_NS)


@dataclass(slots=True)
class Standing:
    """What a target has in flight here, in tokens, and until when it has asked to be left alone (429).

    `concurrency`: how many requests it is sent at once, where that is adapted.
    """

    in_flight_tokens: int = 0
    rests_until_ns: int = 0
    concurrency: Concurrency | None = None

    @property
    def has_room(self) -> bool:
        return self.concurrency is None or self.concurrency.has_room

    def begin(self, tokens: int) -> None:
        """A request of so many tokens is on its way there."""
        self.in_flight_tokens += tokens
        if self.concurrency is not None:
            self.concurrency.began()

    def end(self, tokens: int, ttft_ns: int | None = None) -> None:
        """It is over; `ttft_ns` from when it was sent, if it had a first token."""
        self.in_flight_tokens -= tokens
        if self.concurrency is not None:
            self.concurrency.ended(ttft_ns)

    def rest(self, now_ns: int, retry_after_s: float | None) -> None:
        """It answered 429: a second where it does not say how long, an hour at most."""
        wait_s = _REST_UNTOLD_S if retry_after_s is None else min(max(0.0, retry_after_s), _LONGEST_REST_S)
        self.rests_until_ns = max(self.rests_until_ns, now_ns + int(wait_s * 1e9))
        if self.concurrency is not None:
            self.concurrency.refused()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A target as routing sees it. `name` is the same on every gateway; `load` is tokens in flight."""

    weight: int
    open: bool
    tried: bool
    order: int = 0
    load: int = 0
    region: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks of the choice: `draws` are in [0, 1); equal `affinity` is drawn to the same target.

    A session stays where it is however loaded that is; a prompt's head (`bounded`) does not. `far_from` is a region
    that has just asked for a long wait, `near` one that asked for a short one.
    """

    draws: tuple[float, float] = (0.0, 0.0)
    affinity: bytes = b""
    bounded: bool = True
    far_from: str = ""
    near: str = ""


def choose(candidates: Sequence[Candidate], policy: RoutePolicy, wish: Wish) -> int | None:
    """The index of the target to use; None when no candidate is left.

    Weight 0 takes no traffic unless nothing else of any order is left.
    """
    usable = [i for i, one in enumerate(candidates) if not one.open and not one.tried]
    usable = [i for i in usable if candidates[i].weight] or usable
    usable = _by_region(candidates, usable, wish)
    if not usable:
        return None
    lowest = min(candidates[i].order for i in usable)
    usable = [i for i in usable if candidates[i].order == lowest]
    if len(usable) == 1:
        return usable[0]
    if wish.affinity and (policy is RoutePolicy.PREFIX or not wish.bounded):
        return _affine(candidates, usable, wish)
    if policy is RoutePolicy.FAILOVER:
        return usable[0]
    first = _draw(candidates, usable, wish.draws[0])
    if policy is not RoutePolicy.LEAST_LOADED:
        return first
    second = _draw(candidates, [i for i in usable if i != first], wish.draws[1])
    return min(first, second, key=lambda i: (_relative_load(candidates[i]), i != first))


def _by_region(candidates: Sequence[Candidate], usable: list[int], wish: Wish) -> list[int]:
    """Away from a region without quota; otherwise in the region asked before; where that leaves none, anywhere."""
    if wish.far_from:
        return [i for i in usable if candidates[i].region != wish.far_from] or usable
    if wish.near:
        return [i for i in usable if candidates[i].region == wish.near] or usable
    return usable


def _draw(candidates: Sequence[Candidate], usable: list[int], draw: float) -> int:
    total = sum(candidates[i].weight for i in usable)
    if total == 0:
        return usable[int(draw * len(usable))]
    point = draw * total
    for i in usable:
        point -= candidates[i].weight
        if point < 0:
            return i
    return max(i for i in usable if candidates[i].weight)


def _affine(candidates: Sequence[Candidate], usable: list[int], wish: Wish) -> int:
    """Rendezvous hashing by weight: when a target comes or goes, only what is its own moves.

    Bounded: a target with more than 1.25 times its part of what is in flight is passed over.
    Source: Thaler and Ravishankar, 1998; Mirrokni, Thorup and Zadimoghaddam, 2018 (bounded loads).
    """
    ranked = sorted(usable, key=lambda i: _score(wish.affinity, candidates[i]), reverse=True)
    if wish.bounded:
        weights = sum(max(1, candidates[i].weight) for i in usable)
        loads = sum(candidates[i].load for i in usable)
        for i in ranked:
            if candidates[i].load <= _SPREAD * loads * max(1, candidates[i].weight) / weights:
                return i
    return ranked[0]


def _score(affinity: bytes, candidate: Candidate) -> float:
    digest = hashlib.blake2b(candidate.name.encode(), key=affinity[:64], digest_size=8).digest()
    chance = (int.from_bytes(digest) + 1) / (2**64 + 1)
    return -max(1, candidate.weight) / math.log(chance)


def _relative_load(candidate: Candidate) -> float:
    return candidate.load / max(1, candidate.weight)
