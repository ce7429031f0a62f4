"""A node of a pool as its executor knows it: the way to its desk, what was last heard, and what that offers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

from groundplane.adapters.executors.channels import Channel, Document
from groundplane.adapters.executors.members import split
from groundplane.adapters.executors.observing import accelerator_name
from groundplane.domain.node import Node, NodeAccelerator, NodeHealth
from groundplane.domain.planning.plan import Offer
from groundplane.errors import Unavailable


@dataclass(slots=True, kw_only=True)
class Link:
    """A node of the pool, the way to its desk, and what was last heard from it."""

    name: str
    channel: Channel
    address: str = "127.0.0.1"
    labels: tuple[tuple[str, str], ...] = ()
    node_type: str = ""
    price_microusd_per_hour: int = 0
    price_as_of: date | None = None
    facts: Document = field(default_factory=dict)
    heard_at: datetime | None = None
    failure: Unavailable | None = None
    under_way: dict[str, tuple[asyncio.Task[Document], float]] = field(default_factory=dict)


def node_of(pool: str, link: Link) -> Node:
    """The node as it was last heard, or why it was not."""
    facts, failure = link.facts, link.failure
    health = NodeHealth.READY
    if failure is not None:
        health = NodeHealth.REFUSED if getattr(failure, "refused", False) else NodeHealth.SILENT
    cards = tuple(
        NodeAccelerator(
            index=card["index"],
            model=accelerator_name(card["name"], card["memory_bytes"]),
            memory_bytes=card["memory_bytes"],
            held_by=split(card["held_by"])[0],
        )
        for card in facts.get("accelerators", ())
    )
    return Node(
        name=link.name,
        pool=pool,
        cpus=facts.get("cpus", 0.0),
        memory_bytes=facts.get("memory_bytes", 0),
        disk_free_bytes=facts.get("disk_free_bytes", 0),
        accelerators=cards,
        labels=link.labels,
        isolation=tuple(facts.get("isolation", {}).items()),
        limits=tuple(facts.get("limits", {}).items()),
        address=link.address,
        health=health,
        reason=failure.message if failure else "",
        hint=failure.hint if failure else "",
        heard_at=link.heard_at,
    )


def offer_of(pool: str, alike: Sequence[Link], today: date, *, alone: bool, serves: bool) -> Offer:
    """What nodes that are alike offer together; `alone` when they share no folder,
    `serves` when their ports are this machine's."""
    link, facts = alike[0], alike[0].facts
    cards = facts["accelerators"]
    model = accelerator_name(cards[0]["name"], cards[0]["memory_bytes"]) if cards else ""
    shape = f"{facts['cpus']:g}cpu" + (f"-{len(cards)}x{model}" if cards else "")
    return Offer(
        pool=pool,
        node_type=link.node_type or shape,
        cpus=facts["cpus"],
        memory_bytes=facts["memory_bytes"],
        disk_free_bytes=min(each.facts["disk_free_bytes"] for each in alike),
        accelerators=len(cards),
        accelerator=model,
        price_microusd_per_hour=link.price_microusd_per_hour,
        price_as_of=link.price_as_of or today,
        price_source="the pool file" if link.price_as_of else "",
        nodes=len(alike),
        alone=alone,
        serves=serves,
        isolation=tuple(
            mode
            for mode in facts.get("isolation", {})
            if all(each.facts.get("isolation", {}).get(mode) == "" for each in alike)
        ),
    )
