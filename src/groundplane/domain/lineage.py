"""Lineage that crosses the door: how far our own was told, and what others say of our datasets and models."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageCursor:
    """How far a receiver was told: every event of the audit trail up to `event_id`. Kept after it was received."""

    id: str
    event_id: int
    told: int
    failures: int
    error: str
    at: datetime
    retry_at: datetime | None = None
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideEvent:
    """An OpenLineage event that somebody sent. id = its SHA-256: twice is the same row. Nobody here verified it."""

    id: str
    project: str
    job: str
    run: str
    state: str
    occurred_at: datetime
    producer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reported_by: str
    at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideEdge:
    """`child` was made from `parent` by a job outside, as `reported_by` says. At least one of the two is ours.

    Nodes: `dataset:corpus@1`, `model:tiny@3`, and `outside:NAMESPACE/NAME` for what is not ours.
    """

    id: str
    parent: str
    child: str
    project: str
    job: str
    run: str
    event_id: str
    reported_by: str
    at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageStanding:
    """How far the receiver was told. `behind` counts events of the trail that were not looked at yet."""

    receiver: str
    event_id: int
    behind: int
    told: int
    refused: int
    failures: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageView:
    """One node with what it was made from and what was made from it; `outside` is what others say, unverified.

    `edges` are oldest first; `names` says what a run in them was, by its node: `evaluation nightly: accuracy 0.93`.
    """

    node: str
    edges: tuple[tuple[str, str], ...]
    outside: tuple[OutsideEdge, ...]
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What became of an event from outside: which of ours it speaks of, and which names were nobody's here."""

    id: str
    new: bool
    matched: tuple[str, ...]
    unmatched: tuple[str, ...]
    edges: int
