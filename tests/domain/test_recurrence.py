"""Cron ticks in time zones, through clock changes, and ticks that were missed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from groundplane.domain.recurrence import checked, due_ticks, next_tick
from groundplane.errors import InvalidInput


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


def test_hours_are_read_in_the_zone() -> None:
    assert next_tick("0 3 * * 1", "Europe/Berlin", utc(2026, 1, 1)) == utc(2026, 1, 5, 2)
    assert next_tick("0 3 * * 1", "Europe/Berlin", utc(2026, 7, 1)) == utc(2026, 7, 6, 1)


def test_a_tick_comes_once_where_clocks_go_back_and_is_not_lost_where_they_go_forward() -> None:
    # Europe/Berlin: 2026-03-29 02:00 → 03:00, 2026-10-25 03:00 → 02:00.
    spring = next_tick("30 2 * * *", "Europe/Berlin", utc(2026, 3, 28, 12))
    assert spring is not None
    assert spring.date() == utc(2026, 3, 29).date()
    ticks, at = [], utc(2026, 10, 24, 12)
    for _ in range(2):
        found = next_tick("30 2 * * *", "Europe/Berlin", at)
        assert found is not None
        ticks.append(found)
        at = found
    assert ticks[1] - ticks[0] > timedelta(hours=20), "the hour that is there twice ticks once"


def test_missed_ticks_become_one_run_or_none() -> None:
    first, now = utc(2026, 3, 1, 3), utc(2026, 3, 5, 12)
    missed = {"first": first, "now": now, "late_s": 60.0}
    assert due_ticks("0 3 * * *", "UTC", missed="once", **missed) == [utc(2026, 3, 5, 3)]  # type: ignore[arg-type]
    assert due_ticks("0 3 * * *", "UTC", missed="skip", **missed) == []  # type: ignore[arg-type]
    on_time = due_ticks("0 3 * * *", "UTC", first=first, now=first + timedelta(seconds=2), missed="skip", late_s=60.0)
    assert on_time == [first]


@pytest.mark.parametrize(
    ("cron", "zone", "fault"),
    [
        ("61 * * * *", "UTC", "can't be read"),
        ("0 0 31 2 *", "UTC", "31 2"),
        ("often", "UTC", "can't be read"),
        ("0 3 * * *", "Mars/Base", "no time zone"),
        ("0 3 * * *", "../etc/passwd", "no time zone"),
    ],
)
def test_what_never_ticks_is_refused(cron: str, zone: str, fault: str) -> None:
    with pytest.raises(InvalidInput, match=fault):
        checked(cron, zone)
