"""A birth certificate as a person reads it: what was signed, in its order, amounts and sizes in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from groundplane.domain.certificate import open_envelope
from groundplane.errors import InvalidInput
from groundplane.units import format_bytes, format_usd

SHOWN_ELSEWHERE = {"manifest", "packages"}
"""The files have a table of their own; hundreds of packages are folded away."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One statement: its name (`end reasons`) and what it says."""

    name: str
    value: str


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
    general = [fact for name, value in predicate.items() if _is_single(value) for fact in _walk(name, value)]
    sections = [("General", tuple(general))] if general else []
    for name, value in predicate.items():
        if not _is_single(value) and name not in SHOWN_ELSEWHERE and name != "unknown":
            sections.append((_words(name).capitalize(), tuple(_walk("", value))))
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
        yield Fact(_words(name), _text(name, value))


def _is_single(value: Any) -> bool:
    """Whether it reads as one value: anything but a mapping, or a list that holds mappings."""
    if isinstance(value, list):
        return not any(isinstance(item, Mapping) for item in value)
    return not isinstance(value, Mapping)


def _words(name: str) -> str:
    return name.removesuffix("_microusd").removesuffix("_bytes").replace("_", " ")


def _text(name: str, value: Any) -> str:
    match value:
        case None | "" | []:
            return "not stated"
        case bool():
            return "yes" if value else "no"
        case int() if name.endswith("_microusd"):
            return format_usd(value)
        case int() if name.endswith("_bytes"):
            return format_bytes(value)
        case list():
            return ", ".join(_text(name, item) for item in value)
        case _:
            return str(value)
