"""What one gateway process knows and shares: options, the snapshot made ready for look-ups, meters, log, metrics.

A snapshot is swapped whole: `Tables` are built aside and then replace the old ones; shares of limits live on.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from groundplane.domain.serving.limits import PURSES, Limit, Measure, Moment, Share, Spending, scopes_of
from groundplane.domain.serving.prompt_lint import PromptFinding, Samples
from groundplane.domain.serving.provider import check_key
from groundplane.domain.serving.queueing import REFUSALS_PER_S, Concurrency
from groundplane.domain.serving.routing import RoutePolicy, Standing
from groundplane.domain.serving.snapshot import Snapshot, Target, index, read_key
from groundplane.domain.serving.usage import AnswerLength
from groundplane.errors import IntegrityFailure, InvalidInput
from groundplane.gateway.cache import Answers
from groundplane.gateway.counting.counters import Counters, MemoryCounters
from groundplane.gateway.fairness import PIECES_PER_TURN, Pieces
from groundplane.gateway.lanes import Lane
from groundplane.gateway.protocol.http1 import HeadMemo, parse_request_head
from groundplane.gateway.reports import Reports
from groundplane.gateway.tables import KeyState, Tables, dated
from groundplane.gateway.targets import RouteState, TargetState, fill_in
from groundplane.gateway.telemetry.aside import Chore, Files
from groundplane.gateway.telemetry.metrics import Metrics
from groundplane.gateway.telemetry.metrics_files import MetricsFiles
from groundplane.gateway.telemetry.scrapes import Scrapes
from groundplane.gateway.telemetry.sighting import TelemetryOptions
from groundplane.gateway.turns import Turns
from groundplane.gateway.upstream import Upstream
from groundplane.gateway.waiting import WaitingRoom
from groundplane.gateway.wal import Closed, Spent, WriteAheadLog
from groundplane.gateway.watch import Telemetry

_EVERYTHING = 1_000_000
_STANDINGS_MAX = 500
"""Limits whose standing is shown; the sum over more of them would take too long for the loop."""
_FLUSHED_AT_ONCE = 10
_ANSWERS_KEPT = 50_000
"""Keys on models whose answers' lengths are remembered."""
_SAMPLED_MAX = 2_000
"""Keys on models whose prompts are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Bounds of one gateway. Times are seconds."""

    body_max_bytes: int = 32 * 2**20
    bodies_max_bytes: int = 512 * 2**20
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    keep_alive_s: float = 75.0
    stalled_client_s: float = 60.0
    linger_s: float = 5.0
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 300.0
    idle_upstream_timeout_s: float = 60.0
    upstream_keep_alive_s: float = 30.0
    drain_s: float = 30.0
    workers: int = 1
    cache_max_bytes: int = 64 * 2**20
    clients_max: int = 100_000
    refusals_per_s: int = REFUSALS_PER_S
    pieces_per_turn: int = PIECES_PER_TURN


class Client(Protocol):
    """A connection of a caller, as the coarse clock and the end of the gateway see it."""

    def sweep(self, now_s: float) -> None: ...
    def close_when_idle(self) -> None: ...
    def stop_now(self) -> None: ...
    def abort(self) -> None: ...


