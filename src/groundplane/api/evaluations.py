"""Evaluations and batches that ended, and how far a batch is. Both are submitted as plans, like any run."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.batch import Batch, BatchProgress
from groundplane.domain.evaluation import Evaluation, EvaluationComparison, Item
from groundplane.identity import Actor, Permission

router = Router(prefix="/v1", tags=["evaluations"])
Reader = Annotated[Actor, requires(Permission.MODELS_READ)]
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("/evaluations")
async def list_evaluations(
    app: Ground, actor: Reader, project: str = "", name: str = "", version: str = "", limit: Limit = 100
) -> list[Evaluation]:
    """Newest first; of one project, name or model version when given."""
    found: list[Evaluation] = await app.evaluations.evaluations(
        actor, project=project, name=name, version=version, limit=limit
    )
    return found


@router.get("/evaluations/compare")
async def compare_evaluations(app: Ground, actor: Reader, before: str, after: str) -> EvaluationComparison:
    """Two evaluations beside each other, item by item where both asked the same."""
    found: EvaluationComparison = await app.evaluations.compare(actor, before, after)
    return found


@router.get("/evaluations/{evaluation_id}")
async def show_evaluation(evaluation_id: str, app: Ground, actor: Reader) -> Evaluation:
    """Scores with their intervals, slices, latency, cost, alarms."""
    found: Evaluation = await app.evaluations.get(actor, evaluation_id)
    return found


@router.get("/evaluations/{evaluation_id}/items")
async def list_evaluation_items(
    evaluation_id: str,
    app: Ground,
    actor: Reader,
    metric: str = "",
    limit: Limit = 100,
    offset: Annotated[int, Query(ge=0, le=10_000)] = 0,
) -> list[Item]:
    """Its items, the worst first, by one metric or by all."""
    found: list[Item] = await app.evaluations.items(actor, evaluation_id, metric=metric, limit=limit, offset=offset)
    return found


@router.get("/batches")
async def list_batches(app: Ground, actor: Reader, project: str = "", limit: Limit = 100) -> list[Batch]:
    """Batches that ended well, newest first."""
    found: list[Batch] = await app.batches.batches(actor, project=project, limit=limit)
    return found


@router.get("/batches/{run_id}")
async def show_batch(run_id: str, app: Ground, actor: Reader) -> BatchProgress:
    """How far it is, and what became of it."""
    found: BatchProgress = await app.batches.progress(actor, run_id)
    return found
