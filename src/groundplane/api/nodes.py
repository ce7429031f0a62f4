"""Pools and their machines: how they are, and which take no new work."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.node import Cordon, Node, PoolView
from groundplane.domain.pool_file import PoolChanges
from groundplane.identity import Actor, Permission
from groundplane.wire import ReasonRequest

router = Router(prefix="/v1", tags=["nodes"])
Reader = Annotated[Actor, requires(Permission.SYSTEM_READ)]
Keeper = Annotated[Actor, requires(Permission.NODES_WRITE)]


@router.get("/pools")
async def list_pools(app: Ground, actor: Reader) -> list[PoolView]:
    """Every pool in numbers: nodes, accelerators, prices, and why one does not answer."""
    pools: list[PoolView] = await app.nodes.pools(actor)
    return pools


@router.post("/pools/reload")
async def reload_pools(body: ReasonRequest, app: Ground, actor: Keeper) -> PoolChanges:
    """Reads the pool file anew: all of it is taken, or nothing and every fault is told."""
    changes: PoolChanges = await app.pools.reload(actor, body.reason)
    return changes


@router.get("/nodes")
async def list_nodes(
    app: Ground, actor: Reader, pool: Annotated[str | None, Query(max_length=100)] = None
) -> list[Node]:
    """Every node, of one pool or of all, also those that do not answer."""
    nodes: list[Node] = await app.nodes.nodes(actor, pool)
    return nodes


@router.get("/nodes/{pool}/{node}")
async def get_node(pool: str, node: str, app: Ground, actor: Reader) -> Node:
    """One node with its accelerators and who holds them."""
    found: Node = await app.nodes.node(actor, pool, node)
    return found


@router.put("/nodes/{pool}/{node}/cordon")
async def cordon_node(pool: str, node: str, body: ReasonRequest, app: Ground, actor: Keeper) -> Cordon:
    """Sends no new work there; what runs there goes on. The first reason stays."""
    cordon: Cordon = await app.nodes.cordon(actor, pool, node, body.reason)
    return cordon


@router.delete("/nodes/{pool}/{node}/cordon", status_code=204)
async def uncordon_node(pool: str, node: str, app: Ground, actor: Keeper, reason: str = "") -> None:
    """Lets work there again."""
    await app.nodes.uncordon(actor, pool, node, reason)
