"""Values of whatever shape a type of the official client describes, drawn by chance.

The client's types are made from OpenAI's own description of its API; pydantic says them as JSON Schema, and what of
JSON Schema it uses is drawn here. Numbers stay small, because some of them are reserved as tokens.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from pydantic import TypeAdapter

_DEPTH_MAX = 5
_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
_PLAIN = st.none() | st.booleans() | st.integers(0, 999) | _TEXT


def schema_of(shape: Any) -> dict[str, Any]:
    return TypeAdapter(shape).json_schema()


def values(schema: dict[str, Any], *, fixed: dict[str, Any] | None = None) -> st.SearchStrategy[Any]:
    """Values of a schema; of its outermost object `fixed` members are as they say, and None leaves one out."""
    drawn = _of(schema, schema.get("$defs", {}), 0)
    if fixed is None:
        return drawn

    def settle(value: dict[str, Any]) -> dict[str, Any]:
        kept = {name: one for name, one in value.items() if name not in fixed}
        return kept | {name: one for name, one in fixed.items() if one is not None}

    return drawn.map(settle)


def _of(schema: dict[str, Any], names: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return st.deferred(lambda: _of(names[name], names, depth + 1))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    ways = schema.get("anyOf") or schema.get("oneOf")
    if ways:
        if depth >= _DEPTH_MAX:
            ways = sorted(ways, key=lambda way: way.get("type") not in {"null", "string", "integer", "boolean"})[:1]
        return st.one_of([_of(way, names, depth) for way in ways])
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return _object(schema, names, depth)
    if kind == "array":
        most = 0 if depth >= _DEPTH_MAX else 2
        return st.lists(_of(schema.get("items", {}), names, depth + 1), max_size=most)
    return _scalar(kind)


def _object(schema: dict[str, Any], names: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
    required = set(schema.get("required", ()))
    members = schema.get("properties", {})
    if not members:
        more = schema.get("additionalProperties")
        inner = _of(more, names, depth + 1) if isinstance(more, dict) else _PLAIN
        return st.dictionaries(_TEXT, inner, max_size=0 if depth >= _DEPTH_MAX else 2)
    optional = {} if depth >= _DEPTH_MAX else {name: one for name, one in members.items() if name not in required}
    return st.fixed_dictionaries(
        {name: _of(one, names, depth + 1) for name, one in members.items() if name in required},
        optional={name: _of(one, names, depth + 1) for name, one in optional.items()},
    )


def _scalar(kind: str | None) -> st.SearchStrategy[Any]:
    scalars: dict[str | None, st.SearchStrategy[Any]] = {
        "string": _TEXT,
        "integer": st.integers(0, 999),
        "number": st.floats(0, 999, allow_nan=False, width=32),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    return scalars.get(kind, _PLAIN)
