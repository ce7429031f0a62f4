"""A good subject, made up: what tests in policy files are fragments over, with every field that rules may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from groundplane.domain.hardware import Hardware
from groundplane.domain.intake import Intake
from groundplane.domain.intake.request import Request, RequestStatus
from groundplane.domain.model import ModelVersion
from groundplane.domain.planning.plan import Offer, rank
from groundplane.domain.policy.rule import Subject
from groundplane.domain.policy.view import PolicySettings, plan_view, request_view
from groundplane.domain.spec import EndpointSpec, JobSpec, Metadata, Resources, TokenPrice

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
_WHO = Metadata(name="sample", project="default", owner="ana", cost_center="research")
_NEED = Resources(cpus=2, memory_bytes=2**32)
_END = NOW + timedelta(days=7)
_JOB = JobSpec(
    metadata=_WHO, command=("python", "train.py"), resources=_NEED, end_date=_END, max_cost_microusd=10**6,
    max_duration_s=1_800,
)  # fmt: skip
_ENDPOINT = EndpointSpec(
    metadata=_WHO, model="sample@1", resources=_NEED, end_date=_END, max_cost_microusd=10**8, max_duration_s=7 * 86_400,
    token_price=TokenPrice(prompt_microusd_per_million=1, completion_microusd_per_million=1),
)  # fmt: skip
_OFFER = Offer(
    pool="local", node_type="this-machine", cpus=8, memory_bytes=2**36, disk_free_bytes=2**38, accelerators=0,
    accelerator="", price_microusd_per_hour=100_000, price_as_of=NOW.date(), price_source="made up",
)  # fmt: skip
_MODEL = ModelVersion(
    id="sample@1", name="sample", number=1, project="default", owner="ana", files=(), manifest_sha256="", license="mit",
    size_bytes=2**30, certificate="", certificate_sha256="", created_by="ana", created_at=NOW,
)  # fmt: skip
_REQUEST = Request(
    id="req-sample", project="default", status=RequestStatus.OPEN, message="We need 2 GPUs by Friday.",
    intake=Intake(read_at=NOW, items=()), created_by="ana", created_at=NOW, updated_at=NOW,
)  # fmt: skip


def sample_view(over: str, settings: PolicySettings) -> dict[str, object]:
    """The variables of a good subject for a rule over `over`."""
    if over == "request":
        return request_view(_REQUEST, NOW, settings)
    spec = _ENDPOINT if over in {"endpoint", "model"} else _JOB
    subject = Subject(
        spec=spec, ranking=rank(spec, (_OFFER,), Hardware()), hardware=Hardware(), now=NOW, pools=("local",),
        silent_pools={}, model=_MODEL if spec is _ENDPOINT else None,
    )  # fmt: skip
    return plan_view(subject, settings)


def schema() -> Mapping[str, object]:
    """Every variable with every field that there is; a dict without entries is open (labels, environment, metrics)."""
    return {**sample_view("plan", PolicySettings()), **sample_view("request", PolicySettings())}
