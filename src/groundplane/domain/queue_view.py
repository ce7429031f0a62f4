"""Who holds and who waits for every accelerator, as records, and how a run's wait is put in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from groundplane.domain.node import Node
from groundplane.domain.queue import ProjectQuota, QueueEntry
from groundplane.domain.scheduling.reasons import each
from groundplane.domain.scheduling.state import Amount, class_name
from groundplane.units import format_duration

WAITS_FOR_OTHERS = {
    "needs": "It stands in line once what it needs has succeeded",
    "retry": "It stands in line again then",
    "array": "It stands in line once one of them is over",
    "backend": "It goes on once the pool answers",
    "cordon": "It starts once they are back: ground nodes uncordon",
    "preempting": "It starts when they have gone, in seconds",
}
"""When a run starts whose time is not for the scheduler to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a run holds on one node. `run` and `name` are empty for a project that the caller does not see.

    `ends_at` is the latest it can end; `gives_way_to` is the run it was asked to make room for.
    """

    run: str
    name: str
    project: str
    owner: str
    priority: str
    accelerators: tuple[int, ...]
    cpus: float
    memory_bytes: int
    since: datetime | None
    ends_at: datetime | None
    gives_way_to: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeUse:
    """A node, what is free on it, and who holds the rest. `closed` says why it takes no work; empty when it does."""

    name: str
    accelerator: str
    accelerators: int
    free: tuple[int, ...]
    cpus: float
    cpus_free: float
    memory_bytes: int
    memory_free_bytes: int
    closed: str
    held: tuple[Held, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InLine:
    """A run that waits: its place, what it needs, the layer that refuses, and when it starts if nothing new arrives.

    `starts_at` None with `starts_after` set: it starts later than that. Neither: no end of any run makes room.
    """

    run: str
    name: str
    project: str
    owner: str
    priority: str
    position: int
    queued_at: datetime
    needs: str
    layer: str
    reason: str
    starts_at: datetime | None = None
    starts_after: datetime | None = None
    preemptions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUse:
    """One pool. `silent` says why nothing is known of its nodes; empty when it answers."""

    pool: str
    silent: str
    nodes: tuple[NodeUse, ...]
    waiting: tuple[InLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaUse:
    """A project's quota with what it holds of it now. Without a quota of its own, every limit is None."""

    quota: ProjectQuota
    held: Amount
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitStory:
    """Why one run waits. `instead` is a smaller ask that would start now."""

    line: InLine
    of: int
    instead: str = ""
    blockers: tuple[str, ...] = ()

    def sentence(self, now: datetime) -> str:
        """One sentence: where it stands, which layer refuses, when it starts, and what would start now."""
        line = self.line
        waited = format_duration(max(0.0, (now - line.queued_at).total_seconds()))
        place = f"{ordinal(line.position)} of {self.of}, class {line.priority}" if line.position else line.priority
        when = when_it_starts(line, now)
        instead = f"; {self.instead} it would start now" if self.instead else ""
        return f"{line.run} has waited {waited} ({place}): {line.layer}: {line.reason}. {when}{instead}."


def when_it_starts(line: InLine, now: datetime) -> str:
    """What is known of its start, without the full stop."""
    if line.starts_at is not None:
        return f"It starts about {clock(line.starts_at, now)}"
    if line.starts_after is not None:
        return f"It starts after {clock(line.starts_after, now)}"
    if line.layer in WAITS_FOR_OTHERS:
        return WAITS_FOR_OTHERS[line.layer]
    return "Nothing that runs now makes room for it by ending"


def clock(moment: datetime, now: datetime) -> str:
    """`14:20 UTC` today, `Tue 14:20 UTC` within a week, the date beyond."""
    if moment.date() == now.date():
        return f"{moment:%H:%M} UTC"
    return f"{moment:%a %H:%M} UTC" if (moment - now).days < 6 else f"{moment:%Y-%m-%d %H:%M} UTC"


def ordinal(number: int) -> str:
    ending = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def node_uses(nodes: Sequence[Node], entries: Sequence[QueueEntry], sees: Mapping[str, bool]) -> tuple[NodeUse, ...]:
    """Every node with its holders; of projects that the caller does not see, not which run."""
    on: dict[str, list[tuple[QueueEntry, tuple[int, ...]]]] = {}
    for entry in entries:
        for place in entry.placements:
            on.setdefault(place.node, []).append((entry, place.accelerators))
    return tuple(_node_use(node, on.get(node.name, []), sees) for node in nodes)


def _node_use(node: Node, holders: Sequence[tuple[QueueEntry, tuple[int, ...]]], sees: Mapping[str, bool]) -> NodeUse:
    taken = {index for _, indexes in holders for index in indexes}
    return NodeUse(
        name=node.name,
        accelerator=node.accelerators[0].model if node.accelerators else "",
        accelerators=len(node.accelerators),
        free=tuple(card.index for card in node.accelerators if card.index not in taken),
        cpus=node.cpus,
        cpus_free=(round(node.cpus * 1000) - sum(entry.cpus_milli for entry, _ in holders)) / 1000,
        memory_bytes=node.memory_bytes,
        memory_free_bytes=node.memory_bytes - sum(entry.memory_bytes for entry, _ in holders),
        closed="" if node.takes_work else node.cordoned or node.reason or node.health.value,
        held=tuple(
            Held(
                run=entry.id if sees.get(entry.project) else "",
                name=entry.name if sees.get(entry.project) else "",
                project=entry.project,
                owner=entry.owner,
                priority=class_name(entry.priority),
                accelerators=indexes,
                cpus=entry.cpus_milli / 1000,
                memory_bytes=entry.memory_bytes,
                since=entry.placed_at,
                ends_at=entry.ends_at,
                gives_way_to=entry.gives_way_to if sees.get(entry.project) else "",
            )
            for entry, indexes in sorted(holders, key=lambda held: (held[1], held[0].id))
        ),
    )


def in_line(
    entry: QueueEntry, position: int, layer: str, reason: str, starts: tuple[float | None, float | None], seen: bool
) -> InLine:
    """`starts`: when it starts, and after when where only that is known; seconds since 1970."""
    at, after = starts
    return InLine(
        run=entry.id if seen else "",
        name=entry.name if seen else "",
        project=entry.project,
        owner=entry.owner,
        priority=class_name(entry.priority),
        position=position,
        queued_at=entry.queued_at,
        needs=each(entry.ask),
        layer=layer,
        reason=reason if seen else "",
        starts_at=None if at is None else datetime.fromtimestamp(at, UTC),
        starts_after=None if after is None else datetime.fromtimestamp(after, UTC),
        preemptions=entry.preemptions,
    )
