"""Ids are unique, sorted by creation, and safe in paths; the clock is UTC."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from groundplane.adapters.system import RandomIds, SystemClock


class SetClock:
    def __init__(self) -> None:
        self.time = datetime(2026, 11, 20, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time


def test_the_clock_is_utc_and_now() -> None:
    before = datetime.now(UTC)
    now = SystemClock().now()
    assert now.utcoffset() == timedelta(0) and before <= now <= datetime.now(UTC)


def test_ids_are_sorted_by_creation_even_when_the_clock_is_set_back() -> None:
    clock = SetClock()
    ids = RandomIds(clock)
    made = []
    for number in range(5000):
        clock.time += timedelta(milliseconds=1 if number % 3 else 0, days=-1 if number == 2500 else 0)
        made.append(ids.new("run"))
    assert made == sorted(made) and len(set(made)) == len(made)


def test_ids_are_safe_in_paths_and_host_names() -> None:
    for _ in range(1000):
        assert re.fullmatch(r"run-[0-9a-hjkmnp-tv-z]{16}", RandomIds().new("run"))


def test_ids_of_two_processes_are_sorted_by_time_and_do_not_collide() -> None:
    clock = SetClock()
    one, two = RandomIds(clock), RandomIds(clock)
    assert len({one.new("x") for _ in range(1000)} | {two.new("x") for _ in range(1000)}) == 2000
    earlier = RandomIds(clock).new("x")
    clock.time += timedelta(milliseconds=1)
    assert earlier < RandomIds(clock).new("x")


def test_threads_get_different_ids() -> None:
    ids = RandomIds(SetClock())
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: ids.new("x"), range(4000)))
    assert len(set(made)) == 4000
