"""Hosted providers and routes of the gateway: set, listed, tested, removed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter

from groundplane.api.access import Ground, requires
from groundplane.domain.provider import Provider, ProviderCheck, RouteRule, RouteTarget
from groundplane.domain.spec import TokenPrice
from groundplane.identity import Actor, Permission
from groundplane.wire.routes import ProviderRequest, RouteRequest, TargetRequest

router = APIRouter(prefix="/v1", tags=["routes"])
Reader = Annotated[Actor, requires(Permission.KEYS_READ)]
Writer = Annotated[Actor, requires(Permission.KEYS_WRITE)]


@router.get("/providers")
async def list_providers(app: Ground, actor: Reader, project: str | None = None) -> list[Provider]:
    """Hosted providers of the projects that the caller sees, without their keys."""
    return await app.providers.providers(actor, project)


@router.put("/providers")
async def set_provider(body: ProviderRequest, app: Ground, actor: Writer) -> Provider:
    """Adds or changes a provider. Its key is kept where gateways read it, and is in no answer."""
    return await app.providers.add(
        actor,
        project=body.project,
        name=body.name,
        kind=body.kind,
        base_url=body.base_url,
        api_version=body.api_version,
        region=body.region,
        private=body.private,
        key=body.key,
        reason=body.reason,
    )


@router.post("/providers/{project}/{name}/test")
async def test_provider(project: str, name: str, app: Ground, actor: Writer) -> ProviderCheck:
    """Asks the provider for its models: whether address, certificate and key are good."""
    return await app.providers.test(actor, project, name)


@router.delete("/providers/{project}/{name}")
async def remove_provider(project: str, name: str, app: Ground, actor: Writer, reason: str = "") -> Provider:
    """Forgets a provider and its key."""
    return await app.providers.remove(actor, project, name, reason)


@router.get("/routes")
async def list_routes(app: Ground, actor: Reader, project: str | None = None) -> list[RouteRule]:
    """Routes that were set; an endpoint without one is reached by its own name."""
    return await app.routes.routes(actor, project)


@router.put("/routes")
async def set_route(body: RouteRequest, app: Ground, actor: Writer) -> RouteRule:
    """Sets or changes where a model name leads; the gateway follows within seconds."""
    return await app.routes.set_route(
        actor,
        project=body.project,
        model=body.model,
        targets=tuple(_target(one) for one in body.targets),
        policy=body.policy,
        sticky=body.sticky,
        hedge_ms=body.hedge_ms,
        reason=body.reason,
    )


@router.delete("/routes")
async def remove_route(project: str, model: str, app: Ground, actor: Writer, reason: str = "") -> RouteRule:
    """Takes a route away."""
    return await app.routes.remove(actor, project, model, reason)


def _target(one: TargetRequest) -> RouteTarget:
    """A cached price that is not given is the prompt's: nothing is charged less by mistake."""
    price = None
    if one.prompt_microusd_per_million is not None and one.completion_microusd_per_million is not None:
        cached = one.cached_microusd_per_million
        price = TokenPrice(
            prompt_microusd_per_million=one.prompt_microusd_per_million,
            completion_microusd_per_million=one.completion_microusd_per_million,
            cached_microusd_per_million=one.prompt_microusd_per_million if cached is None else cached,
        )
    return RouteTarget(
        endpoint=one.endpoint,
        provider=one.provider,
        model=one.model,
        weight=one.weight,
        order=one.order,
        price=price,
        max_output_tokens=one.max_output_tokens,
    )
