"""Routes: which model name of a project leads to which endpoints and providers, and how one of them is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from groundplane.domain.access import Key
from groundplane.domain.catalogue.entries import Catalogue, TokenListPrice
from groundplane.domain.endpoint import Endpoint
from groundplane.domain.serving.hosted_prices import Named, check_known, check_named, filled_in, find_row, row_like
from groundplane.domain.serving.prompt_lint import PromptFinding
from groundplane.domain.serving.provider import Provider, RouteRule, RouteTarget, check_route
from groundplane.domain.serving.queueing import QueueRule, QueueStanding
from groundplane.domain.serving.response_cache import CacheRule
from groundplane.domain.serving.routing import RoutePolicy
from groundplane.errors import InvalidInput, NotFound
from groundplane.identity import Actor
from groundplane.ports import Clock, Store, Tx
from groundplane.ports.traffic import GatewayReports
from groundplane.services.access import visible_project
from groundplane.services.audit_trail import Teller
from groundplane.wire.routes import PRICES, TargetRequest


class Routes:
    """Each route is one row; gateways know of a change with their next snapshot."""

    def __init__(
        self, *, store: Store, clock: Clock, reports: GatewayReports, catalogue: Callable[[], Catalogue]
    ) -> None:
        self._store = store
        self._clock = clock
        self._reports = reports
        self._catalogue = catalogue
        self._tell = Teller(clock, "route")

    async def set_route(
        self,
        actor: Actor,
        *,
        project: str,
        model: str,
        targets: tuple[TargetRequest, ...],
        policy: RoutePolicy = RoutePolicy.WEIGHTED,
        sticky: bool = False,
        hedge_ms: int | None = None,
        queue: QueueRule | None = None,
        cache: CacheRule | None = None,
        reason: str = "",
    ) -> RouteRule:
        """Sets or changes where a model name leads. Twice is the same as once. NotFound for a target that isn't there.

        A route of an endpoint's own name takes its place. What nobody names of a provider's model is the catalogue's,
        as each target's `listed` then says. InvalidInput where that does not say what it costs at most.
        """
        check_route(model, tuple(_plain(one) for one in targets), hedge_ms, queue, cache)
        rule = RouteRule(
            id=f"{project}:{model}",
            project=project,
            model=model,
            policy=policy,
            targets=(),
            sticky=sticky,
            hedge_ms=hedge_ms,
            queue=queue,
            cache=cache,
            set_by=actor.name,
            set_at=self._clock.now(),
        )
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
            rule = replace(rule, targets=tuple([await self._target(tx, project, one) for one in targets]))
            for one in () if queue is None else queue.keys:
                await _check_key(tx, project, one.key_id)
            before = await tx.get(RouteRule, rule.id, lock=True)
            if before is None:
                await tx.insert(rule)
            else:
                rule = await tx.update(replace(rule, version=before.version))
            after: dict[str, object] = {"policy": policy.value, "targets": [one.name for one in rule.targets]}
            if listed := _listed(rule.targets):
                after["listed"] = listed
            if queue is not None:
                after["queue"] = {
                    "size": queue.size,
                    "wait_ms": queue.wait_ms,
                    "priority": queue.priority.value,
                    "weight": queue.weight,
                    "concurrency_max": queue.concurrency_max,
                }
                after["priorities"] = {one.key_id: one.priority.value for one in queue.keys}
            if cache is not None:
                after["cache"] = {"ttl_s": cache.ttl_s, "sampled": cache.sampled}
            await self._tell(tx, actor, "route.set", rule.id, rule.project, after, reason)
        return rule

    async def _target(self, tx: Tx, project: str, wanted: TargetRequest) -> RouteTarget:
        """With its price and bounds. NotFound where it isn't there, InvalidInput where they can't be known."""
        target, named = _plain(wanted), _named(wanted)
        if wanted.endpoint:
            endpoint = await tx.get(Endpoint, wanted.endpoint)
            if endpoint is None or endpoint.project != project:
                raise NotFound(f"no endpoint {wanted.endpoint[:80]!r} in project {project}", "ground endpoints list")
            price = named.price()
            if wanted.like or (price is None and named != Named()):
                raise InvalidInput(
                    f"half a price of endpoint {wanted.endpoint}: it has one of its own, or one that is named whole",
                    "prompt=0.20,completion=0.40, or none of both",
                )
            return replace(target, price=price)
        provider = await tx.get(Provider, f"{project}:{wanted.provider}")
        if provider is None:
            raise NotFound(f"no provider {wanted.provider[:80]!r} in project {project}", "ground providers add")
        rows = self._catalogue().token_prices
        near: tuple[str, ...] = ()
        if wanted.like:
            row: TokenListPrice | None = row_like(wanted.like, rows)
        else:
            row, near = find_row(provider, wanted.model, rows)
        target = filled_in(target, named, row)
        check_known(target, near)
        return target

    async def routes(self, actor: Actor, project: str | None = None) -> list[RouteRule]:
        """Those of the projects the actor sees, by id. An endpoint without one is reached by its own name."""
        async with self._store.transaction() as tx:
            if project is not None:
                await visible_project(tx, actor, project)
            found = await tx.find(RouteRule, None if project is None else {"project": project}, order="id")
        return [rule for rule in found if actor.sees(rule.project)]

    async def queue_standing(self, actor: Actor, project: str | None = None) -> QueueStanding:
        """What waits at the gateways, of the projects the actor sees."""
        found = await self._reports.standing()

        def seen(name: str) -> bool:
            return actor.sees(name) and project in (None, name)

        return replace(
            found,
            queues=tuple(one for one in found.queues if seen(one.project)),
            replicas=tuple(one for one in found.replicas if seen(one.project)),
            storms=tuple(one for one in found.storms if seen(one.project)),
        )

    async def prompt_findings(self, actor: Actor, project: str | None = None) -> list[PromptFinding]:
        """Prompts whose order costs money, of the projects the actor sees, the dearest first."""
        found = await self._reports.findings()
        return [one for one in found if actor.sees(one.project) and project in (None, one.project)]

    async def remove(self, actor: Actor, project: str, model: str, reason: str = "") -> RouteRule:
        """Takes a route away: the name is the endpoint's again, if there is one. NotFound when there is no route."""
        async with self._store.transaction() as tx:
            rule = await tx.get(RouteRule, f"{project}:{model}", lock=True)
            if rule is None or not actor.sees(project):
                raise NotFound(f"no route {model[:80]!r} in project {project[:80]}", "ground routes list")
            await tx.delete(RouteRule, rule.id)
            await self._tell(tx, actor, "route.remove", rule.id, rule.project, {}, reason)
        return rule


async def _check_key(tx: Tx, project: str, key_id: str) -> None:
    key = await tx.get(Key, key_id)
    if key is None or key.project != project:
        raise NotFound(f"no key {key_id[:80]!r} in project {project}", "ground keys list")


def _plain(wanted: TargetRequest) -> RouteTarget:
    """As it was asked for, with no price yet."""
    return RouteTarget(
        endpoint=wanted.endpoint,
        provider=wanted.provider,
        model=wanted.model,
        weight=wanted.weight,
        order=wanted.order,
        max_output_tokens=wanted.max_output_tokens,
        context_tokens=wanted.context_tokens,
    )


def _named(wanted: TargetRequest) -> Named:
    prices = {name: getattr(wanted, f"{name}_microusd_per_million") for name in PRICES}
    named = Named(**prices, long_above=wanted.long_above_tokens)
    check_named(named)
    return named


def _listed(targets: Sequence[RouteTarget]) -> dict[str, object]:
    """What the catalogue filled in, by target, as the audit trail keeps it."""
    return {
        one.name: {"row": one.listed.row, "as_of": one.listed.as_of, **one.taken}
        for one in targets
        if one.listed is not None
    }
