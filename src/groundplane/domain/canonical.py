"""One value, one spelling: the JSON bytes that digests and signatures are made over."""

from __future__ import annotations

import json
from collections.abc import Mapping

from groundplane.errors import InvalidInput


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces, no escapes that aren't needed, shortest round-trip numbers.

    InvalidInput for what JSON can't say the same way twice: NaN, infinities, lone surrogates, keys that are no text,
    types other than null, booleans, integers, floats, text, lists and objects. Tuples are written as lists.
    """
    _check(value, "$")
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except ValueError as error:
        # UnicodeEncodeError is a ValueError: half of a surrogate pair has no UTF-8.
        raise InvalidInput(f"this can't be written as canonical JSON: {error}") from None


def parse_json(data: bytes | str) -> object:
    """Strict reading: a key given twice, NaN and infinities are InvalidInput, because two readers would disagree."""
    try:
        return json.loads(data, object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"this is no strict JSON: {error}") from None


def part_of(document: object, name: str) -> Mapping[str, object]:
    """The object that a document of any shape has there; empty where it has none."""
    found = document.get(name) if isinstance(document, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def rows_of(document: object, name: str) -> list[Mapping[str, object]]:
    """The objects in the list that a document of any shape has there."""
    found = document.get(name) if isinstance(document, Mapping) else None
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list | tuple) else []


def _check(value: object, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidInput(f"{where} has the key {key!r}, which is no text")
            _check(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _check(item, f"{where}[{position}]")
    elif not (value is None or isinstance(value, str | bool | int | float)):
        raise InvalidInput(f"{where} is a {type(value).__name__}, which JSON does not know")


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return found


def _no_constants(text: str) -> object:
    raise ValueError(f"{text} is no JSON number")
