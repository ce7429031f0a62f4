"""Hosted providers and routes of the gateway: set, listed, tested, removed."""

from __future__ import annotations

from typing import Annotated

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.serving.prompt_lint import PromptFinding
from groundplane.domain.serving.provider import Provider, ProviderCheck, RouteRule
from groundplane.domain.serving.queueing import KeyPriority, QueueRule, QueueStanding
from groundplane.domain.serving.response_cache import CacheRule
from groundplane.identity import Actor, Permission
from groundplane.wire.routes import ProviderRequest, QueueRequest, RouteRequest

router = Router(prefix="/v1", tags=["routes"])
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


@router.get("/routes/queue")
async def show_queues(app: Ground, actor: Reader, project: str | None = None) -> QueueStanding:
    """What waits at the gateways of this machine: queues, replicas with adapted concurrency, and retry storms."""
    return await app.routes.queue_standing(actor, project)


@router.get("/routes/lint")
async def lint_prompts(app: Ground, actor: Reader, project: str | None = None) -> list[PromptFinding]:
    """Prompts in an order that providers' caches can't use, and what another order would save."""
    return await app.routes.prompt_findings(actor, project)


@router.put("/routes")
async def set_route(body: RouteRequest, app: Ground, actor: Writer) -> RouteRule:
    """Sets or changes where a model name leads; the gateway follows within seconds. What the catalogue filled in of a
    target, and from which row, is its `listed`."""
    return await app.routes.set_route(
        actor,
        project=body.project,
        model=body.model,
        targets=body.targets,
        policy=body.policy,
        sticky=body.sticky,
        hedge_ms=body.hedge_ms,
        queue=None if body.queue is None else _queue(body.queue),
        cache=None if body.cache is None else CacheRule(ttl_s=body.cache.ttl_s, sampled=body.cache.sampled),
        reason=body.reason,
    )


@router.delete("/routes")
async def remove_route(project: str, model: str, app: Ground, actor: Writer, reason: str = "") -> RouteRule:
    """Takes a route away."""
    return await app.routes.remove(actor, project, model, reason)


def _queue(one: QueueRequest) -> QueueRule:
    return QueueRule(
        size=one.size,
        wait_ms=one.wait_ms,
        priority=one.priority,
        keys=tuple(KeyPriority(key_id=key.key_id, priority=key.priority) for key in one.keys),
        weight=one.weight,
        concurrency_max=one.concurrency_max,
    )
