"""Served names: an endpoint points at a verified model version and owns the run that serves it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from groundplane.domain.spec import EndpointSpec


class EndpointStatus(StrEnum):
    DEPLOYING = "deploying"
    READY = "ready"
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One served name. id is the name callers put in `model`. `revision` counts what was deployed under it."""

    id: str
    project: str
    owner: str
    cost_center: str
    spec: EndpointSpec
    model_version: str
    revision: int = 1
    run_id: str = ""
    base_url: str = ""
    status: EndpointStatus = EndpointStatus.DEPLOYING
    stop_requested: bool = False
    message: str = ""
    created_by: str
    created_at: datetime
    ready_at: datetime | None = None
    end_date: datetime
    due_at: datetime | None
    lease_owner: str = ""
    lease_expires_at: datetime | None = None
    version: int = 0
