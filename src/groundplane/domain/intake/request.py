"""A stored request: its message, what was read, what was answered, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from groundplane.domain.intake import Intake, QuotaFact


class RequestStatus(StrEnum):
    """`open` while a fact is missing, `ready` when its specs can be planned, `closed` when somebody closed it."""

    OPEN = "open"
    READY = "ready"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """What a model proposes for a missing fact, with the words of the message it goes by. Never taken by itself."""

    item: int
    fact: str
    value: str
    quote: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`intake` shows what is still missing after `answers`. Answer keys are a fact, or `2.fact` for one item.

    `project` is empty until somebody says whose it is; then only roles that see every project see it.
    """

    id: str
    project: str
    status: RequestStatus
    message: str
    intake: Intake
    answers: dict[str, str] = field(default_factory=dict)
    quotas: tuple[QuotaFact, ...] = ()
    suggestions: tuple[Suggestion, ...] = ()
    suggestions_note: str = ""
    created_by: str
    created_at: datetime
    updated_at: datetime
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecDraft:
    """One document that `ground plan -f` accepts, for one item."""

    item: int
    kind: str
    name: str
    yaml: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Why an item has no spec yet: a fact that is missing, or one that a spec can't hold."""

    item: int
    fact: str
    why: str
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """What to do about an item that no spec describes."""

    item: int
    kind: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Specs:
    """What a request comes to: documents to plan, facts still missing, and steps for people."""

    documents: tuple[SpecDraft, ...] = ()
    missing: tuple[Missing, ...] = ()
    steps: tuple[NextStep, ...] = ()

    @property
    def yaml(self) -> str:
        return "---\n".join(document.yaml for document in self.documents)


def answer_for(answers: Mapping[str, str], item: int, fact: str) -> str | None:
    """The answer for one item, else the one for all."""
    return answers.get(f"{item}.{fact}", answers.get(fact))
