"""The gateway's configuration: compiled from keys, ready endpoints and reserved money, published whole.

The order in `refresh` keeps money exact: usage is taken into the ledger; keys and endpoints are read before money is
reserved ahead, so that none is published without it; then all are published with the sequence number they are true for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from groundplane.domain.access import Key
from groundplane.domain.catalogue.entries import Catalogue
from groundplane.domain.endpoint import Endpoint, EndpointStatus
from groundplane.domain.serving import snapshot as compiled
from groundplane.domain.serving.hosted_prices import bounded
from groundplane.domain.serving.limits import LimitRule
from groundplane.domain.serving.prediction import PredictionRule
from groundplane.domain.serving.provider import Provider, RouteRule, RouteTarget
from groundplane.ports import Clock, SnapshotSink, Store, UsageLog
from groundplane.services.costs import Costs
from groundplane.services.gateway_limits import compiled as compiled_limits

LOOK_S = 5.0
"""What time alone changes, a new month or a key that ends, is seen so late; what is written, at the next refresh."""


class GatewayConfig:
    """Compiles and publishes; a snapshot that says what the last one said is not published again."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        costs: Costs,
        usage_log: UsageLog,
        sink: SnapshotSink,
        catalogue: Callable[[], Catalogue],
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._clock = clock
        self._costs = costs
        self._usage_log = usage_log
        self._sink = sink
        self._last: compiled.Snapshot | None = None
        self._seen_writes = -1
        self._look_at = datetime.min.replace(tzinfo=UTC)

    async def refresh(self) -> None:
        """Ingest, read, reserve, publish; only the first while nothing is used and nothing written."""
        took = False
        while await self._costs.ingest():
            took = True
        writes, now = self._store.writes, self._clock.now()
        if not took and writes == self._seen_writes and now < self._look_at:
            return
        await self._publish(now)
        self._seen_writes, self._look_at = writes, now + timedelta(seconds=LOOK_S)

    async def _publish(self, now: datetime) -> None:
        async with self._store.transaction() as tx:
            keys = await tx.find(Key, {"revoked_at": None})
            endpoints = await tx.find(Endpoint, {"status": EndpointStatus.READY})
            providers = await tx.find(Provider)
            routes = await tx.find(RouteRule)
            predictions = await tx.find(PredictionRule)
        routes = self._bounded(routes, providers)
        dearest = compiled.dearest_requests(compiled.compile_routes(endpoints, providers, routes))
        await self._costs.top_up_gateway(dearest)
        ingested = await self._usage_log.ingested()
        budgets = await self._costs.gateway_budgets()
        # After `ingested` was read: what is left of dollars may know of more records than that says, never of fewer.
        async with self._store.transaction() as tx:
            rules = await tx.find(LimitRule)
        version = int(now.timestamp() * 1000)
        if self._last is not None:
            version = max(version, self._last.version + 1)
        snapshot = compiled.compile_snapshot(
            keys=keys,
            endpoints=endpoints,
            budgets=budgets,
            ingested=ingested,
            version=version,
            now=now,
            providers=providers,
            rules=routes,
            predictions=predictions,
            limits=compiled_limits(rules, now),
        )
        if self._last is not None and _same(snapshot, self._last):
            return
        await self._sink.publish(compiled.encode(snapshot))
        self._last = snapshot

    def _bounded(self, rules: Sequence[RouteRule], providers: Sequence[Provider]) -> list[RouteRule]:
        """Routes set before the catalogue knew a model, with what it knows by now of its answers and its context."""
        hosted = {one.id: one for one in providers}
        if not hosted or not rules:
            return list(rules)
        rows = self._catalogue().token_prices

        def known(project: str, target: RouteTarget) -> RouteTarget:
            provider = hosted.get(f"{project}:{target.provider}")
            return target if provider is None else bounded(target, provider, rows)

        return [replace(rule, targets=tuple(known(rule.project, one) for one in rule.targets)) for rule in rules]


def _same(new: compiled.Snapshot, old: compiled.Snapshot) -> bool:
    return replace(new, version=old.version, compiled_at=old.compiled_at) == old
