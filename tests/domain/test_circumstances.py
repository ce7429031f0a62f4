"""What runners saw, in the certificate's words; and what a run's accelerators took."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from groundplane.domain.provenance.circumstances import AttemptCircumstances, as_seen, energy
from groundplane.domain.run import Attempt

AT = datetime(2026, 11, 21, 9, tzinfo=UTC)
H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 * 2**30, "driver": "570"}


def seen(commit: str = "a" * 40, cards: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "observed_at": AT.isoformat(),
        "code": {"commit": commit, "dirty": False, "repository": ""},
        "environment": {"python": "CPython 3.12", "platform": "Linux", "packages": ["a==1"], "lock_files": []},
        "container": {"used": True, "image": "img", "digest": "sha256:0"},
        "hardware": {"cpu": "x", "cores": 8, "memory_bytes": 1, "accelerators": [H100] * cards,
                     "drivers": [{"name": "linux kernel", "version": "6"}]},
        "unknown": [],
        **changes,
    }  # fmt: skip


def attempt(number: int, seconds: float = 3600.0) -> Attempt:
    return Attempt(
        id=f"run-{number}", run_id="run", number=number, pool="local", created_at=AT, started_at=AT,
        ended_at=AT + timedelta(seconds=seconds),
    )  # fmt: skip


def row(number: int, *members: dict[str, Any], joules: float | None = None) -> AttemptCircumstances:
    return AttemptCircumstances(
        id=f"run-{number}",
        run_id="run",
        project="p",
        at=AT,
        members=members,
        energy_j=joules,
        energy_how="measured by x",
    )


def test_the_newest_attempt_is_stated_and_what_was_otherwise_before_is_told() -> None:
    found = as_seen([row(1, seen("b" * 40)), row(2, seen())], [attempt(1), attempt(2)])
    assert found is not None and found.code is not None and found.code.commit == "a" * 40
    assert found.observed.startswith("before the command of attempt 2 started, 2026-11-21")
    assert found.unknown == (("code.commit of attempt 1", f"it was not the one that is stated: {'b' * 40}"),)
    assert found.container is not None and found.container.digest == "sha256:0"


def test_what_is_no_commit_is_not_stated_as_one() -> None:
    found = as_seen([row(1, seen("main; rm"))], [attempt(1)])
    assert found is not None and found.code is None
    assert found.unknown == (("code.commit", "its node told 'main; rm', which is no git object id"),)


def test_a_gang_is_one_unless_its_nodes_differ() -> None:
    alike = as_seen([row(1, seen(cards=1), seen(cards=1))], [attempt(1)])
    assert alike is not None and alike.hardware is not None and (alike.hardware.nodes, alike.unknown) == (2, ())
    other = seen(environment={"python": "CPython 3.12", "platform": "Linux", "packages": ["a==2"]})
    unlike = as_seen([row(1, seen(), other)], [attempt(1)])
    assert unlike is not None and [fact for fact, _ in unlike.unknown] == ["environment of rank 1 of the gang"]


def test_nothing_seen_is_none_and_half_a_document_breaks_nothing() -> None:
    assert as_seen([row(1)], [attempt(1)]) is None
    found = as_seen([row(1, {"unknown": [["code", "no git"], "nonsense"], "hardware": {"accelerators": None}})], [])
    assert found is not None and found.code is None and found.environment is None
    assert found.unknown == (("code", "no git"),)
    assert found.hardware is not None and found.hardware.accelerators is None


def test_energy_is_summed_over_attempts_when_all_were_measured() -> None:
    fact, why = energy(
        [row(1, seen(), joules=10.0), row(2, seen(), joules=5.5)], [attempt(1), attempt(2)], lambda _: 700
    )
    assert fact is not None and (fact.joules, fact.how, why) == (15.5, "measured", "")
    assert fact.basis == "measured by x, summed over 2 attempts"


def test_energy_is_estimated_with_its_formula_when_it_was_not_measured() -> None:
    fact, _ = energy([row(1, seen(cards=2))], [attempt(1, seconds=10)], lambda name: 700 if "H100" in name else None)
    assert fact is not None and (fact.joules, fact.how) == (14_000, "estimated")
    assert "estimated" in fact.basis and "2 x 700 W x 10.0 s = 14000 J" in fact.basis
    gang, _ = energy([row(1, seen(cards=2), seen(cards=2))], [attempt(1, seconds=10)], lambda _: 700)
    assert gang is not None and gang.joules == 28_000


def test_energy_is_unknown_with_the_reason_otherwise() -> None:
    assert "knows" in energy([row(1, seen())], [attempt(1)], lambda _: 700)[1]
    assert "none of NVIDIA H100" in energy([row(1, seen(cards=1))], [attempt(1)], lambda _: None)[1]
    assert "not every attempt" in energy([], [attempt(1)], lambda _: 700)[1]
