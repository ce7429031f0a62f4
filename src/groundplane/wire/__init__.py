"""What crosses the HTTP door besides the domain's own records: requests, envelopes and views.

The API reads and writes these shapes, the client reads and writes the same ones; neither knows the other.
Requests refuse fields they don't know, so a misspelt one is an error and not a silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from groundplane.errors import Problem, Refused
from groundplane.wire.bounds import STRICT, check_text


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """One error for people and programs. `code` is stable; `problems` and `refusals` say every reason."""

    code: str
    message: str
    hint: str = ""
    problems: tuple[Problem, ...] = ()
    refusals: tuple[Refused, ...] = ()
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBody:
    error: ErrorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonRequest:
    """Why somebody does this: written to the audit trail."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    reason: str = ""

    def __post_init__(self) -> None:
        check_text(reason=self.reason)
