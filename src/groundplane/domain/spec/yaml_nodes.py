"""YAML text becomes nodes with line numbers, within limits.

Nodes are composed, never constructed: no tag in the text can create an object, and every value keeps the
spelling its author gave it, so that `yes` can be reported as `yes` and not as `True`.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, DocumentStartEvent, ScalarEvent
from yaml.nodes import Node, ScalarNode

from groundplane.errors import InvalidInput, Problem

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_ALIASES = 64
MAX_DOCUMENTS = 64
MAX_VALUES = 20_000

# libyaml reads ten times faster; the pure Python loader gives the same nodes where it is not compiled in.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What YAML 1.1 calls non-printable: never meant in a spec, and a way to hide text from a reader's terminal.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def decode(data: bytes) -> str:
    """UTF-8 bytes (a leading byte order mark is dropped) → text. InvalidInput names the first bad byte and its line."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        bad = f"byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8"
        raise _invalid(bad, line, "save the file as UTF-8") from None


def compose_documents(text: str) -> list[Node]:
    """The non-empty documents of a YAML stream. InvalidInput when it is empty, broken, or over a limit."""
    text = text.removeprefix("\ufeff")
    _check_characters(text)
    try:
        _check_structure(text)
        documents = [node for node in yaml.compose_all(text, Loader=_LOADER) if not is_null(node)]
    except yaml.MarkedYAMLError as error:
        raise _broken(error) from None
    if not documents:
        raise _invalid("the document is empty", 1, "a spec starts with `apiVersion: groundplane/v1`")
    return documents


def is_null(node: Node | None) -> bool:
    """Whether nothing was written: an empty value, `~` or `null`."""
    return node is None or (isinstance(node, ScalarNode) and node.tag.endswith(":null"))


def line_of(node: Node) -> int:
    """The 1-based line a node starts on."""
    return int(node.start_mark.line) + 1


def _check_characters(text: str) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise _invalid(
            f"the document has {size:,} bytes; the limit is {MAX_BYTES:,}",
            None,
            "split it into several files, or move the data out of the spec",
        )
    bad = _FORBIDDEN.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start()) + 1
        raise _invalid(f"the control character U+{ord(bad[0]):04X} is not allowed", line, "remove it")


def _check_structure(text: str) -> None:
    """Depth and aliases are counted on the event stream: composing recurses, so it must come after."""
    depth = aliases = documents = values = 0
    for event in yaml.parse(text, Loader=_LOADER):
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        if isinstance(event, CollectionStartEvent):
            depth += 1
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        elif isinstance(event, ScalarEvent):
            values += 1
        elif isinstance(event, AliasEvent):
            aliases += 1
        elif isinstance(event, DocumentStartEvent):
            documents += 1
        if depth > MAX_DEPTH:
            raise _invalid(f"nested deeper than {MAX_DEPTH} levels", line, "no field of a spec is that deep")
        if aliases > MAX_ALIASES:
            raise _invalid(f"more than {MAX_ALIASES} aliases", line, "write the values out")
        if values > MAX_VALUES:
            raise _invalid(f"more than {MAX_VALUES:,} keys and values", line, "move the data out of the spec")
        if documents > MAX_DOCUMENTS:
            raise _invalid(f"more than {MAX_DOCUMENTS} documents", line, "split it into several files")


def _broken(error: yaml.MarkedYAMLError) -> InvalidInput:
    mark = error.problem_mark or error.context_mark
    what = error.problem or error.context or "it can't be read"
    line = None if mark is None else mark.line + 1
    column = "" if mark is None else f" (column {mark.column + 1})"
    return _invalid(f"not valid YAML: {what}{column}", line, "check the indentation, colons and quotes just before it")


def _invalid(message: str, line: int | None, hint: str) -> InvalidInput:
    problem = Problem(field="", message=message, line=line, hint=hint)
    return InvalidInput(str(problem), hint, [problem])
