"""The queue: who holds and who waits, quotas, reservations, and jobs submitted at times."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.queue import ProjectQuota, Reservation, Schedule
from groundplane.domain.queue_view import PoolUse, QuotaUse
from groundplane.errors import InvalidInput
from groundplane.identity import Actor, Permission
from groundplane.services.quotas import LIMITS
from groundplane.wire.queue import QuotaRequest, ReservationRequest, ScheduleChange, ScheduleRequest

router = Router(prefix="/v1", tags=["queue"])
Reader = Annotated[Actor, requires(Permission.RUNS_READ)]
Writer = Annotated[Actor, requires(Permission.RUNS_WRITE)]
Keeper = Annotated[Actor, requires(Permission.PROJECTS_WRITE)]
Reason = Annotated[str, Query(max_length=500)]


@router.get("/queue")
async def show_queue(
    app: Ground, actor: Reader, pool: Annotated[str | None, Query(max_length=100)] = None
) -> list[PoolUse]:
    """Every pool: who holds its nodes, and who waits, with why and until when."""
    pools: list[PoolUse] = await app.standing.pools(actor, pool)
    return pools


@router.get("/quotas")
async def list_quotas(app: Ground, actor: Annotated[Actor, requires(Permission.PROJECTS_READ)]) -> list[QuotaUse]:
    """The quota of every project that the caller sees, with what it holds now."""
    quotas: list[QuotaUse] = await app.quotas.quotas(actor)
    return quotas


@router.put("/projects/{name}/quota")
async def set_project_quota(name: str, body: QuotaRequest, app: Ground, actor: Keeper) -> ProjectQuota:
    """Changes parts of a project's quota. What runs goes on; what waits is judged by the new one."""
    if unknown := sorted(set(body.limits) - set(LIMITS)):
        raise InvalidInput(f"unknown limit {unknown[0]!r}", f"one of: {', '.join(LIMITS)}")
    changes: dict[str, Any] = dict(body.limits)
    if body.cohort is not None:
        changes["cohort"] = body.cohort
    if body.weight is not None:
        changes["weight"] = body.weight
    quota: ProjectQuota = await app.quotas.set(actor, name, changes, reason=body.reason)
    return quota


@router.get("/reservations")
async def list_reservations(app: Ground, actor: Reader) -> list[Reservation]:
    """Those that are not over, the next first."""
    found: list[Reservation] = await app.quotas.reservations(actor)
    return found


@router.post("/reservations", status_code=201)
async def create_reservation(body: ReservationRequest, app: Ground, actor: Keeper) -> Reservation:
    """Keeps capacity for a project from a time to a time."""
    made: Reservation = await app.quotas.reserve(
        actor,
        project=body.project,
        pool=body.pool,
        accelerators=body.accelerators,
        cpus=body.cpus,
        starts_at=body.starts_at,
        ends_at=body.ends_at,
        reason=body.reason,
    )
    return made


@router.delete("/reservations/{reservation_id}")
async def cancel_reservation(reservation_id: str, app: Ground, actor: Keeper, reason: Reason = "") -> Reservation:
    """Gives it back. What its project runs there goes on."""
    found: Reservation = await app.quotas.cancel(actor, reservation_id, reason)
    return found


@router.get("/schedules")
async def list_schedules(app: Ground, actor: Reader) -> list[Schedule]:
    """Jobs submitted at times, of the projects that the caller sees."""
    found: list[Schedule] = await app.schedules.schedules(actor)
    return found


@router.post("/schedules", status_code=201)
async def create_schedule(body: ScheduleRequest, app: Ground, actor: Writer) -> Schedule:
    """Keeps a job spec that has a `schedule`. One of the same name in the project is replaced."""
    made: Schedule = await app.schedules.create(actor, body.text, until=body.until, reason=body.reason)
    return made


@router.patch("/schedules/{schedule_id}")
async def change_schedule(schedule_id: str, body: ScheduleChange, app: Ground, actor: Writer) -> Schedule:
    """Pauses a schedule, or lets it go on from its next tick."""
    changed: Schedule = await app.schedules.pause(actor, schedule_id, body.paused, reason=body.reason)
    return changed


@router.delete("/schedules/{schedule_id}", status_code=204)
async def delete_schedule(schedule_id: str, app: Ground, actor: Writer, reason: Reason = "") -> None:
    """No more ticks. Runs it submitted go on."""
    await app.schedules.delete(actor, schedule_id, reason=reason)
