"""What an item is judged on: its facts, the day, what the clouds let us have; and what those come to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from groundplane.domain.intake import Contradiction, Fact, ItemKind, QuotaFact, Span
from groundplane.domain.intake.hardware import is_accelerated
from groundplane.domain.intake.lexicon import InstanceName, Lexicon


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What an item is judged on: its facts (shared ones included), the day, and what the clouds let us have."""

    kind: ItemKind
    facts: tuple[Fact, ...]
    contradictions: tuple[Contradiction, ...]
    quotas: tuple[QuotaFact, ...]
    lexicon: Lexicon
    now: datetime

    def of(self, name: str) -> Fact | None:
        """The first fact of that name."""
        return next((fact for fact in self.facts if fact.name == name), None)

    def every(self, name: str) -> list[Fact]:
        """All facts of that name."""
        return [fact for fact in self.facts if fact.name == name]

    def has(self, name: str, value: str) -> Fact | None:
        """The fact of that name with that value."""
        return next((fact for fact in self.facts if fact.name == name and fact.value == value), None)


def wants_gpus(about: Circumstances) -> bool:
    """Whether it is about accelerators: said so, or by the kind of work or machine."""
    names = {fact.name for fact in about.facts}
    if names & {"accelerator", "accelerators", "accelerators_per_machine"}:
        return whole(about, "accelerators") != 0 or whole(about, "accelerators_per_machine") != 0
    machines = about.of("machines")
    return (
        (machines is not None and "gpu" in machines.text.lower())
        or (
            about.kind is ItemKind.CAPACITY
            and any(fact.name == "workload" and fact.value in {"fine-tuning", "training"} for fact in about.facts)
        )
        or any(is_accelerated(str(fact.value), about.lexicon) for fact in about.every("instance_type"))
    )


def machine_of(about: Circumstances) -> InstanceName | None:
    """The catalogue's row of the first instance type named."""
    fact = about.of("instance_type")
    return about.lexicon.instance(str(fact.value)) if fact else None


def whole(about: Circumstances, name: str) -> int:
    """A fact that is a whole number; 0 when it is not there."""
    fact = about.of(name)
    return fact.value if fact is not None and isinstance(fact.value, int) else 0


def deadline_of(about: Circumstances) -> datetime | None:
    """The end of the day of the first deadline, UTC."""
    fact = about.of("deadline")
    if fact is None:
        return None
    return datetime.fromisoformat(str(fact.value)).replace(tzinfo=UTC) + timedelta(days=1)


def day_of(deadline: datetime) -> str:
    """The deadline's own day: it is kept as the midnight after."""
    return f"{deadline - timedelta(days=1):%a %Y-%m-%d}"


def first_span(about: Circumstances, name: str) -> Span | None:
    """Where a fact stands."""
    fact = about.of(name)
    return fact.span if fact else None
