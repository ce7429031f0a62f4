"""Limits at the gateway: of projects, models, endpoints and keys, set and lifted by whoever may make keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from groundplane.domain.access import Key, Project
from groundplane.domain.conditions import AtLeast
from groundplane.domain.endpoint import Endpoint
from groundplane.domain.ledger import UsageRecord
from groundplane.domain.serving.limits import (
    LIMIT_SCOPES,
    PURSES,
    Limit,
    LimitRule,
    Measure,
    WhenDown,
    period_of,
    period_start,
    scopes_of,
)
from groundplane.domain.serving.provider import Provider
from groundplane.errors import InvalidInput, NotFound
from groundplane.identity import Actor
from groundplane.ports import Clock, Store, Tx
from groundplane.services.access import visible_project
from groundplane.services.audit_trail import Teller

VALUE_MAX = 2**53


class GatewayLimits:
    """Each limit is one row; the gateway knows of a change with its next snapshot."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._tell = Teller(clock, "limit")

    async def set_limit(
        self,
        actor: Actor,
        *,
        project: str,
        scope: str,
        name: str,
        measure: Measure,
        value: int,
        when_down: WhenDown | None = None,
        reason: str = "",
    ) -> LimitRule:
        """Sets or changes a limit. Twice is the same as once. InvalidInput for a scope or measure that has none.

        `name` is the key's, endpoint's or model's within the project; a project's limit has the project's. Dollars are
        whole micro-dollars; what the ledger has of the day or the month counts at once. Without a word on what holds
        while the store of limits is away, dollars stop (fail-closed), and rates go on by shares.
        """
        if scope not in LIMIT_SCOPES:
            raise InvalidInput(f"a limit of {scope[:40]!r} is none", f"one of: {', '.join(LIMIT_SCOPES)}")
        if measure is Measure.BUDGET:
            raise InvalidInput("a project's budget is set by itself", "ground budget set PROJECT DOLLARS")
        if not 0 <= value <= VALUE_MAX:
            raise InvalidInput(f"a limit of {value} is not between 0 and {VALUE_MAX}", "0 admits nothing")
        async with self._store.transaction() as tx:
            # Locked as `charge_limits` does: no request is counted twice or not at all as the limit begins.
            await visible_project(tx, actor, project, lock=measure in PURSES)
            name = await _checked(tx, project, scope, name)
            rule = LimitRule(
                id=f"{scope}:{name}:{measure.value}",
                scope=scope,
                name=name,
                project=project,
                measure=measure,
                value=value,
                when_down=when_down or (WhenDown.CLOSED if measure in PURSES else WhenDown.LOCAL),
                set_by=actor.name,
                set_at=self._clock.now(),
            )
            before = await tx.get(LimitRule, rule.id, lock=True)
            if before is not None:
                kept = replace(rule, period=before.period, spent_microusd=before.spent_microusd, version=before.version)
                rule = await tx.update(kept)
            else:
                if measure in PURSES:
                    rule = await _with_ledger(tx, rule, rule.set_at)
                await tx.insert(rule)
            after = {"value": value, "measure": measure.value, "when_down": rule.when_down.value}
            await self._tell(tx, actor, "limit.set", rule.id, rule.project, after, reason)
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
            await self._tell(tx, actor, "limit.lift", rule.id, rule.project, {}, reason)
        return rule


def compiled(rules: Sequence[LimitRule], now: datetime) -> list[Limit]:
    """What gateways keep: of dollars, what is left."""
    return [
        Limit(
            rule.scope,
            rule.name,
            rule.measure,
            rule.left(now) if rule.measure in PURSES else rule.value,
            rule.when_down,
        )
        for rule in rules
    ]


async def charge_limits(tx: Tx, records: Sequence[UsageRecord]) -> None:
    """Counts requests that are new to the ledger in every limit of dollars that they concern."""
    spent: dict[str, list[UsageRecord]] = {}
    for record in records:
        if record.amount_microusd:
            for scope in scopes_of(record.project, record.model, record.endpoint, record.key_id):
                for measure in (Measure.DOLLARS_DAY, Measure.DOLLARS_MONTH):
                    spent.setdefault(f"{scope[0]}:{scope[1]}:{measure.value}", []).append(record)
    for name in sorted({record.project for record in records}):
        await tx.get(Project, name, lock=True)
    for seen in await tx.find(LimitRule, {"id": tuple(sorted(spent))}) if spent else []:
        rule = await tx.get(LimitRule, seen.id, lock=True)
        if rule is not None:
            for record in spent[rule.id]:
                if record.project == rule.project:
                    rule = rule.with_spending(record.amount_microusd, record.started_at)
            await tx.update(rule)


async def _with_ledger(tx: Tx, rule: LimitRule, now: datetime) -> LimitRule:
    """A new limit of dollars with what its day or month has cost so far."""
    column = {"project": "project", "model": "model", "endpoint": "endpoint", "key": "key_id"}[rule.scope]
    name = rule.name.removeprefix(f"{rule.project}/") if rule.scope == "model" else rule.name
    where: dict[str, object] = {"project": rule.project, "started_at": AtLeast(period_start(rule.measure, now))}
    spent = await tx.total(UsageRecord, "amount_microusd", where=where | {column: name})
    return replace(rule, period=period_of(rule.measure, now), spent_microusd=spent.get((), 0))


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
