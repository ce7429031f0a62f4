"""Runs: list, look at, explain, stop, read."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.order import Sample
from groundplane.domain.run import Run
from groundplane.identity import Actor, Permission
from groundplane.wire import ReasonRequest
from groundplane.wire.runs import RunDetail, RunExplanation

router = Router(prefix="/v1/runs", tags=["runs"])
Reader = Annotated[Actor, requires(Permission.RUNS_READ)]
LOG_PIECE_BYTES = 256 * 1024
LOG_PIECE_MAX_BYTES = 4 * 2**20
_LOG_HEADERS = {
    "X-Ground-Next-Offset": {"schema": {"type": "integer"}, "description": "Where to go on reading."},
    "X-Ground-Complete": {"schema": {"type": "boolean"}, "description": "true when this attempt writes no more."},
    "X-Ground-Attempt": {"schema": {"type": "integer"}, "description": "Whose log this is; 0 before the first."},
}


@router.get("")
async def list_runs(
    app: Ground,
    actor: Reader,
    project: str | None = None,
    status: Annotated[str | None, Query(description="A run's status, or `active`.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[Run]:
    """Newest first."""
    runs: list[Run] = await app.runs.runs(actor, project=project, status=status, limit=limit)
    return runs


@router.get("/{run_id}")
async def get_run(run_id: str, app: Ground, actor: Reader) -> RunDetail:
    """One run with its attempts and its checkpoints."""
    return RunDetail(
        run=await app.runs.get(actor, run_id),
        attempts=tuple(await app.runs.attempts(actor, run_id)),
        checkpoints=tuple(await app.runs.checkpoints(actor, run_id)),
    )


@router.get("/{run_id}/explain")
async def explain_run(run_id: str, app: Ground, actor: Reader) -> RunExplanation:
    """One sentence on where the run is and why, then the facts behind it."""
    explanation = await app.runs.explain(actor, run_id)
    return RunExplanation(sentence=explanation.sentence, lines=tuple(explanation.lines))


@router.post("/{run_id}/stop")
async def stop_run(
    run_id: str, body: ReasonRequest, app: Ground, actor: Annotated[Actor, requires(Permission.RUNS_WRITE)]
) -> Run:
    """Asks the run to end. Twice is the same as once."""
    run: Run = await app.runs.stop(actor, run_id, body.reason)
    return run


@router.get(
    "/{run_id}/log",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}, "headers": _LOG_HEADERS}},
)
async def read_log(
    run_id: str,
    app: Ground,
    actor: Reader,
    offset: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=LOG_PIECE_MAX_BYTES, description="Bytes.")] = LOG_PIECE_BYTES,
    attempt: Annotated[int | None, Query(ge=1, le=1_000_000, description="The newest one when left out.")] = None,
    rank: Annotated[int, Query(ge=0, le=100_000, description="Which member of a run on several nodes.")] = 0,
) -> Response:
    """The raw bytes of a piece of one attempt's log: what the job wrote, whatever its encoding."""
    chunk, number = await app.runs.log(actor, run_id, offset=offset, limit_bytes=limit, attempt=attempt, rank=rank)
    headers = {
        "X-Ground-Next-Offset": str(chunk.next_offset),
        "X-Ground-Complete": "true" if chunk.complete else "false",
        "X-Ground-Attempt": str(number),
        # Jobs write what they like; a browser must never take it for a page of ours.
        "X-Content-Type-Options": "nosniff",
    }
    return Response(chunk.data, media_type="application/octet-stream", headers=headers)


@router.get("/{run_id}/samples")
async def read_samples(
    run_id: str, app: Ground, actor: Reader, limit: Annotated[int, Query(ge=1, le=10_000)] = 120
) -> list[Sample]:
    """The newest measurements beside the job, oldest first."""
    samples: list[Sample] = await app.runs.samples(actor, run_id, limit)
    return samples
