"""The YAML dialect: what a Job and an Endpoint spec say, parsed strictly.

`parse.parse(text)` returns specs or raises InvalidInput with every problem and its line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from groundplane.domain.spec.inference import BatchNeed, EvaluationNeed

CLASSIFICATIONS = ("public", "internal", "confidential", "restricted")
"""How confidential data is, least first. A pool's clearance is the most that it may hold."""

DEV_KINDS = ("shell", "jupyter")
"""What a dev environment may be."""

_LATER: Mapping[str, bool] = {"later": True}
"""Marks fields that came after the first release: left out of the digest while unset, so that specs keep theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """Who the work belongs to. All four are required: nothing runs without an owner."""

    name: str
    project: str
    owner: str
    cost_center: str
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Per node. `accelerator` is a catalogue name such as `h100-80gb`; empty when count is 0.

    `instance_type`, `cloud` and `region` name a cloud's machine instead of a pool's; `purchase` how it is paid for.
    After a lost node a run goes on with `nodes_min` nodes or more; 0 is all of them.
    """

    cpus: float
    memory_bytes: int
    disk_bytes: int = 0
    accelerators: int = 0
    accelerator: str = ""
    nodes: int = 1
    instance_type: str = field(default="", metadata=_LATER)
    cloud: str = field(default="", metadata=_LATER)
    region: str = field(default="", metadata=_LATER)
    purchase: str = field(default="", metadata=_LATER)
    nodes_min: int = field(default=0, metadata=_LATER)

    @property
    def names_cloud(self) -> bool:
        """Whether the work is meant for a cloud, by an instance type, a cloud or a region."""
        return bool(self.instance_type or self.cloud or self.region)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    max_attempts: int = 3
    backoff_s: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutput:
    """A folder under the run's output folder that becomes a registered model version when the run succeeds."""

    name: str
    path: str = "."
    license: str = ""
    framework: str = ""
    base_model: str = field(default="", metadata=_LATER)
    sla: str = field(default="", metadata=_LATER)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """An input: `path` on the node, its name and (when known) its digest; or a `source` that is staged.

    `size_bytes` is read `passes` times from the storage tier `tier`, or at `bytes_per_s` where that was measured.
    `classification` says how confidential it is; empty means the installation's default.
    """

    name: str
    path: str = ""
    sha256: str = ""
    size_bytes: int = field(default=0, metadata=_LATER)
    passes: int = field(default=1, metadata=_LATER)
    tier: str = field(default="", metadata=_LATER)
    bytes_per_s: int = field(default=0, metadata=_LATER)
    url: str = field(default="", metadata=_LATER)
    classification: str = field(default="", metadata=_LATER)
    dataset: str = field(default="", metadata=_LATER)
    source: str = field(default="", metadata=_LATER)
    endpoint: str = field(default="", metadata=_LATER)
    region: str = field(default="", metadata=_LATER)
    secret: str = field(default="", metadata=_LATER)
    manifest: str = field(default="", metadata=_LATER)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingNeed:
    """What is trained and how: from it a plan sums up memory and hours. `model` is a catalogue name, or `params`.

    `tokens` × `epochs` is the amount of work; 0 when it is not known.
    """

    model: str = ""
    params: int = 0
    method: str = "full"
    precision: str = "bf16"
    optimizer: str = "adam"
    batch: int = 1
    sequence: int = 2_048
    gradient_checkpointing: bool = False
    zero: int = 0
    tokens: int = 0
    epochs: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingNeed:
    """What is served: from it a plan sums up memory. `model` is a catalogue name, or `params`."""

    model: str = ""
    params: int = 0
    precision: str = "bf16"
    context: int = 4_096
    batch: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayElement:
    """Which element of the array `name` a job is, `first` to `last`; at most `at_once` run at a time, 0 is no limit."""

    name: str
    index: int
    at_once: int = 0
    first: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPolicy:
    """What becomes of a run's checkpoints. `keep_last` and `keep_every` of 0 limit nothing.

    `keep_every` is in steps. `best_by` names a metric of the manifest, `best_mode` is `min` or `max`. `bytes_per_s`
    bounds copying, 0 leaves it to the installation.
    """

    keep_last: int = 0
    keep_every: int = 0
    best_by: str = ""
    best_mode: str = "min"
    copy: bool = True
    bytes_per_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One job. `command` is argv; a string in the YAML becomes ("sh", "-c", text).

    `priority` is its class in the queue; `needs` names runs that must succeed first. With a `schedule` (cron, in
    `timezone`) it is no job to start but one to submit at times.
    """

    metadata: Metadata
    command: tuple[str, ...]
    resources: Resources
    end_date: datetime
    max_cost_microusd: int
    max_duration_s: int
    workdir: str = ""
    env: dict[str, str] = field(default_factory=dict)
    pool: str = "local"
    retry: Retry = field(default_factory=Retry)
    idle_limit_s: int | None = None
    control_plane_gone_limit_s: int | None = None
    stop_grace_s: int = 10
    data: tuple[DataSource, ...] = ()
    outputs: tuple[ModelOutput, ...] = ()
    deadline: datetime | None = field(default=None, metadata=_LATER)
    training: TrainingNeed | None = field(default=None, metadata=_LATER)
    checkpoint_every_s: int | None = field(default=None, metadata=_LATER)
    interruptions_per_day: float | None = field(default=None, metadata=_LATER)
    isolation: str = field(default="", metadata=_LATER)
    image: str = field(default="", metadata=_LATER)
    network: bool = field(default=True, metadata=_LATER)
    secrets: tuple[str, ...] = field(default=(), metadata=_LATER)
    preflight: bool = field(default=True, metadata=_LATER)
    checkpoint_dir: str = field(default="", metadata=_LATER)
    checkpoint_bytes: int = field(default=0, metadata=_LATER)
    priority: str = field(default="training", metadata=_LATER)
    needs: tuple[str, ...] = field(default=(), metadata=_LATER)
    array: ArrayElement | None = field(default=None, metadata=_LATER)
    schedule: str = field(default="", metadata=_LATER)
    timezone: str = field(default="UTC", metadata=_LATER)
    missed_ticks: str = field(default="once", metadata=_LATER)
    dev: str = field(default="", metadata=_LATER)
    checkpoints: CheckpointPolicy = field(default=CheckpointPolicy(), metadata=_LATER)
    hang_limit_s: int | None = field(default=None, metadata=_LATER)
    spot: bool = field(default=False, metadata=_LATER)
    evaluation: EvaluationNeed | None = field(default=None, metadata=_LATER)
    batch: BatchNeed | None = field(default=None, metadata=_LATER)

    @property
    def inference(self) -> EvaluationNeed | BatchNeed | None:
        """What is asked of a model, when that is all the job does: its command is then ours."""
        return self.evaluation or self.batch


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialPrices:
    """Prices of tokens that few requests have, in micro-dollars per million; None: they cost what such tokens cost.

    `written_1h`: written to a provider's prompt cache for an hour. `long_prompt` and `long_completion` are those of
    every token of a request whose prompt has more than `long_above_tokens`; all three are given, or none.
    """

    written_1h: int | None = None
    audio_prompt: int | None = None
    audio_completion: int | None = None
    long_above_tokens: int | None = None
    long_prompt: int | None = None
    long_completion: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrice:
    """What callers are charged, in micro-dollars per million tokens."""

    prompt_microusd_per_million: int
    completion_microusd_per_million: int
    cached_microusd_per_million: int = 0
    written_microusd_per_million: int | None = field(default=None, metadata=_LATER)
    """What is written to a provider's prompt cache; the prompt's price where none is given."""
    special: SpecialPrices | None = field(default=None, metadata=_LATER)

    @property
    def written(self) -> int:
        written = self.written_microusd_per_million
        return self.prompt_microusd_per_million if written is None else written


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    """A served model name. `model` is `name@version`; `public_address` needs an exposure and auth."""

    metadata: Metadata
    model: str
    resources: Resources
    end_date: datetime
    max_cost_microusd: int
    max_duration_s: int
    token_price: TokenPrice
    pool: str = "local"
    engine: str = "embedded"
    public: bool = False
    ready_timeout_s: int = 120
    deadline: datetime | None = field(default=None, metadata=_LATER)
    serving: ServingNeed | None = field(default=None, metadata=_LATER)


def spec_digest(spec: JobSpec | EndpointSpec) -> str:
    """SHA-256 hex of the spec's canonical JSON: what a plan, a run and a birth certificate are bound to."""

    def plain(value: object) -> object:
        if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat(timespec="microseconds")
        raise TypeError(f"{type(value).__name__} has no canonical form")

    body = {"kind": type(spec).__name__, **_kept(spec)}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=plain)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _kept(value: Any) -> dict[str, object]:
    """A record's fields, without later ones that are unset."""
    plain: dict[str, object] = {}
    for each in dataclasses.fields(value):
        item = getattr(value, each.name)
        if each.metadata.get("later") and each.default is not MISSING and item == each.default:
            continue
        if isinstance(item, Resources):
            plain[each.name] = _kept(item)
        elif each.name == "data":
            plain[each.name] = [_kept(source) for source in item]
        elif hasattr(item, "__dataclass_fields__"):
            plain[each.name] = asdict(item)
        elif isinstance(item, tuple):
            plain[each.name] = [asdict(one) if hasattr(one, "__dataclass_fields__") else one for one in item]
        else:
            plain[each.name] = item
    return plain
