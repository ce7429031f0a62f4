"""The prediction log: what is kept, read, exported and erased."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated, Any

from fastapi import Query
from pydantic import AwareDatetime

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.serving.prediction import Erasure, Holdings, PredictionRule, Wanted
from groundplane.identity import Actor, Permission
from groundplane.services.predictions import PAGE_MAX
from groundplane.wire.traffic import ErasureRequest, ExportNote, PredictionPage, PredictionRuleRequest

router = Router(prefix="/v1/predictions", tags=["predictions"])
Reader = Annotated[Actor, requires(Permission.PREDICTIONS_READ)]
Writer = Annotated[Actor, requires(Permission.PREDICTIONS_WRITE)]
Moment = Annotated[AwareDatetime | None, Query(description="RFC 3339 with a zone.")]


@router.get("/rules")
async def list_prediction_rules(
    app: Ground, actor: Annotated[Actor, requires(Permission.KEYS_READ)], project: str | None = None
) -> list[PredictionRule]:
    """What is kept of the projects that the caller sees; a project without a rule keeps nothing."""
    rules: list[PredictionRule] = await app.predictions.rules(actor, project)
    return rules


@router.put("/rules")
async def set_prediction_rule(body: PredictionRuleRequest, app: Ground, actor: Writer) -> PredictionRule:
    """Sets what is kept of a project or a model; the gateway follows within seconds."""
    rule: PredictionRule = await app.predictions.set_rule(
        actor, project=body.project, model=body.model, changes=body.changes(), reason=body.reason
    )
    return rule


@router.get("/holdings")
async def list_prediction_holdings(app: Ground, actor: Reader) -> list[Holdings]:
    """How much is kept, and of which days."""
    holdings: list[Holdings] = await app.predictions.holdings(actor)
    return holdings


@router.get("")
async def list_predictions(
    app: Ground,
    actor: Reader,
    project: str,
    since: Moment = None,
    until: Moment = None,
    model: str = "",
    key: str = "",
    status: int | None = None,
    subject: Annotated[str, Query(max_length=512)] = "",
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
    after: str = "",
    oldest_first: bool = False,
) -> PredictionPage:
    """Records, newest first; `after` is the page before's `next`."""
    wanted = Wanted(
        since="" if since is None else _text(since),
        until="" if until is None else _text(until),
        model=model,
        key_id=key,
        status=status,
        subject=subject,
    )
    page = await app.predictions.page(actor, project, wanted, limit, after=after, newest=not oldest_first)
    return PredictionPage(records=tuple(page.records), next=page.next)


@router.get("/{project}/{request_id}")
async def show_prediction(project: str, request_id: str, app: Ground, actor: Reader) -> dict[str, Any]:
    """One record, by its request's id."""
    record: dict[str, Any] = await app.predictions.record(actor, project, request_id)
    return record


@router.post("/exports", status_code=204)
async def note_prediction_export(body: ExportNote, app: Ground, actor: Reader) -> None:
    """Puts on the trail that records were copied elsewhere: an erasure does not reach copies."""
    await app.predictions.note_export(actor, body.project, body.records, body.to)


@router.post("/erase")
async def erase_predictions(body: ErasureRequest, app: Ground, actor: Writer) -> Erasure:
    """Removes a subject's records from every file, looks again, and says what was done."""
    erasure: Erasure = await app.predictions.erase(actor, body.project, body.subject, body.reason)
    return erasure


def _text(moment: AwareDatetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
