"""Which target answers: a weighted draw among those not tried yet whose circuit is closed.

Chance and time are passed in, so every choice can be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_FAILURES_TO_OPEN = 5
_FIRST_PAUSE_NS = 1_000_000_000
_LONGEST_PAUSE_NS = 30_000_000_000


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


@dataclass(frozen=True, slots=True)
class Candidate:
    """A target as routing sees it."""

    weight: int
    open: bool
    tried: bool


def choose(candidates: Sequence[Candidate], draw: float) -> int | None:
    """The index of the target to use, by weight; `draw` is in [0, 1). None when no candidate is left.

    Weight 0 takes no traffic unless nothing else is left.
    """
    usable = [i for i, one in enumerate(candidates) if not one.open and not one.tried]
    if not usable:
        return None
    total = sum(candidates[i].weight for i in usable)
    if total == 0:
        return usable[int(draw * len(usable))]
    point = draw * total
    for i in usable:
        point -= candidates[i].weight
        if point < 0:
            return i
    return max(i for i in usable if candidates[i].weight)
