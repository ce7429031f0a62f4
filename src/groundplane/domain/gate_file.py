"""Gates as YAML, read with line numbers: every fault is told at once, and nothing is guessed.

apiVersion: groundplane/v1
kind: Gate
metadata: {name: production, project: vision}
spec:
  model: "churn*"
  aliases: [production]
  requirements:
    - {metric: f1, at_least: 0.92}
    - {latency: p95, below: 200ms, requests: 200}
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from groundplane.domain.gate import Gate, Kind, Requirement
from groundplane.domain.spec.yaml_nodes import compose_documents, line_of
from groundplane.errors import InvalidInput, Problem
from groundplane.units import parse_duration_s, parse_usd

KIND = "Gate"
API_VERSION = "groundplane/v1"
REQUIREMENTS_MAX = 50
REQUESTS_MAX = 2_000
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_PATTERN = re.compile(r"[a-z0-9*?._-]{1,63}")
_METRIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@/-]{0,63}")
_BOUNDS = ("at_least", "above", "at_most", "below")


def read_gates(text: str, *, by: str, now: datetime) -> list[Gate]:
    """Every gate of a YAML stream. InvalidInput with all of its faults and their lines."""
    problems: list[Problem] = []
    gates = [gate for node in compose_documents(text) if (gate := _gate(_Part(node, "", problems), by, now))]
    if problems:
        raise InvalidInput(str(problems[0]), problems[0].hint or "docs/guides/gates.md shows a gate", problems)
    return gates


class _Part:
    """A mapping of the document that notes down what is wrong with it; what was asked for is known."""

    def __init__(self, node: Node | None, where: str, problems: list[Problem]) -> None:
        self.node, self.where, self.problems = node, where, problems
        self.fields: dict[str, Node] = {}
        if isinstance(node, MappingNode):
            for key, value in node.value:
                name = str(key.value) if isinstance(key, ScalarNode) else "?"
                if name in self.fields:
                    self.fault(name, "is given twice", key)
                self.fields[name] = value
        elif node is not None:
            self.fault("", "is no mapping")

    def fault(self, name: str, message: str, node: Node | None = None, hint: str = "") -> None:
        at = node or self.fields.get(name) or self.node
        field = f"{self.where}.{name}".strip(".")
        line = line_of(at) if at is not None else None
        self.problems.append(Problem(field=field, message=message, line=line, hint=hint))

    def text(self, name: str, default: str = "", pattern: re.Pattern[str] | None = None) -> str:
        node = self.fields.get(name)
        if node is None:
            if not default:
                self.fault(name, "is missing")
            return default
        if not isinstance(node, ScalarNode) or (pattern is not None and not pattern.fullmatch(node.value)):
            self.fault(name, f"can't be {_shown(node)}")
            return default
        return str(node.value)

    def part(self, name: str) -> _Part:
        if name not in self.fields:
            self.fault(name, "is missing")
        return _Part(self.fields.get(name), f"{self.where}.{name}".strip("."), self.problems)

    def items(self, name: str, most: int) -> list[Node]:
        node = self.fields.get(name)
        if not isinstance(node, SequenceNode) or not 1 <= len(node.value) <= most:
            self.fault(name, f"is no list of 1 to {most}")
            return []
        return list(node.value)

    def only(self, *known: str) -> None:
        for name in self.fields:
            if name not in known:
                self.fault(name, "is no field here", hint=f"known are {', '.join(known)}")

    def value(self, name: str, read: Callable[[str], float], default: float | None = None) -> float | None:
        if name not in self.fields:
            if default is None:
                self.fault(name, "is missing")
            return default
        text = self.text(name)
        try:
            return read(text)
        except ValueError as error:
            self.fault(name, str(error) or f"can't be {text[:40]!r}")
            return default


def _shown(node: Node) -> str:
    return repr(str(node.value)[:40]) if isinstance(node, ScalarNode) else "a list or mapping"


def _gate(part: _Part, by: str, now: datetime) -> Gate | None:
    part.only("apiVersion", "kind", "metadata", "spec")
    for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if (said := part.text(name)) and said != wanted:
            part.fault(name, f"is {said[:40]!r}", hint=f"write {wanted}")
    meta, spec = part.part("metadata"), part.part("spec")
    meta.only("name", "project")
    spec.only("model", "aliases", "requirements")
    name, project = meta.text("name", pattern=_NAME), meta.text("project", pattern=_NAME)
    model = spec.text("model", "*", _PATTERN)
    aliases = []
    for node in spec.items("aliases", 20):
        if not isinstance(node, ScalarNode) or not _PATTERN.fullmatch(node.value):
            spec.fault("aliases", f"can't hold {_shown(node)}", node)
            continue
        aliases.append(str(node.value))
    requirements: list[Requirement] = []
    for number, node in enumerate(spec.items("requirements", REQUIREMENTS_MAX)):
        item = _Part(node, f"spec.requirements[{number}]", part.problems)
        found = _requirement(item)
        if found and any(other.id == found.id for other in requirements):
            item.fault("id", f"{found.id!r} is another requirement's id", hint="give one of them an id of its own")
        requirements += [found] if found else []
    if part.problems:
        return None
    return Gate(
        id=f"{project}/{name}", name=name, project=project, model=model, aliases=tuple(aliases),
        requirements=tuple(requirements), created_by=by, created_at=now,
    )  # fmt: skip


def _requirement(item: _Part) -> Requirement | None:
    kinds = [name for name in _READERS if name in item.fields]
    if len(kinds) != 1:
        if isinstance(item.node, MappingNode):
            item.fault("", f"asks for {len(kinds)} things", hint=f"one of {', '.join(_READERS)} in each")
        return None
    return _READERS[kinds[0]](item)


def _id(item: _Part, default: str) -> str:
    return item.text(
        "id", default.lower().replace("@", "-").replace("/", "-"), re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
    )


def _number(text: str) -> float:
    """`0.92` or `92%`."""
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no number; write 0.92 or 92%") from None
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no finite number")
    return value / 100 if percent else value


def _seconds(text: str) -> float:
    """`200ms`, `1.5s`."""
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", text):
        return float(found[1]) / (1000 if found[2] == "ms" else 1)
    raise ValueError(f"{text[:40]!r} is no latency; write 200ms or 1.5s")


def _share(text: str) -> float:
    value = _number(text)
    if not 0.5 <= value < 1:
        raise ValueError("is no confidence; write 0.95 or 95%")
    return value


def _whole(most: int) -> Callable[[str], float]:
    def read(text: str) -> float:
        if not re.fullmatch(r"[1-9][0-9]{0,5}", text) or int(text) > most:
            raise ValueError(f"is no whole number from 1 to {most:,}")
        return int(text)

    return read


def _bounds(item: _Part, read: Callable[[str], float], names: tuple[str, ...] = _BOUNDS) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in names:
        if name in item.fields:
            side = "at_least" if name in ("at_least", "above") else "at_most"
            if side in found:
                item.fault(name, "is a second bound of the same side")
            found[side] = item.value(name, read)
            if name in ("above", "below"):
                found[name] = True
    if not found:
        item.fault("", "has no bound", hint=f"add {' or '.join(names)}")
    return found


def _metric(item: _Part) -> Requirement:
    item.only("metric", "id", *_BOUNDS)
    name = item.text("metric", pattern=_METRIC)
    return Requirement(id=_id(item, name), kind=Kind.METRIC, name=name, **_bounds(item, _number))  # type: ignore[arg-type]


def _latency(item: _Part) -> Requirement:
    item.only("latency", "id", "at_most", "below", "requests")
    said = item.text("latency", pattern=re.compile(r"[pP](50|90|95|99)"))
    bounds = _bounds(item, _seconds, ("at_most", "below"))
    requests = int(item.value("requests", _whole(REQUESTS_MAX), 100) or 100)
    percentile = float(said[1:] or 95)
    return Requirement(
        id=_id(item, said or "p95"),
        kind=Kind.LATENCY,
        percentile=percentile,
        requests=requests,
        **bounds,  # type: ignore[arg-type]
    )


def _regression(item: _Part) -> Requirement:
    item.only("regression", "id", "within", "confidence", "better")
    name = item.text("regression", pattern=_METRIC)
    within = item.value("within", _number, 0.0) or 0.0
    if within < 0:
        item.fault("within", "is below 0")
    better = item.text("better", "higher", re.compile("higher|lower"))
    confidence = item.value("confidence", _share, 0.95) or 0.95
    return Requirement(
        id=_id(item, f"regression-{name}"), kind=Kind.REGRESSION, name=name, within=within, confidence=confidence,
        lower_is_better=better == "lower",
    )  # fmt: skip


def _cost(item: _Part) -> Requirement:
    item.only("cost_per_1000_requests", "id")
    limit = item.value("cost_per_1000_requests", parse_usd)
    return Requirement(id=_id(item, "cost"), kind=Kind.COST, at_most=limit)


def _freshness(item: _Part) -> Requirement:
    item.only("data_age", "id")
    own = item.text("data_age") == "own"
    limit = None if own else item.value("data_age", parse_duration_s)
    return Requirement(id=_id(item, "data-age"), kind=Kind.FRESHNESS, at_most=limit)


def _scan(item: _Part) -> Requirement:
    item.only("scan", "id")
    item.text("scan", pattern=re.compile("clean"))
    return Requirement(id=_id(item, "scan"), kind=Kind.SCAN)


def _certificate(item: _Part) -> Requirement:
    item.only("certificate", "id")
    item.text("certificate", pattern=re.compile("complete"))
    return Requirement(id=_id(item, "certificate"), kind=Kind.CERTIFICATE)


def _approvals(item: _Part) -> Requirement:
    item.only("approvals", "id")
    return Requirement(id=_id(item, "approvals"), kind=Kind.APPROVALS, at_least=item.value("approvals", _whole(10)))


_READERS: Mapping[str, Callable[[_Part], Requirement]] = {
    "metric": _metric,
    "latency": _latency,
    "regression": _regression,
    "cost_per_1000_requests": _cost,
    "data_age": _freshness,
    "scan": _scan,
    "certificate": _certificate,
    "approvals": _approvals,
}
