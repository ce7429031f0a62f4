"""What crosses the HTTP door about later facts of versions, and about facts that projects require."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from groundplane.domain.provenance.addendum import METRICS_MAX, AddendumKind
from groundplane.wire.bounds import STRICT, check_text


@dataclass(frozen=True, slots=True, kw_only=True)
class AddendumRequest:
    """A later fact that somebody states; which facts a kind has, `groundplane.domain.provenance.addendum` says."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    kind: AddendumKind
    facts: dict[str, Any]
    reason: str = ""

    def __post_init__(self) -> None:
        check_text(reason=self.reason)
        if len(self.facts) > METRICS_MAX:
            raise ValueError(f"facts has {len(self.facts)} entries; {METRICS_MAX} is the most")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireRequest:
    """The facts that a project requires from now on, such as `licence`, `not dirty`, `evaluations>=1`, and why."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    reason: str
    required: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_text(reason=self.reason, required=" ".join(self.required))
