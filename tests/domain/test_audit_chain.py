"""The audit chain: each way of changing the past is seen."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from groundplane.audit import GENESIS, Event, EventDraft, check_chain, event_hash, seal

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def a_chain(length: int) -> list[Event]:
    events: list[Event] = []
    for number in range(1, length + 1):
        draft = EventDraft(at=NOW, actor="ana", action="a", object_kind="run", object_id=f"run-{number}")
        events.append(seal(draft, number, events[-1].hash if events else GENESIS))
    return events


CHAIN = a_chain(5)
HEAD = CHAIN[-1].hash
FORGED = replace(CHAIN[2], actor="mallory")


def test_a_true_chain_is_true() -> None:
    assert check_chain(CHAIN, 5, HEAD) is None
    assert check_chain([], 0, GENESIS) is None


@pytest.mark.parametrize(
    ("events", "head", "where", "what"),
    [
        ([*CHAIN[:2], FORGED, *CHAIN[3:]], (5, HEAD), 3, "was changed"),
        ([*CHAIN[:2], replace(FORGED, hash=event_hash(FORGED)), *CHAIN[3:]], (5, HEAD), 4, "does not follow"),
        ([*CHAIN[:2], *CHAIN[3:]], (5, HEAD), 3, "is missing"),
        (CHAIN[1:], (5, HEAD), 1, "is missing"),
        (CHAIN[:3], (5, HEAD), 4, r"2 event\(s\) after 3 are missing"),
        ([], (5, HEAD), 1, r"5 event\(s\) after 0 are missing"),
        ([*CHAIN[:1], CHAIN[2], CHAIN[1], *CHAIN[3:]], (5, HEAD), 2, "is missing"),
        (CHAIN, (4, CHAIN[3].hash), 5, "was added behind"),
        (CHAIN, (5, "0" * 64), 5, "not the one recorded"),
    ],
    ids=["changed", "rehashed", "removed", "first-removed", "cut", "emptied", "reordered", "added", "head-changed"],
)
def test_a_changed_past_is_found(events: list[Event], head: tuple[int, str], where: int, what: str) -> None:
    broken = check_chain(events, *head)
    assert broken is not None and broken.event_id == where
    assert re.search(what, broken.what)


@pytest.mark.parametrize("field", [name for name in Event.__slots__ if name not in ("id", "hash", "previous_hash")])
def test_no_field_can_change_unseen(field: str) -> None:
    value: object = {"x": 1} if field in ("before", "after") else NOW.replace(year=2027) if field == "at" else "other"
    assert event_hash(replace(CHAIN[2], **{field: value})) != CHAIN[2].hash  # type: ignore[arg-type]
