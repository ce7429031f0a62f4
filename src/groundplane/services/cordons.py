"""Nodes that take no new work: who said so, why, and since when. What runs there goes on."""

from __future__ import annotations

from groundplane.domain.node import Cordon
from groundplane.errors import NotFound
from groundplane.identity import Actor
from groundplane.ports import Clock, Store, Tx
from groundplane.services.audit_trail import Teller


class Cordons:
    """Sets and lifts cordons; the first reason stays until it is lifted."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._tell = Teller(clock, "node")

    async def cordon(self, actor: Actor, pool: str, node: str, reason: str, hint: str = "") -> Cordon:
        """Twice is the same as once."""
        async with self._store.transaction() as tx:
            return await self.cordon_in(tx, actor, pool, node, reason, hint)

    async def cordon_in(self, tx: Tx, actor: Actor, pool: str, node: str, reason: str, hint: str = "") -> Cordon:
        """Inside a caller's transaction."""
        now = self._clock.now()
        fresh = Cordon(
            id=f"{pool}/{node}",
            pool=pool,
            node=node,
            reason=reason,
            hint=hint,
            cordoned_by=actor.name,
            cordoned_at=now,
        )
        if not await tx.insert_once(fresh):
            standing = await tx.get(Cordon, fresh.id)
            return standing or fresh
        await self._tell(tx, actor, "node.cordon", fresh.id, "", {"hint": hint}, reason)
        return fresh

    async def uncordon(self, actor: Actor, pool: str, node: str, reason: str = "") -> None:
        """Raises NotFound when it takes work already."""
        async with self._store.transaction() as tx:
            standing = await tx.get(Cordon, f"{pool}/{node}", lock=True)
            if standing is None:
                raise NotFound(f"node {node} of pool {pool} is not cordoned", "ground nodes list shows which are")
            await tx.delete(Cordon, standing.id)
            before = {"reason": standing.reason, "cordoned_by": standing.cordoned_by}
            await self._tell(tx, actor, "node.uncordon", standing.id, "", {}, reason, before=before)

    async def of_pool(self, pool: str = "") -> dict[str, Cordon]:
        """Node → its cordon, of one pool or of all (then by `<pool>/<node>`)."""
        async with self._store.transaction() as tx:
            found = await tx.find(Cordon, {"pool": pool} if pool else {})
        return {each.node if pool else each.id: each for each in found}
