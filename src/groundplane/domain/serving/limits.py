"""Who may go now: requests, tokens, concurrency and dollars, kept exactly by any number of holders.

An `Account` is what is known of one limit where it is kept (in one process, in memory shared by a machine's workers,
or in Redis). Whoever admits requests is a *holder*: it has a `Share` of the limit, units paid for in advance, and
admits from that alone. So `level` (what was used and counts still) plus `held` (what all holders have) never passes the
limit when units are handed out, whoever dies or comes late.

Per-minute limits are the generic cell rate algorithm in its leaky-bucket form, on integers: a burst of one minute's
allowance, refilled evenly. Over any interval of t seconds at most limit × (1 + t / 60) get through. Held units do not
drain, so a request that takes long can't be used up twice. Tokens per day count from midnight UTC. Dollars (a project's
budget; a day's or a month's of any scope) are kept in the ledger: their value is what the control plane says is left,
and what was spent since stays held until the control plane has seen it.
Source: ATM Forum TM 4.1, 4.4.2 (GCRA as continuous-state leaky bucket).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum

MINUTE_NS = 60_000_000_000
DAY_S = 86_400
_SECOND_NS = 1_000_000_000
_SETTLEMENTS_KEPT = 8192
_SLICES_MIN = 64
"""Units are handed out ahead only while every holder could take this many more of what is asked."""
_SLICE_PART = 16
_CONCURRENCY_RETRY_NS = _SECOND_NS


class Measure(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests per minute"
    TOKENS = "tokens per minute"
    TOKENS_DAY = "tokens per day"
    CONCURRENT = "concurrent requests"
    BUDGET = "budget"
    DOLLARS_DAY = "dollars per day"
    DOLLARS_MONTH = "dollars per month"


PURSES = frozenset({Measure.BUDGET, Measure.DOLLARS_DAY, Measure.DOLLARS_MONTH})
"""Measures whose value is what the ledger leaves."""
UNITS = {
    Measure.REQUESTS: "requests",
    Measure.TOKENS: "tokens",
    Measure.TOKENS_DAY: "tokens",
    Measure.CONCURRENT: "requests",
    Measure.BUDGET: "micro-dollars",
    Measure.DOLLARS_DAY: "micro-dollars",
    Measure.DOLLARS_MONTH: "micro-dollars",
}
SCALES = {measure: MINUTE_NS if measure in {Measure.REQUESTS, Measure.TOKENS} else 1 for measure in Measure}
"""What one unit counts in `Account.level`."""


class WhenDown(StrEnum):
    """What a limit kept elsewhere does while that place does not answer."""

    CLOSED = "fail-closed"
    OPEN = "fail-open"
    LOCAL = "local-share"


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of one scope. `version` orders the values of dollars: a later one replaces an earlier one."""

    scope: str
    name: str
    measure: Measure
    value: int
    when_down: WhenDown = WhenDown.LOCAL
    version: int = 0

    @property
    def id(self) -> str:
        return f"{self.scope}:{self.name}:{self.measure.value}"


LIMIT_SCOPES = ("project", "model", "endpoint", "key")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRule:
    """A limit as somebody set it. id is `scope:name:measure`; a model's name has its project before it.

    Of dollars, `value` is micro-dollars, and `spent_microusd` what the ledger has of requests that began in `period`.
    """

    id: str
    scope: str
    name: str
    project: str
    measure: Measure
    value: int
    when_down: WhenDown = WhenDown.LOCAL
    set_by: str
    set_at: datetime
    period: str = ""
    spent_microusd: int = 0
    version: int = 0

    def with_spending(self, microusd: int, began_at: datetime) -> LimitRule:
        """After a request that began then. A new period begins at 0; what belongs to an earlier one is over."""
        period = period_of(self.measure, began_at)
        if period < self.period:
            return self
        before = self.spent_microusd if period == self.period else 0
        return replace(self, period=period, spent_microusd=before + microusd)

    def left(self, now: datetime) -> int:
        """Micro-dollars left of the period that `now` is in."""
        spent = self.spent_microusd if self.period >= period_of(self.measure, now) else 0
        return max(0, self.value - spent)


