"""The facts that a model card states: the YAML between two lines of `---` at the head of a README.md.

`license`, `library_name` and `base_model` are the hub's own fields; all else stands under `groundplane:`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from groundplane.domain.provenance.certificate import DataFact, Facts, missing_facts
from groundplane.errors import InvalidInput, Problem, Refused
from groundplane.units import MICROUSD_PER_USD

CARD = "README.md"
OURS = "groundplane"
HEAD_BYTES_MAX = 64 * 2**10
_STATED = ("owner", "description", "code_commit", "code_repository", "training_run", "hardware", "sla",
           "rollback_target")  # fmt: skip
_KNOWN = {*_STATED, "code_dirty", "data", "metrics", "cost_usd", "hyperparameters", "target_memory_bytes"}


_WRITTEN = {
    "license": "license: SPDX-ID",
    "owner": f"{OURS}: {{owner: NAME}}",
    "data": f"{OURS}: {{data: [{{name: NAME, sha256: SHA256}}]}}",
    "code_commit": f'{OURS}: {{code_commit: "COMMIT"}}',
    "training_run": f"{OURS}: {{training_run: ID}}",
    "metrics": f"{OURS}: {{metrics: {{NAME: VALUE}}}}",
}
"""Required fact → how a card states it."""


def missing_of(facts: Facts) -> tuple[Refused, ...]:
    """What is required and the card does not state, each with how it would."""
    return tuple(
        replace(fact.refused(), hint=f"write it in the head of {CARD}: {_WRITTEN[fact.name]}")
        for fact in missing_facts(facts)
    )


def facts_of(card: str) -> Facts:
    """What the card says; fields it is silent about stay empty. InvalidInput names every field that can't be read."""
    head = _head(card)
    ours = head.get(OURS) or {}
    if not isinstance(ours, Mapping):
        raise InvalidInput(f"{OURS} in {CARD} is no mapping", f"write fields below it: {', '.join(sorted(_KNOWN))}")
    problems = [
        Problem(field=f"{OURS}.{name}", message=f"is no field; known are {', '.join(sorted(_KNOWN))}")
        for name in ours
        if name not in _KNOWN
    ]
    stated: dict[str, object] = {name: _text(ours, name, problems, f"{OURS}.") for name in _STATED}
    stated |= {
        "license": _text(head, "license", problems),
        "framework": _text(head, "library_name", problems),
        "base_model": _base_model(head.get("base_model"), problems),
        "data": _data(ours.get("data") or [], problems),
        "metrics": _metrics(ours.get("metrics") or {}, problems),
        "code_dirty": _flag(ours.get("code_dirty"), problems),
        "cost_microusd": _cost(ours.get("cost_usd"), problems),
        "hyperparameters": _parameters(ours.get("hyperparameters") or {}, problems),
        "target_memory_bytes": _bytes(ours.get("target_memory_bytes"), problems),
    }
    if problems:
        raise InvalidInput(f"{CARD}: {problems[0]}", "docs/guides/models.md shows a card", problems)
    # What only an adoption finds out is nothing that a card may state.
    assert set(stated) == {each.name for each in fields(Facts)} - {"unknown", "adopted", "adopted_from"}
    return Facts(**stated)  # type: ignore[arg-type]


def _head(card: str) -> Mapping[str, object]:
    lines = card.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    end = next((number for number, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
    if end is None:
        return {}
    text = "\n".join(lines[1:end])
    if len(text) > HEAD_BYTES_MAX:
        raise InvalidInput(f"the head of {CARD} has {len(text):,} characters, over {HEAD_BYTES_MAX:,}", "shorten it")
    import yaml  # noqa: PLC0415 - the SDK names models by way of here, and reads no card

    try:
        head = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 2}" if mark else ""
        raise InvalidInput(f"the head of {CARD} is no YAML{where}", "quote texts that hold a colon") from None
    if head is not None and not isinstance(head, Mapping):
        raise InvalidInput(f"the head of {CARD} is no mapping", "write `license: apache-2.0` and so on")
    return head or {}


def _text(source: Mapping[str, object], name: str, problems: list[Problem], where: str = "") -> str:
    value = source.get(name)
    # YAML reads a commit of digits alone as a number: its zeros are gone, so it must be quoted.
    if value is not None and not isinstance(value, str):
        problems.append(Problem(field=where + name, message=f"is {value!r}; write it as text, in quotes"))
        return ""
    return value or ""


def _base_model(value: object, problems: list[Problem]) -> str:
    listed = value if isinstance(value, list) else [value] if value else []
    names = [each for each in listed if isinstance(each, str)]
    if len(names) != len(listed):
        problems.append(Problem(field="base_model", message="is no name or list of names"))
    return ", ".join(names)


def _data(value: object, problems: list[Problem]) -> tuple[DataFact, ...]:
    good = isinstance(value, list) and all(
        isinstance(each, Mapping) and set(each) == {"name", "sha256"} and all(isinstance(v, str) for v in each.values())
        for each in value
    )
    if not good or not isinstance(value, list):
        problems.append(Problem(field=f"{OURS}.data", message="is no list of {name: …, sha256: …}"))
        return ()
    return tuple(DataFact(name=each["name"], sha256=each["sha256"]) for each in value)


def _metrics(value: object, problems: list[Problem]) -> dict[str, float]:
    if not isinstance(value, Mapping) or not all(
        isinstance(number, int | float) and not isinstance(number, bool) for number in value.values()
    ):
        problems.append(Problem(field=f"{OURS}.metrics", message="is no mapping of names to numbers"))
        return {}
    return {str(name): float(number) for name, number in value.items()}


def _parameters(value: object, problems: list[Problem]) -> dict[str, str]:
    if not isinstance(value, Mapping) or any(isinstance(each, Mapping | list) for each in value.values()):
        problems.append(Problem(field=f"{OURS}.hyperparameters", message="is no mapping of names to values"))
        return {}
    return {str(name): each if isinstance(each, str) else str(each) for name, each in value.items()}


def _bytes(value: object, problems: list[Problem]) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        problems.append(Problem(field=f"{OURS}.target_memory_bytes", message="is no number of bytes"))
        return None
    return value


def _flag(value: object, problems: list[Problem]) -> bool | None:
    if value is not None and not isinstance(value, bool):
        problems.append(Problem(field=f"{OURS}.code_dirty", message="is neither true nor false"))
        return None
    return value


def _cost(value: object, problems: list[Problem]) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        problems.append(Problem(field=f"{OURS}.cost_usd", message="is no number of dollars"))
        return None
    return round(value * MICROUSD_PER_USD)
