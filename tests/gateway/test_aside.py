"""What the loop does beside requests: long work in steps, and files that a thread replaces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundplane.gateway.telemetry.aside import Chore, Files


async def test_long_work_lets_others_in_between_and_does_not_begin_again_before_it_is_over() -> None:
    done: list[int] = []
    over = asyncio.Event()

    def steps() -> Iterator[None]:
        for number in range(5):
            done.append(number)
            time.sleep(0.001)  # longer than a step may take
            yield
        over.set()

    chore = Chore(steps)
    chore.begin()
    assert done == [0]
    chore.begin()
    assert done == [0]
    await asyncio.wait_for(over.wait(), 30)
    assert done == [0, 1, 2, 3, 4]


async def test_work_can_be_finished_at_once_and_what_was_under_way_is_let_go() -> None:
    left = ["a", "b", "c"]
    taken: list[str] = []

    def steps() -> Iterator[None]:
        mine = left[:]
        left.clear()
        try:
            while mine:
                taken.append(mine.pop(0))
                time.sleep(0.001)
                yield
        finally:
            left.extend(mine)

    chore = Chore(steps)
    chore.begin()
    assert (taken, left) == (["a"], [])
    chore.finish()
    assert (taken, left) == (["a", "b", "c"], [])
    await asyncio.sleep(0)
    assert taken == ["a", "b", "c"]


async def test_work_that_fails_can_begin_anew() -> None:
    fails = [True]

    def steps() -> Iterator[None]:
        yield
        if fails.pop():
            raise OSError("no such folder")

    chore = Chore(steps)
    with pytest.raises(OSError):
        chore.begin()
    fails.append(False)
    chore.begin()
    assert fails == []


def test_files_are_replaced_whole_and_the_newest_counts(tmp_path: Path) -> None:
    files = Files()
    for number in range(50):
        files.replace(tmp_path / "one.json", b"%d" % number)
    files.replace(tmp_path / "two.json", b"two")
    files.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"one.json": b"49", "two.json": b"two"}


def test_a_folder_that_is_gone_costs_its_own_files_only(tmp_path: Path) -> None:
    files = Files()
    files.replace(tmp_path / "gone" / "one.json", b"1")
    files.replace(tmp_path / "two.json", b"2")
    files.close()
    assert [path.name for path in tmp_path.iterdir()] == ["two.json"]
