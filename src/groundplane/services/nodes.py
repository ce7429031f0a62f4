"""The machines of every pool: what they have, how they are, who may not be sent there and why."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from groundplane.domain.node import Cordon, Node, NodeHealth, PoolView
from groundplane.domain.planning.plan import Offer
from groundplane.domain.run import Attempt
from groundplane.errors import InvalidInput, NotFound, Unavailable
from groundplane.identity import Actor
from groundplane.ports import Clock, Executor, PriceBook, Store
from groundplane.services.cordons import Cordons

TALLY_AGE = timedelta(seconds=15)


class Nodes:
    """Asks every pool for its nodes and lays the cordons over them."""

    def __init__(
        self, *, store: Store, clock: Clock, executors: Mapping[str, Executor], prices: PriceBook, cordons: Cordons
    ) -> None:
        self._store = store
        self._clock = clock
        self._executors = executors
        self._prices = prices
        self._cordons = cordons
        self._tally: tuple[datetime, Counter[tuple[str, str]]] | None = None

    async def nodes(self, actor: Actor, pool: str | None = None) -> list[Node]:
        """Every node, of one pool or of all, by pool and name. NotFound for a pool that there is not."""
        if pool is not None and pool not in self._executors:
            raise NotFound(f"there is no pool {pool}", f"the pools are {', '.join(sorted(self._executors))}")
        pools = [name for name in sorted(self._executors) if pool in (None, name)]
        answers = await asyncio.gather(*(self._executors[name].nodes() for name in pools))
        cordons = await self._cordons.of_pool()
        at_work = await self._at_work()
        return [
            replace(
                node,
                cordoned=standing.reason if (standing := cordons.get(f"{node.pool}/{node.name}")) else "",
                attempts=at_work[node.pool, node.name],
            )
            for nodes in answers
            for node in sorted(nodes, key=lambda node: node.name)
        ]

    async def node(self, actor: Actor, pool: str, name: str) -> Node:
        """Raises NotFound naming the pool's nodes."""
        nodes = await self.nodes(actor, pool)
        found = next((node for node in nodes if node.name == name), None)
        if found is None:
            have = ", ".join(node.name for node in nodes[:10]) or "none"
            raise NotFound(f"pool {pool} has no node {name}", f"it has {have}")
        return found

    async def cordon(self, actor: Actor, pool: str, name: str, reason: str) -> Cordon:
        """Sends no new work there; what runs there goes on. Twice is the same as once: the first reason stays."""
        if not reason.strip():
            raise InvalidInput("a cordon needs a reason", "say what is wrong with the node: --reason 'Xid 79 on GPU 3'")
        await self.node(actor, pool, name)
        return await self._cordons.cordon(actor, pool, name, reason.strip())

    async def uncordon(self, actor: Actor, pool: str, name: str, reason: str = "") -> None:
        """Lets work there again. NotFound when it is not cordoned."""
        await self._cordons.uncordon(actor, pool, name, reason)

    async def pools(self, actor: Actor) -> list[PoolView]:
        """Every pool in numbers."""
        nodes = await self.nodes(actor)
        names = sorted(self._executors)
        offers = await asyncio.gather(*(self._offers(name) for name in names))
        return [
            _view(name, [node for node in nodes if node.pool == name], found)
            for name, found in zip(names, offers, strict=True)
        ]

    async def tally(self, actor: Actor) -> Counter[tuple[str, str]]:
        """Nodes by (pool, health); `cordoned` ones are counted as that. At most 15 s old."""
        now = self._clock.now()
        if self._tally is None or not timedelta(0) <= now - self._tally[0] < TALLY_AGE:
            nodes = await self.nodes(actor)
            self._tally = (now, Counter((n.pool, "cordoned" if n.cordoned else n.health.value) for n in nodes))
        return self._tally[1]

    async def _at_work(self) -> Counter[tuple[str, str]]:
        """Open attempts by (pool, node); a gang counts on each of its nodes."""
        async with self._store.transaction() as tx:
            rows = await tx.find(Attempt, {"end_reason": None})
        return Counter((row.pool, node) for row in rows for node in row.node.split(",") if node)

    async def _offers(self, pool: str) -> Sequence[Offer] | Unavailable:
        try:
            found = await self._executors[pool].offers()
        except Unavailable as error:
            return error
        priced = []
        for offer in found:
            try:
                priced.append(self._prices.price(offer))
            except NotFound:
                continue  # told by `recon` and by plans, with the way forward
        return priced


def _view(name: str, nodes: Sequence[Node], offers: Sequence[Offer] | Unavailable) -> PoolView:
    cards = [card for node in nodes for card in node.accelerators]
    prices = [] if isinstance(offers, Unavailable) else [offer.price_microusd_per_hour for offer in offers]
    free = sum(not card.held_by for node in nodes if node.takes_work for card in node.accelerators)
    return PoolView(
        name=name,
        nodes=len(nodes),
        ready=sum(node.health is NodeHealth.READY for node in nodes),
        cordoned=sum(bool(node.cordoned) for node in nodes),
        cpus=sum(node.cpus for node in nodes),
        memory_bytes=sum(node.memory_bytes for node in nodes),
        accelerators=len(cards),
        accelerators_free=free,
        accelerator=", ".join(sorted({card.model for card in cards})),
        price_low_microusd_per_hour=min(prices, default=None),
        price_high_microusd_per_hour=max(prices, default=None),
        why=offers.message if isinstance(offers, Unavailable) else "",
    )
