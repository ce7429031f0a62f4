"""The glossary of requests: catalog/jargon.yaml, checked, as terms the reader of messages uses."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import yaml

from groundplane.domain.catalogue.entries import Catalogue
from groundplane.domain.intake.lexicon import Lexicon, Sense, Term, lexicon_of
from groundplane.errors import InvalidInput, Problem
from groundplane.ports import Clock

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_terms() -> tuple[Term, ...]:
    """The shipped terms. Raises InvalidInput naming the row that is wrong."""
    text = importlib.resources.files("groundplane.catalog").joinpath("jargon.yaml").read_text(encoding="utf-8")
    return read_terms(text)


def read_terms(text: str, source: str = "jargon.yaml") -> tuple[Term, ...]:
    """Terms from YAML with `rows` of term, aliases and senses."""
    document = yaml.load(text, _LOADER)  # noqa: S506 - a safe loader, the C one where there is one
    rows = document.get("rows") if isinstance(document, Mapping) else None
    if not isinstance(rows, list):
        raise InvalidInput(f"{source} has no rows", "see the shipped catalog/jargon.yaml")
    problems = [Problem(field=f"rows[{at}]", message=fault) for at, row in enumerate(rows) if (fault := _fault(row))]
    if problems:
        raise InvalidInput(f"{source} has {len(problems)} bad row(s)", "see the shipped catalog/jargon.yaml", problems)
    return tuple(_term(row) for row in rows)


def _fault(row: Any) -> str:
    if not isinstance(row, Mapping) or not isinstance(row.get("term"), str):
        return "needs a term"
    senses = row.get("senses")
    if not isinstance(senses, list) or not senses:
        return f"{row['term']} needs at least one sense"
    for sense in senses:
        if not isinstance(sense, Mapping) or not all(
            isinstance(sense.get(name), str) for name in ("means", "explanation")
        ):
            return f"{row['term']}: each sense needs what it means and an explanation"
    return ""


def _term(row: Mapping[str, Any]) -> Term:
    senses = tuple(
        Sense(
            means=sense["means"],
            explanation=sense["explanation"],
            words=tuple(str(word).lower() for word in sense.get("words", ())),
        )
        for sense in row["senses"]
    )
    return Term(term=row["term"], senses=senses, aliases=tuple(str(alias) for alias in row.get("aliases", ())))


class Vocabulary:
    """What a message may name: the catalogue's names and the shipped terms, as both stand on the day."""

    def __init__(self, catalogue: Callable[[], Catalogue], clock: Clock) -> None:
        self._catalogue = catalogue
        self._clock = clock
        self._terms = load_terms()
        self._made: tuple[Catalogue, date, Lexicon] | None = None

    def lexicon(self) -> Lexicon:
        """Made again when the catalogue was updated, and each day: what retires is said to have."""
        catalogue, today = self._catalogue(), self._clock.now().date()
        if self._made is None or self._made[0] is not catalogue or self._made[1] != today:
            self._made = (catalogue, today, lexicon_of(catalogue.hardware, catalogue.models, self._terms, today))
        return self._made[2]
