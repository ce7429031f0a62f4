"""Required facts: how they are written, and what is missing at which stage."""

from __future__ import annotations

from typing import Any

import pytest
from tests.domain.test_addendum import chain, three

from groundplane.domain.provenance.addendum import AddendumKind
from groundplane.domain.provenance.required_facts import FACT_NAMES, Known, Stage, judge_facts, read_required, supply
from groundplane.errors import InvalidInput

WHOLE: dict[str, Any] = {
    "version": {"owner": "ana", "license": "MIT", "framework": "jax", "base_model": "none"},
    "data": [{"name": "corpus", "sha256": "1" * 64, "how": "measured"}],
    "code": {"commit": "2" * 40, "dirty": False},
    "run": {"id": "run-1"},
    "metrics": {"F1": 0.9},
    "hyperparameters": {"lr": "1e-4"},
    "environment": {"of": "job", "packages_sha256": "3" * 64},
    "container": {"used": False},
    "hardware": {"accelerators": [], "drivers": [{"name": "linux kernel", "version": "6"}]},
    "cost_microusd": 0,
    "energy": {"joules": 0.0, "how": "measured"},
    "unknown": [],
}


def missing(said: dict[str, Any], *required: str, stage: Stage = Stage.DEPLOY, addenda: Any = ()) -> dict[str, str]:
    known = Known(said=said, addenda=addenda)
    return {each.fact: each.have for each in judge_facts(read_required(required), known, stage)}


def test_requirements_have_one_spelling_each() -> None:
    words = ["License, data", "code", "not dirty,evaluations≥2", "licence", "metrics.f1"]
    assert read_required([word.lower() for word in words]) == (
        "licence", "data", "code.commit", "not dirty", "evaluations>=2", "metrics.f1"
    )  # fmt: skip


@pytest.mark.parametrize("word", ["dirty", "not owner", "colour", "owner>=2", "not dirty>=1", "metrics.", "Owner!"])
def test_what_is_no_requirement_is_refused(word: str) -> None:
    with pytest.raises(InvalidInput):
        read_required([word])


def test_nothing_is_missing_of_a_whole_certificate_with_its_addenda() -> None:
    assert missing(WHOLE, *FACT_NAMES, "metrics.f1", addenda=three()) == {}


def test_each_fact_can_be_missing_and_says_how_it_is_supplied() -> None:
    assert set(missing({}, *FACT_NAMES)) == {*(name for name in FACT_NAMES if name != "evaluations"), "evaluations>=1"}
    assert all(supply(name) for name in read_required(FACT_NAMES))


def test_the_reason_is_the_certificates_own() -> None:
    said = {**WHOLE, "code": None, "unknown": [{"fact": "code.commit", "why": "/srv/x is in no git repository"}]}
    assert missing(said, "code.commit", "not dirty")["code.commit"] == "unknown: /srv/x is in no git repository"
    assert "not dirty" in missing(said, "not dirty")


@pytest.mark.parametrize(
    ("part", "value", "fact"),
    [
        ("code", {"commit": "2" * 40, "dirty": True}, "not dirty"),
        ("code", {"commit": "2" * 40, "dirty": None}, "not dirty"),
        ("data", [{"name": "web", "sha256": ""}], "data"),
        ("data", [{"name": "web", "sha256": "1" * 64, "how": "disputed"}], "data"),
        ("environment", {"of": "control plane", "packages_sha256": "3" * 64}, "environment"),
        ("container", {"used": True, "image": "x", "digest": ""}, "container"),
        ("hardware", {"accelerators": None}, "hardware"),
    ],
)
def test_half_a_fact_is_none(part: str, value: Any, fact: str) -> None:
    assert fact in missing({**WHOLE, part: value}, fact)


def test_what_comes_later_is_not_asked_at_registration() -> None:
    later = ("evaluations>=2", "rollback_target", "sla")
    assert missing(WHOLE, *later, stage=Stage.REGISTER) == {}
    assert set(missing(WHOLE, *later, stage=Stage.LOAD)) == set(later)
    one = chain((AddendumKind.EVALUATION, {"name": "x", "metrics": {"f1": 1.0}}))
    assert missing(WHOLE, "evaluations>=2", addenda=one) == {"evaluations>=2": "1 evaluations"}
