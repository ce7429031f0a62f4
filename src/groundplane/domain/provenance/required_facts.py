"""Which facts of a model must be known before a project lets it in, serves it, or loads it.

A requirement is a word (`licence`, `code.commit`), `not dirty`, a metric (`metrics.f1`) or a count (`evaluations>=1`).
Facts that come after registration are asked for from the deployment on: an evaluation needs a version to evaluate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from groundplane.domain.canonical import part_of, rows_of
from groundplane.domain.provenance.addendum import Addendum, AddendumKind
from groundplane.errors import InvalidInput, Refused

MOST = 50
_WORD = re.compile(r"(?:(not)\s+)?([a-z][a-z_.0-9-]*)\s*(?:(>=|≥)\s*([0-9]{1,6}))?")
_SPELLINGS = {"license": "licence", "commit": "code.commit", "dirty": "code.dirty", "code": "code.commit",
              "hyper-parameters": "hyperparameters", "hyper_parameters": "hyperparameters", "run": "training_run",
              "lock": "environment", "rollback-target": "rollback_target", "base-model": "base_model",
              "training-run": "training_run", "evaluation": "evaluations"}  # fmt: skip


class Stage(StrEnum):
    """Where it is asked."""

    REGISTER = "register"
    DEPLOY = "deploy"
    LOAD = "load"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequiredFacts:
    """The facts a project requires, as written. id = the project."""

    id: str
    required: tuple[str, ...] = ()
    set_by: str
    set_at: datetime
    reason: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A required fact that is not known: what was asked, what there is, and how to supply it."""

    fact: str
    have: str
    supply: str

    def refused(self, subject: str, project: str) -> Refused:
        return Refused(
            rule=f"required facts of {project}",
            need=self.fact,
            have=f"{subject}: {self.have}",
            hint=self.supply,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a version: the predicate of its certificate, and its addenda, oldest first."""

    said: Mapping[str, object]
    addenda: Sequence[Addendum] = ()


def read_required(words: Sequence[str]) -> tuple[str, ...]:
    """The requirements in one spelling each, without doubles. InvalidInput names the first that is not known."""
    found: dict[str, None] = {}
    for word in (part.strip() for text in words for part in text.split(",")):
        if word:
            found[_spelt(word)] = None
    if len(found) > MOST:
        raise InvalidInput(f"{len(found)} required facts; {MOST} is the most")
    return tuple(found)


def judge_facts(required: Sequence[str], known: Known, stage: Stage) -> tuple[Missing, ...]:
    """What is required at this stage and not known, in the order asked."""
    missing = []
    for requirement in required:
        name, least = _split(requirement)
        if stage is Stage.REGISTER and name in LATER:
            continue
        have = (_metric if name.startswith("metrics.") else _FACTS[name].have)(known, name, least)
        if have:
            missing.append(Missing(fact=requirement, have=have, supply=supply(requirement)))
    return tuple(missing)


def supply(requirement: str) -> str:
    """How a fact is supplied."""
    name, _ = _split(requirement)
    return f"add --metric {name.partition('.')[2]}=VALUE" if name.startswith("metrics.") else _FACTS[name].supply


def _spelt(word: str) -> str:
    found = _WORD.fullmatch(word)
    if found is None:
        raise InvalidInput(f"{word!r} is no required fact", _known_words())
    negated, name, at_least, number = found[1], _SPELLINGS.get(found[2], found[2]), found[3], found[4]
    if name == "code.dirty" or negated:
        if name != "code.dirty" or not negated or at_least:
            raise InvalidInput(f"{word!r} is no required fact", "write: not dirty")
        return "not dirty"
    if name not in _FACTS and not re.fullmatch(r"metrics\.[a-z0-9][a-z_.0-9-]*", name):
        raise InvalidInput(f"{word!r} is no required fact", _known_words())
    if at_least and name not in COUNTED:
        raise InvalidInput(f"{name} can't be counted", f"counted are {', '.join(sorted(COUNTED))}")
    if name in COUNTED:
        return f"{name}>={max(1, int(number or 1))}"
    return name


def _split(requirement: str) -> tuple[str, int]:
    name, _, number = requirement.partition(">=")
    return name, int(number or 1)


def _known_words() -> str:
    return f"known are {', '.join(_FACTS)}, metrics.NAME; counted ones take >=N"


# ---------------------------------------------------------------- one fact at a time


def _why(known: Known, *names: str) -> str:
    """Why the certificate does not know it, in its own words where it has some."""
    for row in rows_of(known.said, "unknown"):
        if any(str(row.get("fact")) == name or str(row.get("fact")).startswith(f"{name}.") for name in names):
            return f"unknown: {row.get('why')}"
    return "nothing is said of it"


def _at(*path: str) -> Callable[[Known, str, int], str]:
    """Known when the predicate holds something at this path."""

    def have(known: Known, name: str, _: int) -> str:
        found: object = known.said
        for step in path:
            found = found.get(step) if isinstance(found, Mapping) else None
        return _why(known, name, ".".join(path), path[-1], path[0]) if found in (None, "", (), [], {}) else ""

    return have


def _data(known: Known, name: str, _: int) -> str:
    rows = rows_of(known.said, "data")
    if not rows:
        return _why(known, "data")
    bare = [str(row.get("name")) for row in rows if not row.get("sha256")]
    disputed = [str(row.get("name")) for row in rows if row.get("how") == "disputed"]
    if bare:
        return f"{bare[0]} has no digest ({_why(known, f'data.{bare[0]}.sha256')})"
    return f"{disputed[0]} is not what the spec declares" if disputed else ""


def _not_dirty(known: Known, name: str, _: int) -> str:
    dirty = part_of(known.said, "code").get("dirty")
    if dirty is None:
        return _why(known, "code.dirty", "code.commit")
    return "files differed from the commit" if dirty else ""


def _metric(known: Known, name: str, _: int) -> str:
    wanted = name.partition(".")[2]
    return "" if wanted in {each.lower() for each in part_of(known.said, "metrics")} else _why(known, name)


def _accelerators(known: Known, name: str, _: int) -> str:
    """Known when somebody could tell, also that there are none."""
    hardware = part_of(known.said, "hardware")
    known_cards = isinstance(hardware.get("accelerators"), list) or hardware.get("stated")
    return "" if known_cards else _why(known, "hardware")


def _drivers(known: Known, name: str, _: int) -> str:
    return "" if rows_of(part_of(known.said, "hardware"), "drivers") else _why(known, "hardware.drivers", "hardware")


def _environment(known: Known, name: str, _: int) -> str:
    environment = part_of(known.said, "environment")
    if not environment.get("packages_sha256"):
        return _why(known, "environment")
    whose = environment.get("of")
    return "" if whose == "job" else f"the packages are the {whose}'s, not the job's"


def _container(known: Known, name: str, _: int) -> str:
    container = known.said.get("container")
    if not isinstance(container, Mapping):
        return _why(known, "container")
    return "" if container.get("used") is False or container.get("digest") else _why(known, "container.digest")


def _energy(known: Known, name: str, _: int) -> str:
    return "" if part_of(known.said, "energy").get("joules") is not None else _why(known, "energy")


def _cost(known: Known, name: str, _: int) -> str:
    return "" if known.said.get("cost_microusd") is not None else _why(known, "cost_microusd")


def _of_kind(kind: AddendumKind) -> Callable[[Known, str, int], str]:
    """Stated in the certificate, or in an addendum."""

    def have(known: Known, name: str, _: int) -> str:
        later = any(each.kind is kind for each in known.addenda)
        return "" if later or known.said.get(name) else _why(known, name)

    return have


def _evaluations(known: Known, name: str, least: int) -> str:
    number = sum(each.kind is AddendumKind.EVALUATION for each in known.addenda)
    return "" if number >= least else f"{number} evaluations"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fact:
    have: Callable[[Known, str, int], str]
    supply: str


_RUN = "declare it as an output of a run, which is watched from its start"
_FACTS: dict[str, _Fact] = {
    "owner": _Fact(have=_at("version", "owner"), supply="add --owner NAME"),
    "licence": _Fact(
        have=_at("version", "license"), supply="add --license SPDX-ID, or license: to the output in the spec"
    ),
    "data": _Fact(have=_data, supply="add --data NAME=SHA256, or sha256: to the data in the spec"),
    "code.commit": _Fact(have=_at("code", "commit"), supply="add --code-commit COMMIT, or run it from a git checkout"),
    "not dirty": _Fact(
        have=_not_dirty, supply="commit every change and run it again, or state --code-clean with --code-commit"
    ),
    "training_run": _Fact(have=_at("run", "id"), supply="add --training-run ID"),
    "metrics": _Fact(have=_at("metrics"), supply="add --metric NAME=VALUE, or write metrics.json as an output"),
    "framework": _Fact(have=_at("version", "framework"), supply="add --framework NAME, or framework: to the output"),
    "base_model": _Fact(
        have=_at("version", "base_model"),
        supply="add --base-model NAME@VERSION (none, when it began from nothing), or base_model: to the output",
    ),
    "hyperparameters": _Fact(have=_at("hyperparameters"), supply="add --param NAME=VALUE, or write params.json"),
    "environment": _Fact(have=_environment, supply=_RUN),
    "container": _Fact(have=_container, supply=_RUN),
    "hardware": _Fact(have=_accelerators, supply=f"add --hardware TEXT, or {_RUN}"),
    "drivers": _Fact(have=_drivers, supply=_RUN),
    "cost": _Fact(have=_cost, supply="add --cost USD"),
    "energy": _Fact(have=_energy, supply="run it on a node whose accelerators report their power"),
    "sla": _Fact(have=_of_kind(AddendumKind.SLA), supply="add --sla TEXT, or: ground models add REF --sla TEXT"),
    "rollback_target": _Fact(
        have=_of_kind(AddendumKind.ROLLBACK_TARGET),
        supply="ground models add REF --rollback-target NAME@NUMBER, or move an alias from another version to it",
    ),
    "evaluations": _Fact(
        have=_evaluations, supply="evaluate it, or state one: ground models add REF --evaluation NAME --metric f1=0.9"
    ),
}
COUNTED = frozenset({"evaluations"})
LATER = frozenset({"evaluations", "rollback_target", "sla"})
"""Known after registration at the earliest, so not asked for there."""
FACT_NAMES = tuple(_FACTS)
