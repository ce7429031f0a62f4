"""Expressions of operator rules, in CEL: checked when they are read, bounded when they are judged.

What bounds an expression: its length, its nesting, two macros that walk a list, four regular expressions (RE2, linear
time), no text or list that grows in `map`, 10,000 steps of all macros together (the library's budget), and what it is
given (`MAX_TEXT_CHARACTERS`). A second on a slow machine is out of reach.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cel_expr_python import cel  # type: ignore[import-untyped]

MAX_CHARACTERS = 1_000
MAX_NESTING = 24
MAX_WALKS = 2
MAX_MATCHES = 4
MAX_TEXT_CHARACTERS = 32_768
MAX_SHOWN_CHARACTERS = 300

ROOTS = ("spec", "plan", "model", "request", "project", "settings", "now")

# One pass over comments, raw texts and texts: a quote in a comment opens nothing, two slashes in a text end nothing.
_UNSPOKEN = re.compile(
    r"""//[^\n]*|\b(?:[rR][bB]?|[bB][rR])(?:'[^'\n]*'|"[^"\n]*")|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*\""""
)
_WALK = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(")
_MAP = re.compile(r"\.\s*map\s*\(")
_MATCHES = re.compile(r"\bmatches\s*\(")
_PATH = re.compile(r"(?<![\w.])([a-z_]\w*)((?:\s*\.\s*[A-Za-z_]\w*(?!\w*\s*\())*)")


class ExpressionFault(Exception):
    """An expression that can't be used, or could not be judged. `hint` says what to write instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression. `evaluate` takes the variables that `Values` holds."""

    text: str
    program: Any

    def evaluate(self, values: Values) -> object:
        """Its value as plain Python. ExpressionFault when a type does not fit or a key is not there."""
        try:
            result = self.program.eval(values.activation)
            value = result.plain_value()
        except RuntimeError as error:
            raise ExpressionFault(_said(str(error))) from None
        if result.type() == cel.Type.ERROR:
            raise ExpressionFault(_said(str(value)))
        return value

    def holds(self, values: Values) -> bool:
        """Its truth. ExpressionFault when its value is no truth."""
        value = self.evaluate(values)
        if not isinstance(value, bool):
            raise ExpressionFault(f"gives {shown(value)}, not true or false", "compare it: … == …, … > …")
        return value


class Values:
    """The variables of expressions, converted once for many. ExpressionFault for what no expression may be given."""

    def __init__(self, variables: Mapping[str, object]) -> None:
        checked = {name: _plain(variables.get(name, {}), name) for name in ROOTS}
        self.activation = _ENVIRONMENT.Activation(checked)


_ENVIRONMENT = cel.NewEnv(variables={name: cel.Type.TIMESTAMP if name == "now" else cel.Type.DYN for name in ROOTS})


def compiled(text: str, schema: Mapping[str, object], *, truth: bool = True) -> Expression:
    """The expression, when it may be used. `schema` is what there is to ask for: nested dicts, a dict without entries
    being open. ExpressionFault otherwise."""
    bare = _UNSPOKEN.sub(lambda found: "" if found[0].startswith("//") else "''", text)
    _check_bounds(text, bare)
    _check_paths(bare, schema)
    try:
        program = _ENVIRONMENT.compile(text)
    except RuntimeError as error:
        said = _said(str(error))
        raise ExpressionFault(said, _way_on(said, schema)) from None
    if truth and program.return_type() not in (cel.Type.BOOL, cel.Type.DYN):  # these types do not hash
        raise ExpressionFault("does not give true or false", "compare it: … == …, … > …")
    return Expression(text, program)


_PIECE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Message:
    """A text with values in it: `{plan.accelerators} accelerators`. Values that can't be had are shown as `?`."""

    text: str
    parts: tuple[str | Expression, ...]

    def render(self, values: Values) -> str:
        return "".join(part if isinstance(part, str) else _value(part, values) for part in self.parts)


def message(text: str, schema: Mapping[str, object]) -> Message:
    """ExpressionFault for an expression in braces that can't be used, or a brace without its other."""
    parts: list[str | Expression] = []
    end = 0
    for found in _PIECE.finditer(text):
        parts += [text[end : found.start()], compiled(found[1], schema, truth=False)]
        end = found.end()
    rest = text[end:]
    if "{" in "".join(part for part in parts if isinstance(part, str)) + rest or "}" in rest:
        raise ExpressionFault("has a brace without its other", "values stand in braces: {plan.accelerators}")
    return Message(text, (*parts, rest))


def shown(value: object) -> str:
    """A value for people, in one short line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:,.2f}".rstrip("0").rstrip(".") if abs(value) < 10**15 else f"{value:g}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M} UTC"
    if isinstance(value, Mapping):
        text = ", ".join(f"{key}={shown(item)}" for key, item in value.items()) or "nothing"
    elif isinstance(value, list | tuple):
        text = ", ".join(shown(item) for item in value) or "nothing"
    else:
        text = " ".join(str(value).split()) or "nothing"
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[: MAX_SHOWN_CHARACTERS - 1]}…"


def _value(part: Expression, values: Values) -> str:
    try:
        return shown(part.evaluate(values))
    except ExpressionFault:
        return "?"


def _check_bounds(text: str, bare: str) -> None:
    if not text.strip():
        raise ExpressionFault("is empty", "write a condition such as spec.nodes <= 4")
    if "'''" in text or '"""' in text:
        raise ExpressionFault("has a text in three quotes", "write it in one")
    if len(text) > MAX_CHARACTERS:
        raise ExpressionFault(f"has {len(text):,} characters; the limit is {MAX_CHARACTERS:,}", "make two rules of it")
    deepest = depth = 0
    for character in bare:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        raise ExpressionFault(f"nests {deepest} deep; the limit is {MAX_NESTING}", "make two rules of it")
    if len(_WALK.findall(bare)) > MAX_WALKS:
        hint = "all, exists, exists_one, filter and map walk a list; make two rules of it"
        raise ExpressionFault(f"walks lists more than {MAX_WALKS} times", hint)
    if len(_MATCHES.findall(bare)) > MAX_MATCHES:
        raise ExpressionFault(f"has more than {MAX_MATCHES} regular expressions", "make two rules of it")
    if _MAP.search(bare) and "+" in bare:
        raise ExpressionFault("adds where it maps, which may grow without end", "use map without +")


def _check_paths(bare: str, schema: Mapping[str, object]) -> None:
    """Whether every field asked for by name is there: `spec.memroy_bytes` is told now, not when a plan is refused."""
    for root, rest in _PATH.findall(bare):
        if root not in schema:
            continue
        here: object = schema[root]
        path = root
        for name in re.findall(r"\w+", rest):
            if not isinstance(here, Mapping):
                raise ExpressionFault(f"{path} has no {name}", f"it is a value such as {shown(here)}")
            if not here:
                break  # labels, variables, metrics: whatever their author called them
            if name not in here:
                near = difflib.get_close_matches(name, here, 1, 0.6)
                hint = f"did you mean {path}.{near[0]}?" if near else f"{path} has: {', '.join(here)}"
                raise ExpressionFault(f"{path} has no {name}", hint)
            here, path = here[name], f"{path}.{name}"
    for root in ROOTS:
        if root not in schema and re.search(rf"(?<![\w.]){root}\s*[.\[]", bare):
            raise ExpressionFault(f"{root} is not there for this rule", f"it may ask for {', '.join(schema)}")


def _way_on(said: str, schema: Mapping[str, object]) -> str:
    """Where a name that was asked for by itself is found, else what there is."""
    name = re.match(r"undeclared reference to '(\w+)'", said)
    if name is None:
        return ""
    root = next((root for root, has in schema.items() if isinstance(has, Mapping) and name[1] in has), "")
    return f"did you mean {root}.{name[1]}?" if root else f"it may ask for {', '.join(schema)}"


_STATUS = re.compile(r"^(?:[A-Z_]+: )?(?:ERROR: <input>:)?")


def _said(text: str) -> str:
    """The library's words as one line: its status names and its drawing of the place left out."""
    first = text.strip().splitlines()[0] if text.strip() else "can't be judged"
    first = _STATUS.sub("", first).replace(" (in container '')", "")
    first = re.sub(r"\s*\[[A-Z_]+\]$", "", first).removesuffix("|")
    place = re.match(r"(-?\d+):(-?\d+): ", first)
    if place:
        first = first[place.end() :]
        first += f" (character {place[2]})" if int(place[2]) > 0 else ""
    return first[0].lower() + first[1:] if first else "can't be judged"


def _plain(value: object, where: str) -> object:
    """As the library takes it. ExpressionFault for text that is too long and numbers beyond 64 bits."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, str):
        if len(value) > MAX_TEXT_CHARACTERS:
            said = f"{where} has {len(value):,} characters, more than rules may look at ({MAX_TEXT_CHARACTERS:,})"
            raise ExpressionFault(said, "keep long scripts in a file of their own")
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        raise ExpressionFault(f"{where} is {value}, beyond 64 bits", "use a smaller number")
    return value
