"""Policy as a page: the rules in force, why the folder is not, and exceptions, which can be made and ended here."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Form, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import HOME, PageRoute, back, page
from groundplane.errors import InvalidInput
from groundplane.identity import Actor, Permission

Reader = Annotated[Actor, requires(Permission.POLICY_READ)]
Writer = Annotated[Actor, requires(Permission.POLICY_WRITE)]
Word = Annotated[str, Form(max_length=500)]


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/policy")

    @router.get("")
    async def policy(request: Request, actor: Reader, ground: Ground) -> Response:
        state = await ground.policies.state()
        return page(
            request,
            "policy.html",
            actor,
            state=state,
            # What this installation decided for itself comes first.
            rules=sorted(state.rules, key=lambda rule: not rule.changed_by and rule.source == "built-in"),
            exceptions=await ground.policies.exceptions(actor, over_too=True),
            projects=[project.id for project in await ground.access.projects(actor)],
            may_write=actor.may(Permission.POLICY_WRITE),
        )

    @router.post("/reload")
    async def reload(actor: Writer, ground: Ground, reason: Word = "") -> Response:
        await ground.policies.reload(actor, reason)
        return back(f"{HOME}/policy")

    @router.post("/exceptions")
    async def add(
        actor: Writer,
        ground: Ground,
        rule: Word = "",
        project: Word = "",
        name: Word = "",
        owner: Word = "",
        reason: Word = "",
        expires: Word = "",
    ) -> Response:
        await ground.policies.add_exception(
            actor,
            rule=rule,
            project=project,
            name=name.strip(),
            owner=owner,
            reason=reason,
            expires_at=through_the_day(expires),
        )
        return back(f"{HOME}/policy")

    @router.post("/exceptions/{exception_id}/remove")
    async def remove(exception_id: str, actor: Writer, ground: Ground, reason: Word = "") -> Response:
        await ground.policies.remove_exception(actor, exception_id, reason)
        return back(f"{HOME}/policy")

    return router


def through_the_day(day: str) -> datetime:
    """A form's date as the last second of that day, UTC. Raises InvalidInput for text that is no date."""
    try:
        return datetime.fromisoformat(f"{day.strip()}T23:59:59+00:00").astimezone(UTC)
    except ValueError:
        raise InvalidInput(f"{day[:40]!r} is no date", "write it like 2026-12-01") from None
