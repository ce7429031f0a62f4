"""What one gateway process knows and shares: options, the snapshot made ready for look-ups, meters, log, metrics.

A snapshot is swapped whole: `Tables` are built aside and then replace the old ones; meters and purses live on.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from groundplane.domain.limits import Meter, Purse
from groundplane.domain.snapshot import Route, Snapshot, SnapshotKey, Target, decode
from groundplane.errors import IntegrityFailure
from groundplane.gateway.metrics import Metrics, ModelCounters
from groundplane.gateway.records import constant_members
from groundplane.gateway.upstream import Upstream
from groundplane.gateway.wal import WriteAheadLog
from groundplane.identity import ROLE_PERMISSIONS, Permission, Role

if TYPE_CHECKING:
    from groundplane.gateway.client_side import ClientConnection


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


@dataclass(slots=True)
class TargetState:
    """A target with its upstream, and what is prepared for it: request heads by path, record members by key."""

    target: Target
    upstream: Upstream
    heads: dict[bytes, bytes] = field(default_factory=dict)
    records: dict[str, bytes] = field(default_factory=dict)

    def record_members(self, key: SnapshotKey, model: str) -> bytes:
        members = self.records.get(key.id)
        if members is None:
            members = self.records[key.id] = constant_members(key, model, self.target)
        return members


@dataclass(slots=True)
class RouteState:
    """A route with its targets' states, its counters, and the longest answer any target gives."""

    route: Route
    targets: tuple[TargetState, ...]
    counters: ModelCounters
    max_output_tokens: int


@dataclass(slots=True)
class KeyState:
    """A key with everything a request of it needs. `routes` are its project's; `allowed` are the key's."""

    key: SnapshotKey
    requests: Meter | None
    tokens: Meter | None
    purse: Purse
    routes: dict[str, RouteState]
    allowed: dict[str, RouteState]
    may_call: bool
    may_read_metrics: bool
    expires_at: float


@dataclass(frozen=True, slots=True)
class Tables:
    """One snapshot, ready: keys by the SHA-256 digest of their secret."""

    version: int
    keys: dict[bytes, KeyState]


class GatewayState:
    """Owned by the event loop's thread."""

    def __init__(self, *, options: Options, snapshot_path: Path, log: WriteAheadLog, gateway_id: str) -> None:
        self.options = options
        self.log = log
        self.metrics = Metrics()
        self.tables: Tables | None = None
        self.snapshot_trouble = ""
        self.clients: set[ClientConnection] = set()
        self.no_clients = asyncio.Event()
        self.no_clients.set()
        self.draining = False
        self.bodies_bytes = 0
        self.now_s = time.monotonic()
        self._snapshot_path = snapshot_path
        self._snapshot_seen: tuple[int, int, int] | None = None
        self._gateway_id = gateway_id
        self._meters: dict[tuple[str, str], Meter] = {}
        self._purses: dict[str, Purse] = {}
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

    def recover(self, settled: Iterable[tuple[int, str, int]]) -> None:
        """Counts what earlier lives spent and the control plane may not have seen."""
        for seq, project, microusd in settled:
            self._purse(project).settle(0, microusd, seq)

    def poll_snapshot(self) -> None:
        """Takes up the snapshot file if it has changed. A damaged one changes nothing but the metrics."""
        try:
            status = self._snapshot_path.stat()
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen == self._snapshot_seen:
                return
            data = self._snapshot_path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            self.snapshot_trouble = f"the snapshot can't be read: {error}"
            return
        self._snapshot_seen = seen
        try:
            snapshot = decode(data)
        except IntegrityFailure as error:
            self.snapshot_trouble = error.message
            self.metrics.snapshot_failures += 1
            return
        self.snapshot_trouble = ""
        self.apply(snapshot)

    def apply(self, snapshot: Snapshot) -> None:
        """Swaps the tables. Meters keep what was used; a changed limit counts from now on."""
        ingested = snapshot.ingested.get(self._gateway_id, 0)
        for project in self._purses.keys() | snapshot.budgets.keys():
            self._purse(project).restate(snapshot.budgets.get(project), ingested)
        urls = {target.base_url for route in snapshot.routes for target in route.targets}
        for url in self._upstreams.keys() - urls:
            upstream = self._upstreams.pop(url)
            upstream.retire()
            self._retired.append(upstream)
        by_project: dict[str, dict[str, RouteState]] = {}
        for route in snapshot.routes:
            targets = tuple(TargetState(target, self._upstream(target.base_url)) for target in route.targets)
            longest = max((target.max_output_tokens for target in route.targets), default=0)
            state = RouteState(route, targets, self.metrics.model(route.model), longest)
            by_project.setdefault(route.project, {})[route.model] = state
        meters: dict[tuple[str, str], Meter] = {}
        keys = {
            bytes.fromhex(key.secret_sha256): self._key_state(key, by_project.get(key.project, {}), meters)
            for key in snapshot.keys
        }
        self._meters = meters
        self.tables = Tables(snapshot.version, keys)
        self.metrics.snapshot_version = snapshot.version

    def _key_state(
        self, key: SnapshotKey, routes: dict[str, RouteState], meters: dict[tuple[str, str], Meter]
    ) -> KeyState:
        permissions = ROLE_PERMISSIONS[Role(key.role)]
        return KeyState(
            key=key,
            requests=self._meter(key.id, "requests", key.requests_per_minute, meters),
            tokens=self._meter(key.id, "tokens", key.tokens_per_minute, meters),
            purse=self._purse(key.project),
            routes=routes,
            allowed={name: one for name, one in routes.items() if name in key.models} if key.models else routes,
            may_call=Permission.INFERENCE in permissions,
            may_read_metrics=Permission.SYSTEM_READ in permissions,
            expires_at=float("inf") if key.expires_at is None else key.expires_at,
        )

    def _meter(self, key_id: str, kind: str, limit: int | None, meters: dict[tuple[str, str], Meter]) -> Meter | None:
        if limit is None:
            return None
        now_ns = time.monotonic_ns()
        meter = self._meters.get((key_id, kind)) or Meter(limit, at_ns=now_ns)
        if meter.limit != limit:
            meter.change_limit(limit, now_ns)
        meters[key_id, kind] = meter
        return meter

    def _purse(self, project: str) -> Purse:
        purse = self._purses.get(project)
        if purse is None:
            purse = self._purses[project] = Purse(None)
        return purse

    def _upstream(self, base_url: str) -> Upstream:
        upstream = self._upstreams.get(base_url)
        if upstream is None:
            upstream = self._upstreams[base_url] = Upstream(urlsplit(base_url), self.options.connect_timeout_s)
        return upstream
