"""Answers from the cache: found, followed while they are on their way, replayed, and recorded as what they saved."""

from __future__ import annotations

from abc import abstractmethod
from time import monotonic_ns, time

from groundplane.domain.serving.limits import Binding
from groundplane.domain.serving.response_cache import Kept, read_wish
from groundplane.domain.serving.usage import NOTHING
from groundplane.gateway.admission import limit_headers, refusal
from groundplane.gateway.approach import Approach
from groundplane.gateway.cache import Answers, Flight, Result, hit_lines, miss_line
from groundplane.gateway.protocol.errors import upstream_fault
from groundplane.gateway.protocol.http1 import ResponseHead
from groundplane.gateway.records import settled_members
from groundplane.gateway.telemetry.metrics import Times
from groundplane.gateway.wal import LogUnavailable


class Replay(Approach):
    """A request of a route that keeps answers."""

    __slots__ = ()

    @abstractmethod
    def _answer_head(self, head: ResponseHead, length: int | None) -> bytes: ...

    def _look_up(self) -> bool:
        """Whether the answer is here, or on its way: then nothing goes upstream for this request."""
        state, lane, door = self._state, self.lane, self.door
        route, rule = lane.route, lane.route.cache
        assert rule is not None
        if not Answers.may_keep(rule, door, self.body):
            return False
        wish = read_wish(self._headers.get(b"cache-control", b""))
        name = Answers.name(route, door, self._query, self._passed_headers, self.body)
        kept, result = state.answers.find(route.route.project, name, wish)
        if kept is not None:
            self.serve(kept, collapsed=False)
            return True
        flight = None if result is Result.BYPASS else state.answers.flight(name)
        if flight is not None:
            self._flight, self._leads = flight, False
            flight.followers.append(self)
            return True
        state.metrics.flow.cached(lane.model, result)
        self._limit_lines += miss_line(result)
        self._flight, self._leads = state.answers.begin(name, lane.model, rule, wish), True
        return False

    # ------------------------------------------------------------ following

    def lead(self, flight: Flight) -> None:
        """Who was followed has failed: this request goes upstream, and the others follow it."""
        self._flight, self._leads = flight, True
        if self._over:
            flight.over()
        else:
            self._go_upstream()

    def go_alone(self) -> None:
        """The answer can't be kept, so everybody asks for it."""
        self._flight = None
        if not self._over:
            self._go_upstream()

    def _go_upstream(self) -> None:
        self._state.metrics.flow.cached(self.lane.model, Result.MISS)
        self._limit_lines += miss_line(Result.MISS)
        self._begin()

    def _leave_flight(self) -> None:
        """It is over, one way or the other."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        if self._leads:
            flight.over()
        elif self in flight.followers:
            flight.followers.remove(self)

    # ------------------------------------------------------------ replaying

    def serve(self, kept: Kept, *, collapsed: bool) -> None:
        """Answers with what was kept. It counts as a request, and costs no tokens and no dollars."""
        self._flight = None
        if self._over:
            return
        if self.lane.take_one():
            self._replay(kept, collapsed=collapsed)
            return

        def refilled(binding: Binding | None) -> None:
            if self._over:
                return
            if binding is not None:
                self._answer_full(refusal(self.lane, binding, monotonic_ns()), binding.retry_after_ns)
            else:
                self.serve(kept, collapsed=collapsed)

        self.lane.refill_one(monotonic_ns(), refilled)

    def _replay(self, kept: Kept, *, collapsed: bool) -> None:
        state, lane, key = self._state, self.lane, self.key.key
        target = next((one for one in lane.route.targets if one.target.endpoint == kept.source), None)
        target = target or lane.route.targets[0]
        constant, series = target.booked(key, lane.model, state.metrics)
        took_us = (monotonic_ns() - self._began_ns) // 1000
        record = settled_members(
            self.request_id,
            constant,
            200,
            NOTHING,
            0,
            (took_us, took_us, self.started_at),
            saved_microusd=kept.microusd,
            cache=b"hit",
        )
        try:
            state.log.settled(self.request_id, record, key.project, 0)
        except LogUnavailable as error:
            message = f"requests are refused while their usage can't be recorded: {error}"
            self._refuse(upstream_fault(503, message, "usage_log_unavailable", b"retry-after: 5\r\n"))
            return
        lane.route.counters.settled(200, NOTHING, 0, took_us)
        times: Times = (took_us, 0, None, None, took_us)
        series.settled(200, NOTHING, 0, times)
        if self._watch is not None:
            self.target, self._watch.cached = target, True
            self._watch.note(kept.body)
            state.telemetry.settled(self, self._watch, (200, NOTHING, 0), (times, took_us))
        state.metrics.flow.cached(lane.model, "collapsed" if collapsed else Result.HIT)
        self._limit_lines += hit_lines(kept, collapsed=collapsed) + limit_headers(lane, monotonic_ns())
        passed = b"content-type: %b\r\n" % kept.content_type
        head = ResponseHead(200, passed, None, chunked=kept.streamed, close=False, content_type=kept.content_type)
        self._over = True
        self._sent_ns = monotonic_ns()
        if kept.streamed:
            pieces = self._answer_head(head, None), b"%x\r\n" % len(kept.body), kept.body, b"\r\n0\r\n\r\n"
            self._caller.write(b"".join(pieces))
        else:
            self._caller.write(self._answer_head(head, len(kept.body)) + kept.body)
        self._finish()

    # ------------------------------------------------------------ keeping

    def _keep_answer(self, microusd: int) -> None:
        """The upstream's answer is whole, and good: others get it as this caller does."""
        flight, head, streamed = self._flight, self._head, self._events is not None
        assert flight is not None and head is not None
        if head.status != 200 or (self._head_sent and not streamed):
            flight.unfit = True  # a large one was passed on piece by piece
            return
        now_s, source = time(), self.target.target.endpoint
        body = b"" if streamed else self.tail
        flight.keep(Kept(self.key.key.project, now_s, now_s, head.content_type, body, streamed, microusd, source))
