"""A key on a route, with its limits resolved: what is asked of them before a request, and settled after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic_ns, time

import msgspec

from groundplane.domain.serving.limits import PURSES, Binding, Measure, Moment, Share
from groundplane.domain.serving.prompt_lint import Samples
from groundplane.domain.serving.snapshot import SnapshotKey
from groundplane.domain.serving.usage import AnswerLength, dearest, estimated_tokens, worst_case
from groundplane.gateway.counting.counters import Counters
from groundplane.gateway.protocol.doors import Door
from groundplane.gateway.protocol.json_body import Fields
from groundplane.gateway.targets import RouteState


class Size(msgspec.Struct, frozen=True, gc=False):
    """Of a request: its bytes, what they count as, as text, and whether it refers to what it does not have."""

    body_bytes: int
    weight_bytes: int
    refers: bool


class Lane:
    """A key on a route, with its limits resolved: what every request of that key for that model needs.

    `ones` are charged one unit when a request is admitted, `slots` lent one unit until it is over; `tokens` and `money`
    are reserved by estimate and at worst, and settled. `exact`: no field of a request may mean two things. `gates`: of
    a route with several targets, those with limits. `lines`: where requests of this lane may have to wait. `samples`:
    prompts that were looked at; `sample_in`: after how many requests the next one is.
    """

    __slots__ = (
        "_counters", "_dirty", "_prices", "_shared", "answers", "exact", "gates", "has_budget", "key", "lines",
        "minute_tokens", "model", "money", "ones", "route", "sample_in", "samples", "slots", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        key: SnapshotKey,
        route: RouteState,
        shares: Sequence[Share],
        answers: AnswerLength,
        counters: Counters,
        dirty: list[Share],
    ) -> None:
        by_measure: dict[Measure, list[Share]] = {measure: [] for measure in Measure}
        for share in shares:
            by_measure[share.limit.measure].append(share)
        self.key = key
        self.route = route
        self.model = route.route.model
        self.ones = tuple(by_measure[Measure.REQUESTS])
        self.slots = tuple(by_measure[Measure.CONCURRENT])
        self.tokens = tuple(by_measure[Measure.TOKENS] + by_measure[Measure.TOKENS_DAY])
        self.money = tuple(share for share in shares if share.limit.measure in PURSES)
        self.exact = bool(key.models) or route.reads_fields
        self.has_budget = bool(by_measure[Measure.BUDGET])
        self.minute_tokens = tuple(by_measure[Measure.TOKENS])
        self._dirty = dirty
        self._counters = counters
        self._shared = not counters.alone
        self._prices = tuple({dearest(target.target.price) for target in route.targets})
        self.answers = answers
        self.gates: dict[str, Lane] = {}
        self.lines = (*(share.limit.id for share in (*self.ones, *self.slots, *self.tokens)), *route.lines)
        self.samples = Samples()
        self.sample_in = 1

    # ------------------------------------------------------------ how much

    def ask(self, fields: Fields, size: Size, limit: int | None, door: Door) -> tuple[int, int]:
        """Tokens estimated, micro-dollars at worst over every target that may answer. `limit` is of one answer's
        tokens. Embeddings generate nothing; how many tokens a picture has, nobody estimates."""
        body_bytes = size.body_bytes
        context = self.route.context_tokens
        # Every byte a token, but no more than the model reads at once; that much, if what it reads is elsewhere.
        if size.refers:
            body_bytes = context or max(body_bytes, self.route.far_tokens)
        elif context and context < body_bytes:
            body_bytes = context
        tokens = most = 0
        if door.bounds:
            answers = fields.answers()
            longest = self.route.max_output_tokens
            if limit is None:
                tokens, most = answers * min(self.answers.expected(), longest), answers * longest
            else:
                tokens = most = answers * limit
        elif door.makes:
            most = fields.answers() * self.route.max_output_tokens
        microusd = 0
        for prices in self._prices:
            microusd = max(microusd, worst_case(body_bytes, most, prices))
        return estimated_tokens(size.weight_bytes) + tokens, microusd

    # ------------------------------------------------------------ take and settle

    def has(self, tokens: int, microusd: int) -> bool:
        """Whether `take` would succeed."""
        return (
            all(share.free >= 1 for share in (*self.ones, *self.slots))
            and all(share.free >= tokens for share in self.tokens)
            and all(share.free >= microusd for share in self.money)
        )

    def take(self, tokens: int, microusd: int) -> bool:
        """Takes from every share what it has free; False, and nothing taken, when one has too little."""
        for share in self.ones:
            if share.free < 1:
                return False
        for share in self.slots:
            if share.free < 1:
                return False
        for share in self.tokens:
            if share.free < tokens:
                return False
        for share in self.money:
            if share.free < microusd:
                return False
        for share in self.ones:
            share.free -= 1
            share.used += 1
            share.touched = True
            if not share.dirty:
                share.dirty = True
                self._dirty.append(share)
        for share in self.slots:
            share.free -= 1
            share.touched = True
        for share in self.tokens:
            share.free -= tokens
            share.touched = True
        for share in self.money:
            share.free -= microusd
            share.touched = True
        return True

    def take_one(self) -> bool:
        """Counts a request that needs nothing else; False, and nothing taken, when a limit of requests has no room."""
        if any(share.free < 1 for share in self.ones):
            return False
        for share in self.ones:
            share.free -= 1
            share.used += 1
            self._mark(share)
        return True

    def refill_one(self, now_ns: int, then: Callable[[Binding | None], None]) -> None:
        """Gets what `take_one` needs."""
        wants = [(share, 1) for share in self.ones if share.free < 1]
        for share, _ in wants:
            self._mark(share)
        self._counters.refill(wants, Moment(now_ns, time()), then)

    def refill(self, tokens: int, microusd: int, now_ns: int, then: Callable[[Binding | None], None]) -> None:
        """Gets what a request needs where shares have too little; `take` succeeds right after `then(None)`."""
        wants = [(share, 1) for share in (*self.ones, *self.slots) if share.free < 1]
        wants += [(share, tokens) for share in self.tokens if share.free < tokens]
        wants += [(share, microusd) for share in self.money if share.free < microusd]
        for share, _ in wants:
            self._mark(share)
        self._counters.refill(wants, Moment(now_ns, time()), then)

    def settle(self, reserved: tuple[int, int], tokens: int, microusd: int, seq: int) -> None:
        """Gives reservations back and charges what was used; more than reserved leaves a debt."""
        for share in self.slots:
            share.free += 1
            self._mark(share)
        asked, worst = reserved
        for share in self.tokens:
            share.free += asked - tokens
            share.used += tokens
            share.touched = True
            if not share.dirty:
                share.dirty = True
                self._dirty.append(share)
        for share in self.money:
            share.free += worst - microusd
            share.touched = True
            assert share.purse is not None
            # The log's last number is this settlement's: the control plane has seen it once it has read that far.
            share.purse.spent(microusd, seq)
            if not share.dirty:
                share.dirty = True
                self._dirty.append(share)

        if self._shared:
            # Where little is left, what one worker does not need another one waits for.
            tight = [share for share in (*self.slots, *self.tokens, *self.money) if share.tight and share.free > 0]
            if tight:
                self._counters.flush(tight, Moment(monotonic_ns(), time()))

    def _mark(self, share: Share) -> None:
        share.touched = True
        if not share.dirty:
            share.dirty = True
            self._dirty.append(share)
