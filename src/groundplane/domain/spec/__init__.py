"""The YAML dialect: what a Job and an Endpoint spec say, parsed strictly.

`parse.parse(text)` returns specs or raises InvalidInput with every problem and its line.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime


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
    """Per node. `accelerator` is a catalogue name such as `h100-80gb`; empty when count is 0."""

    cpus: float
    memory_bytes: int
    disk_bytes: int = 0
    accelerators: int = 0
    accelerator: str = ""
    nodes: int = 1


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


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """An input: `path` on the node, its name and (when known) its digest."""

    name: str
    path: str
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One job. `command` is argv; a string in the YAML becomes ("sh", "-c", text)."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrice:
    """What callers are charged, in micro-dollars per million tokens."""

    prompt_microusd_per_million: int
    completion_microusd_per_million: int
    cached_microusd_per_million: int = 0


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


def spec_digest(spec: JobSpec | EndpointSpec) -> str:
    """SHA-256 hex of the spec's canonical JSON: what a plan, a run and a birth certificate are bound to."""

    def plain(value: object) -> object:
        if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat(timespec="microseconds")
        raise TypeError(f"{type(value).__name__} has no canonical form")

    body = {"kind": type(spec).__name__, **asdict(spec)}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=plain)
    return hashlib.sha256(canonical.encode()).hexdigest()
