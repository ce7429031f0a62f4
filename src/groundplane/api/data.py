"""Staged data: how far a run's is, and what the nodes' caches hold."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.staging import NodeCache, StagedData
from groundplane.identity import Actor, Permission

router = Router(prefix="/v1", tags=["data"])
Name = Annotated[str, Query(max_length=100)]


@router.get("/runs/{run_id}/data")
async def show_run_data(
    run_id: str, app: Ground, actor: Annotated[Actor, requires(Permission.RUNS_READ)]
) -> StagedData:
    """How far a run's data is, with rate and time left, and what came of each source."""
    found: StagedData = await app.staging.data(actor, run_id)
    return found


@router.get("/data/caches")
async def list_data_caches(
    app: Ground, _: Annotated[Actor, requires(Permission.SYSTEM_READ)], pool: Name = "", node: Name = ""
) -> list[NodeCache]:
    """What each node keeps of staged data. A node that does not answer says so."""
    found: list[NodeCache] = await app.staging.caches(pool=pool, node=node)
    return found


@router.delete("/data/caches")
async def clear_data_caches(
    app: Ground,
    actor: Annotated[Actor, requires(Permission.NODES_WRITE)],
    pool: Name,
    node: Name = "",
    reason: Annotated[str, Query(max_length=500)] = "",
) -> list[NodeCache]:
    """Removes from a pool's nodes, or one of them, staged data that no run uses. Twice is the same as once."""
    found: list[NodeCache] = await app.staging.clear(actor, pool=pool, node=node, reason=reason)
    return found
