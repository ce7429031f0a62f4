"""What crosses the HTTP door about the gateway's keys and limits besides the domain's own records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from groundplane.domain.limits import Measure, WhenDown

_STRICT: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRequest:
    """One limit of a project, or of a model, endpoint or key of it, which `name` names."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    project: str
    scope: str
    name: str
    measure: Measure
    value: int
    when_down: WhenDown = WhenDown.LOCAL
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationRequest:
    """`grace_s`: how long the secret before opens beside the new one."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    grace_s: int = 86_400
    reason: str = ""
