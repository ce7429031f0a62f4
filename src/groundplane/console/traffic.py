"""What passes through the gateways as pages: rates against limits, who was refused, requests as they end, and the
prediction log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Form, Query, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import HOME, PageRoute, back, page
from groundplane.domain.serving.limits import LIMIT_SCOPES, PURSES, Measure
from groundplane.domain.serving.prediction import Wanted
from groundplane.domain.serving.traffic import Filter, Live, Rate
from groundplane.errors import InvalidInput
from groundplane.identity import Actor, Permission
from groundplane.units import parse_usd

SHOWN_MAX = 100
_RECORDS = 50
Reader = Annotated[Actor, requires(Permission.TRAFFIC_READ)]
LimitWriter = Annotated[Actor, requires(Permission.KEYS_WRITE)]
LogReader = Annotated[Actor, requires(Permission.PREDICTIONS_READ)]
LogWriter = Annotated[Actor, requires(Permission.PREDICTIONS_WRITE)]
Text = Annotated[str, Form(max_length=500)]


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/traffic")

    @router.get("")
    async def traffic(request: Request, actor: Reader, ground: Ground) -> Response:
        live = await ground.traffic.live(actor)
        keys = {key.id: key for key in await ground.access.keys(actor)} if actor.may(Permission.KEYS_READ) else {}
        return page(
            request,
            "traffic.html",
            actor,
            live=live,
            rates=[_against(rate, keys, live) for rate in live.rates],
            projects=[one.id for one in await ground.access.projects(actor)],
            scopes=LIMIT_SCOPES,
            measures=[one.value for one in Measure if one is not Measure.BUDGET],
            rules={rule.id for rule in await ground.gateway_limits.limits(actor)},
            at=_moment,
            may_limit=actor.may(Permission.KEYS_WRITE),
        )

    @router.post("/limits")
    async def set_limit(
        actor: LimitWriter, ground: Ground, project: Text, scope: Text, measure: Text, value: Text, name: Text = "",
        reason: Text = "",
    ) -> Response:  # fmt: skip
        await ground.gateway_limits.set_limit(
            actor,
            project=project,
            scope=scope,
            name=name,
            measure=_measure(measure),
            value=_value(measure, value),
            reason=reason,
        )
        return back(f"{HOME}/traffic")

    @router.post("/limits/lift")
    async def lift_limit(actor: LimitWriter, ground: Ground, id: Text, reason: Text = "") -> Response:
        await ground.gateway_limits.lift(actor, id, reason)
        return back(f"{HOME}/traffic")

    @router.get("/requests")
    async def requests(
        request: Request,
        actor: Reader,
        ground: Ground,
        project: Annotated[str, Query(max_length=100)] = "",
        model: Annotated[str, Query(max_length=200)] = "",
        key: Annotated[str, Query(max_length=100)] = "",
        status: Annotated[str, Query(max_length=20)] = "",
        slow_ms: Annotated[str, Query(max_length=20)] = "",
    ) -> Response:
        if slow_ms and not slow_ms.replace(".", "", 1).isdigit():
            raise InvalidInput(f"{slow_ms!r} is no number of milliseconds", "like 500")
        wanted = Filter(project=project, model=model, key_id=key, status=status, slow_ms=float(slow_ms or 0))
        tail = await ground.traffic.tail(actor, wanted, after=0, wait_s=0)
        return page(
            request,
            "tail.html",
            actor,
            requests=tail.requests[: -SHOWN_MAX - 1 : -1],
            matching=len(tail.requests),
            wanted=wanted,
            slow_ms=slow_ms,
            projects=[one.id for one in await ground.access.projects(actor)],
            at=_moment,
        )

    _prediction_routes(router)
    return router


def _prediction_routes(router: Router) -> None:
    @router.get("/predictions")
    async def predictions(
        request: Request,
        actor: LogReader,
        ground: Ground,
        project: Annotated[str, Query(max_length=100)] = "",
        after: Annotated[str, Query(max_length=100)] = "",
    ) -> Response:
        rules = await ground.predictions.rules(actor)
        chosen = project or next((rule.project for rule in rules), "")
        found = await ground.predictions.page(actor, chosen, Wanted(), _RECORDS, after=after) if chosen else None
        return page(
            request,
            "predictions.html",
            actor,
            rules=rules,
            holdings=await ground.predictions.holdings(actor),
            projects=[one.id for one in await ground.access.projects(actor)],
            project=chosen,
            records=found.records if found else [],
            after=found.next if found else "",
            text=_text,
            may_write=actor.may(Permission.PREDICTIONS_WRITE),
        )

    @router.get("/predictions/{project}/{request_id}")
    async def prediction(request: Request, project: str, request_id: str, actor: LogReader, ground: Ground) -> Response:
        record = await ground.predictions.record(actor, project, request_id)
        return page(request, "prediction.html", actor, record=record, text=_text)

    @router.post("/predictions/rules")
    async def set_rule(
        actor: LogWriter, ground: Ground, project: Text, sample_percent: Text, retention_days: Text, model: Text = "",
        state: Text = "on", keeps: Text = "redacted", reason: Text = "",
    ) -> Response:  # fmt: skip
        changes: dict[str, Any] = {
            "enabled": state == "on",
            "sample_percent": _number(sample_percent),
            "retention_days": int(_number(retention_days)),
            "content": keeps != "figures",
            "redact": keeps != "as-is",
        }
        await ground.predictions.set_rule(actor, project=project, model=model, changes=changes, reason=reason)
        return back(f"{HOME}/traffic/predictions?project={project}")

    @router.post("/predictions/erase")
    async def erase(
        request: Request, actor: LogWriter, ground: Ground, project: Text, subject: Text, reason: Text
    ) -> Response:
        done = await ground.predictions.erase(actor, project, subject, reason)
        return page(request, "prediction_erased.html", actor, done=done)


def _against(rate: Rate, keys: dict[str, Any], live: Live) -> dict[str, Any]:
    """A key's rate, its name, and what it may: limits of its own, and those set for it later."""
    key = keys.get(rate.key_id)
    limits = {one.measure: one.value for one in live.limits if one.scope == "key" and one.name == rate.key_id}
    return {
        "rate": rate,
        "name": key.name if key is not None else rate.key_id,
        "rpm": limits.get(Measure.REQUESTS.value),
        "tpm": limits.get(Measure.TOKENS.value),
    }


def _measure(text: str) -> Measure:
    try:
        return Measure(text)
    except ValueError:
        raise InvalidInput(f"{text[:40]!r} is no measure of a limit", "choose one of the list") from None


def _value(measure: str, text: str) -> int:
    """Whole units; dollars as one writes them."""
    try:
        return parse_usd(text) if _measure(measure) in PURSES else int(text.replace(",", ""))
    except ValueError:
        raise InvalidInput(f"{text[:40]!r} is no limit", "a whole number, or dollars like 12.50") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(f"{text[:40]!r} is no number", "like 5") from None


def _moment(at_s: float) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)


def _text(content: object) -> str:
    return content if isinstance(content, str) else str(content)
