"""Routes: which model name of a project leads to which endpoints and providers, and how one of them is chosen."""

from __future__ import annotations

from dataclasses import replace

from groundplane.domain.endpoint import Endpoint
from groundplane.domain.provider import Provider, RouteRule, RouteTarget, check_route
from groundplane.domain.routing import RoutePolicy
from groundplane.errors import NotFound
from groundplane.identity import Actor
from groundplane.ports import Clock, Store, Tx
from groundplane.services.access import visible_project
from groundplane.services.audit_trail import Teller


class Routes:
    """Each route is one row; gateways know of a change with their next snapshot."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._tell = Teller(clock, "route")

    async def set_route(
        self,
        actor: Actor,
        *,
        project: str,
        model: str,
        targets: tuple[RouteTarget, ...],
        policy: RoutePolicy = RoutePolicy.WEIGHTED,
        sticky: bool = False,
        hedge_ms: int | None = None,
        reason: str = "",
    ) -> RouteRule:
        """Sets or changes where a model name leads. Twice is the same as once. NotFound for a target that isn't there.

        A route of an endpoint's own name takes its place.
        """
        check_route(model, targets, hedge_ms)
        rule = RouteRule(
            id=f"{project}:{model}",
            project=project,
            model=model,
            policy=policy,
            targets=targets,
            sticky=sticky,
            hedge_ms=hedge_ms,
            set_by=actor.name,
            set_at=self._clock.now(),
        )
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
            for target in targets:
                await _check_target(tx, project, target)
            before = await tx.get(RouteRule, rule.id, lock=True)
            if before is None:
                await tx.insert(rule)
            else:
                rule = await tx.update(replace(rule, version=before.version))
            names = [target.endpoint or f"{target.provider}/{target.model}" for target in targets]
            await self._tell(
                tx, actor, "route.set", rule.id, rule.project, {"policy": policy.value, "targets": names}, reason
            )
        return rule

    async def routes(self, actor: Actor, project: str | None = None) -> list[RouteRule]:
        """Those of the projects the actor sees, by id. An endpoint without one is reached by its own name."""
        async with self._store.transaction() as tx:
            if project is not None:
                await visible_project(tx, actor, project)
            found = await tx.find(RouteRule, None if project is None else {"project": project}, order="id")
        return [rule for rule in found if actor.sees(rule.project)]

    async def remove(self, actor: Actor, project: str, model: str, reason: str = "") -> RouteRule:
        """Takes a route away: the name is the endpoint's again, if there is one. NotFound when there is no route."""
        async with self._store.transaction() as tx:
            rule = await tx.get(RouteRule, f"{project}:{model}", lock=True)
            if rule is None or not actor.sees(project):
                raise NotFound(f"no route {model[:80]!r} in project {project[:80]}", "ground routes list")
            await tx.delete(RouteRule, rule.id)
            await self._tell(tx, actor, "route.remove", rule.id, rule.project, {}, reason)
        return rule


async def _check_target(tx: Tx, project: str, target: RouteTarget) -> None:
    if target.endpoint:
        endpoint = await tx.get(Endpoint, target.endpoint)
        if endpoint is None or endpoint.project != project:
            raise NotFound(f"no endpoint {target.endpoint[:80]!r} in project {project}", "ground endpoints list")
    elif await tx.get(Provider, f"{project}:{target.provider}") is None:
        raise NotFound(f"no provider {target.provider[:80]!r} in project {project}", "ground providers add")