def scopes_of(project: str, model: str, endpoint: str, key_id: str) -> tuple[tuple[str, str], ...]:
    """Whose limits a request counts in, as `Limit.scope` and `Limit.name`."""
    return ("project", project), ("model", f"{project}/{model}"), ("endpoint", endpoint), ("key", key_id)


def period_of(measure: Measure, moment: datetime) -> str:
    """The day (`2026-03-02`) or the month (`2026-03`), in UTC, that a limit of dollars counts at that moment."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d" if measure is Measure.DOLLARS_DAY else "%Y-%m")


def period_start(measure: Measure, moment: datetime) -> datetime:
    """When that day or month began."""
    day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day if measure is Measure.DOLLARS_DAY else day.replace(day=1)


@dataclass(frozen=True, slots=True)
class Moment:
    """Nanoseconds of a monotonic clock, and epoch seconds."""

    ns: int
    wall_s: float


@dataclass(slots=True)
class Account:
    """One limit where it is kept. `level` counts units × SCALES[measure]; `at` is nanoseconds, or the day's number."""

    value: int
    level: int = 0
    at: int = 0
    held: int = 0
    version: int = 0

    def bring(self, limit: Limit, now: Moment) -> None:
        """To this moment and this limit's value. A clock that stands or goes back drains nothing."""
        measure = limit.measure
        if measure in PURSES:
            if limit.version >= self.version:
                self.value, self.version = limit.value, limit.version
            return
        if SCALES[measure] == MINUTE_NS:
            passed_ns = now.ns - self.at
            if passed_ns > 0:
                level = self.level - passed_ns * self.value
                self.level = level if level > 0 else 0
                self.at = now.ns
        elif measure is Measure.TOKENS_DAY:
            day = int(now.wall_s // DAY_S)
            if day > self.at:
                self.level, self.at = 0, day
        self.value = limit.value

    def left(self, measure: Measure) -> int:
        """Whole units nobody has used or holds; below zero when more was used than reserved."""
        return self.value - self.held - -(-self.level // SCALES[measure])

    def wait_ns(self, limit: Limit, units: int, now: Moment) -> int | None:
        """How long until `units` fit if what is held is used: 0 is now, None is never, or nobody knows when."""
        measure, scale = limit.measure, SCALES[limit.measure]
        over = self.level + (self.held + units - self.value) * scale
        if over <= 0:
            return 0
        if units > self.value or measure in PURSES:
            return None
        if measure is Measure.TOKENS_DAY:
            return int((DAY_S - now.wall_s % DAY_S) * _SECOND_NS) + 1
        if measure is Measure.CONCURRENT:
            return _CONCURRENCY_RETRY_NS
        return -(-over // self.value)

    def slice_for(self, measure: Measure, need: int, holders: int) -> int:
        """Units worth handing out beyond what is needed now: a small part of plenty, nothing of little."""
        left = self.left(measure) - need
        return left // (_SLICE_PART * holders) if left > _SLICES_MIN * holders * max(need, 1) else 0


@dataclass(frozen=True, slots=True)
class Binding:
    """The limit that said no. `retry_after_ns` is None when waiting does not help."""

    limit: Limit
    left: int
    requested: int
    retry_after_ns: int | None
    store_down: bool = False


@dataclass(slots=True)
class Share:
    """What one holder has of a limit. `free` can be taken now; `used` is to be charged; `held` is all of it:
    free + used + in flight (+ spent and not yet seen, of dollars). The rest is the account as last seen."""

    limit: Limit
    free: int = 0
    used: int = 0
    held: int = 0
    level: int = 0
    at_ns: int = 0
    all_held: int = 0
    dirty: bool = False
    touched: bool = False
    tight: bool = False
    purse: Spending | None = None

    def seen(self, account: Account, at_ns: int) -> None:
        """Remembers how the account stands."""
        self.level, self.all_held, self.at_ns = account.level, account.held, at_ns

    @property
    def unseen(self) -> int:
        """Of dollars: spent, held still, and not known to the control plane."""
        return 0 if self.purse is None else self.purse.unseen

    @property
    def in_flight(self) -> int:
        """Units set aside for requests that are not over."""
        return self.held - self.free - self.used - self.unseen

    def settlement(self, need: int) -> Entry:
        """What is owed and given back, with `need` asked for. The share is empty until `take_in`."""
        back = self.free
        if self.purse is not None:
            back += self.purse.to_return
            self.purse.to_return = 0
        entry = Entry(self.limit, self.used, back, need)
        self.held -= self.used + back
        self.free = self.used = 0
        return entry

    def take_in(self, units: int, need: int) -> None:
        """What was handed out. When it is no more than was needed, there is little left, and nothing to keep idle."""
        self.tight = units <= need
        self.free += units
        self.held += units

    def standing(self, now_ns: int) -> tuple[int, int]:
        """Whole units that would fit now, and nanoseconds until the allowance is whole if all that is held is used."""
        value = self.limit.value
        if value <= 0:
            return 0, MINUTE_NS
        scale, held = SCALES[self.limit.measure], self.all_held - self.free
        level = self.level
        if scale == MINUTE_NS:
            level -= (now_ns - self.at_ns) * value
        if level <= 0:
            return (value - held if held < value else 0), -(-held * scale // value)
        taken = level + held * scale
        left = value - -(-taken // scale)
        return (left if left > 0 else 0), -(-taken // value)


@dataclass(slots=True)
class Spending:
    """Dollars of one purse that this holder spent and the control plane has not seen, by log record."""

    unseen: int = 0
    to_return: int = 0
    _settled: deque[tuple[int, int]] = field(default_factory=deque)

    def spent(self, microusd: int, seq: int) -> None:
        """Remembers what was spent until the control plane has seen record `seq`."""
        if not microusd:
            return
        self.unseen += microusd
        self._settled.append((seq, microusd))
        if len(self._settled) > _SETTLEMENTS_KEPT:
            self._settled = _merge_pairs(self._settled)

    def ingested(self, seq: int) -> None:
        """The control plane's figure now contains every settlement up to `seq`: they need not be held any more."""
        while self._settled and self._settled[0][0] <= seq:
            microusd = self._settled.popleft()[1]
            self.unseen -= microusd
            self.to_return += microusd


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
class Entry:
    """One line of a transaction with an account: charge `used` of what is held, take `back`, and hand out `need`."""

    limit: Limit
    used: int
    back: int
    need: int


def worse(one: Binding | None, other: Binding) -> Binding:
    """Which refusal to tell: spent dollars first, because waiting does not help; then the longest wait."""
    if one is None:
        return other
    if one.limit.measure in PURSES or other.limit.measure in PURSES:
        return one if one.limit.measure in PURSES else other
    if one.retry_after_ns is None or other.retry_after_ns is None:
        return one if one.retry_after_ns is None else other
    return other if other.retry_after_ns > one.retry_after_ns else one


def transact(entries: Sequence[Entry], accounts: Sequence[Account], holders: int, now: Moment) -> Binding | list[int]:
    """Charges every entry, then hands out to all of them or to none. `accounts` change in place.

    Returns the refusal, or what each entry got: at least what it needs.
    """
    binding: Binding | None = None
    for entry, account in zip(entries, accounts, strict=True):
        limit = entry.limit
        account.bring(limit, now)
        account.level += entry.used * SCALES[limit.measure]
        account.held -= entry.used + entry.back
        if entry.need > 0:
            wait_ns = account.wait_ns(limit, entry.need, now)
            if wait_ns != 0:
                binding = worse(binding, Binding(limit, max(0, account.left(limit.measure)), entry.need, wait_ns))
    if binding is not None:
        return binding
    granted = []
    for entry, account in zip(entries, accounts, strict=True):
        units = entry.need
        if units > 0:
            units += account.slice_for(entry.limit.measure, units, holders)
        account.held += units
        granted.append(units)
    return granted
