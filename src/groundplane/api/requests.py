"""Requests: a pasted message read, answered, and turned into specs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.intake.request import Request, RequestStatus
from groundplane.identity import Actor, Permission
from groundplane.wire import ReasonRequest
from groundplane.wire.requests import AnswersRequest, MessageRequest, SpecsBody

router = Router(prefix="/v1/requests", tags=["requests"])
Reader = Annotated[Actor, requires(Permission.REQUESTS_READ)]
Writer = Annotated[Actor, requires(Permission.REQUESTS_WRITE)]


@router.post("")
async def create_request(body: MessageRequest, app: Ground, actor: Writer) -> Request:
    """Reads a message into work items, questions and risks, and stores it."""
    made: Request = await app.requests.create(actor, body.message, project=body.project, quotas=body.quotas)
    return made


@router.get("")
async def list_requests(
    app: Ground,
    actor: Reader,
    project: str | None = None,
    status: RequestStatus | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[Request]:
    """Newest first."""
    found: list[Request] = await app.requests.requests(actor, project=project, status=status, limit=limit)
    return found


@router.get("/{request_id}")
async def get_request(request_id: str, app: Ground, actor: Reader) -> Request:
    """One request with its items as they stand after the answers."""
    found: Request = await app.requests.get(actor, request_id)
    return found


@router.post("/{request_id}/answers")
async def answer_request(request_id: str, body: AnswersRequest, app: Ground, actor: Writer) -> Request:
    """Adds answers: `owner` for all items, `2.model` for one. An empty answer takes an earlier one back."""
    changed: Request = await app.requests.answer(actor, request_id, body.answers)
    return changed


@router.get("/{request_id}/specs")
async def request_specs(request_id: str, app: Ground, actor: Reader) -> SpecsBody:
    """YAML that can be planned, the facts still missing, and steps for items that no spec describes."""
    made = await app.requests.specs(actor, request_id)
    return SpecsBody(documents=made.documents, missing=made.missing, steps=made.steps, yaml=made.yaml)


@router.post("/{request_id}/close")
async def close_request(request_id: str, body: ReasonRequest, app: Ground, actor: Writer) -> Request:
    """Closes it for good; it can still be read. Twice is the same as once."""
    closed: Request = await app.requests.close(actor, request_id, body.reason)
    return closed
