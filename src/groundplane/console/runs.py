"""Runs as pages: the list, one run with its attempts and live log, and stopping it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Form, Query, Request, Response
from fastapi.responses import PlainTextResponse

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.logtext import readable
from groundplane.console.tracking import charts_of
from groundplane.console.web import HOME, PageRoute, back, page
from groundplane.console.words import Sparkline, sparkline
from groundplane.domain.order import Sample
from groundplane.domain.run import RunStatus
from groundplane.identity import Actor, Permission
from groundplane.units import format_bytes

LIST_LIMIT = 100
LOG_PIECE_BYTES = 65_536
SAMPLES = 120
STATUSES = ("active", *RunStatus)

Reader = Annotated[Actor, requires(Permission.RUNS_READ)]
Writer = Annotated[Actor, requires(Permission.RUNS_WRITE)]


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/runs")

    @router.get("")
    async def runs(request: Request, actor: Reader, ground: Ground, status: str = "", project: str = "") -> Response:
        found = await ground.runs.runs(actor, project=project or None, status=status or None, limit=LIST_LIMIT)
        projects = [each.id for each in await ground.access.projects(actor)]
        return page(
            request,
            "runs.html",
            actor,
            runs=found,
            limit=LIST_LIMIT,
            status=status,
            statuses=STATUSES,
            project=project,
            projects=projects,
        )

    @router.get("/{run_id}")
    async def run(
        request: Request,
        run_id: str,
        actor: Reader,
        ground: Ground,
        attempt: Annotated[int | None, Query(ge=1)] = None,
        offset: Annotated[int | None, Query(ge=0)] = None,
    ) -> Response:
        found = await ground.runs.get(actor, run_id)
        cpu, memory = _pictures(await ground.runs.samples(actor, run_id, SAMPLES))
        return page(
            request,
            "run.html",
            actor,
            run=found,
            explanation=await ground.runs.explain(actor, run_id),
            attempts=await ground.runs.attempts(actor, run_id),
            checkpoints=await ground.runs.checkpoints(actor, run_id),
            preflight=await ground.runs.preflight(actor, run_id),
            data=await ground.staging.data(actor, run_id),
            cpu=cpu,
            memory=memory,
            tracked=(tracked := await ground.tracking.of_job(actor, run_id)),
            charts=await charts_of(ground, actor, tracked[:1]),
            log=await _log(ground, actor, run_id, attempt, offset),
            may_stop=actor.may(Permission.RUNS_WRITE) and not found.status.is_over and not found.endpoint,
        )

    @router.get("/{run_id}/log")
    async def log(
        run_id: str,
        actor: Reader,
        ground: Ground,
        offset: Annotated[int, Query(ge=0)] = 0,
        attempt: Annotated[int | None, Query(ge=1)] = None,
    ) -> Response:
        """What the page's script asks for: text from `offset`, and in headers where to go on."""
        piece = await _log(ground, actor, run_id, attempt, offset)
        return PlainTextResponse(
            piece["text"],
            headers={
                "X-Ground-Next-Offset": str(piece["next_offset"]),
                "X-Ground-Complete": str(piece["complete"]).lower(),
                "X-Ground-Attempt": str(piece["attempt"]),
                "X-Ground-Newest-Attempt": str(piece["newest"]),
            },
        )

    @router.get("/{run_id}/stacks")
    async def stacks(
        run_id: str,
        actor: Reader,
        ground: Ground,
        attempt: Annotated[int | None, Query(ge=1)] = None,
        rank: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        """What a member's processes did when it was taken for hung, as text."""
        text = await ground.checkpoints.stacks(actor, run_id, attempt=attempt, rank=rank)
        return PlainTextResponse(text or "it was never taken for hung\n")

    @router.post("/{run_id}/stop")
    async def stop(run_id: str, actor: Writer, ground: Ground, reason: Annotated[str, Form()] = "") -> Response:
        await ground.runs.stop(actor, run_id, reason)
        return back(f"{HOME}/runs/{run_id}")

    return router


async def _log(ground: Any, actor: Actor, run_id: str, attempt: int | None, offset: int | None) -> dict[str, Any]:
    """One readable piece. Without an offset, the last one: what a person who opens the page wants to see."""
    newest = (await ground.runs.get(actor, run_id)).attempt
    if offset is None:
        offset = max(0, await _log_end(ground, actor, run_id, attempt) - LOG_PIECE_BYTES)
    chunk, number = await ground.runs.log(actor, run_id, offset=offset, limit_bytes=LOG_PIECE_BYTES, attempt=attempt)
    text, used = readable(chunk.data, complete=chunk.complete)
    return {
        "text": text,
        "offset": chunk.offset,
        "next_offset": chunk.offset + used,
        "complete": chunk.complete,
        "attempt": number,
        "newest": newest,
    }


async def _log_end(ground: Any, actor: Actor, run_id: str, attempt: int | None) -> int:
    """How long the log is, by halving: executors tell no size, and an offset past the end gives no bytes."""

    async def has(offset: int) -> bool:
        chunk, _ = await ground.runs.log(actor, run_id, offset=offset, limit_bytes=1, attempt=attempt)
        return bool(chunk.data)

    if not await has(LOG_PIECE_BYTES):
        return LOG_PIECE_BYTES
    inside, outside = LOG_PIECE_BYTES, 2 * LOG_PIECE_BYTES
    while await has(outside):
        inside, outside = outside, 2 * outside
    while outside - inside > 1:
        middle = (inside + outside) // 2
        inside, outside = (middle, outside) if await has(middle) else (inside, middle)
    return outside


def _pictures(samples: list[Sample]) -> tuple[Sparkline | None, Sparkline | None]:
    cpu = [sample.cpu_percent for sample in samples]
    memory = [float(sample.memory_bytes) for sample in samples]
    return (
        sparkline(cpu, [f"{value:.0f} %" for value in cpu]),
        sparkline(memory, [format_bytes(int(value)) for value in memory]),
    )
