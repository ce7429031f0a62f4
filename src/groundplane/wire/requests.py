"""What crosses the HTTP door about requests: the message, the answers, the specs that follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from groundplane.domain.intake import QuotaFact
from groundplane.domain.intake.request import Missing, NextStep, SpecDraft
from groundplane.wire.bounds import RATE_MAX, STRICT, check_range, check_text


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRequest:
    """A pasted message, at most 64 KiB. `quotas` are limits that whoever pastes it knows of."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    message: str
    project: str | None = None
    quotas: tuple[QuotaFact, ...] = ()

    def __post_init__(self) -> None:
        check_text(project=self.project or "")
        if len(self.quotas) > 100:
            raise ValueError(f"quotas has {len(self.quotas)} entries; 100 is the most")
        for quota in self.quotas:
            check_text(cloud=quota.cloud, region=quota.region, family=quota.family, source=quota.source)
            for name in ("limit", "used", "lead_time_low_h", "lead_time_high_h"):
                check_range(name, getattr(quota, name), 0, RATE_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersRequest:
    """Fact → answer. `owner` answers for every item, `2.model` for item 2; empty takes an earlier answer back."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    answers: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecsBody:
    """What a request comes to. `yaml` is every document in one text, for `ground plan -f -`."""

    documents: tuple[SpecDraft, ...]
    missing: tuple[Missing, ...]
    steps: tuple[NextStep, ...]
    yaml: str
