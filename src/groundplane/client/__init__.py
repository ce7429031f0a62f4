"""The Python SDK: one typed method per API call, answers as the domain's own records, errors as the GroundError tree.

    with Client("http://127.0.0.1:4700", key) as client:
        plan = client.plan(Path("train.yaml").read_text())[0]
        run = client.apply_plan(plan.id).run
        for piece in client.follow_log(run.id): ...

A client is for one thread. A read is tried again once when a kept-alive connection turns out to be closed.
Importing this loads no part: a part's module, and the records that it answers with, load when one of its calls is
first made. All of them together take longer to build than most commands and many jobs take to talk to us.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from groundplane.client.httpx_alone import httpx
from groundplane.client.transport import Transport, error_from, error_of
from groundplane.errors import Unauthenticated
from groundplane.settings import Settings

__all__ = ["Client", "error_from", "error_of", "gateway_answers"]

PARTS: dict[str, str] = {
    "access.AccessCalls": (
        "keys create_key revoke_key projects project create_project exposures expose withdraw_exposure"
    ),
    "approvals.ApprovalCalls": "approvals approval approve_plan reject_plan wait_for_approval set_self_service",
    "artifacts.ArtifactCalls": (
        "push arrive upload_files create_upload upload_file delete_upload pull pull_model pieces artifacts arrivals "
        "artifact verify_artifact delete_artifact storage collect scrub set_storage_quota"
    ),
    "certificates.CertificateCalls": (
        "addenda add_addendum missing_facts required_facts require_facts release_facts scans adoptions"
    ),
    "checkpoints.CheckpointCalls": "checkpoints pull_checkpoint restore_checkpoint prove_resume resume_proofs stacks",
    "data.DataCalls": "run_data data_caches clear_data_caches",
    "datasets.DatasetCalls": (
        "datasets dataset register_dataset diff_datasets lineage verify_dataset erase_dataset erasures erasure_proof"
    ),
    "dev.DevCalls": (
        "dev_environments attach attach_port attached_frames send_attached resize_attached end_attached detach "
        "dev_info ssh_config"
    ),
    "evaluations.EvaluationCalls": "evaluations evaluation evaluation_items compare_evaluations batches batch",
    "limits.LimitCalls": "rotate_key limits set_limit lift_limit",
    "lineage.LineageCalls": "lineage_of lineage_events lineage_standing send_lineage",
    "models.ModelCalls": (
        "models model packages model_version certificate bom model_signature public_keys verify_model scan_model "
        "register_model rotate_signing_key endpoints endpoint stop_endpoint"
    ),
    "money.MoneyCalls": "budget set_budget holds costs report size compare",
    "nodes.NodeCalls": "pools reload_pools nodes node cordon uncordon",
    "plans.PlanCalls": "plan get_plan plans plan_markdown explain_plan apply_plan apply",
    "policy.PolicyCalls": (
        "policy policy_rule reload_policy replay_policy request_verdicts policy_exceptions add_policy_exception "
        "remove_policy_exception"
    ),
    "preflight.PreflightCalls": "preflight run_preflight",
    "queue.QueueCalls": (
        "queue quotas set_quota reservations reserve cancel_reservation schedules create_schedule pause_schedule "
        "delete_schedule"
    ),
    "recon.ReconCalls": "recon measure_machine catalog catalog_table update_catalog",
    "registry.RegistryCalls": (
        "aliases alias_history move_alias roll_back_alias remove_alias search_versions diff_versions version_view "
        "model_card tag_version copy_version archive_version unarchive_version gates define_gates remove_gate "
        "check_gates gate_checks evidence state_evidence measure approve_version waivers waive end_waiver"
    ),
    "requests.RequestCalls": "create_request requests request answer_request request_specs close_request",
    "routes.RouteCalls": (
        "providers set_provider test_provider remove_provider routes queue_standing prompt_findings set_route "
        "remove_route"
    ),
    "runs.RunCalls": "runs run explain stop_run samples log read_log follow_log wait",
    "system.SystemCalls": "health whoami status metrics audit_events audit_verify",
    "tracking.TrackingCalls": "experiments tracked_runs tracked_run tracked_of_run metric_series compare_tracked_runs",
    "traffic.TrafficCalls": (
        "live_traffic tail_requests follow_requests prediction_rules set_prediction_rule prediction_holdings "
        "predictions every_prediction prediction note_prediction_export erase_predictions"
    ),
}
"""Part → its calls. The type checker sees the same as base classes; a test holds the two together."""


class _NotYet:
    """Stands for a call whose part is not loaded: asked for, it puts the part's functions in their places."""

    def __init__(self, part: str) -> None:
        self._part = part

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, client: object | None, owner: type) -> Any:
        module, part = self._part.split(".")
        calls = getattr(importlib.import_module(f"groundplane.client.{module}"), part)
        for name, call in vars(calls).items():
            if isinstance(call, FunctionType):
                setattr(_Calls, name, call)
        return getattr(owner if client is None else client, self._name)


if TYPE_CHECKING:
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

    class _Calls(
        AccessCalls,
        ApprovalCalls,
        ArtifactCalls,
        CertificateCalls,
        CheckpointCalls,
        DataCalls,
        DatasetCalls,
        DevCalls,
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
    ): ...
else:
    _Calls = type(
        "_Calls", (Transport,), {name: _NotYet(part) for part, names in PARTS.items() for name in names.split()}
    )


class Client(_Calls):
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
