"""The prediction log as people use it: what is kept, for how long, shown, exported, and erased with proof."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from groundplane.domain.serving.prediction import Erasure, Holdings, PredictionRule, Wanted, check_rule
from groundplane.errors import InvalidInput, NotFound
from groundplane.identity import SYSTEM, Actor
from groundplane.ports import Clock, Store
from groundplane.ports.traffic import Page, PredictionLog
from groundplane.services.access import visible_project
from groundplane.services.audit_trail import Teller

PAGE_MAX = 1000
_SCAN_PAGE = 1000


class Predictions:
    """Rules are rows that gateways know of with their next snapshot; records are what they then keep."""

    def __init__(self, *, store: Store, clock: Clock, log: PredictionLog) -> None:
        self._store = store
        self._clock = clock
        self._log = log
        self._tell = Teller(clock, "predictions")
        self.counts = {"erased": 0, "expired": 0}

    # ------------------------------------------------------------ rules

    async def set_rule(
        self, actor: Actor, *, project: str, model: str = "", changes: dict[str, Any], reason: str = ""
    ) -> PredictionRule:
        """Sets what of a project or of one of its models is kept; what `changes` does not name stays as it was.

        Twice is the same as once. InvalidInput for a rule that makes no sense, and for a form that needs an extra.
        """
        id = f"{project}:{model}" if model else project
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
            before = await tx.get(PredictionRule, id, lock=True)
            rule = before or PredictionRule(
                id=id, project=project, model=model, enabled=True, set_by=actor.name, set_at=self._clock.now()
            )
            rule = replace(rule, **changes, set_by=actor.name, set_at=self._clock.now())
            check_rule(rule.model, rule.sample_percent, rule.retention_days)
            if not self._log.can_write(rule.form):
                raise InvalidInput("Parquet needs the extra `parquet`", "pip install 'groundplane[parquet]'")
            if before is None:
                await tx.insert(rule)
            else:
                rule = await tx.update(rule)
            after: dict[str, object] = {
                "enabled": rule.enabled,
                "sample_percent": rule.sample_percent,
                "content": rule.content,
                "redact": rule.redact,
                "retention_days": rule.retention_days,
                "form": rule.form.value,
            }
            await self._tell(tx, actor, "predictions.set", rule.id, rule.project, after, reason)
        return rule

    async def rules(self, actor: Actor, project: str | None = None) -> list[PredictionRule]:
        """Those of the projects the actor sees, by id. A project without one keeps nothing."""
        async with self._store.transaction() as tx:
            if project is not None:
                await visible_project(tx, actor, project)
            found = await tx.find(PredictionRule, None if project is None else {"project": project}, order="id")
        return [rule for rule in found if actor.sees(rule.project)]

    # ------------------------------------------------------------ records

    async def page(
        self, actor: Actor, project: str, wanted: Wanted, limit: int, *, after: str = "", newest: bool = True
    ) -> Page:
        """A page of records. `wanted.subject` is who it is about, in plain words or as the records have it."""
        await self._visible(actor, project)
        if not 1 <= limit <= PAGE_MAX:
            raise InvalidInput(f"{limit} records at once are not between 1 and {PAGE_MAX}", "ask for the next page")
        return await self._log.read(project, wanted, limit, after=after, newest=newest)

    async def record(self, actor: Actor, project: str, request_id: str) -> dict[str, Any]:
        """One record by its request's id. NotFound when it was not kept, or is not any more."""
        await self._visible(actor, project)
        after = ""
        while True:
            page = await self._log.read(project, Wanted(), _SCAN_PAGE, after=after, newest=True)
            for record in page.records:
                if record["id"] == request_id:
                    return record
            after = page.next
            if not after:
                raise NotFound(
                    f"no record of request {request_id[:60]!r} in project {project}", "ground predictions list"
                )

    async def note_export(self, actor: Actor, project: str, count: int, where: str) -> None:
        """Puts on the trail that records left the log: an erasure later does not reach copies."""
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
            await self._tell(tx, actor, "predictions.export", project, project, {"records": count, "to": where})

    async def holdings(self, actor: Actor) -> list[Holdings]:
        """What is kept of each project that the actor sees and that ever had a rule."""
        projects = sorted({rule.project for rule in await self.rules(actor)})
        return [await self._log.holdings(project) for project in projects]

    async def erase(self, actor: Actor, project: str, subject: str, reason: str = "") -> Erasure:
        """Removes a subject's records from every file, looks again, and tells the trail how many there were.

        Records of requests that are under way right now come after: ask again. The trail has the pseudonym, no name.
        """
        if not subject.strip():
            raise InvalidInput("whose records?", "--subject, as callers send it in `user` or x-subject")
        await self._visible(actor, project)
        done = await self._log.erase(project, subject, self._clock.now())
        async with self._store.transaction() as tx:
            after: dict[str, object] = {
                "subject": done.subject,
                "removed": done.removed,
                "looked_at": done.looked_at,
                "left": done.left,
                "files": [f"{one.name} {one.sha256_before} {one.sha256_after or 'removed'}" for one in done.files],
            }
            await self._tell(tx, actor, "predictions.erase", project, project, after, reason)
        self.counts["erased"] += done.removed
        return done

    async def upkeep(self) -> None:
        """Removes what is past its retention, and turns hours that are over into the form they are kept in.

        A rule that is off keeps what was written for as long as it says.
        """
        rules = await self.rules(SYSTEM)
        for project in sorted({rule.project for rule in rules}):
            its_rules = [rule for rule in rules if rule.project == project]
            gone = await self._log.upkeep(project, its_rules, self._clock.now())
            if gone:
                self.counts["expired"] += gone
                async with self._store.transaction() as tx:
                    await self._tell(tx, SYSTEM, "predictions.expire", project, project, {"files": gone})

    async def _visible(self, actor: Actor, project: str) -> None:
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
