"""Policy files: YAML with settings, rules in CEL and their tests, read strictly; faults are told with file and line.

Nothing is taken from a file that has a fault, and nothing from a folder in which one has.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from groundplane.domain.policy.expressions import Expression, ExpressionFault, Message, compiled, message
from groundplane.domain.policy.view import OVER, SEES
from groundplane.domain.spec import CLASSIFICATIONS
from groundplane.domain.spec import values as v
from groundplane.domain.spec.values import Fault, Reader, Unreadable, entries, kind_of, shown
from groundplane.domain.spec.yaml_nodes import compose_documents, is_null, line_of
from groundplane.errors import InvalidInput, Problem
from groundplane.units import format_count

POLICY_VERSION = "groundplane/policy/v1"
MAX_RULES_OF_FILE = 500
MAX_TESTS = 100
MAX_PROBLEMS = 50
_ID = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_ID_MEANING = "a rule's name (lowercase letters, digits and -, at most 63)"
_KEY = re.compile(r"[A-Za-z0-9*][A-Za-z0-9._*/-]{0,127}")
_NOWHEN = datetime(2000, 1, 1, tzinfo=UTC)


class Severity(StrEnum):
    """What a rule does when it is broken: refuse the plan, ask for somebody's approval, or warn."""

    REFUSE = "refuse"
    APPROVE = "approve"
    WARN = "warn"


OUTCOMES = ("pass", *Severity)
"""What a test may expect: a severity, or `pass` where the rule is kept or is not about the subject."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTest:
    """One test inside a file: a fragment of a subject over a good one, and what the rule must say of it."""

    name: str
    given: Mapping[str, Any]
    expect: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredRule:
    """A rule in CEL. It is broken where `when` holds and `require` does not; a missing one counts as true, as false.

    `source` is file:line. `text` are the expressions as written, for people.
    """

    id: str
    over: str
    when: Expression | None
    require: Expression | None
    why: str
    hint: Message
    need: Message
    have: Message
    severity: Severity
    source: str
    tests: tuple[RuleTest, ...] = ()

    @property
    def text(self) -> str:
        """The condition as it was written: `when …; require …`."""
        when = f"when {self.when.text}" if self.when else ""
        require = f"require {self.require.text}" if self.require else ""
        return "; ".join(filter(None, (when, require)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleChange:
    """A word on a rule defined elsewhere: another severity, another hint, or that it is not judged here."""

    id: str
    source: str
    severity: Severity | None = None
    enabled: bool = True
    why: str = ""
    hint: Message | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFile:
    """A file's content: settings by name, rules, and words on rules defined elsewhere."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    rules: tuple[DeclaredRule, ...] = ()
    changes: tuple[RuleChange, ...] = ()
    setting_lines: Mapping[str, int] = field(default_factory=dict)


def read_policy_file(name: str, text: str, schema: Mapping[str, object]) -> PolicyFile:
    """`schema` is what expressions may ask for (`rule_set.SCHEMA`). Raises InvalidInput with every fault."""
    reading = _Reading(name, schema)
    try:
        documents = compose_documents(text)
    except InvalidInput as error:
        starts = f"a policy file starts with `policy: {POLICY_VERSION}`"
        hints = [starts if "apiVersion" in problem.hint else problem.hint for problem in error.problems]
        raise faults_as_error(
            [replace(problem, field=name, hint=hint) for problem, hint in zip(error.problems, hints, strict=True)]
        ) from None
    file = _file(documents, reading)
    if reading.problems:
        raise faults_as_error(reading.problems)
    return file


def faults_as_error(problems: Sequence[Problem]) -> InvalidInput:
    """One error for every fault, each told as `file:line: what`."""
    told = [
        Problem(field=f"{each.field}:{each.line}" if each.line else each.field, message=each.message, hint=each.hint)
        for each in problems[:MAX_PROBLEMS]
    ]
    more = len(problems) - 1
    message = str(told[0]) + (f" (and {format_count(more, 'more problem')})" if more else "")
    return InvalidInput(message, told[0].hint or "see docs/guides/policy.md", tuple(told))


# ---------------------------------------------------------------- walking the nodes


