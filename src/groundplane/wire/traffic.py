"""What crosses the HTTP door about the prediction log besides the domain's own records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from groundplane.domain.serving.prediction import Form
from groundplane.wire.bounds import STRICT, check_text


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRuleRequest:
    """What is None stays as it was; a project's first rule is on, whole, redacted, and kept 30 days."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    project: str
    model: str = ""
    enabled: bool | None = None
    sample_percent: float | None = None
    content: bool | None = None
    redact: bool | None = None
    retention_days: int | None = None
    form: Form | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        check_text(project=self.project, model=self.model, reason=self.reason)

    def changes(self) -> dict[str, Any]:
        names = ("enabled", "sample_percent", "content", "redact", "retention_days", "form")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionPage:
    """Records as `domain/prediction.Prediction` has them; an empty `next` is the end."""

    records: tuple[dict[str, Any], ...]
    next: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureRequest:
    """`subject` as callers send it in `user`, `metadata.user_id` or `x-subject`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    project: str
    subject: str
    reason: str = ""

    def __post_init__(self) -> None:
        check_text(project=self.project, subject=self.subject, reason=self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportNote:
    """That so many records were copied to somewhere."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    project: str
    records: int
    to: str

    def __post_init__(self) -> None:
        check_text(project=self.project, to=self.to)
