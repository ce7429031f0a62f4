"""Addenda: later facts that are signed, chained to a certificate, and checked by a stranger."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.domain.test_certificate import version

from groundplane.domain.provenance.addendum import (
    Addendum,
    AddendumKind,
    Draft,
    check_chain,
    check_rows,
    checked_facts,
    sealed,
)
from groundplane.errors import InvalidInput

AT = datetime(2026, 11, 21, 9, tzinfo=UTC)
EVALUATION = {"name": "nightly", "how": "measured", "metrics": {"f1": 0.93}, "intervals": {"f1": [0.9, 0.95]}}


def sign(payload: bytes) -> bytes:
    return hashlib.sha256(b"key" + payload).digest()


def verify(payload: bytes, signature: bytes, key_id: str) -> bool:
    return key_id == "key" and signature == sign(payload)


def chain(*facts: tuple[AddendumKind, dict[str, Any]]) -> list[Addendum]:
    made: list[Addendum] = []
    for kind, each in facts:
        draft = Draft(kind=kind, facts=checked_facts(kind, each), by="ana", at=AT, software="groundplane 0")
        made.append(sealed(version(), made[-1] if made else None, draft, "key", sign))
    return made


def three() -> list[Addendum]:
    return chain(
        (AddendumKind.EVALUATION, EVALUATION),
        (AddendumKind.ROLLBACK_TARGET, {"target": "tiny@1", "alias": "production"}),
        (AddendumKind.SLA, {"sla": "p95 below 200 ms"}),
    )


def told(rows: list[Addendum], **changes: Any) -> str:
    trail = changes.pop("trail", [each.sha256 for each in three()])
    return "; ".join(map(str, check_rows(version(), rows, trail, verify)))


def test_a_chain_as_it_was_signed_holds_and_needs_no_rows() -> None:
    rows = three()
    assert told(rows) == ""
    assert check_chain(version().certificate_sha256, [each.envelope for each in rows], verify) == ()
    assert rows[0].previous_sha256 == version().certificate_sha256
    assert rows[2].previous_sha256 == rows[1].sha256


def test_an_addendum_is_about_one_certificate_alone() -> None:
    problems = check_chain("0" * 64, [each.envelope for each in three()], verify)
    assert any("about another certificate" in str(each) for each in problems)


def test_what_is_left_out_in_the_middle_or_at_the_end_is_missed() -> None:
    first, second, third = three()
    assert "does not follow" in told([first, third])
    assert "1 of 3 on the audit trail are gone" in told([first, second])
    envelopes = [first.envelope, third.envelope]
    assert any("does not follow" in str(each) for each in check_chain(version().certificate_sha256, envelopes, verify))


def test_a_changed_row_is_told_even_when_its_envelope_holds() -> None:
    first, *rest = three()
    assert "does not say what was signed" in told(
        [replace(first, facts={**first.facts, "metrics": {"f1": 0.99}}), *rest]
    )
    assert "does not say what was signed" in told([replace(first, by="eve"), *rest])
    assert "does not say what was signed" in told([replace(first, at=first.at + timedelta(seconds=1)), *rest])
    assert "is not the text" in told([replace(first, envelope=rest[0].envelope), *rest])


def test_one_key_that_is_not_trusted_is_enough() -> None:
    draft = Draft(kind=AddendumKind.SLA, facts={"sla": "none"}, by="eve", at=AT, software="x")
    forged = sealed(version(), None, draft, "other", sign)
    assert "no trusted key signed this" in told([forged], trail=[])


@pytest.mark.parametrize(
    ("kind", "facts", "words"),
    [
        (AddendumKind.EVALUATION, {"name": "x", "metrics": {}}, "at least one metric"),
        (AddendumKind.EVALUATION, {"name": "x", "metrics": {"f1": float("nan")}}, "no finite number"),
        (AddendumKind.EVALUATION, {"name": "x", "metrics": {"f1": True}}, "no finite number"),
        (AddendumKind.EVALUATION, {"name": "x", "metrics": {"f1": 1}, "how": "guessed"}, "measured or stated"),
        (AddendumKind.EVALUATION, {"name": "x", "metrics": {"f1": 1}, "intervals": {"f1": [2, 1]}}, "low, high"),
        (AddendumKind.EVALUATION, {"name": "x", "metrics": {"f1": 1}, "samples": 0}, "from 1"),
        (AddendumKind.EVALUATION, {"name": "x", "metrics": {"f1": 1}, "colour": "red"}, "'colour' is no fact"),
        (AddendumKind.EVALUATION, {"metrics": {"f1": 1}}, "name is required"),
        (AddendumKind.ROLLBACK_TARGET, {"target": "tiny@production"}, "tomorrow"),
        (AddendumKind.SLA, {"sla": "two\nlines"}, "one line"),
        (AddendumKind.WAIVER, {"gate": "g"}, "requirement is required"),
    ],
)
def test_facts_that_are_none_are_refused(kind: AddendumKind, facts: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        checked_facts(kind, facts)
