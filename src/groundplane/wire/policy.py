"""What crosses the HTTP door about operator rules besides the domain's own records."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from groundplane.wire.bounds import STRICT, check_text, check_zone


@dataclass(frozen=True, slots=True, kw_only=True)
class ExceptionRequest:
    """Which rule is lifted for which project, or one name in it; by whom, why and until when."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    rule: str
    project: str
    owner: str
    reason: str
    expires_at: datetime
    name: str = ""

    def __post_init__(self) -> None:
        check_text(rule=self.rule, project=self.project, name=self.name, owner=self.owner, reason=self.reason)
        check_zone("expires_at", self.expires_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """Proposed policy files by name, over those in force, and how far back to look."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    files: dict[str, str]
    since: datetime

    def __post_init__(self) -> None:
        check_text(**{f"files.{number}": name for number, name in enumerate(self.files)})
        check_zone("since", self.since)
