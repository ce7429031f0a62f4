"""The part of the SDK that stands in line: who holds, who waits, quotas, reservations, schedules."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from groundplane.client.transport import Transport, part
from groundplane.domain.queue import ProjectQuota, Reservation, Schedule
from groundplane.domain.queue_view import PoolUse, QuotaUse
from groundplane.wire.queue import QuotaRequest, ReservationRequest, ScheduleChange, ScheduleRequest


class QueueCalls(Transport):
    def queue(self, pool: str | None = None) -> list[PoolUse]:
        """Every pool's nodes with who holds them, and who waits. NotFound for a pool that there is not."""
        return self._call("GET", "/v1/queue", list[PoolUse], params={"pool": pool})

    def quotas(self) -> list[QuotaUse]:
        return self._call("GET", "/v1/quotas", list[QuotaUse])

    def set_quota(
        self,
        project: str,
        limits: Mapping[str, int | None],
        *,
        cohort: str | None = None,
        weight: float | None = None,
        reason: str = "",
    ) -> ProjectQuota:
        """`limits` names accelerators, cpus_milli, memory_bytes or runs; None lifts one, what is not named stays."""
        body = QuotaRequest(limits=dict(limits), cohort=cohort, weight=weight, reason=reason)
        return self._call("PUT", f"/v1/projects/{part(project)}/quota", ProjectQuota, body=body)

    def reservations(self) -> list[Reservation]:
        return self._call("GET", "/v1/reservations", list[Reservation])

    def reserve(
        self,
        *,
        project: str,
        pool: str,
        starts_at: datetime,
        ends_at: datetime,
        accelerators: int = 0,
        cpus: float = 0.0,
        reason: str = "",
    ) -> Reservation:
        """Raises Refusal when there is not as much that no run may hold until then and nobody reserved."""
        body = ReservationRequest(
            project=project,
            pool=pool,
            starts_at=starts_at,
            ends_at=ends_at,
            accelerators=accelerators,
            cpus=cpus,
            reason=reason,
        )
        return self._call("POST", "/v1/reservations", Reservation, body=body)

    def cancel_reservation(self, reservation_id: str, reason: str = "") -> Reservation:
        path = f"/v1/reservations/{part(reservation_id)}"
        return self._call("DELETE", path, Reservation, params={"reason": reason})

    def schedules(self) -> list[Schedule]:
        return self._call("GET", "/v1/schedules", list[Schedule])

    def create_schedule(self, text: str, *, until: datetime | None = None, reason: str = "") -> Schedule:
        """Keeps a job spec that has a `schedule`; one of the same name in the project is replaced."""
        body = ScheduleRequest(text=text, until=until, reason=reason)
        return self._call("POST", "/v1/schedules", Schedule, body=body)

    def pause_schedule(self, schedule_id: str, paused: bool, reason: str = "") -> Schedule:
        body = ScheduleChange(paused=paused, reason=reason)
        return self._call("PATCH", f"/v1/schedules/{part(schedule_id)}", Schedule, body=body)

    def delete_schedule(self, schedule_id: str, reason: str = "") -> None:
        self._send("DELETE", f"/v1/schedules/{part(schedule_id)}", params={"reason": reason})