@dataclass(slots=True)
class _Reading:
    """One file being read, and the problems so far."""

    name: str
    schema: Mapping[str, object]
    problems: list[Problem] = field(default_factory=list)

    def add(self, line: int, message: str, hint: str = "") -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(field=self.name, message=message, line=line, hint=hint))

    def value(self, reader: Reader, node: Node, what: str) -> Any:
        """The value; None after its faults were told."""
        try:
            return reader(node, _NOWHEN)
        except Unreadable as error:
            for fault in error.faults:
                self.add(fault.line, f"{what}{fault.where}: {fault.message}", fault.hint)
            return None

    def mapping(self, node: Node, what: str, known: Sequence[str]) -> dict[str, Node]:
        """A mapping's entries; unknown and repeated ones are told."""
        faults: list[Fault] = []
        found: dict[str, Node] = {}
        try:
            for key, child in entries(node, faults):
                if known and key not in known:
                    near = difflib.get_close_matches(key, known, 1, 0.6)
                    line = child.start_mark.line + 1
                    self.add(
                        line, f"{what}: unknown field {key}", f"did you mean {near[0]}?" if near else _known(known)
                    )
                elif not is_null(child):
                    found[key] = child
        except Unreadable as error:
            faults += error.faults
        for fault in faults:
            self.add(fault.line, f"{what}{fault.where}: {fault.message}", fault.hint)
        return found

    def items(self, node: Node, what: str, most: int) -> list[Node]:
        if not isinstance(node, SequenceNode):
            self.add(line_of(node), f"{what}: must be a list, is {kind_of(node)}", "start each item with `- `")
            return []
        if len(node.value) > most:
            self.add(line_of(node), f"{what}: has {len(node.value)} items; the limit is {most}")
            return []
        return list(node.value)


def _known(names: Sequence[str]) -> str:
    return f"known here: {', '.join(names)}"


def _file(documents: Sequence[Node], reading: _Reading) -> PolicyFile:
    if len(documents) != 1:
        reading.add(line_of(documents[1]), "a policy file has one document", "put the rules into one list")
    root = reading.mapping(documents[0], "the file", ("policy", "settings", "rules"))
    if "policy" not in root:
        reading.add(1, "policy is required", f"the first line is `policy: {POLICY_VERSION}`")
    else:
        reading.value(v.choice(POLICY_VERSION), root["policy"], "policy")
    settings, lines = _settings(root["settings"], reading) if "settings" in root else ({}, {})
    rules: list[DeclaredRule] = []
    changes: list[RuleChange] = []
    for node in reading.items(root["rules"], "rules", MAX_RULES_OF_FILE) if "rules" in root else ():
        rule = _rule(node, reading)
        if isinstance(rule, DeclaredRule):
            rules.append(rule)
        elif rule is not None:
            changes.append(rule)
    return PolicyFile(
        name=reading.name, settings=settings, rules=tuple(rules), changes=tuple(changes), setting_lines=lines
    )


_RULE_FIELDS = ("id", "over", "when", "require", "why", "hint", "need", "have", "severity", "enabled", "tests")


def _rule(node: Node, reading: _Reading) -> DeclaredRule | RuleChange | None:
    line, before = line_of(node), len(reading.problems)
    found = reading.mapping(node, "rule", _RULE_FIELDS)
    id = reading.value(v.text(_ID, _ID_MEANING), found["id"], "id") if "id" in found else None
    if "id" not in found:
        reading.add(line, "a rule needs an id", "write it like id: no-latest-image")
    what = f"rule {id}" if id else "rule"
    severity = _severity(found, what, reading)
    enabled = reading.value(v.boolean, found["enabled"], f"{what}: enabled") if "enabled" in found else True
    why = reading.value(v.text(), found["why"], f"{what}: why") if "why" in found else ""
    source = f"{reading.name}:{line}"
    if "when" not in found and "require" not in found:
        change = _change(found, what, line, why, reading)
        if len(reading.problems) > before or id is None:
            return None
        return RuleChange(id=id, source=source, severity=severity, enabled=enabled, why=why or "", hint=change)
    if not enabled:
        reading.add(
            line_of(found["enabled"]), f"{what}: enabled: false stands without a condition", "remove the condition"
        )
    for name in ("over", "why", "hint"):
        if name not in found:
            reading.add(line, f"{what}: {name} is required", f"write it like {_EXAMPLES[name]}")
    over = reading.value(v.choice(*OVER), found["over"], f"{what}: over") if "over" in found else None
    sees = {name: reading.schema[name] for name in SEES.get(over or "plan", ())}
    when = _expression(found, "when", what, sees, reading)
    require = _expression(found, "require", what, sees, reading)
    default_have = "{spec.name} breaks it" if "spec" in sees else "it does not hold"
    texts = {
        "hint": _message(found, "hint", "", what, sees, reading),
        "need": _message(found, "need", _plain(why), what, sees, reading),
        "have": _message(found, "have", default_have, what, sees, reading),
    }
    tests = _tests(found["tests"], what, sees, reading) if "tests" in found else ()
    if len(reading.problems) > before or id is None or over is None:
        return None
    return DeclaredRule(
        id=id, over=over, when=when, require=require, why=why, severity=severity or Severity.REFUSE,
        source=source, tests=tests, **texts,
    )  # fmt: skip


