"""What crosses the HTTP door about aliases, tags, gates and evidence besides the domain's own records."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from groundplane.domain.gate import SAMPLES_MAX
from groundplane.wire.bounds import STRICT, check_range, check_text, check_zone


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveRequest:
    """Where an alias is to stand (`3`, `latest` or another alias), and why."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    to: str
    reason: str

    def __post_init__(self) -> None:
        check_text(to=self.to, reason=self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRequest:
    """The name whose next version a copy becomes. A new name is made in `project`, or else in the source's."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    name: str
    project: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        check_text(name=self.name, project=self.project, reason=self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class TagsRequest:
    """Tags to set; null takes one away."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    tags: dict[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateText:
    """Gates as YAML."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateCheckRequest:
    """Which alias a version would be moved to."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    ref: str
    alias: str
    comment: str = ""

    def __post_init__(self) -> None:
        check_text(ref=self.ref, alias=self.alias, comment=self.comment)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceRequest:
    """Scores that somebody states: one for each example, or how many of how many were right."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    ref: str
    metric: str
    values: list[float] = field(default_factory=list)
    successes: int | None = None
    trials: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        check_text(ref=self.ref, metric=self.metric, note=self.note)
        check_range("successes", self.successes, 0, 10**9)
        check_range("trials", self.trials, 0, 10**9)
        if len(self.values) > SAMPLES_MAX:
            raise ValueError(f"values has {len(self.values)} entries; {SAMPLES_MAX} is the most")
        if any(value != value or abs(value) == float("inf") for value in self.values):
            raise ValueError("values holds what is no finite number")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureRequest:
    """How many prompts an endpoint is sent, and how many at once."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    endpoint: str
    requests: int = 100
    at_once: int = 1

    def __post_init__(self) -> None:
        check_text(endpoint=self.endpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaiverRequest:
    """Which requirement is lifted, for which version (all when empty), by whom, why and until when."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    gate_id: str
    requirement: str
    owner: str
    reason: str
    expires_at: datetime
    version_id: str = ""

    def __post_init__(self) -> None:
        check_text(
            gate_id=self.gate_id,
            requirement=self.requirement,
            owner=self.owner,
            reason=self.reason,
            version_id=self.version_id,
        )
        check_zone("expires_at", self.expires_at)
