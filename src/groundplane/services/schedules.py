"""Jobs submitted at times. Each tick is planned and submitted like a person's, once, whatever dies in between."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timedelta

from groundplane.domain import recurrence
from groundplane.domain.queue import Schedule
from groundplane.domain.spec import JobSpec
from groundplane.domain.spec.parse import dump_whole, parse
from groundplane.errors import GroundError, InvalidInput, NotFound, Unavailable
from groundplane.identity import Actor, Role
from groundplane.ports import Clock, Store, Tx
from groundplane.services.access import visible_project
from groundplane.services.audit_trail import Teller
from groundplane.services.plans import Plans
from groundplane.services.runs import Runs

log = logging.getLogger(__name__)
HORIZON_DAYS = 90
LATE_S = 60.0
AGAIN_S = 30.0


class Schedules:
    """Keeps schedules, and carries out their ticks."""

    def __init__(self, *, store: Store, clock: Clock, plans: Plans, runs: Runs) -> None:
        self._store = store
        self._clock = clock
        self._tell = Teller(clock, "schedule")
        self._plans = plans
        self._runs = runs

    async def create(self, actor: Actor, text: str, *, until: datetime | None = None, reason: str = "") -> Schedule:
        """Keeps a spec; one of the same name in the project is replaced. Raises InvalidInput, NotFound."""
        now = self._clock.now()
        spec = _job(text, now)
        recurrence.checked(spec.schedule, spec.timezone)
        last = until or now + timedelta(days=HORIZON_DAYS)
        if not now < last <= now + timedelta(days=366):
            raise InvalidInput("a schedule ends within a year, and in the future", "give --until 90d")
        project, name = spec.metadata.project, spec.array.name if spec.array is not None else spec.metadata.name
        due_at = recurrence.next_tick(spec.schedule, spec.timezone, now)
        fresh = Schedule(
            id=f"{project}.{name}",
            project=project,
            name=name,
            owner=spec.metadata.owner,
            cron=spec.schedule,
            timezone=spec.timezone,
            missed=spec.missed_ticks,
            text=text,
            created_by=actor.name,
            created_at=now,
            until=last,
            due_at=due_at if due_at is not None and due_at <= last else None,
        )
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
            old = await tx.get(Schedule, fresh.id, lock=True)
            if old is None:
                await tx.insert(fresh)
            else:
                fresh = await tx.update(replace(fresh, version=old.version, last_run=old.last_run))
            after: dict[str, object] = {"cron": fresh.cron, "timezone": fresh.timezone, "until": last.isoformat()}
            await self._tell(tx, actor, "schedule.set", fresh.id, fresh.project, after, reason)
        return fresh

    async def schedules(self, actor: Actor) -> list[Schedule]:
        async with self._store.transaction() as tx:
            return [each for each in await tx.find(Schedule) if actor.sees(each.project)]

    async def pause(self, actor: Actor, schedule_id: str, paused: bool, *, reason: str = "") -> Schedule:
        """Ticks that pass while it is paused are not made up for."""
        now = self._clock.now()
        async with self._store.transaction() as tx:
            found = await self._visible(tx, actor, schedule_id)
            due_at = None if paused else recurrence.next_tick(found.cron, found.timezone, now)
            changed = await tx.update(
                replace(found, paused=paused, due_at=due_at, lease_owner="", lease_expires_at=None)
            )
            await self._tell(
                tx, actor, "schedule.pause" if paused else "schedule.resume", changed.id, changed.project, {}, reason
            )
        return changed

    async def delete(self, actor: Actor, schedule_id: str, *, reason: str = "") -> None:
        async with self._store.transaction() as tx:
            found = await self._visible(tx, actor, schedule_id)
            await tx.delete(Schedule, found.id)
            await self._tell(tx, actor, "schedule.delete", found.id, found.project, {}, reason)

    async def step(self, schedule: Schedule) -> None:
        """Carries out what is due of a claimed schedule. A tick's runs are submitted once: its time is their key."""
        now = self._clock.now()
        run, message, again = schedule.last_run, "", False
        ticks = recurrence.due_ticks(
            schedule.cron,
            schedule.timezone,
            first=schedule.due_at or now,
            now=now,
            missed=schedule.missed,
            late_s=LATE_S,
        )
        for tick in ticks:
            try:
                run, message = await self._submit(schedule, tick), ""
            except Unavailable as error:
                again, message = True, error.message
            except GroundError as error:
                message = f"{error.message} ({error.hint})" if error.hint else error.message
                log.warning("schedule %s: the tick of %s was refused: %s", schedule.id, tick, message)
        next_at = recurrence.next_tick(schedule.cron, schedule.timezone, now)
        due_at = now + timedelta(seconds=AGAIN_S) if again else next_at
        async with self._store.transaction() as tx:
            done = await tx.update(
                replace(
                    schedule,
                    due_at=due_at if due_at is not None and due_at <= schedule.until else None,
                    last_tick_at=ticks[-1] if ticks else schedule.last_tick_at,
                    last_run=run,
                    last_message=message if ticks else f"the tick of {schedule.due_at} was missed and skipped",
                    lease_owner="",
                    lease_expires_at=None,
                )
            )
            after: dict[str, object] = {"run": run, "refused": message}
            await self._tell(tx, _actor(schedule), "schedule.tick", done.id, done.project, after, "")

    async def _submit(self, schedule: Schedule, tick: datetime) -> str:
        """The tick's last run. A second try submits nothing twice."""
        specs = parse(schedule.text, now=max(tick, self._clock.now()))
        jobs = [replace(each, schedule="", timezone="UTC", missed_ticks="once") for each in specs
                if isinstance(each, JobSpec)]  # fmt: skip
        plans = await self._plans.plan(_actor(schedule), dump_whole(jobs[0]))
        run_id = ""
        for number, plan in enumerate(plans):
            key = f"{schedule.id}@{tick:%Y-%m-%dT%H:%M:%SZ}#{number}"
            run_id = (await self._runs.submit(_actor(schedule), plan.id, idempotency_key=key)).id
        return run_id

    async def _visible(self, tx: Tx, actor: Actor, schedule_id: str) -> Schedule:
        found = await tx.get(Schedule, schedule_id, lock=True)
        if found is None or not actor.sees(found.project):
            raise NotFound(f"no schedule {schedule_id[:130]}", "ground schedules list shows them")
        return found


def _job(text: str, now: datetime) -> JobSpec:
    first, *rest = parse(text, now=now)
    several = any(not isinstance(each, JobSpec) or each.array is None for each in rest)
    if not isinstance(first, JobSpec) or several:
        raise InvalidInput("a schedule is of one Job", "keep each in a file of its own")
    if not first.schedule:
        raise InvalidInput("the job has no schedule", 'write schedule: "0 3 * * 1" under spec')
    return first


def _actor(schedule: Schedule) -> Actor:
    """Who a tick acts as: somebody of the project, by the schedule's name."""
    return Actor(name=f"schedule {schedule.id}", role=Role.MEMBER, project=schedule.project)