class GatewayState:
    """Owned by the event loop's thread."""

    def __init__(
        self,
        *,
        options: Options,
        snapshot_path: Path,
        log: WriteAheadLog,
        gateway_id: str,
        counters: Counters | None = None,
        metrics_folder: Path | None = None,
        keys_folder: Path | None = None,
        telemetry: TelemetryOptions | None = None,
    ) -> None:
        self._keys_folder = keys_folder
        self._standings: dict[tuple[str, str], Standing] = {}
        self.options = options
        self.log = log
        self.counters: Counters = counters or MemoryCounters()
        self.metrics = Metrics()
        self.room = WaitingRoom(self.metrics.flow, workers=options.workers, bytes_max=options.bodies_max_bytes)
        self.turns = Turns(self.metrics.flow, options.refusals_per_s)
        self.pieces = Pieces(options.pieces_per_turn)
        self.answers = Answers(self.metrics.flow, options.cache_max_bytes)
        self._samples: dict[tuple[str, str, str], Samples] = {}
        self.files = Files()
        self._metrics_files = MetricsFiles(metrics_folder, gateway_id, self.files)
        self._metrics_files.resume(self.metrics)
        self.scrapes = Scrapes(self._rendered_metrics)
        told = None if metrics_folder is None else metrics_folder.parent / "reports"
        self._reports = Reports(told, gateway_id, self.files)
        self.publishing = Chore(self._publish)
        self.flushing = Chore(self._flush)
        self.telemetry = Telemetry(telemetry or TelemetryOptions(gateway_id=gateway_id), self.metrics)
        self.tables: Tables | None = None
        self.snapshot_trouble = ""
        self.clients: set[Client] = set()
        self.no_clients = asyncio.Event()
        self.no_clients.set()
        self.draining = False
        self.bodies_bytes = 0
        self.now_s = time.monotonic()
        self.dirty: list[Share] = []
        self.request_heads = HeadMemo(parse_request_head)
        self._snapshot_path = snapshot_path
        self._snapshot_seen: tuple[int, int, int] | None = None
        self._loading = False
        self._gateway_id = gateway_id
        self._shares: dict[str, Share] = {}
        self._earlier: dict[tuple[str, str], list[Spent]] = {}
        self._earlier_seq = self._ingested = 0
        self._figures: Sequence[Limit] = ()
        self._figures_have: Mapping[str, int] = {}
        self._let_go: set[Closed] = set()
        self._answers: dict[tuple[str, str], AnswerLength] = {}
        self._upstreams: dict[str, Upstream] = {}
        self._retired: list[Upstream] = []
        # A request id is unique over restarts and gateways: time, chance, counter.
        self._id_prefix = f"req-{int(time.time()):08x}{os.urandom(4).hex()}-".encode()
        self._id_counter = itertools.count(1)

    def new_request_id(self) -> bytes:
        return b"%b%06x" % (self._id_prefix, next(self._id_counter))

    @property
    def upstreams(self) -> list[Upstream]:
        """Those routes lead to, and those that still finish requests of an earlier snapshot."""
        self._retired = [one for one in self._retired if one.connections]
        return [*self._upstreams.values(), *self._retired]

    # ------------------------------------------------------------ metrics

    def _publish(self) -> Iterator[None]:
        """Every second: leaves this worker's figures for the others."""
        self._note_log()
        self.metrics.turn(int(self.now_s))
        yield
        self.metrics.say_some(*((_EVERYTHING,) if self.draining else ()))
        yield
        yield from self._look_at_limits()
        yield from self._reports.publish(self)
        self._metrics_files.publish(self.metrics)

    def _look_at_limits(self) -> Iterator[None]:
        """How limits stand as this worker last saw them; what is of the ledger stands there."""
        found: list[dict[str, Any]] = []
        for share in list(itertools.islice(self._shares.values(), _STANDINGS_MAX)):
            limit = share.limit
            if limit.measure not in PURSES:
                used = limit.value - share.standing(time.monotonic_ns())[0]
                words = {"scope": limit.scope, "name": limit.name, "measure": limit.measure.value}
                found.append({"id": limit.id, **words, "value": limit.value, "used": used, "seen": share.at_ns})
                yield
        self.metrics.standings = found

    def _rendered_metrics(self) -> Iterator[str]:
        """The figures of every worker."""
        self._note_log()
        return self._metrics_files.rendered(self.metrics)

    def _note_log(self) -> None:
        self.metrics.log_seq = self.log.seq
        self.metrics.log_trouble = int(bool(self.log.trouble))

    # ------------------------------------------------------------ limits

    def recover(self, settled: Iterable[Spent]) -> None:
        """Takes in what earlier lives spent and the control plane may not have seen, by the scopes it counts in."""
        earlier = self._earlier = {}
        for spent in settled:
            if spent.microusd:
                self._earlier_seq = spent.seq
                for scope in scopes_of(spent.project, spent.model, spent.endpoint, spent.key_id):
                    earlier.setdefault(scope, []).append(spent)

    def lane(self, key: KeyState, route: RouteState) -> Lane:
        """The key's lane on the route, with its shares of every limit; made once per snapshot."""
        assert self.tables is not None
        shares = [self.share(limit) for limit in self.tables.limits(key.key, route)]
        budget = self.tables.budgets.get(key.key.project)
        if budget is not None:
            shares.append(self._shares[Limit("project", key.key.project, Measure.BUDGET, 0).id])
        model = route.route.model
        if len(self._answers) > _ANSWERS_KEPT:
            self._answers.clear()
        answers = self._answers.setdefault((key.key.id, model), AnswerLength())
        lane = key.lanes[model] = Lane(key.key, route, shares, answers, self.counters, self.dirty)
        if len(self._samples) > _SAMPLED_MAX:
            self._samples.clear()
        lane.samples = self._samples.setdefault((key.key.project, model, key.key.id), lane.samples)
        endpoints = dict.fromkeys(one.target.endpoint for one in route.targets)
        if len(endpoints) > 1:
            # What limits one of several targets does not limit the request: another target may take it.
            for name in endpoints:
                shares = [self.share(limit) for limit in self.tables.endpoint_limits(name)]
                if shares:
                    lane.gates[name] = Lane(key.key, route, shares, answers, self.counters, self.dirty)
        return lane

    def share(self, limit: Limit) -> Share:
        """This gateway's share of a limit, brought to the limit's present value."""
        share = self._shares.get(limit.id)
        if share is None:
            share = self._shares[limit.id] = Share(limit)
            if limit.measure not in PURSES:
                self.counters.declare(share, 0, self._moment())
                return share
            share.purse = Spending()
            for spent in self._earlier.get((limit.scope, limit.name), ()):
                if spent.seq > self._ingested:
                    share.purse.spent(spent.microusd, spent.seq)
            # An earlier life's slices are given up where they are kept, not when a request comes by.
            self.counters.declare(share, share.purse.unseen, self._moment())
            self.counters.refill([(share, 0)], self._moment(), _nothing)
        elif share.limit != limit:
            share.limit = limit
            self.counters.refill([(share, 0)], self._moment(), _nothing)
        return share

    def _flush(self) -> Iterator[None]:
        """Every tick: what was used is charged, what is idle goes back."""
        left = self.dirty[:]
        self.dirty.clear()
        try:
            while left:
                some = left[-_FLUSHED_AT_ONCE:]
                del left[-_FLUSHED_AT_ONCE:]
                for share in some:
                    share.dirty = False
                self.counters.flush(some, self._moment())
                if not self.counters.alone:
                    for share in some:
                        if share.free > 0 and not share.dirty:  # a slice in use: looked at again at the next tick
                            share.dirty = True
                            self.dirty.append(share)
                yield
        finally:
            self.dirty.extend(left)

    def let_go(self, gone: Iterable[Closed]) -> None:
        """Called every second: what gateways that are gone had spent is not held beside the figures that have it."""
        for one in gone if self.tables is not None else ():
            if one in self._let_go or self._figures_have.get(one.gateway_id, 0) < one.seq:
                continue
            lock = self.log.hold(one)
            if lock is not None:
                then = functools.partial(self._was_let_go, one, lock)
                self.counters.let_go(one.gateway_id, self._figures, self._moment(), then)

    def _was_let_go(self, one: Closed, lock: int, done: bool) -> None:
        os.close(lock)
        if done:
            self._let_go.add(one)

    def _moment(self) -> Moment:
        return Moment(time.monotonic_ns(), time.time())

    # ------------------------------------------------------------ snapshot

    def poll_snapshot(self, *, wait: bool = False) -> None:
        """Takes up the snapshot file if it has changed. A damaged one changes nothing but the metrics.

        It is read and checked beside the loop, so that requests go on; `wait` has it done when this returns.
        """
        if self._loading:
            return
        try:
            status = self._snapshot_path.stat()
        except FileNotFoundError:
            return
        except OSError as error:
            self.snapshot_trouble = f"the snapshot can't be read: {error}"
            return
        seen = (status.st_mtime_ns, status.st_ino, status.st_size)
        if seen == self._snapshot_seen:
            return
        self._snapshot_seen = seen
        if wait:
            self._loaded(_load(self._snapshot_path, self._keys_folder))
            return
        self._loading = True
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(None, _load, self._snapshot_path, self._keys_folder)
        work.add_done_callback(lambda done: self._loaded(done.result()))

    def _loaded(self, found: _Loaded | str) -> None:
        self._loading = False
        if isinstance(found, str):
            self.snapshot_trouble = found
            self.metrics.snapshot_failures += 1
        else:
            self.snapshot_trouble = ""
            self.apply(*found)

    def apply(
        self, snapshot: Snapshot, keys: dict[bytes, bytes], provider_keys: Mapping[str, bytes | None] | None = None
    ) -> None:
        """Swaps the tables. Shares keep what was used; a changed limit counts from now on."""
        provider_keys = provider_keys or {}
        unread = sorted(name for name, text in provider_keys.items() if text is None)
        if unread:
            self.snapshot_trouble = f"keys of providers can't be read: {', '.join(unread)}"
        self._ingested = max(self._ingested, snapshot.ingested.get(self._gateway_id, 0))
        for share in self._shares.values():
            if share.purse is not None:
                share.purse.ingested(self._ingested)
        known = {share.limit.name for share in self._shares.values() if share.limit.measure is Measure.BUDGET}
        for project in known | snapshot.budgets.keys():
            remaining = snapshot.budgets.get(project, 0)
            self.share(Limit("project", project, Measure.BUDGET, remaining, version=snapshot.version))
        if self.tables is None:
            for limit in snapshot.limits:
                if limit.measure in PURSES:
                    self.share(dated(limit, snapshot.version))
        elif self._ingested >= self._earlier_seq:
            self._earlier = {}
        left = snapshot.budgets.items()
        figures = [Limit("project", name, Measure.BUDGET, value, version=snapshot.version) for name, value in left]
        figures += [dated(limit, snapshot.version) for limit in snapshot.limits if limit.measure in PURSES]
        self._figures, self._figures_have = figures, snapshot.ingested
        urls = {_upstream_key(target) for route in snapshot.routes for target in route.targets}
        for url in self._upstreams.keys() - urls:
            upstream = self._upstreams.pop(url)
            upstream.retire()
            self._retired.append(upstream)
        by_project: dict[str, dict[str, RouteState]] = {}
        for route in snapshot.routes:
            targets = tuple(self._target(target, provider_keys) for target in route.targets)
            longest = max((target.max_output_tokens for target in route.targets), default=0)
            adapts = route.queue is not None and route.queue.concurrency_max is not None
            only = targets[0] if len(targets) == 1 and not targets[0].target.kind and not adapts else None
            policy = RoutePolicy(route.policy)
            state = RouteState(route, targets, self.metrics.model(route.model), longest, policy, only)
            fill_in(state)
            by_project.setdefault(route.project, {})[route.model] = state
        self._adapt(by_project)
        self.telemetry.keep(snapshot.predictions)
        self.tables = Tables(snapshot, keys, by_project)
        self.metrics.snapshot_version = snapshot.version

    def _adapt(self, by_project: Mapping[str, Mapping[str, RouteState]]) -> None:
        """Replicas that a route wants to be sent no more than they can take; of several routes the least counts."""
        most: dict[int, int] = {}
        for route in (route for routes in by_project.values() for route in routes.values()):
            if route.queue is not None and route.queue.concurrency_max is not None:
                for one in route.targets:
                    part = -(-route.queue.concurrency_max // self.options.workers)
                    most[id(one.standing)] = min(part, most.get(id(one.standing), part))
        for standing in self._standings.values():
            bound = most.get(id(standing))
            if bound is None:
                standing.concurrency = None
            elif standing.concurrency is None:
                standing.concurrency = Concurrency(bound)
            else:
                standing.concurrency.bound(bound)

    def routes(self) -> Iterator[RouteState]:
        """Every route of the snapshot in use."""
        if self.tables is not None:
            yield from self.tables.routes()

    def prompt_findings(self) -> Iterator[PromptFinding | None]:
        """What the order of prompts costs, by key and route."""
        routes = {(one.route.project, one.route.model): one for one in self.routes()}
        for (project, model, key_id), samples in list(self._samples.items()):
            route = routes.get((project, model))
            if route is not None:
                yield samples.finding(project, model, key_id, [one.target.price for one in route.targets])

    def _target(self, target: Target, provider_keys: Mapping[str, bytes | None]) -> TargetState:
        key = _upstream_key(target)
        upstream = self._upstreams.get(key)
        if upstream is None:
            upstream = self._upstreams[key] = Upstream(
                urlsplit(target.base_url),
                self.pieces,
                self.options.connect_timeout_s,
                provider=bool(target.kind),
                private=target.private,
            )
        # What a target has in flight, and asked for, outlives the snapshot.
        standing = self._standings.setdefault((key, target.upstream_model), Standing())
        place = f"{key} {target.upstream_model}"
        read = provider_keys.get(target.key_file) if target.kind else b""
        return TargetState(target, upstream, standing, read, place)


def _nothing(_told: object) -> None:
    """For a refill that asks for nothing."""


_Loaded = tuple[Snapshot, dict[bytes, bytes], dict[str, bytes | None]]


def _upstream_key(target: Target) -> str:
    """Endpoints and providers share no connections, even at one address: they are connected to by other rules."""
    return f"{target.kind and target.private} {target.base_url}" if target.kind else target.base_url


def _load(path: Path, keys_folder: Path | None) -> _Loaded | str:
    """The snapshot, indexed, with providers' keys, or what is wrong with it. Runs beside the loop."""
    try:
        snapshot, keys = index(path.read_bytes())
        for digest, text in itertools.islice(keys.items(), 1):
            read_key(digest, text)  # one stands for all: they are decoded when they are used, and must not fail then
        files = {target.key_file for route in snapshot.routes for target in route.targets if target.kind}
        return snapshot, keys, {name: _read_key(keys_folder, name) for name in files}
    except OSError as error:
        return f"the snapshot can't be read: {error}"
    except IntegrityFailure as error:
        return error.message


def _read_key(folder: Path | None, name: str) -> bytes | None:
    """A provider's key from its file; None when it can't be read or is none."""
    project, _, provider = name.partition("/")
    if folder is None or not project or not provider or "/" in provider or name.startswith("."):
        return None
    try:
        return check_key((folder / project / provider).read_text("ascii")).encode()
    except (OSError, ValueError, InvalidInput):
        return None
