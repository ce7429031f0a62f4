"""Who may go now: requests and tokens per minute by GCRA, dollars by reservation; all of them or none.

Decisions depend only on the state and on the time that is passed in (nanoseconds of a monotonic clock). The state
objects change in place, because the gateway asks once per request and owns them in one thread.

The meter is the generic cell rate algorithm in its leaky-bucket form, on integers, so a limit of 7 admits exactly 7:
a burst of one minute's allowance, refilled evenly. Over any interval of t seconds at most limit × (1 + t / 60) get
through. Reserved units do not drain while they are in flight: they are charged when they are settled, so a request
that takes long can't be used up twice. Source: ATM Forum TM 4.1, 4.4.2 (GCRA as continuous-state leaky bucket).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

MINUTE_NS = 60_000_000_000
_SETTLEMENTS_KEPT = 8192


class Limit(StrEnum):
    REQUESTS = "requests per minute"
    TOKENS = "tokens per minute"
    BUDGET = "budget"


@dataclass(frozen=True, slots=True)
class Binding:
    """The limit that said no. `retry_after_ns` is None when waiting does not help."""

    limit: Limit
    limit_value: int
    left: int
    requested: int
    retry_after_ns: int | None


@dataclass(slots=True)
class Meter:
    """One limit per minute. `level` counts units × MINUTE_NS and drains by `limit` per nanosecond."""

    limit: int
    level: int = 0
    at_ns: int = 0
    reserved: int = 0

    def drain(self, now_ns: int) -> None:
        """Brings the level to now. A clock that stands or goes back drains nothing."""
        passed_ns = now_ns - self.at_ns
        if passed_ns > 0:
            level = self.level - passed_ns * self.limit
            self.level = level if level > 0 else 0
            self.at_ns = now_ns

    def wait_ns(self, units: int, now_ns: int) -> int | None:
        """How long until `units` fit if what is in flight uses what it reserved: 0 is now, None is never."""
        self.drain(now_ns)
        over = self.level + (self.reserved + units - self.limit) * MINUTE_NS
        if over <= 0:
            return 0
        if units > self.limit:
            return None
        return -(-over // self.limit)

    def take(self, units: int) -> None:
        """Uses units at once. Ask `wait_ns` first."""
        self.level += units * MINUTE_NS

    def reserve(self, units: int) -> None:
        """Sets units aside for a request in flight. Ask `wait_ns` first."""
        self.reserved += units

    def settle(self, reserved: int, used: int, now_ns: int) -> None:
        """Gives a reservation back and charges what was used; more than reserved leaves a debt to be drained."""
        self.drain(now_ns)
        self.reserved -= reserved
        self.level += used * MINUTE_NS

    def standing(self, now_ns: int) -> tuple[int, int]:
        """Whole units that would fit now, and nanoseconds until the allowance is whole if reservations are used up."""
        self.drain(now_ns)
        if self.limit <= 0:
            return 0, MINUTE_NS
        used = self.level + self.reserved * MINUTE_NS
        return max(0, self.limit - -(-used // MINUTE_NS)), -(-used // self.limit)

    def change_limit(self, limit: int, now_ns: int) -> None:
        """A new limit counts from now on; what was used stays used."""
        self.drain(now_ns)
        self.limit = limit


@dataclass(slots=True)
class Purse:
    """A project's dollars as one gateway sees them: what the control plane left, less what it can't know yet.

    `remaining` is None when the project has no budget: then nothing is admitted.
    """

    remaining: int | None
    reserved: int = 0
    unseen: int = 0
    _settled: deque[tuple[int, int]] = field(default_factory=deque)

    @property
    def left(self) -> int:
        """Micro-dollars that can be reserved now; below zero when answers cost more than was reserved."""
        return 0 if self.remaining is None else self.remaining - self.unseen - self.reserved

    def reserve(self, microusd: int) -> None:
        self.reserved += microusd

    def settle(self, reserved: int, spent: int, seq: int) -> None:
        """Gives a reservation back and remembers what was spent until the control plane has seen record `seq`."""
        self.reserved -= reserved
        if not spent:
            return
        self.unseen += spent
        self._settled.append((seq, spent))
        if len(self._settled) > _SETTLEMENTS_KEPT:
            self._settled = _merge_pairs(self._settled)

    def restate(self, remaining: int | None, ingested_seq: int) -> None:
        """The control plane's new figure, which already contains every settlement up to `ingested_seq`."""
        self.remaining = remaining
        while self._settled and self._settled[0][0] <= ingested_seq:
            self.unseen -= self._settled.popleft()[1]


def _merge_pairs(settled: Iterable[tuple[int, int]]) -> deque[tuple[int, int]]:
    """Half as many, each known by its later record: forgotten a little late, which errs on the safe side."""
    merged: deque[tuple[int, int]] = deque()
    left: tuple[int, int] | None = None
    for seq, spent in settled:
        if left is None:
            left = (seq, spent)
        else:
            merged.append((seq, left[1] + spent))
            left = None
    if left is not None:
        merged.append(left)
    return merged


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request wants reserved: estimated tokens, worst-case micro-dollars."""

    tokens: int
    microusd: int


def admit(requests: Meter | None, tokens: Meter | None, purse: Purse, ask: Ask, now_ns: int) -> Binding | None:
    """Takes from every limit and returns None, or takes nothing and returns the limit that binds.

    A spent budget is told first, because waiting does not help; otherwise the limit with the longest wait.
    """
    if purse.remaining is None or ask.microusd > purse.left:
        return Binding(Limit.BUDGET, purse.remaining or 0, purse.left, ask.microusd, None)
    binding: Binding | None = None
    for limit, meter, units in ((Limit.REQUESTS, requests, 1), (Limit.TOKENS, tokens, ask.tokens)):
        if meter is None:
            continue
        wait_ns = meter.wait_ns(units, now_ns)
        if wait_ns == 0:
            continue
        if binding is None or _longer(wait_ns, binding.retry_after_ns):
            binding = Binding(limit, meter.limit, meter.standing(now_ns)[0], units, wait_ns)
    if binding is not None:
        return binding
    if requests is not None:
        requests.take(1)
    if tokens is not None:
        tokens.reserve(ask.tokens)
    purse.reserve(ask.microusd)
    return None


def _longer(wait_ns: int | None, than_ns: int | None) -> bool:
    return than_ns is not None and (wait_ns is None or wait_ns > than_ns)
