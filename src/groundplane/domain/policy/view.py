"""What expressions see of a plan: plain, complete values, so that no rule has to ask whether a field is there.

One table per variable; docs/guides/policy.md lists them, and a misspelt field is told when a rule is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath

from groundplane.domain.intake.request import Request
from groundplane.domain.model import ModelVersion
from groundplane.domain.policy.rule import MAX_HORIZON_DAYS, Subject
from groundplane.domain.spec import CLASSIFICATIONS, EndpointSpec, JobSpec
from groundplane.units import MICROUSD_PER_USD

_IMAGE_RUN = re.compile(
    r"\b(?:docker|podman|nerdctl)\s+(?:run|pull|create)\b(?P<rest>[^;&|\n]*)|\bdocker://(?P<uri>[^\s'\";]+)"
)
_IMAGE = re.compile(r"(?:[a-z0-9.-]+(?::\d+)?/)?[a-z0-9][a-z0-9._/-]*(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?")
_IMAGE_ENV = re.compile(r"(?:^|_)IMAGE(?:$|_)")
_FLAGS_WITH_VALUE = {"-v", "-e", "-p", "-w", "-u", "--volume", "--env", "--name", "--gpus", "--network", "--mount"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """The thresholds of the built-in rules. An operator sets them under `settings:` in a policy file.

    `pool_clearances` maps a pool, a cloud's region (`azure/eastus`) or a cloud to the most confidential data that it
    may hold; `allowed_skus` a project, or `*`, to node types and accelerators: a project without an entry may use any.
    Approval thresholds of 0 leave it to each project's own self-service limits.
    """

    required_labels: tuple[str, ...] = ()
    end_date_days: int = MAX_HORIZON_DAYS
    price_stale_days: int = 30
    allowed_skus: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    approval_accelerators: int = 0
    approval_cost_microusd: int = 0
    pool_clearances: Mapping[str, str] = field(default_factory=lambda: {"local": "restricted"})
    default_clearance: str = "internal"
    default_classification: str = "internal"
    allow_public: bool = True

    def clearance(self, place: str) -> str:
        """Of a pool, of `azure eastus`, or where nobody said of that region, of `azure`."""
        name = place.replace(" ", "/")
        own = self.pool_clearances.get(name, self.pool_clearances.get(name.partition("/")[0], ""))
        return own or self.default_clearance

    def skus(self, project: str) -> tuple[str, ...]:
        return self.allowed_skus.get(project, self.allowed_skus.get("*", ()))


OVER = ("spec", "plan", "endpoint", "model", "request")
"""What a rule may be about, and so when it is judged and what it sees."""

SEES: Mapping[str, tuple[str, ...]] = {
    "spec": ("spec", "project", "settings", "now"),
    "plan": ("spec", "plan", "project", "settings", "now"),
    "endpoint": ("spec", "plan", "model", "project", "settings", "now"),
    "model": ("model", "project", "settings", "now"),
    "request": ("request", "project", "settings", "now"),
}


def plan_view(subject: Subject, settings: PolicySettings) -> dict[str, object]:
    """The variables of every rule over a spec, a plan, an endpoint or its model."""
    spec = subject.spec
    return {
        "spec": _spec(spec, subject.now, settings),
        "plan": _plan(subject, settings),
        "model": _model(subject.model),
        "project": _project(spec.metadata.project, settings),
        "settings": _settings(settings),
        "now": subject.now.astimezone(UTC),
    }


def request_view(request: Request, now: datetime, settings: PolicySettings) -> dict[str, object]:
    """The variables of a rule over a request: what it asks for and what is known of it."""
    items = request.intake.items
    return {
        "request": {
            "message": request.message,
            "status": request.status.value,
            "kinds": [item.kind for item in items],
            "missing": [question.fact for item in items for question in item.questions if question.required],
            "risks": [risk.message for item in items for risk in item.risks],
            "answers": dict(request.answers),
        },
        "project": _project(request.project, settings),
        "settings": _settings(settings),
        "now": now.astimezone(UTC),
    }


def _spec(spec: JobSpec | EndpointSpec, now: datetime, settings: PolicySettings) -> dict[str, object]:
    meta, need = spec.metadata, spec.resources
    job = spec if isinstance(spec, JobSpec) else None
    endpoint = spec if isinstance(spec, EndpointSpec) else None
    classes = [each.classification or settings.default_classification for each in (job.data if job else ())]
    return {
        "kind": "Job" if job else "Endpoint",
        "name": meta.name,
        "project": meta.project,
        "owner": meta.owner.strip(),
        "cost_center": meta.cost_center.strip(),
        "labels": dict(meta.labels),
        "pool": spec.pool,
        "cpus": float(need.cpus),
        "memory_bytes": need.memory_bytes,
        "disk_bytes": need.disk_bytes,
        "accelerator": need.accelerator,
        "accelerators_per_node": need.accelerators,
        "nodes": need.nodes,
        "accelerators": need.accelerators * need.nodes,
        "instance_type": need.instance_type,
        "cloud": need.cloud,
        "region": need.region,
        "purchase": need.purchase,
        "end_date": spec.end_date.astimezone(UTC).isoformat(timespec="seconds"),
        "end_in_days": (spec.end_date - now).total_seconds() / 86_400,
        "max_cost_usd": spec.max_cost_microusd / MICROUSD_PER_USD,
        "max_duration_hours": spec.max_duration_s / 3600,
        "command": list(job.command) if job else [],
        "command_text": " ".join(job.command) if job else "",
        "workdir": job.workdir if job else "",
        "env": dict(job.env) if job else {},
        "images": images(job) if job else [],
        "data": [each.name for each in (job.data if job else ())],
        "classification": max(classes, key=CLASSIFICATIONS.index, default=CLASSIFICATIONS[0]),
        "classification_rank": max((CLASSIFICATIONS.index(each) for each in classes), default=0),
        "idle_limit_hours": (job.idle_limit_s or 0) / 3600 if job else 0.0,
        "outputs": [each.name for each in (job.outputs if job else ())],
        "model": endpoint.model if endpoint else "",
        "engine": endpoint.engine if endpoint else "",
        "public": endpoint.public if endpoint else False,
    }


def _plan(subject: Subject, settings: PolicySettings) -> dict[str, object]:
    best, nodes = subject.ranking.best, subject.spec.resources.nodes
    offer = best.offer if best else None
    place = offer.pool if offer else subject.spec.pool
    clearance = settings.clearance(place)
    return {
        "has_offer": offer is not None,
        "pool": place,
        "node_type": offer.node_type if offer else "",
        "simulated": offer.simulated if offer else False,
        "nodes": nodes,
        "cpus": float(offer.cpus) if offer else 0.0,
        "memory_bytes": offer.memory_bytes if offer else 0,
        "accelerator": offer.accelerator if offer else "",
        "accelerators": subject.spec.resources.accelerators * nodes,
        "price_usd_per_hour": offer.price_microusd_per_hour / MICROUSD_PER_USD if offer else 0.0,
        "price_age_days": (subject.now.date() - offer.price_as_of).days if offer else 0,
        "worst_case_usd": best.worst_case_microusd / MICROUSD_PER_USD if best else 0.0,
        "exposed": subject.exposure is not None and subject.exposure.expires_at > subject.now,
        "clearance": clearance,
        "clearance_rank": CLASSIFICATIONS.index(clearance),
    }


def _model(model: ModelVersion | None) -> dict[str, object]:
    return {
        "id": model.id if model else "",
        "name": model.name if model else "",
        "number": model.number if model else 0,
        "project": model.project if model else "",
        "owner": model.owner if model else "",
        "license": model.license if model else "",
        "size_bytes": model.size_bytes if model else 0,
        "run": model.run_id if model else "",
        "metrics": dict(model.metrics) if model else {},
        "files": [each.path for each in (model.files if model else ())],
        "formats": sorted({PurePosixPath(each.path).suffix.lstrip(".") for each in (model.files if model else ())}),
    }


def _project(name: str, settings: PolicySettings) -> dict[str, object]:
    return {"name": name, "allowed_skus": list(settings.skus(name))}


def _settings(settings: PolicySettings) -> dict[str, object]:
    return {
        "required_labels": list(settings.required_labels),
        "end_date_days": settings.end_date_days,
        "price_stale_days": settings.price_stale_days,
        "approval_accelerators": settings.approval_accelerators,
        "approval_cost_usd": settings.approval_cost_microusd / MICROUSD_PER_USD,
        "default_clearance": settings.default_clearance,
        "default_classification": settings.default_classification,
        "allow_public": settings.allow_public,
    }


def images(job: JobSpec) -> list[str]:
    """Container images that a job names: its own, in `docker run …`, in variables like `TRAIN_IMAGE`."""
    found = [job.image] if job.image else []
    found += [value for name, value in job.env.items() if _IMAGE_ENV.search(name.upper()) and value]
    for match in _IMAGE_RUN.finditer(" ".join(job.command)):
        found += [match["uri"]] if match["uri"] else _first_image(match["rest"])
    return list(dict.fromkeys(found))


def _first_image(rest: str) -> list[str]:
    """The first word that is neither a flag nor a flag's value."""
    words = iter(rest.split())
    for word in words:
        if word in _FLAGS_WITH_VALUE:
            next(words, None)
        elif not word.startswith("-"):
            return [word] if _IMAGE.fullmatch(word) else []
    return []
