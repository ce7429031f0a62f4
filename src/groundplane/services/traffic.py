"""What passes through the gateways right now: live requests, and where keys stand against their limits."""

from __future__ import annotations

from dataclasses import replace

from groundplane.domain.access import Key
from groundplane.domain.serving.limits import PURSES, LimitRule
from groundplane.domain.serving.traffic import Filter, LimitStanding, Live, Tail
from groundplane.errors import InvalidInput
from groundplane.identity import Actor
from groundplane.ports import Store
from groundplane.ports.traffic import GatewayFigures, RequestTail
from groundplane.services.access import visible_project

WAIT_MAX_S = 25.0


class Traffic:
    """Reads only. What is not of the actor's projects does not exist for it."""

    def __init__(self, *, store: Store, tail: RequestTail, figures: GatewayFigures) -> None:
        self._store = store
        self._tail = tail
        self._figures = figures

    async def tail(self, actor: Actor, wanted: Filter, *, after: int | None, wait_s: float) -> Tail:
        """What ended since `after`, waiting for something to end. Lossy: what nobody fetched in time is gone."""
        if not 0 <= wait_s <= WAIT_MAX_S:
            raise InvalidInput(f"{wait_s:g} s is no time to wait", f"0 to {WAIT_MAX_S:g}")
        if wanted.project:
            async with self._store.transaction() as tx:
                await visible_project(tx, actor, wanted.project)
        found, place, missed = await self._tail.after(after, wait_s)
        seen = tuple(one for _, one in found if actor.sees(one.project) and wanted.holds(one))
        return Tail(requests=seen, next=place, missed=missed)

    async def live(self, actor: Actor, project: str | None = None) -> Live:
        """The last minute, limits and the newest refusals, of one project or of all that the actor sees."""
        async with self._store.transaction() as tx:
            if project is not None:
                await visible_project(tx, actor, project)
            rules = await tx.find(LimitRule)
            keys = await tx.find(Key, {"revoked_at": None})
        places = {rule.id: rule.project for rule in rules}
        of_key = {key.id: key.project for key in keys}
        live = await self._figures.live()

        def shown(name: str) -> bool:
            return actor.sees(name) and project in {None, name}

        limits = []
        for limit in live.limits:
            place = places.get(limit.id) or of_key.get(limit.name) or (limit.name if limit.scope == "project" else "")
            if place and shown(place):
                limits.append(replace(limit, project=place))
        for rule in rules:
            if rule.measure in PURSES and shown(rule.project):
                limits.append(_of_ledger(rule))
        return Live(
            workers=live.workers,
            in_flight=live.in_flight,
            rates=tuple(one for one in live.rates if shown(one.project)),
            limits=tuple(sorted(limits, key=lambda one: (-one.part, one.id))),
            refusals=tuple(one for one in live.refusals if shown(one.project)),
        )

    async def close(self) -> None:
        """Stops listening."""
        await self._tail.close()


def _of_ledger(rule: LimitRule) -> LimitStanding:
    """A limit of dollars: what the ledger has of the period that it counts."""
    return LimitStanding(
        id=rule.id,
        project=rule.project,
        scope=rule.scope,
        name=rule.name,
        measure=rule.measure.value,
        value=rule.value,
        used=rule.spent_microusd,
    )
