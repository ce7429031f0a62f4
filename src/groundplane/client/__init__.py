"""The Python SDK: one typed method per API call, answers as the domain's own records, errors as the GroundError tree.

    with Client("http://127.0.0.1:4700", key) as client:
        plan = client.plan(Path("train.yaml").read_text())[0]
        run = client.apply_plan(plan.id).run
        for piece in client.follow_log(run.id): ...

A client is for one thread. A read is tried again once when a kept-alive connection turns out to be closed.
"""

from __future__ import annotations

from pathlib import Path

import httpx

from groundplane.client.access import AccessCalls
from groundplane.client.approvals import ApprovalCalls
from groundplane.client.artifacts import ArtifactCalls
from groundplane.client.certificates import CertificateCalls
from groundplane.client.checkpoints import CheckpointCalls
from groundplane.client.data import DataCalls
from groundplane.client.datasets import DatasetCalls
from groundplane.client.dev import DevCalls
from groundplane.client.evaluations import EvaluationCalls
from groundplane.client.limits import LimitCalls
from groundplane.client.lineage import LineageCalls
from groundplane.client.models import ModelCalls
from groundplane.client.money import MoneyCalls
from groundplane.client.nodes import NodeCalls
from groundplane.client.plans import PlanCalls
from groundplane.client.policy import PolicyCalls
from groundplane.client.preflight import PreflightCalls
from groundplane.client.queue import QueueCalls
from groundplane.client.recon import ReconCalls
from groundplane.client.registry import RegistryCalls
from groundplane.client.requests import RequestCalls
from groundplane.client.routes import RouteCalls
from groundplane.client.runs import RunCalls
from groundplane.client.system import SystemCalls
from groundplane.client.tracking import TrackingCalls
from groundplane.client.traffic import TrafficCalls
from groundplane.client.transport import error_from, error_of
from groundplane.errors import Unauthenticated
from groundplane.settings import Settings

__all__ = ["Client", "error_from", "error_of", "gateway_answers"]


class Client(
    AccessCalls,
    ApprovalCalls,
    ArtifactCalls,
    CertificateCalls,
    CheckpointCalls,
    DataCalls,
    DevCalls,
    DatasetCalls,
    EvaluationCalls,
    LimitCalls,
    LineageCalls,
    ModelCalls,
    MoneyCalls,
    NodeCalls,
    PlanCalls,
    PolicyCalls,
    PreflightCalls,
    QueueCalls,
    ReconCalls,
    RegistryCalls,
    RequestCalls,
    RouteCalls,
    RunCalls,
    SystemCalls,
    TrackingCalls,
    TrafficCalls,
):
    """A connection to one control plane. Close it, or use it in a `with` block."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Client:
        """The key of GROUND_KEY, or the admin key that the first start left under GROUND_HOME."""
        return cls(settings.base_url, settings.key or _admin_key(settings.home))


def gateway_answers(gateway_url: str) -> bool:
    """Whether the gateway says that it is healthy; needs no key."""
    try:
        return httpx.get(f"{gateway_url}/healthz", timeout=3.0, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _admin_key(home: Path) -> str:
    path = home / "keys" / "admin"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        raise Unauthenticated(
            f"there is no key: GROUND_KEY is not set and {path} does not exist",
            "ground up makes the first key; anybody else asks an operator for one",
        ) from None
    except PermissionError:
        raise Unauthenticated(f"{path} belongs to somebody else", "set GROUND_KEY to a key of your own") from None
