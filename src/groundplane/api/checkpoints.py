"""Checkpoints of a run: listed, read from their copies, laid on a node; and what a hung job was doing."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.run import Checkpoint
from groundplane.identity import Actor, Permission
from groundplane.wire.runs import RestoreRequest

router = Router(prefix="/v1/runs/{run_id}", tags=["checkpoints"])
Reader = Annotated[Actor, requires(Permission.RUNS_READ)]
PIECE_BYTES = 8 * 2**20


@router.get("/checkpoints")
async def list_checkpoints(run_id: str, app: Ground, actor: Reader) -> list[Checkpoint]:
    """Complete and verified ones by step: where each lies, and whether it has a copy in the artifact store."""
    found: list[Checkpoint] = await app.checkpoints.list(actor, run_id)
    return found


@router.get(
    "/checkpoints/{step}/content",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
async def read_checkpoint(
    run_id: str,
    step: int,
    app: Ground,
    actor: Reader,
    path: Annotated[str, Query(min_length=1, max_length=4096)],
    offset: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=PIECE_BYTES, description="Bytes.")] = PIECE_BYTES,
) -> Response:
    """A range of a file of a copy, verified."""
    data = await app.checkpoints.content(actor, run_id, step, path, offset, limit)
    return Response(
        data, media_type="application/octet-stream", headers={"X-Content-Type-Options": "nosniff"}
    )  # fmt: skip


@router.post("/restore")
async def restore_checkpoint(
    run_id: str, body: RestoreRequest, app: Ground, actor: Annotated[Actor, requires(Permission.RUNS_WRITE)]
) -> Checkpoint:
    """Lays a copy into the run's checkpoint folder on a node, verified; answers when it is there."""
    laid: Checkpoint = await app.checkpoints.restore(actor, run_id, pool=body.pool, node=body.node, step=body.step)
    return laid


@router.get("/stacks", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def read_stacks(
    run_id: str,
    app: Ground,
    actor: Reader,
    attempt: Annotated[int | None, Query(ge=1, description="The newest one when left out.")] = None,
    rank: Annotated[int, Query(ge=0, le=10_000)] = 0,
) -> Response:
    """What a member's processes were doing when it was taken for hung; empty when it never was."""
    text = await app.checkpoints.stacks(actor, run_id, attempt=attempt, rank=rank)
    headers = {"X-Content-Type-Options": "nosniff"}
    return Response(text, media_type="text/plain; charset=utf-8", headers=headers)
