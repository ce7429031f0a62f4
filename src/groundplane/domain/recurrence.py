"""When a cron expression ticks, in a time zone, and what becomes of ticks that nobody was there for."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from groundplane.errors import InvalidInput


def checked(cron: str, timezone: str) -> None:
    """Raises InvalidInput for an expression that never ticks or can't be read, and for a zone that there is not."""
    zone = _zone(timezone)
    try:
        next(CronSim(cron, datetime(2026, 1, 1, tzinfo=zone)))
    except CronSimError as error:
        raise InvalidInput(f"schedule {cron!r} can't be read: {error}", 'write it like "0 3 * * 1"') from None
    except StopIteration:
        raise InvalidInput(f"schedule {cron!r} never ticks", 'write it like "0 3 * * 1"') from None


def next_tick(cron: str, timezone: str, after: datetime) -> datetime | None:
    """The first tick after a moment, UTC. Where clocks go forward a tick in the gap comes at its end; where they go
    back it comes once. None when there is none within 50 years."""
    try:
        return next(CronSim(cron, after.astimezone(_zone(timezone)))).astimezone(UTC)
    except StopIteration:
        return None


def due_ticks(
    cron: str, timezone: str, *, first: datetime, now: datetime, missed: str, late_s: float
) -> list[datetime]:
    """Which ticks from `first` on are to be carried out at `now`: the latest one, if it is to be.

    A tick that is later than `late_s` was missed; `skip` drops it, `once` carries out the latest for all of them.
    """
    latest = first
    while (tick := next_tick(cron, timezone, latest)) is not None and tick <= now:
        latest = tick
    is_late = (now - latest).total_seconds() > late_s
    return [] if is_late and missed == "skip" else [latest]


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidInput(f"there is no time zone {name!r}", "write it like Europe/Berlin or UTC") from None
