"""A request until it is on its way: read, admitted, and given a target; and another target where one fails.

Law: money and tokens are reserved, and the reservation is in the log, before the request leaves.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from time import monotonic_ns, time_ns
from typing import Protocol

import msgspec

from groundplane.domain.serving.limits import Binding
from groundplane.domain.serving.usage import BYTES_PER_TOKEN, rate
from groundplane.gateway.admission import find_route, limit_headers, no_budget, refusal
from groundplane.gateway.cache import Flight
from groundplane.gateway.hedging import Hedge
from groundplane.gateway.lanes import Lane, Size
from groundplane.gateway.patience import Patience
from groundplane.gateway.protocol.doors import JSON_DOORS, RESPONSE_EVENTS, Door
from groundplane.gateway.protocol.errors import Fault, bad_request, upstream_fault
from groundplane.gateway.protocol.form_body import read_form
from groundplane.gateway.protocol.http1 import RequestHead, ResponseHead
from groundplane.gateway.protocol.json_body import NO_MEMBERS, Fields, read_fields, read_members, refers, weight_bytes
from groundplane.gateway.protocol.sse import EventStream
from groundplane.gateway.records import decimal_s, reserved_members
from groundplane.gateway.selection import Selection
from groundplane.gateway.state import GatewayState
from groundplane.gateway.tables import KeyState
from groundplane.gateway.targets import JSON, TargetState
from groundplane.gateway.telemetry.metrics import Histogram
from groundplane.gateway.telemetry.prompts import SAMPLE_EVERY, sample
from groundplane.gateway.upstream import UpstreamConnection
from groundplane.gateway.waiting import Need, Ticket, need_of
from groundplane.gateway.wal import LogUnavailable
from groundplane.gateway.watch import Watch


class Caller(Protocol):
    """The client connection, as an exchange sees it."""

    closes: bool

    def write(self, data: bytes) -> None: ...
    def fail(self, fault: Fault) -> None: ...
    def finished(self) -> None: ...
    def end_broken(self, last_words: bytes) -> None: ...


class Approach(Patience):
    """What comes before the first byte. `Exchange` goes on from `_send`."""

    __slots__ = (
        "_caller", "_connected_ns", "_connection", "_content_bytes", "_content_type", "_events", "_fault",
        "_flight", "_gaps", "_gate", "_head", "_head_sent", "_hedge", "_hedge_timer", "_held", "_last_ns", "_leads",
        "_loaded", "_loaded_ns", "_members", "_model_span", "_passed_headers", "_prompt_tokens", "_query",
        "_sent_ns", "_stale_retried", "_ttft_us", "_unbounded", "_waits_for_hedge", "_wants_usage", "_watch",
        "door", "request_id", "said_id", "settled", "started_at", "streams", "tail", "target",
    )  # fmt: skip

    def __init__(
        self, state: GatewayState, caller: Caller, key: KeyState, door: Door, body: bytes, head: RequestHead
    ) -> None:
        """Reads the request. Raises Fault when it can't be one of this key's."""
        self._content_type = JSON
        if door.form and head.headers.get(b"content-type", b"").partition(b";")[0].strip().lower() == JSON:
            door = JSON_DOORS.get(door.path, door)
        if door.form:
            self._content_type = head.headers.get(b"content-type", b"")
            form = read_form(body, self._content_type)
            fields, self._model_span = Fields(model=form.model, n=form.answers), form.model_span
            size = Size(form.weight_bytes, form.weight_bytes, refers=form.has_files and door.pictures)
        else:
            fields = read_fields(body)
            size = Size(len(body), weight_bytes(body), refers=False)
        model = fields.model
        assert model is not None
        lane = self.lane = key.lanes.get(model) or state.lane(key, find_route(key, model))
        bounds = door.bounds
        generates = bool(bounds)
        limit = fields.answer_tokens_max(bounds)
        self._state = state
        self._caller = caller
        self.door = door
        self.body = body
        self._passed_headers = head.passed
        self.streams = generates and bool(fields.stream)
        self._wants_usage = self.streams and (fields.wants_usage or not door.stream.asks_usage)  # type: ignore[union-attr]
        self._unbounded = generates and limit is None
        self._members = NO_MEMBERS
        if lane.exact or self.streams or door.stream is RESPONSE_EVENTS:
            size = self._look_closer(fields, size)
        self.key = key
        self.ask = (0, 0) if door.free else lane.ask(fields, size, limit, door)
        # The caller's own id is what everybody says; what is charged goes by ours, which nobody can repeat.
        self.request_id = state.new_request_id()
        self.said_id = head.request_id or self.request_id
        self._query = head.query
        self.started_at = decimal_s(time_ns())
        self._began_ns = monotonic_ns()
        self._prompt_tokens = 0 if door.free else -(-size.weight_bytes // BYTES_PER_TOKEN)
        self._selection: Selection | None = None
        self._headers = head.headers
        self._ticket: Ticket | None = None
        self._leads = False
        self._flight: Flight | None = None
        self._asked_only = False
        self._gate: Lane | None = None
        self._full: Binding | None = None
        self._bound: Binding | None = None
        self._fault: Fault | None = None
        self._loaded: TargetState | None = None
        self._hedge: Hedge | None = None
        self._hedge_timer: asyncio.TimerHandle | None = None
        self._waits_for_hedge = False
        self._stale_retried = self._sent = self._head_sent = self.settled = self._admitted = self._over = False
        self._head: ResponseHead | None = None
        self._events: EventStream | None = None
        self._held: list[bytes] | None = None
        self._content_bytes = 0
        self.tail = self._limit_lines = self._digest = b""
        self._ttft_us: int | None = None
        self._sent_ns = self._connected_ns = self._last_ns = 0
        self._gaps: Histogram | None = None
        self._watch: Watch | None = None
        if state.telemetry.active:
            self._watch = state.telemetry.watch(self.lane, head)
            if self._watch is not None:
                self._passed_headers = self._watch.passed
        self._connection: UpstreamConnection | None = None

    def _look_closer(self, fields: Fields, size: Size) -> Size:
        """Where the fields stand that may be replaced, and whether the prompt is all here. Raises Fault."""
        door, body, exact = self.door, self.body, self.lane.exact and not self.door.form
        responds = door.stream is RESPONSE_EVENTS
        if responds and bytes(fields.background) == b"true":
            told = "background responses are not served here, because nobody could meter them: leave background out"
            raise bad_request(told, "background_not_served", "background")
        injects = self.streams and not self._wants_usage
        if exact or (injects and (b"stream_options" in body or b"\\u" in body)):
            self._members = read_members(body)
        elsewhere = (responds and fields.goes_on) or (exact and refers(body))
        return msgspec.structs.replace(size, refers=True) if elsewhere else size

    @abstractmethod
    def _send(self) -> None: ...

    @abstractmethod
    def _fail(self, fault: Fault) -> None: ...

    # ------------------------------------------------------------ admission

    @property
    def project(self) -> str:
        """Whose turn its pieces of work wait for."""
        return self.key.key.project

    @property
    def admitted(self) -> bool:
        """Whether limits have let it pass."""
        return self._admitted

    def start(self) -> None:
        """Chooses a target, reserves, and sends; or answers why not. What limits say may come later."""
        self._state.metrics.in_flight += 1
        lane = self.lane
        lane.sample_in -= 1
        if not lane.sample_in:
            self._sample()
        pieces, project = self._state.pieces, self.key.key.project
        if project != pieces.project:
            pieces.came(project)
        if pieces.left:
            pieces.left -= 1
            if not pieces.left:
                pieces.used_up()
        elif pieces.waits(project, self.begin):
            return
        self.begin()

    def begin(self) -> bool:
        """Its turn among those that came at once. False: its caller has left meanwhile."""
        if self._over:
            return False
        lane = self.lane
        if not lane.has_budget:
            self._refuse(no_budget(lane))
        elif lane.route.cache is None or not self._look_up():
            self._begin()
        return True

    @abstractmethod
    def _look_up(self) -> bool: ...

    @abstractmethod
    def _leave_flight(self) -> None: ...

    def _sample(self) -> None:
        """Looks at the order of this prompt."""
        lane = self.lane
        lane.sample_in = SAMPLE_EVERY
        segments = sample(self.door, self.body)
        if segments:
            lane.samples.add(segments)

    def _begin(self) -> None:
        lane = self.lane
        if self._state.room.count and self._ticket is None and self._joins():
            return
        try:
            self.target = self._choose()
        except Fault as fault:
            self._nobody(fault)
            return
        if lane.gates:
            self._take_through_gate()
        elif lane.take(*self.ask):
            self._admit()
        else:
            lane.refill(*self.ask, self._began_ns, self._refilled)

    def _refilled(self, binding: Binding | None) -> None:
        if self._over:
            return  # the caller left meanwhile: what was handed out is idle, and goes back
        if binding is not None:
            limit = binding.limit
            need = need_of(binding, limit.id, limit.value, (limit.id,))
            self._unload()
            self._no_room(need, refusal(self.lane, binding, monotonic_ns()), binding)
        elif self.lane.gates:
            self._take_through_gate()
        elif self.lane.take(*self.ask):
            self._admit()
        else:
            # What was free beside the refill went to another request meanwhile.
            self.lane.refill(*self.ask, monotonic_ns(), self._refilled)

    def _take_through_gate(self) -> None:
        """All of the request's limits and all of its target's, or none of them."""
        lane, gate = self.lane, self.lane.gates.get(self.target.target.endpoint)
        if not lane.has(*self.ask):
            lane.refill(*self.ask, monotonic_ns(), self._refilled)
        elif gate is not None and not gate.has(*self.ask):
            gate.refill(*self.ask, monotonic_ns(), self._gate_refilled)
        else:
            self._gate = gate
            lane.take(*self.ask)
            if gate is not None:
                gate.take(*self.ask)
            self._admit()

    def _gate_refilled(self, binding: Binding | None) -> None:
        """A target whose limits are full leaves the request to another one; the soonest of them says when to return."""
        if self._over:
            return
        if binding is not None:
            if self._full is None or _sooner(binding, self._full):
                self._full = binding
            try:
                self.target = self._choose()
            except Fault:
                self._gates_are_full(self._full)
                return
            self._state.metrics.spilled += 1
        self._take_through_gate()

    def _gates_are_full(self, binding: Binding) -> None:
        """Every target's own limits are: the request waits for the first that is not."""
        gates = self.lane.gates.values()
        shares = [share for gate in gates for share in (*gate.ones, *gate.tokens)]
        per_minute = sum(one.limit.value for one in shares if one.limit.measure is binding.limit.measure)
        wakes = tuple({name for gate in gates for name in gate.lines})
        need = need_of(binding, self.lane.route.gates_line, per_minute, wakes)
        self._unload()
        self._no_room(need, refusal(self.lane, binding, monotonic_ns()), binding)

    def _nobody(self, fault: Fault) -> None:
        """No target can be asked: where that is because all are full, one of them will not be."""
        route, selection = self.lane.route, self._selection
        wait_ns = selection.wait_ns(monotonic_ns()) if selection is not None and route.queue is not None else None
        need = None
        if wait_ns is not None:
            need = Need(route.replicas_line, wait_ns or None, by_tokens=True, wakes=route.places)
        self._no_room(need, fault)

    def _begin_again(self) -> None:
        try:
            self.target = self._choose()
        except Fault as fault:
            self._nobody(fault)
            return
        self._waited()
        if self.lane.gates:
            self._change_gate()
        else:
            self._send()

    def _admit(self) -> None:
        """Notes the reservation, then sends: nothing goes upstream that the log does not know."""
        now = self._began_ns
        if self._ticket is not None:
            self._waited()
            now = monotonic_ns()
        self._limit_lines += limit_headers(self.lane, now)
        if self.door.anthropic:
            self._limit_lines += b"request-id: %b\r\n" % self.said_id
        if self.said_id is not self.request_id:
            self._limit_lines += b"x-groundplane-request-id: %b\r\n" % self.request_id
        constant, _ = self.target.booked(self.key.key, self.lane.model, self._state.metrics)
        prompt, price = self._prompt_tokens, self.target.target.price
        record = reserved_members(self.request_id, constant, prompt, rate(prompt, 0, 0, price), self.started_at)
        try:
            self._state.log.reserved(self.request_id, record)
        except LogUnavailable as error:
            self._settle_limits(0, 0)
            message = f"requests are refused while their usage can't be recorded: {error}"
            self._refuse(upstream_fault(503, message, "usage_log_unavailable", b"retry-after: 5\r\n"))
            return
        self._admitted = True
        self._send()

    def _refuse(self, fault: Fault) -> None:
        """Not admitted: nothing is reserved, and nothing is recorded but the count."""
        self._over = True
        self.lane.route.counters.answered(fault.status)
        key = self.key.key
        self._state.metrics.series(key.project, key.id, self.lane.model, "", "").answered(fault.status)
        if self._watch is not None:
            self._state.telemetry.refused(self, self._watch, fault)
        caller = self._caller
        self._finish(tell_caller=False)
        caller.fail(fault)

    # ------------------------------------------------------------ targets

    def _choose(self) -> TargetState:
        """Raises Fault 503 when no target is left to ask."""
        selection = self._selection
        if selection is None:
            only = self.lane.route.only
            if (
                only is not None
                and not only.upstream.circuit.failures
                and not self._asked_only
                and (only.standing.rests_until_ns <= self._began_ns or self.lane.route.queue is None)
            ):
                self._asked_only = True
                return only
            session = self._headers.get(b"x-session-id", b"")
            selection = self._selection = Selection(self.lane.route, self.door, self.body, self._members, session)
            if self._asked_only:
                raise selection.nobody(monotonic_ns())
        now = monotonic_ns()
        target = selection.next(now)
        if target is None:
            raise selection.nobody(now)
        if target.standing.concurrency is not None:
            self.target = target
            self._load()  # its place there is taken now: others choose meanwhile
        return target

    def _try_another(self, fault: Fault | None) -> None:
        """Nothing has been relayed yet: another target may answer; otherwise the caller gets the fault, or, where
        none is given, what there is to say about all targets."""
        self._connection = None
        self._head = None
        self._stale_retried = False
        self._fault = fault
        if self._hedge is not None:
            self._waits_for_hedge = True  # it is on its way already
            return
        try:
            self.target = self._choose()
        except Fault as nobody:
            if fault is None:
                self._unload()
                self._nobody(nobody)
            else:
                self._fail(fault)
            return
        self._state.metrics.upstream_retries += 1
        if self.lane.gates:
            self._change_gate()
        else:
            self._send()

    def _change_gate(self, binding: Binding | None = None) -> None:
        """The limits of the target asked first are given back, and those of the next one taken, before it is asked."""
        if self._over:
            return
        if self._gate is not None:
            self._gate.settle(self.ask, 0, 0, self._state.log.seq)
            self._gate = None
        gate = self.lane.gates.get(self.target.target.endpoint)
        if binding is not None:
            self._try_another(self._fault)
        elif gate is not None and not gate.take(*self.ask):
            gate.refill(*self.ask, monotonic_ns(), self._change_gate)
        else:
            self._gate = gate
            self._send()

    # ------------------------------------------------------------ hedging

    def _may_hedge(self) -> None:
        """Looks in a while whether a second target should be asked."""
        after_ms = self.lane.route.route.hedge_ms
        if after_ms is not None and self._hedge_timer is None and self._selection is not None:
            self._hedge_timer = asyncio.get_running_loop().call_later(after_ms / 1000, self._ask_second)

    def _ask_second(self) -> None:
        """The first target has not answered: the request goes to the next one too, if that has room."""
        if self._over or self._head is not None or self._hedge is not None:
            return
        assert self._selection is not None
        target = self._selection.next(monotonic_ns())
        if target is None:
            return
        gate = self.lane.gates.get(target.target.endpoint)
        if gate is not None and not gate.take(*self.ask):
            return
        self._state.metrics.hedged += 1
        self._hedge = self._second(target, gate)
        self._hedge.start()

    @abstractmethod
    def _second(self, target: TargetState, gate: Lane | None) -> Hedge: ...

    def charge_loser(self, gate: Lane | None) -> None:
        if gate is not None:
            gate.settle(self.ask, self.ask[0], 0, self._state.log.seq)

    def hedge_lost(self) -> None:
        """The second target does not answer either: on to a third one, if the first has failed by now."""
        self._hedge = None
        if self._waits_for_hedge and not self._over:
            self._waits_for_hedge = False
            self._try_another(self._fault)

    def hedge_won(self, hedge: Hedge, connection: UpstreamConnection) -> None:
        """The second target answers first: from here on it is the request's target."""
        before, self._connection = self._connection, connection
        if before is not None:
            before.abort()
        self._unload()
        self.charge_loser(self._gate)
        self._hedge, self._waits_for_hedge = None, False
        self.target, self._gate, self._loaded = hedge.target, hedge.gate, hedge.target
        self._loaded_ns = hedge.began_ns

    def _end_hedging(self) -> None:
        timer, hedge = self._hedge_timer, self._hedge
        self._hedge = None
        if timer is not None:
            timer.cancel()
        if hedge is not None:
            hedge.drop()

    # ------------------------------------------------------------ what is held meanwhile

    def _finish(self, *, tell_caller: bool = True) -> None:
        caller = self._caller
        if self._hedge_timer is not None:
            self._end_hedging()
        if self._loaded is not None:
            self._unload()
        if self._ticket is not None:
            self._state.room.leave(self._ticket)
            self._ticket = None
        if self._flight is not None:
            self._leave_flight()
        self._state.metrics.in_flight -= 1
        self.body = b""
        if tell_caller:
            caller.finished()

    def _load(self) -> None:
        """Counts the request as in flight at its target, which routing looks at."""
        if self._loaded is not self.target:
            self._unload()
            self._loaded = self.target
            self._loaded_ns = monotonic_ns()
            self._loaded.standing.begin(self.ask[0])

    def _unload(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            ttft_us = self._ttft_us
            ttft_ns = None if ttft_us is None else max(0, self._began_ns + 1000 * ttft_us - self._loaded_ns)
            loaded.standing.end(self.ask[0], ttft_ns)
            if self._state.room.count:
                self._state.room.came_back((loaded.place,))

    def _settle_limits(self, tokens: int, microusd: int) -> None:
        self.lane.settle(self.ask, tokens, microusd, self._state.log.seq)
        if self._gate is not None:
            self._gate.settle(self.ask, tokens, microusd, self._state.log.seq)
        if self._state.room.count:
            self._state.room.came_back(self.lane.lines)
            if self._gate is not None:
                self._state.room.came_back(self._gate.lines)


def _sooner(one: Binding, other: Binding) -> bool:
    if one.retry_after_ns is None or other.retry_after_ns is None:
        return other.retry_after_ns is None and one.retry_after_ns is not None
    return one.retry_after_ns < other.retry_after_ns
