"""What a pasted message says, taken apart: work items with what is known, what is missing and what is at risk.

Nothing here is guessed. A fact carries the characters it was read from; what is not in the text is a question.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

MESSAGE_MAX_BYTES = 64 * 1024
"""The longest message that is read, in UTF-8."""


class ItemKind(StrEnum):
    """What a piece of the message asks for. `unclear` is an answer too: a person has to say what was meant."""

    CAPACITY = "capacity"
    BATCH = "batch-inference"
    ENDPOINT = "endpoint"
    MONITORING = "monitoring"
    DATA = "data"
    ACCESS = "access"
    INCIDENT = "incident"
    COST = "cost"
    LIFECYCLE = "lifecycle"
    UNCLEAR = "unclear"


SPEC_KINDS = frozenset({ItemKind.CAPACITY, ItemKind.BATCH, ItemKind.ENDPOINT})
"""Items that end in a spec; the others end in an instruction for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Characters `start` up to `end` of the message as it was sent."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something the message says. `value` is canonical, its unit beside it; `text` is what it was read from.

    Money is micro-dollars when the unit is `microusd`; sizes are bytes; dates are ISO 8601. `note` says how a word
    that could be read in two ways was read.
    """

    name: str
    value: int | float | str
    text: str
    span: Span
    unit: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A missing fact: why it matters and how to answer. `required` ones keep a spec from being written."""

    fact: str
    why: str
    how: str
    choices: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Risk:
    """What can go wrong. `level` is `high`, `medium` or `low`; `hint` is the way forward."""

    id: str
    level: str
    message: str
    hint: str
    span: Span | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A term of the field found in the message, the sense it was read in, and by what that was decided."""

    term: str
    means: str
    explanation: str
    because: str
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """Two values for one fact. Neither is taken: a question asks which one holds."""

    fact: str
    first: Fact
    second: Fact


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """A word that was read as another one, because it looked misspelt."""

    written: str
    read_as: str
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """One thing that is asked for, numbered from 1 in the order of the message."""

    number: int
    kind: ItemKind
    title: str
    sentences: tuple[Span, ...]
    facts: tuple[Fact, ...] = ()
    questions: tuple[Question, ...] = ()
    risks: tuple[Risk, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()

    def fact(self, name: str) -> Fact | None:
        """The first fact of that name."""
        return next((fact for fact in self.facts if fact.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """A message, understood as far as it can be. `shared` facts hold for every item that has none of its own."""

    read_at: datetime
    items: tuple[WorkItem, ...]
    shared: tuple[Fact, ...] = ()
    risks: tuple[Risk, ...] = ()
    jargon: tuple[Explained, ...] = ()
    corrections: tuple[Correction, ...] = ()
    not_understood: tuple[Span, ...] = ()
    ignored: tuple[Span, ...] = ()

    def known(self, item: WorkItem, name: str) -> Fact | None:
        """What is known of a fact for an item: its own word first, then what holds for the whole message."""
        return item.fact(name) or next((fact for fact in self.shared if fact.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaFact:
    """What a cloud lets us have, as some source said. `unit` is `vCPU` or `GPU`; a lead time of None is not known."""

    cloud: str
    region: str = ""
    family: str = ""
    limit: int
    used: int = 0
    unit: str = "vCPU"
    lead_time_low_h: int | None = None
    lead_time_high_h: int | None = None
    source: str = ""

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used)
