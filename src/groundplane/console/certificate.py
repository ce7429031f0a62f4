"""A birth certificate as a person reads it: what was signed, in its order, amounts and sizes in words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from groundplane.console.words import stamp
from groundplane.domain.provenance.certificate import open_envelope
from groundplane.errors import InvalidInput
from groundplane.units import format_bytes, format_usd

FIRST = ("version", "metrics", "hyperparameters", "created", "run", "data", "code", "hardware", "container",
         "environment", "energy")  # fmt: skip
SHOWN_ELSEWHERE = {"manifest", "packages", "unknown"}
"""The files have a table of their own, so has what is unknown; hundreds of packages are folded away."""
NOT_STATED = "not stated"
_DIGEST = re.compile(r"(?:[a-z0-9]+:)?[0-9a-f]{40,128}")


@dataclass(frozen=True, slots=True)
class Fact:
    """One statement: its name (`end reasons`), what it says, and how to set it: `quiet`, `id` or plain."""

    name: str
    value: str
    look: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A certificate taken apart. `problem` says why it can't be read; then nothing else is set."""

    sections: tuple[tuple[str, tuple[Fact, ...]], ...] = ()
    packages: tuple[str, ...] = ()
    unknown: tuple[Fact, ...] = ()
    key_id: str = ""
    statement: str = ""
    problem: str = ""


def read(certificate: str) -> Reading:
    """Reads it without trusting it: whether it is what was signed is `Models.verify`'s to say."""
    try:
        opened = open_envelope(certificate)
    except InvalidInput as error:
        return Reading(problem=error.message)
    predicate = opened.statement.get("predicate")
    if not isinstance(predicate, Mapping):
        return Reading(problem="the certificate states nothing")
    single = {name: each for name, each in predicate.items() if _is_single(each) and name not in SHOWN_ELSEWHERE}
    general = [fact for name, value in single.items() for fact in _walk(name, value)]
    sections = [("General", tuple(general))]
    # Signed text is sorted by name; people read who and how good first.
    for name in sorted(predicate, key=lambda each: (FIRST.index(each) if each in FIRST else len(FIRST), each)):
        if not _is_single(predicate[name]) and name not in SHOWN_ELSEWHERE:
            sections.append((_words(name).capitalize(), tuple(_walk("", predicate[name]))))
    environment = predicate.get("environment")
    packages = environment.get("packages", ()) if isinstance(environment, Mapping) else ()
    unknown = predicate.get("unknown")
    return Reading(
        sections=tuple(section for section in sections if section[1]),
        packages=tuple(map(str, packages)),
        unknown=tuple(Fact(str(each["fact"]), str(each["why"])) for each in unknown or ()),
        key_id=opened.key_id,
        statement=json.dumps(opened.statement, indent=2, ensure_ascii=False),
    )


def _walk(name: str, value: Any) -> Iterator[Fact]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in SHOWN_ELSEWHERE:
                yield from _walk(f"{name} {_words(key)}".strip() if not _is_single(inner) else key, inner)
    elif isinstance(value, list) and not _is_single(value):
        for item in value:
            yield from _walk("", item)
    else:
        text = _text(name, value)
        yield Fact(_words(name), text, "quiet" if text == NOT_STATED else "id" if _DIGEST.fullmatch(text) else "")


def _is_single(value: Any) -> bool:
    """Whether it reads as one value: anything but a mapping, or a list that holds mappings."""
    if isinstance(value, list):
        return not any(isinstance(item, Mapping) for item in value)
    return not isinstance(value, Mapping)


def _words(name: str) -> str:
    return name.removesuffix("_microusd").removesuffix("_bytes").replace("_", " ")


def _text(name: str, value: Any) -> str:
    match value:
        case None | "":
            return NOT_STATED
        case []:
            return "none"
        case str() if name == "at" or name.endswith("_at"):
            return _moment(value)
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.0f}" if value.is_integer() else f"{value:,.6g}"
        case int() if name.endswith("_microusd"):
            return format_usd(value)
        case int() if name.endswith("_bytes"):
            return format_bytes(value)
        case list():
            return ", ".join(_text(name, item) for item in value)
        case _:
            return str(value)


def _moment(text: str) -> str:
    """A tampered certificate must still be shown: what is no time stays as it is."""
    try:
        return f"{stamp(datetime.fromisoformat(text).astimezone(UTC))} UTC"
    except ValueError:
        return text
