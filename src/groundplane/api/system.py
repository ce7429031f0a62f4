"""Whether it lives, whether it is ready, who is asking, and the installation in one look."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Request
from starlette.responses import Response

from groundplane import __version__
from groundplane.api.access import Ground, requires, requires_any_key
from groundplane.api.metrics import CONTENT_TYPE, plane_metrics
from groundplane.api.routing import SHAPING, Router
from groundplane.domain.budget import HoldStatus
from groundplane.identity import CROSS_PROJECT, ROLE_PERMISSIONS, Actor, Permission
from groundplane.wire.system import FailingLoop, Health, Status, Whoami

router = Router(tags=["system"])
_ACTIVE_RUNS_MAX = 10_000


@router.get("/healthz", responses=SHAPING)
async def healthz() -> Health:
    """The process lives."""
    return Health(status="ok", version=__version__)


@router.get("/readyz")
async def readyz(app: Ground) -> Health:
    """The database answers. 503 when it does not."""
    async with app.store.transaction() as tx:
        await tx.chain_head()
    return Health(status="ok", version=__version__)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request, app: Ground, actor: Annotated[Actor, requires(Permission.SYSTEM_READ)]) -> Response:
    """Prometheus' text format. A scraper sends a viewer key: `authorization: {credentials_file: …}`."""
    text = request.app.state.metrics.render() + await plane_metrics(app, actor)
    return Response(text, media_type=CONTENT_TYPE)


@router.get("/v1/whoami")
async def whoami(actor: Annotated[Actor, requires_any_key()]) -> Whoami:
    """Whom this key stands for, and what it may do."""
    return Whoami(
        name=actor.name,
        role=actor.role,
        project=actor.project,
        key_id=actor.key_id,
        permissions=tuple(sorted(ROLE_PERMISSIONS[actor.role])),
    )


@router.get("/v1/status")
async def status(app: Ground, actor: Annotated[Actor, requires(Permission.SYSTEM_READ)]) -> Status:
    """The installation in one look; counts cover what the caller sees."""
    runs = await app.runs.runs(actor, project=None, status="active", limit=_ACTIVE_RUNS_MAX)
    endpoints = await app.endpoints.endpoints(actor)
    holds = [hold for hold in await app.costs.holds(actor) if hold.status is HoldStatus.PENDING]
    disk = shutil.disk_usage(app.settings.home)
    return Status(
        version=__version__,
        started_at=app.started_at,
        now=app.clock.now(),
        database="postgresql" if app.settings.database_url else "sqlite",
        home=str(app.settings.home),
        disk_free_bytes=disk.free,
        disk_total_bytes=disk.total,
        gateway_url=app.settings.gateway_url,
        projects=len(await app.access.projects(actor)),
        runs_active=dict(Counter(run.status.value for run in runs)),
        endpoints=dict(Counter(endpoint.status.value for endpoint in endpoints)),
        model_versions=await app.models.count(actor),
        holds_pending=len(holds),
        held_microusd=sum(hold.amount_microusd - hold.posted_microusd for hold in holds),
        policy=app.policies.summary,
        failing=failing_loops(app, actor),
    )


def failing_loops(app: Any, actor: Actor) -> tuple[FailingLoop, ...]:
    """The loops of which step after step fails, the longest first."""
    now, now_s = app.clock.now(), time.monotonic()
    found = [
        FailingLoop(
            name=loop.name,
            since=now - timedelta(seconds=failing_s),
            failures=loop.spell_failures,
            error=loop.error_line if actor.role in CROSS_PROJECT else "",
        )
        for loop in app.loops
        if (failing_s := loop.failing_for_s(now_s)) is not None
    ]
    return tuple(sorted(found, key=lambda each: each.since))
