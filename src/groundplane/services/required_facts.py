"""The facts that projects require of their models: set, shown, and asked of a version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from groundplane.domain.access import checked_text
from groundplane.domain.provenance.required_facts import Missing, RequiredFacts, Stage, read_required
from groundplane.errors import InvalidInput
from groundplane.identity import Actor
from groundplane.ports import Clock, Store
from groundplane.services.access import visible_project
from groundplane.services.audit_trail import Teller
from groundplane.services.models import Models


class FactRules:
    """Use cases over required facts. What stands behind them at registration, deployment and load is `Models`."""

    def __init__(self, *, store: Store, clock: Clock, models: Models) -> None:
        self._store, self._clock, self._models = store, clock, models
        self._tell = Teller(clock, "project")

    async def rules(self, actor: Actor) -> list[RequiredFacts]:
        """Of every project that the actor sees and that has some, by project."""
        async with self._store.transaction() as tx:
            found = await tx.find(RequiredFacts)
        return [each for each in found if actor.sees(each.id)]

    async def rule(self, actor: Actor, project: str) -> RequiredFacts | None:
        """None where nothing is required beyond what every registration is. NotFound for an unseen project."""
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
            return await tx.get(RequiredFacts, project)

    async def require(self, actor: Actor, project: str, words: Sequence[str], reason: str) -> RequiredFacts:
        """Takes these facts in place of what was required. InvalidInput names the word that is none; NotFound."""
        required, reason = read_required(words), checked_text(reason, "reason")
        if not required:
            raise InvalidInput("no facts are given", "ground models require PROJECT --none takes the requirement away")
        now = self._clock.now()
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
            old = await tx.get(RequiredFacts, project, lock=True)
            row = RequiredFacts(id=project, required=required, set_by=actor.name, set_at=now, reason=reason)
            if old is None:
                await tx.insert(row)
            else:
                row = await tx.update(replace(row, version=old.version))
            after: dict[str, object] = {"required": list(required), "before": list(old.required) if old else []}
            await self._tell(tx, actor, "facts.require", project, project, after, reason)
        return row

    async def release(self, actor: Actor, project: str, reason: str) -> None:
        """Requires nothing any more. Twice is once."""
        reason = checked_text(reason, "reason")
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
            old = await tx.get(RequiredFacts, project, lock=True)
            if old is not None:
                await tx.delete(RequiredFacts, project)
                after: dict[str, object] = {"required": [], "before": list(old.required)}
                await self._tell(tx, actor, "facts.release", project, project, after, reason)

    async def missing(self, actor: Actor, ref: str, stage: Stage) -> tuple[Missing, ...]:
        """What would keep a version out at this stage, each with how it is supplied. Nothing is refused here."""
        return await self._models.missing_facts(await self._models.get(actor, ref), stage)
