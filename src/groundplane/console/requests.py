"""Requests as pages: paste a message, read what became of it, answer what is missing, take the specs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import HOME, PageRoute, back, page
from groundplane.domain.intake.facts import known_fact, shown
from groundplane.domain.intake.request import RequestStatus
from groundplane.errors import InvalidInput
from groundplane.identity import Actor, Permission

Reader = Annotated[Actor, requires(Permission.REQUESTS_READ)]
Writer = Annotated[Actor, requires(Permission.REQUESTS_WRITE)]


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/requests")

    @router.get("")
    async def requests(request: Request, actor: Reader, ground: Ground) -> Response:
        return page(
            request,
            "requests.html",
            actor,
            requests=await ground.requests.requests(actor),
            projects=[project.id for project in await ground.access.projects(actor)],
            may_write=actor.may(Permission.REQUESTS_WRITE),
        )

    @router.post("")
    async def create(
        actor: Writer, ground: Ground, message: Annotated[str, Form()] = "", project: Annotated[str, Form()] = ""
    ) -> Response:
        # A form sends line ends as CR LF; places are counted in what is stored.
        made = await ground.requests.create(actor, message.replace("\r\n", "\n"), project=project or None)
        return back(f"{HOME}/requests/{made.id}")

    @router.get("/{request_id}")
    async def one(request: Request, request_id: str, actor: Reader, ground: Ground) -> Response:
        found = await ground.requests.get(actor, request_id)
        open_still = found.status is not RequestStatus.CLOSED
        verdicts = await ground.policies.judge_request(actor, request_id)
        return page(
            request,
            "request.html",
            actor,
            asked=found,
            specs=await ground.requests.specs(actor, request_id),
            spoken=[v for v in verdicts if v.refused or v.approval or v.warning],
            label=lambda name: known_fact(name).label,
            example=lambda name: known_fact(name).example,
            shown=shown,
            may_answer=actor.may(Permission.REQUESTS_WRITE) and open_still,
        )

    @router.post("/{request_id}/answers")
    async def answer(request: Request, request_id: str, actor: Writer, ground: Ground) -> Response:
        form = await request.form()
        answers = {key: str(value) for key, value in form.items() if str(value).strip()}
        if not answers:
            raise InvalidInput("no answer is given", "fill in at least one field")
        await ground.requests.answer(actor, request_id, answers)
        return back(f"{HOME}/requests/{request_id}")

    @router.post("/{request_id}/close")
    async def close(request_id: str, actor: Writer, ground: Ground, reason: Annotated[str, Form()] = "") -> Response:
        await ground.requests.close(actor, request_id, reason)
        return back(f"{HOME}/requests/{request_id}")

    return router
