"""A YAML file's tags, what its keys would have a loader call, and how large its aliases make it: event by event.

Tags are judged as the parser resolves them: handles and percent signs spell the same tag in many ways.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import yaml
from yaml.events import (
    AliasEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from groundplane.domain.model import path_fault

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PYTHON = "tag:yaml.org,2002:python/"
# HyperPyYAML (SpeechBrain) calls what stands behind these.
_CALLS = re.compile(r"!(?:new|name|apply|module|copy|ref):?(?P<name>[\w.]*)")
_STANDARD = "tag:yaml.org,2002:"
_KINDS = frozenset(
    [
        "map",
        "seq",
        "str",
        "int",
        "float",
        "bool",
        "null",
        "binary",
        "timestamp",
        "omap",
        "pairs",
        "set",
        "merge",
        "value",
        "yaml",
    ]
)
_RUNS = re.compile(r"!(?:py|python|eval|exec|import|pickle|lambda)(?![\w-])", re.IGNORECASE)
_NESTED_MAX = 200
_EXPANDED_MAX = 2_000_000
_EVENTS_MAX = 5_000_000


@dataclass(slots=True)
class YamlSeen:
    """`pairs`: each key with the text that it has; `fault`: what a loader would do with it, in words, or ""."""

    fault: str = ""
    pairs: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class _Node:
    """A collection that is open: `key` is the one that waits for its value, in a mapping."""

    mapping: bool
    anchor: str | None
    key: str | None = None
    has_key: bool = False
    size: int = 1


def read_yaml(text: str, acts: Callable[[str], bool]) -> YamlSeen:
    """Reads as far as a parser does. `acts` says of a dotted name whether it does more than a model needs."""
    seen = YamlSeen()
    stack: list[_Node] = []
    sizes: dict[str, int] = {}
    try:
        for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
            seen.fault = _tag_fault(event, acts) or _step(event, stack, sizes, seen)
            if not seen.fault and count > _EVENTS_MAX:
                seen.fault = f"holds over {_EVENTS_MAX:,} values"
            if seen.fault:
                break
    except (yaml.YAMLError, ValueError, RecursionError):
        # No loader gets further either; what came before counts.
        pass
    return seen


def _tag_fault(event: Event, acts: Callable[[str], bool]) -> str:
    tag = getattr(event, "tag", None)
    if not isinstance(tag, str):
        return ""
    if tag.startswith(_PYTHON):
        return f"holds !!{tag.removeprefix('tag:yaml.org,2002:')[:60]}, which makes Python objects when it is loaded"
    if tag.startswith(_STANDARD) and tag.removeprefix(_STANDARD) not in _KINDS:
        return f"holds !!{tag.removeprefix(_STANDARD)[:60]}, which makes another language's objects when it is loaded"
    if _RUNS.match(tag):
        return f"holds {tag[:60]}, which stands for something to run"
    if tag.lower() in {"!include", "!inc"} and path_fault(str(getattr(event, "value", ""))) is not None:
        return f"includes {str(getattr(event, 'value', ''))[:60]!r}, outside the model's folder"
    called = _CALLS.match(tag)
    return f"lets its loader call {called['name'][:60]}" if called and acts(called["name"]) else ""


def _step(event: Event, stack: list[_Node], sizes: dict[str, int], seen: YamlSeen) -> str:
    if isinstance(event, MappingStartEvent | SequenceStartEvent):
        stack.append(_Node(isinstance(event, MappingStartEvent), event.anchor))
        return f"nests over {_NESTED_MAX} deep" if len(stack) > _NESTED_MAX else ""
    if isinstance(event, MappingEndEvent | SequenceEndEvent):
        node = stack.pop()
        if node.anchor:
            sizes[node.anchor] = node.size
        return _grow(stack, node.size, None)
    if isinstance(event, AliasEvent):
        return _grow(stack, sizes.get(event.anchor or "", 1), None)
    if isinstance(event, ScalarEvent):
        above = stack[-1] if stack else None
        if above is not None and above.mapping and above.has_key and above.key is not None:
            seen.pairs.append((above.key, event.value))
        return _grow(stack, 1, event.value)
    return ""


def _grow(stack: list[_Node], size: int, text: str | None) -> str:
    """Counts a value where it stands; in a mapping every second one is a key."""
    if not stack:
        return ""
    above = stack[-1]
    above.size += size
    if above.mapping:
        above.key, above.has_key = (None, False) if above.has_key else (text, True)
    return f"unfolds to over {_EXPANDED_MAX:,} values by its aliases" if above.size > _EXPANDED_MAX else ""
