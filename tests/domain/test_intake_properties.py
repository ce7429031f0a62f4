"""What holds for every message, whoever wrote it: no crash, true places, the same answer twice, nothing lost."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.domain.intake_messages import MESSAGES
from tests.domain.test_intake import NOW, every_fact, intake, lexicon

from groundplane.domain.intake import Fact, Intake, ItemKind
from groundplane.domain.intake.read import read
from groundplane.domain.intake.text import readable

PIECES = st.sampled_from(
    [message.text for message in MESSAGES]
    + [
        "8", "x", "2x8", "GPUs", "H100", "80GB", "by", "Friday", "31/31/2026", "2026-02-30", "$", "5.000 €", "7B",
        "p95 <", "<script>", "</script>", "> ", "-- \n", "\n\n", "- ", "1. ", "Owner:", "Standard_", "_v4", "s3://",
        "no auth", "\u202e", "\u200b", "\0", "İ", "ﬁ", "𝟠", "9" * 40, "TPM", "in 99999999 days", "next", "q4 0000",
        "and", ",", "(",
    ]
)  # fmt: skip
_SOME = st.lists(PIECES, max_size=12)
ANY = st.one_of(st.text(max_size=400), _SOME.map(" ".join), _SOME.map("".join))
SLOW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
UNRELATED = st.sampled_from(
    [
        "The weather is nice today.",
        "Our cafeteria serves soup on some days.",
        "See you at the summer party.",
        "My cat sleeps a lot.",
    ]
)


def spans(found: Intake) -> list[tuple[int, int]]:
    every = [*found.not_understood, *found.ignored, *(f.span for f in every_fact(found))]
    every += [span for item in found.items for span in item.sentences]
    every += [risk.span for item in found.items for risk in item.risks if risk.span is not None]
    every += [each.span for each in (*found.jargon, *found.corrections)]
    return [(span.start, span.end) for span in every]


@SLOW
@given(ANY)
def test_every_message_is_read_and_every_place_lies_in_it(text: str) -> None:
    found = intake(text)
    assert found.items
    assert all(0 <= start <= end <= len(text) for start, end in spans(found))
    assert [item.number for item in found.items] == list(range(1, len(found.items) + 1))


@SLOW
@given(ANY)
def test_the_same_message_is_read_the_same_way(text: str) -> None:
    assert intake(text) == intake(text)


def _values(facts: list[Fact]) -> set[tuple[str, object, str]]:
    return {(fact.name, fact.value, fact.unit) for fact in facts}


@SLOW
@given(st.sampled_from(MESSAGES), UNRELATED)
def test_an_unrelated_sentence_takes_nothing_away(message: object, sentence: str) -> None:
    text = message.text  # type: ignore[attr-defined]
    before = _values(every_fact(intake(text)))
    after = _values(every_fact(intake(f"{text}\n\n{sentence}")))
    assert before <= after


@SLOW
@given(st.text(max_size=300))
def test_every_character_that_is_read_comes_from_the_message_in_order(text: str) -> None:
    clean = readable(text).clean
    assert len(clean.plain) == len(clean.starts) == len(clean.ends)
    assert list(clean.starts) == sorted(clean.starts)


@SLOW
@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz ,.!?", max_size=200))
def test_letters_alone_make_no_numbers(text: str) -> None:
    named = {"machines", "accelerators", "dataset_size", "tokens_per_minute"}
    found = [f for f in every_fact(intake(text)) if f.name in named and isinstance(f.value, int) and f.value > 100]
    assert not found


def test_a_very_long_message_is_read_and_keeps_its_first_facts() -> None:
    text = "We need 8 GPUs for training by Friday. " + "The weather is nice. " * 3000
    found = read(text[:65_000], lexicon(), NOW)
    assert found.items[0].kind is ItemKind.CAPACITY
    assert found.items[0].fact("accelerators") is not None
