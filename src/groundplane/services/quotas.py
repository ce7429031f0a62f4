"""What projects may hold at once, and capacity reserved for them ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from groundplane.domain import access
from groundplane.domain.node import Node
from groundplane.domain.queue import ProjectQuota, QueueEntry, QueueState, Reservation, ReservedPart, Stage
from groundplane.domain.queue_view import QuotaUse
from groundplane.domain.scheduling.state import Amount
from groundplane.errors import InvalidInput, NotFound, Refusal, Refused
from groundplane.identity import Actor
from groundplane.ports import Clock, Executor, Ids, Store, Tx
from groundplane.services.access import visible_project
from groundplane.services.audit_trail import Teller
from groundplane.units import format_duration

LIMITS = ("accelerators", "cpus_milli", "memory_bytes", "runs")
_HORIZON_DAYS = 366


class Quotas:
    """Quotas and reservations."""

    def __init__(self, *, store: Store, clock: Clock, ids: Ids, executors: Mapping[str, Executor]) -> None:
        self._store = store
        self._clock = clock
        self._tell = Teller(clock, "reservation")
        self._tell_project = Teller(clock, "project")
        self._ids = ids
        self._executors = executors

    async def set(self, actor: Actor, project: str, changes: Mapping[str, Any], *, reason: str = "") -> ProjectQuota:
        """Changes the named parts of a project's quota, at once: what runs goes on, what waits is judged anew.

        Keys are the fields of ProjectQuota; None lifts a limit. Raises InvalidInput, NotFound.
        """
        _check(changes)
        now = self._clock.now()
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
            old = await tx.get(ProjectQuota, project, lock=True)
            if old is None:
                fresh = ProjectQuota(id=project, updated_at=now, **changes)
                await tx.insert(fresh)
            else:
                fresh = await tx.update(replace(old, updated_at=now, **changes))
            before: dict[str, object] = {name: getattr(old, name) for name in changes} if old is not None else {}
            await self._tell_project(tx, actor, "quota.set", project, project, changes, reason, before=before)
            return fresh

    async def quotas(self, actor: Actor) -> list[QuotaUse]:
        """Every project that the actor sees, by name."""
        async with self._store.transaction() as tx:
            rows = {row.id: row for row in await tx.find(ProjectQuota)}
            projects = [each for each in await tx.find(access.Project) if actor.sees(each.id)]
            asks = ("project", "stage", "nodes", "accelerators", "cpus_milli", "memory_bytes")
            alike = await tx.total(QueueEntry, "*", by=asks)
        holding: dict[str, Amount] = {}
        waiting: dict[str, int] = {}
        for (name, stage, *ask), count in alike.items():
            nodes, accelerators, cpus_milli, memory_bytes = (int(str(part)) for part in ask)
            if stage == Stage.WAITING:
                waiting[str(name)] = waiting.get(str(name), 0) + count
            else:
                each = count * nodes
                amount = Amount(each * accelerators, each * cpus_milli, each * memory_bytes, count)
                holding[str(name)] = holding.get(str(name), Amount()).plus(amount)
        found = []
        for project in projects:
            quota = rows.get(project.id) or ProjectQuota(id=project.id, updated_at=project.created_at)
            use = QuotaUse(quota=quota, held=holding.get(project.id, Amount()), waiting=waiting.get(project.id, 0))
            found.append(use)
        return found

    # ------------------------------------------------------------ reservations

    async def reserve(
        self,
        actor: Actor,
        *,
        project: str,
        pool: str,
        accelerators: int,
        cpus: float,
        starts_at: datetime,
        ends_at: datetime,
        reason: str,
    ) -> Reservation:
        """Keeps capacity for a project from a time to a time. Raises Refusal when there is not as much.

        Only what no run holds into that time and nobody else reserved is taken: nothing that runs is ended for it.
        """
        now = self._clock.now()
        if (accelerators > 0) == (cpus > 0):
            raise InvalidInput("a reservation is of accelerators, or of CPUs", "give one of the two")
        if not now <= starts_at < ends_at:
            raise InvalidInput("a reservation begins now or later, and ends after that", "give --from and --to")
        if (ends_at - now).days > _HORIZON_DAYS:
            raise InvalidInput(f"a reservation ends within {_HORIZON_DAYS} days")
        if pool not in self._executors:
            raise NotFound(f"no pool {pool}", f"there is: {', '.join(sorted(self._executors))}")
        nodes = await self._executors[pool].nodes()
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
            parts = await self._parts(tx, pool, nodes, project, (accelerators, round(cpus * 1000)), starts_at, ends_at)
            made = Reservation(
                id=self._ids.new("res"),
                project=project,
                pool=pool,
                owner=actor.name,
                reason=access.checked_text(reason, "reason") if reason else "",
                starts_at=starts_at,
                ends_at=ends_at,
                parts=parts,
                created_at=now,
            )
            await tx.insert(made)
            after: dict[str, object] = {"pool": pool, "from": starts_at.isoformat(), "to": ends_at.isoformat(),
                     "nodes": [part.node for part in parts]}  # fmt: skip
            await self._tell(tx, actor, "reservation.create", made.id, project, after, reason)
        return made

    async def reservations(self, actor: Actor) -> list[Reservation]:
        """Those that are not over, the next first. Everybody sees them: they decide when others start."""
        async with self._store.transaction() as tx:
            found = await tx.find(Reservation, order="starts_at")
        return [each for each in found if each.ends_at > self._clock.now()]

    async def cancel(self, actor: Actor, reservation_id: str, reason: str = "") -> Reservation:
        """Gives it back at once. What its project runs there goes on."""
        async with self._store.transaction() as tx:
            found = await tx.get(Reservation, reservation_id, lock=True)
            if found is None or not actor.sees(found.project):
                raise NotFound(f"no reservation {reservation_id}", "ground reserve list shows them")
            await tx.delete(Reservation, reservation_id)
            await self._tell(tx, actor, "reservation.cancel", found.id, found.project, {}, reason)
        return found

    async def _parts(
        self,
        tx: Tx,
        pool: str,
        nodes: Any,
        project: str,
        wanted: tuple[int, int],
        starts_at: datetime,
        ends_at: datetime,
    ) -> tuple[ReservedPart, ...]:
        # No pass may place anything there meanwhile.
        await tx.get(QueueState, "queue", lock=True)
        entries = await tx.find(QueueEntry, {"pool": pool, "stage": (Stage.PLACED, Stage.LEAVING)})
        others = [
            each
            for each in await tx.find(Reservation, {"pool": pool})
            if each.starts_at < ends_at and starts_at < each.ends_at
        ]
        left = list(wanted)
        parts: list[ReservedPart] = []
        free = [(node, *_free(node, entries, others, project, starts_at)) for node in nodes if node.takes_work]
        # Whole nodes first: a reservation is seldom for pieces.
        for node, cards, cpus in sorted(free, key=lambda each: (-each[1], -each[2], each[0].name)):
            take = (min(left[0], max(0, cards)), min(left[1], max(0, cpus)))
            if any(take):
                parts.append(ReservedPart(node=node.name, accelerators=take[0], cpus_milli=take[1]))
                left = [left[0] - take[0], left[1] - take[1]]
        if any(left):
            what = "accelerators" if wanted[0] else "CPUs"
            need = wanted[0] or wanted[1] / 1000
            have = (wanted[0] - left[0]) if wanted[0] else (wanted[1] - left[1]) / 1000
            window = f"from {starts_at:%Y-%m-%d %H:%M} UTC for {format_duration((ends_at - starts_at).total_seconds())}"
            raise Refusal(
                [
                    Refused(
                        rule="reservation",
                        need=f"{need:g} {what} of pool {pool} {window}",
                        have=f"{have:g} that no run may hold until then and nobody reserved",
                        hint="ask for less, or for a later time: ground who shows until when runs may last",
                    )
                ]
            )
        return tuple(parts)


def _free(
    node: Node, entries: list[QueueEntry], others: list[Reservation], project: str, starts_at: datetime
) -> tuple[int, int]:
    """Accelerators and thousandths of CPUs of a node that are free of runs and reservations from then on."""
    cards, cpus = len(node.accelerators), round(node.cpus * 1000)
    for entry in entries:
        lasts = entry.ends_at is None or entry.ends_at > starts_at
        if lasts and entry.project != project and any(place.node == node.name for place in entry.placements):
            cards -= entry.accelerators
            cpus -= entry.cpus_milli
    for other in others:
        for part in other.parts:
            if part.node == node.name:
                cards -= part.accelerators
                cpus -= part.cpus_milli
    return cards, cpus


def _check(changes: Mapping[str, Any]) -> None:
    if not changes:
        raise InvalidInput("nothing to change", "give at least one limit")
    for name in LIMITS:
        value = changes.get(name)
        if value is not None and not 0 <= value < 2**60:
            raise InvalidInput(f"{name} must be 0 or more, is {value}")
    if changes.get("cohort"):
        access.checked_name(changes["cohort"], "cohort")
    weight = changes.get("weight")
    if weight is not None and not 0.01 <= weight <= 100:
        raise InvalidInput(f"weight must be between 0.01 and 100, is {weight:g}")
