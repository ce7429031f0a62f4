"""Limits at the gateway: of projects, models, endpoints and keys, set and lifted by whoever may make keys."""

from __future__ import annotations

from dataclasses import replace

from groundplane.audit import EventDraft
from groundplane.domain.access import Key
from groundplane.domain.endpoint import Endpoint
from groundplane.domain.limits import LIMIT_SCOPES, LimitRule, Measure, WhenDown
from groundplane.domain.provider import Provider
from groundplane.errors import InvalidInput, NotFound
from groundplane.identity import Actor
from groundplane.ports import Clock, Store, Tx
from groundplane.services.access import visible_project

VALUE_MAX = 2**53


class GatewayLimits:
    """Each limit is one row; the gateway knows of a change with its next snapshot."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def set_limit(
        self,
        actor: Actor,
        *,
        project: str,
        scope: str,
        name: str,
        measure: Measure,
        value: int,
        when_down: WhenDown = WhenDown.LOCAL,
        reason: str = "",
    ) -> LimitRule:
        """Sets or changes a limit. Twice is the same as once. InvalidInput for a scope or measure that has none.

        `name` is the key's, endpoint's or model's within the project; a project's limit has the project's.
        """
        if scope not in LIMIT_SCOPES:
            raise InvalidInput(f"a limit of {scope[:40]!r} is none", f"one of: {', '.join(LIMIT_SCOPES)}")
        if measure is Measure.BUDGET:
            raise InvalidInput("dollars are limited by budgets", "ground budget set PROJECT --limit DOLLARS")
        if not 0 <= value <= VALUE_MAX:
            raise InvalidInput(f"a limit of {value} is not between 0 and {VALUE_MAX}", "0 admits nothing")
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
            name = await _checked(tx, project, scope, name)
            rule = LimitRule(
                id=f"{scope}:{name}:{measure.value}",
                scope=scope,
                name=name,
                project=project,
                measure=measure,
                value=value,
                when_down=when_down,
                set_by=actor.name,
                set_at=self._clock.now(),
            )
            before = await tx.get(LimitRule, rule.id, lock=True)
            if before is None:
                await tx.insert(rule)
            else:
                rule = await tx.update(replace(rule, version=before.version))
            after = {"value": value, "measure": measure.value, "when_down": when_down.value}
            await self._tell(tx, actor, "limit.set", rule, after, reason)
        return rule

    async def limits(self, actor: Actor, project: str | None = None) -> list[LimitRule]:
        """Those of the projects the actor sees, by id."""
        async with self._store.transaction() as tx:
            if project is not None:
                await visible_project(tx, actor, project)
            found = await tx.find(LimitRule, None if project is None else {"project": project}, order="id")
        return [rule for rule in found if actor.sees(rule.project)]

    async def lift(self, actor: Actor, rule_id: str, reason: str = "") -> LimitRule:
        """Takes a limit away. NotFound when there is none."""
        async with self._store.transaction() as tx:
            rule = await tx.get(LimitRule, rule_id, lock=True)
            if rule is None or not actor.sees(rule.project):
                raise NotFound(f"no limit {rule_id[:120]!r}", "ground limits list")
            await tx.delete(LimitRule, rule_id)
            await self._tell(tx, actor, "limit.lift", rule, {}, reason)
        return rule

    async def _tell(
        self, tx: Tx, actor: Actor, action: str, rule: LimitRule, after: dict[str, object], reason: str
    ) -> None:
        await tx.append_event(
            EventDraft(
                at=self._clock.now(),
                actor=actor.name,
                action=action,
                object_kind="limit",
                object_id=rule.id,
                project=rule.project,
                after=after,
                reason=reason,
            )
        )


async def _checked(tx: Tx, project: str, scope: str, name: str) -> str:
    """The name as the gateway looks it up. NotFound when the project has no such key or endpoint."""
    if scope == "project":
        return project
    if scope == "model":
        if not name or len(name) > 200 or not name.isprintable():
            raise InvalidInput("a model's limit needs the model's name", "ground limits set --model NAME")
        return f"{project}/{name}"
    found = await tx.get(Key, name) if scope == "key" else await tx.get(Endpoint, name)
    if found is None and scope == "endpoint":
        provider = await tx.get(Provider, f"{project}:{name}")
        if provider is not None:
            return provider.id
    if found is None or found.project != project:
        raise NotFound(f"no {scope} {name[:80]!r} in project {project}", f"ground {scope}s list")
    return name
