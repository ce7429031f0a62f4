"""Sums before spending, as pages: will it fit and how fast is it; what does a workload cost here or there."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import PageRoute, page
from groundplane.domain.sizing.memory import Method, Optimizer, Precision, gb
from groundplane.domain.sizing.roofline import words
from groundplane.errors import InvalidInput
from groundplane.identity import Actor, Permission
from groundplane.wire.sizing import CompareRequest, SizeRequest

Count = Annotated[int, Query(ge=0, le=10**15)]
Share = Annotated[float, Query(ge=0, le=10**7)]
Words = Annotated[str, Query(max_length=200)]


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/sizing")

    @router.get("")
    async def sizing(
        request: Request,
        actor: Annotated[Actor, requires(Permission.RUNS_READ)],
        ground: Ground,
        model: Words = "",
        params: Words = "",
        purpose: Words = "train",
        gpus: Words = "",
        precision: Words = "bf16",
        method: Words = "full",
        optimizer: Words = "adam",
        batch: Count = 1,
        tokens: Count = 4_096,
        checkpointing: bool = False,
        dataset_tokens: Count = 0,
    ) -> Response:
        given = {
            "model": model,
            "params": params,
            "purpose": purpose,
            "gpus": gpus,
            "precision": precision,
            "method": method,
            "optimizer": optimizer,
            "batch": batch,
            "checkpointing": checkpointing,
            "dataset_tokens": dataset_tokens,
        }
        report, wrong = None, None
        if model or params:
            report, wrong = await _asked(
                lambda: ground.sizings.size(actor, SizeRequest(**given, sequence=tokens, context=tokens))
            )
        return page(
            request,
            "sizing.html",
            actor,
            http_status=422 if wrong else 200,
            given={**given, "tokens": tokens},
            report=report,
            wrong=wrong,
            models=ground.sizings.models,
            accelerators=ground.sizings.accelerators,
            choices={"precision": list(Precision), "method": list(Method), "optimizer": list(Optimizer)},
            gb=gb,
            span=words,
        )

    @router.get("/compare")
    async def compare(
        request: Request,
        actor: Annotated[Actor, requires(Permission.COSTS_READ)],
        ground: Ground,
        api: Words = "",
        model: Words = "",
        requests_per_minute: Share = 60,
        prompt_tokens: Count = 1_500,
        completion_tokens: Count = 300,
        peak_factor: Share = 3,
        hours_per_day: Share = 24,
        cached_share: Share = 0,
    ) -> Response:
        given = {
            "model": model,
            "requests_per_minute": requests_per_minute,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "peak_factor": peak_factor,
            "hours_per_day": hours_per_day,
            "cached_share": cached_share,
        }
        made, wrong = None, None
        if api or model:
            apis = tuple(filter(None, (name.strip() for name in api.split(","))))
            made, wrong = await _asked(lambda: ground.sizings.compare(actor, CompareRequest(**given, apis=apis)))
        return page(
            request,
            "compare.html",
            actor,
            http_status=422 if wrong else 200,
            given={**given, "api": api},
            made=made,
            wrong=wrong,
            models=ground.sizings.models,
            apis=ground.sizings.apis,
        )

    return router


async def _asked(ask: Any) -> tuple[Any, InvalidInput | None]:
    """The answer, or what is wrong with the question: a form shows both beside what was filled in."""
    try:
        return await ask(), None
    except InvalidInput as wrong:
        return None, wrong
    except ValueError as error:
        return None, InvalidInput(str(error), "correct the value")
