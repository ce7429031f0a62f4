"""The control plane's HTTP application, put together: routers, errors, limits, measures."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI

from groundplane import __version__
from groundplane.api import (
    approvals,
    artifacts,
    audit,
    certificates,
    checkpoints,
    costs,
    data,
    datasets,
    dev,
    endpoints,
    evaluations,
    exposures,
    gates,
    hub,
    hub_push,
    keys,
    limits,
    lineage,
    mlflow,
    mlflow_artifacts,
    mlflow_models,
    models,
    nodes,
    oci,
    oci_push,
    piece_uploads,
    plans,
    policy,
    predictions,
    preflight,
    projects,
    proofs,
    queue,
    recon,
    registry,
    requests,
    routes,
    runs,
    sizing,
    system,
    tracking,
    traffic,
    uploads,
)
from groundplane.api.errors import install
from groundplane.api.metrics import HttpMetrics
from groundplane.api.middleware import BodyLimit, RequestScope
from groundplane.api.sessions import Sessions
from groundplane.settings import Settings

ROUTERS: tuple[APIRouter, ...] = (
    # Routes are tried in order, and nothing is asked as often as what training scripts log.
    mlflow.router,
    system.router,
    requests.router,
    plans.router,
    policy.router,
    approvals.router,
    runs.router,
    checkpoints.router,
    proofs.router,
    data.router,
    dev.environments,
    dev.router,
    queue.router,
    preflight.router,
    datasets.router,
    registry.router,
    gates.router,
    certificates.router,
    evaluations.router,
    models.router,
    uploads.router,
    artifacts.router,
    piece_uploads.router,
    endpoints.router,
    keys.router,
    limits.router,
    routes.router,
    traffic.router,
    predictions.router,
    projects.router,
    costs.router,
    sizing.router,
    audit.router,
    exposures.router,
    hub.router,
    hub_push.router,
    oci.router,
    oci.about,
    oci_push.router,
    lineage.router,
    lineage.outside,
    mlflow.about,
    mlflow_artifacts.router,
    mlflow_models.router,
    mlflow_models.rest,
    tracking.router,
    recon.router,
    nodes.router,
)

_DESCRIPTION = """The control plane of one installation.

Money is integer micro-dollars (`…_microusd`), times are RFC 3339 in UTC, sizes and durations name their unit.
Every error has the same shape; its `code` is stable. Send a key as `Authorization: Bearer gp-…`."""


def create_app(app: Any, *, routers: tuple[APIRouter, ...] = ()) -> FastAPI:
    """The application over one wired control plane (`wiring.App`). `routers` adds doors such as the console's pages.

    Building it touches nothing: `app` is used by requests only, so `create_app(None).openapi()` gives the document.
    """
    api = FastAPI(
        title="Groundplane",
        version=__version__,
        description=_DESCRIPTION,
        # The usual documentation pages load scripts from another host: this one stays private.
        docs_url=None,
        redoc_url=None,
    )
    api.state.ground = app
    api.state.sessions = Sessions()
    api.state.metrics = HttpMetrics()
    limit_bytes = app.settings.request_limit_bytes if app is not None else Settings().request_limit_bytes
    # The last one added is the outermost: even a refused body has an id and is counted.
    api.add_middleware(BodyLimit, limit_bytes=limit_bytes)
    api.add_middleware(RequestScope, metrics=api.state.metrics)
    install(api)
    for router in (*ROUTERS, *routers):
        # Not `include_router`, which makes each route anew for this application, with the first request to any.
        api.router.routes += router.routes
    return api