_EXAMPLES = {
    "over": "over: spec",
    "why": "why: Every dollar is booked somewhere.",
    "hint": "hint: set spec.labels.team",
}


def _plain(why: str | None) -> str:
    """A reason as a message: its braces are no expressions."""
    return (why or "").rstrip(".").replace("{", "(").replace("}", ")")


def _change(found: Mapping[str, Node], what: str, line: int, why: str | None, reading: _Reading) -> Message | None:
    """A word on a rule defined elsewhere; it can't bring tests or messages of its own."""
    for name in ("over", "need", "have", "tests"):
        if name in found:
            reading.add(
                line_of(found[name]), f"{what}: {name} needs a when or require beside it", "write the condition"
            )
    if "severity" not in found and "enabled" not in found and "hint" not in found:
        hint = "write when or require; or severity, enabled or hint to change a rule defined elsewhere"
        reading.add(line, f"{what} says nothing", hint)
    if "enabled" in found and not why:
        reading.add(line, f"{what}: why is required where a rule is switched off", "say why: it is shown in the list")
    sees: dict[str, object] = {}
    return _message(found, "hint", "", what, sees, reading) if "hint" in found else None


def _severity(found: Mapping[str, Node], what: str, reading: _Reading) -> Severity | None:
    if "severity" not in found:
        return None
    value = reading.value(v.choice(*Severity), found["severity"], f"{what}: severity")
    return Severity(value) if value is not None else None


def _expression(
    found: Mapping[str, Node], name: str, what: str, sees: Mapping[str, object], reading: _Reading
) -> Expression | None:
    if name not in found:
        return None
    node = found[name]
    if not isinstance(node, ScalarNode):
        reading.add(line_of(node), f"{what}: {name} must be an expression, is {kind_of(node)}", "put it in quotes")
        return None
    try:
        return compiled(str(node.value).strip(), sees)
    except ExpressionFault as fault:
        reading.add(line_of(node), f"{what}: {name} {fault.message}", fault.hint)
        return None


def _message(
    found: Mapping[str, Node], name: str, default: str, what: str, sees: Mapping[str, object], reading: _Reading
) -> Message:
    text, line = default, 1
    if name in found:
        line = line_of(found[name])
        text = reading.value(v.text(), found[name], f"{what}: {name}") or default
    try:
        return message(" ".join(text.split()), sees)
    except ExpressionFault as fault:
        reading.add(line, f"{what}: {name} {fault.message}", fault.hint)
        return Message("", ())


# ---------------------------------------------------------------- tests


def _tests(node: Node, what: str, sees: Mapping[str, object], reading: _Reading) -> tuple[RuleTest, ...]:
    made: list[RuleTest] = []
    for number, item in enumerate(reading.items(node, f"{what}: tests", MAX_TESTS), start=1):
        before = len(reading.problems)
        found = reading.mapping(item, f"{what}: test {number}", ("name", "given", "expect"))
        expect = None
        if "expect" in found:
            expect = reading.value(v.choice(*OUTCOMES), found["expect"], f"{what}: test {number}: expect")
        else:
            reading.add(line_of(item), f"{what}: test {number} needs expect", f"one of: {', '.join(OUTCOMES)}")
        name = reading.value(v.text(), found["name"], f"{what}: test {number}") if "name" in found else f"test {number}"
        given: Mapping[str, Any] = {}
        if "given" in found:
            given = _given(found["given"], sees, f"{what}: test {number}: given", reading)
        if len(reading.problems) == before and expect is not None:
            made.append(RuleTest(name=name, given=given, expect=expect, source=f"{reading.name}:{line_of(item)}"))
    return tuple(made)


