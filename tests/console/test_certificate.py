"""Birth certificates as people read them."""

from __future__ import annotations

from groundplane.console.certificate import Fact, read
from groundplane.domain.provenance.certificate import seal


def sealed(predicate: dict[str, object]) -> str:
    return seal({"predicate": predicate}, "ed25519:9f", lambda _: b"signature")


def test_amounts_sizes_and_times_are_told_in_words() -> None:
    reading = read(sealed({"cost_microusd": 4213, "created": {"at": "2026-11-21T07:25:18.457055+00:00"}}))
    assert reading.sections == (
        ("General", (Fact("cost", "$0.004213"),)),
        ("Created", (Fact("at", "2026-11-21 07:25:18 UTC"),)),
    )
    assert read(sealed({"hardware": {"memory_bytes": 2**30}})).sections[0][1] == (Fact("memory", "1.0 GiB"),)


def test_counts_that_came_as_floats_are_told_as_counts() -> None:
    facts = read(sealed({"metrics": {"eval_loss": 3.7402, "tokens": 256000.0}})).sections[0][1]
    assert facts == (Fact("eval loss", "3.7402"), Fact("tokens", "256,000"))


def test_what_nobody_knows_is_told_apart_from_what_there_is_none_of() -> None:
    facts = read(sealed({"hardware": {"accelerators": [], "cpu": None}})).sections[0][1]
    assert facts == (Fact("accelerators", "none"), Fact("cpu", "not stated", "quiet"))
    unknown = [{"fact": "code.commit", "why": "the folder is under no version control"}]
    assert read(sealed({"unknown": []})).sections == ()
    assert read(sealed({"unknown": unknown})).unknown == (
        Fact("code.commit", "the folder is under no version control"),
    )


def test_the_order_is_for_people_and_nothing_is_left_out() -> None:
    reading = read(sealed({"code": {"dirty": True}, "novel": {"x": 1}, "version": {"id": "m@1"}}))
    assert [title for title, _ in reading.sections] == ["Version", "Code", "Novel"]


def test_a_certificate_that_cannot_be_read_says_why() -> None:
    assert "DSSE" in read('{"payload": "x"}').problem
    assert read(sealed({"created": {"at": "not a time"}})).sections[0][1] == (Fact("at", "not a time"),)
