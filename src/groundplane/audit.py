"""The tamper-evident trail: append-only events, each sealed with the hash of the one before.

Changing, removing or inserting a row breaks the chain at that row; `check_chain` says where.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime

GENESIS = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDraft:
    """A change before it is sealed: who did what to which object, before, after, and why."""

    at: datetime
    actor: str
    action: str
    object_kind: str
    object_id: str
    project: str = ""
    before: dict[str, object] = field(default_factory=dict)
    after: dict[str, object] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A sealed event. `hash` = SHA-256 over the canonical JSON of everything else, `previous_hash` included."""

    id: int
    at: datetime
    actor: str
    action: str
    object_kind: str
    object_id: str
    project: str
    before: dict[str, object]
    after: dict[str, object]
    reason: str
    previous_hash: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainBreak:
    """Where the trail stops being true: the event's number and what is wrong with it."""

    event_id: int
    what: str


def seal(draft: EventDraft, number: int, previous_hash: str) -> Event:
    """Number 1 follows GENESIS; each later event names the hash of its predecessor."""
    unsealed = Event(id=number, previous_hash=previous_hash, hash="", **_fields(draft))  # type: ignore[arg-type]
    return Event(id=number, previous_hash=previous_hash, hash=event_hash(unsealed), **_fields(draft))  # type: ignore[arg-type]


def event_hash(event: Event) -> str:
    """SHA-256 hex of the event's canonical JSON without its own hash."""
    body = asdict(event)
    del body["hash"]
    body["at"] = event.at.isoformat(timespec="microseconds")
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_chain(events: Iterable[Event], head_id: int, head_hash: str) -> ChainBreak | None:
    """None when every event follows from the one before and the last is the recorded head.

    The head is kept apart from the events, so that cutting rows off the end shows too.
    """
    number, previous = 0, GENESIS
    for event in events:
        number += 1
        if event.id != number:
            return ChainBreak(event_id=number, what=f"event {number} is missing; the next one is {event.id}")
        if event.previous_hash != previous:
            return ChainBreak(event_id=number, what=f"event {number} does not follow event {number - 1}")
        if event_hash(event) != event.hash:
            return ChainBreak(event_id=number, what=f"event {number} was changed after it was written")
        previous = event.hash
    if (number, previous) != (head_id, head_hash):
        return ChainBreak(event_id=number + 1, what=f"{head_id - number} event(s) after {number} are missing")
    return None


def _fields(draft: EventDraft) -> dict[str, object]:
    return {name: getattr(draft, name) for name in EventDraft.__slots__}