def _given(node: Node, schema: Mapping[str, object], what: str, reading: _Reading) -> dict[str, Any]:
    """A fragment of a subject; each field must be one that there is, and its value of that field's kind."""
    if not isinstance(node, MappingNode):
        reading.add(
            line_of(node), f"{what}: must be a mapping, is {kind_of(node)}", "write it like given: {spec: {nodes: 8}}"
        )
        return {}
    made: dict[str, Any] = {}
    for name, child in reading.mapping(node, what, tuple(schema)).items():
        like = schema.get(name)
        if isinstance(like, Mapping) and like:
            made[name] = _given(child, like, f"{what}.{name}", reading)
        elif isinstance(like, Mapping):
            made[name] = {key: _scalar(each) for key, each in reading.mapping(child, f"{what}.{name}", ()).items()}
        elif isinstance(like, list):
            made[name] = [_scalar(each) for each in reading.items(child, f"{what}.{name}", 256)]
        else:
            made[name] = _like(child, like, f"{what}.{name}", reading)
    return made


def _like(node: Node, like: object, what: str, reading: _Reading) -> object:
    value = _scalar(node)
    if isinstance(like, datetime):
        try:
            moment = datetime.fromisoformat(str(getattr(node, "value", "")))
        except ValueError:
            reading.add(line_of(node), f"{what}: must be a time", "write it like 2026-11-20T12:00:00Z")
            return like
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if like is None or type(value) is type(like):
        return value
    kinds = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
    reading.add(line_of(node), f"{what}: must be {kinds.get(type(like), 'a value')}, is {kind_of(node)}")
    return like


def _scalar(node: Node) -> object:
    """A value as YAML means it; anything that is no plain value as text."""
    if not isinstance(node, ScalarNode):
        return ""
    kind, text = node.tag.rpartition(":")[2], str(node.value)
    if kind == "bool":
        return text.lower() in {"true", "yes", "on"}
    if kind == "int" and re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    if kind == "float" and re.fullmatch(r"[+-]?\d{1,15}\.\d{1,15}", text):
        return float(text)
    return text


# ---------------------------------------------------------------- settings


def _names(most: int) -> Callable[[Node, str, _Reading], tuple[str, ...]]:
    def read(node: Node, what: str, reading: _Reading) -> tuple[str, ...]:
        found = []
        for item in reading.items(node, what, most):
            value = reading.value(v.text(_KEY.pattern, "a name"), item, what)
            found += [value] if value is not None else []
        return tuple(found)

    return read


def _by_name(read: Callable[[Node, str, _Reading], Any]) -> Callable[[Node, str, _Reading], dict[str, Any]]:
    def read_each(node: Node, what: str, reading: _Reading) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, child in reading.mapping(node, what, ()).items():
            if not _KEY.fullmatch(name):
                reading.add(line_of(child), f"{what}: {shown(name)} is no name", "write a project's or a pool's name")
                continue
            made[name] = read(child, f"{what}.{name}", reading)
        return made

    return read_each


def _one(reader: Reader) -> Callable[[Node, str, _Reading], Any]:
    return lambda node, what, reading: reading.value(reader, node, what)


_SETTINGS: dict[str, tuple[str, Callable[[Node, str, _Reading], Any]]] = {
    "required_labels": ("required_labels", _names(32)),
    "end_date_days": ("end_date_days", _one(v.integer(1, 3_650))),
    "price_stale_days": ("price_stale_days", _one(v.integer(1, 3_650))),
    "allowed_skus": ("allowed_skus", _by_name(_names(256))),
    "approval_accelerators": ("approval_accelerators", _one(v.integer(0, 1_000_000))),
    "approval_cost": ("approval_cost_microusd", _one(v.money(zero=True))),
    "pool_clearances": ("pool_clearances", _by_name(_one(v.choice(*CLASSIFICATIONS)))),
    "default_clearance": ("default_clearance", _one(v.choice(*CLASSIFICATIONS))),
    "default_classification": ("default_classification", _one(v.choice(*CLASSIFICATIONS))),
    "allow_public": ("allow_public", _one(v.boolean)),
}
"""Name in a file → (field of PolicySettings, how it is read)."""


def _settings(node: Node, reading: _Reading) -> tuple[dict[str, Any], dict[str, int]]:
    made: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for name, child in reading.mapping(node, "settings", tuple(_SETTINGS)).items():
        ours, read = _SETTINGS[name]
        made[ours] = read(child, f"settings.{name}", reading)
        lines[ours] = line_of(child)
    return made, lines
