"""The tamper-evident trail: append-only events, each sealed with the hash of the one before.

Changing, removing or inserting a row breaks the chain at that row; `check_chain` says where.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

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
    """Number 1 follows GENESIS; each later event names the hash of its predecessor.

    What was before and after becomes plain JSON first (dates as text, tuples as lists), so that the event read back
    from a database is the one that was hashed.
    """
    draft = replace(draft, at=draft.at.astimezone(UTC), before=_plain(draft.before), after=_plain(draft.after))
    unsealed = Event(id=number, previous_hash=previous_hash, hash="", **_fields(draft))  # type: ignore[arg-type]
    return Event(id=number, previous_hash=previous_hash, hash=event_hash(unsealed), **_fields(draft))  # type: ignore[arg-type]


def event_hash(event: Event) -> str:
    """SHA-256 hex of the event's canonical JSON without its own hash."""
    body = asdict(event)
    del body["hash"]
    body["at"] = event.at.isoformat(timespec="microseconds")
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


class ChainCheck:
    """Follows the trail event by event, so that it need not fit in memory: `feed` each in order, then `finish`."""

    def __init__(self) -> None:
        self.number = 0
        self.hash = GENESIS

    def feed(self, event: Event) -> ChainBreak | None:
        """None when the event follows from the ones fed before."""
        number = self.number + 1
        if event.id != number:
            what = f"event {number} is missing; the next one is {event.id}"
            return ChainBreak(event_id=number, what=what)
        if event.previous_hash != self.hash:
            return ChainBreak(event_id=number, what=f"event {number} does not follow event {number - 1}")
        if event_hash(event) != event.hash:
            return ChainBreak(event_id=number, what=f"event {number} was changed after it was written")
        self.number, self.hash = number, event.hash
        return None

    def finish(self, head_id: int, head_hash: str) -> ChainBreak | None:
        """None when the last event fed is the recorded head.

        The head is kept apart from the events, so that cutting rows off the end shows too.
        """
        if (self.number, self.hash) == (head_id, head_hash):
            return None
        if self.number < head_id:
            what = f"{head_id - self.number} event(s) after {self.number} are missing"
            return ChainBreak(event_id=self.number + 1, what=what)
        if self.number > head_id:
            what = f"event {head_id + 1} was added behind the recorded end of the trail"
            return ChainBreak(event_id=head_id + 1, what=what)
        return ChainBreak(event_id=head_id, what=f"event {head_id} is not the one recorded as the newest")


def check_chain(events: Iterable[Event], head_id: int, head_hash: str) -> ChainBreak | None:
    """None when every event follows from the one before and the last is the recorded head."""
    check = ChainCheck()
    for event in events:
        broken = check.feed(event)
        if broken is not None:
            return broken
    return check.finish(head_id, head_hash)


def _plain(values: dict[str, object]) -> dict[str, object]:
    plain: dict[str, object] = json.loads(json.dumps(values, default=str))
    return plain


def _fields(draft: EventDraft) -> dict[str, object]:
    return {name: getattr(draft, name) for name in EventDraft.__slots__}
