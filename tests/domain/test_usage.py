"""Usage is read from the upstream's words, rated to the micro-dollar, and framed so that damage is seen."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain.serving.usage import (
    AnswerLength,
    Usage,
    dearest,
    estimated_tokens,
    find_usage,
    rate,
    rate_special,
    saved,
    worst_case,
)
from groundplane.domain.serving.usage_records import (
    FRAME_MAX_BYTES,
    Tail,
    frame,
    parse_segment_name,
    read_frames,
    segment_name,
)
from groundplane.domain.spec import SpecialPrices, TokenPrice
from groundplane.gateway.protocol.json_body import read_usage

TOKENS = st.integers(0, 10**7)
PRICES = st.builds(TokenPrice, prompt_microusd_per_million=TOKENS, completion_microusd_per_million=TOKENS,
                   cached_microusd_per_million=TOKENS)  # fmt: skip


def test_a_worked_example() -> None:
    """1,000 prompt tokens, 400 of them cached, 200 completion tokens at $3.00 / $0.30 / $15.00 per million."""
    price = TokenPrice(
        prompt_microusd_per_million=3_000_000,
        completion_microusd_per_million=15_000_000,
        cached_microusd_per_million=300_000,
    )
    assert rate(1000, 200, 400, price) == 600 * 3 + 120 + 200 * 15 == 4920


def test_a_bill_never_rounds_to_free() -> None:
    price = TokenPrice(prompt_microusd_per_million=1, completion_microusd_per_million=0)
    assert rate(1, 0, 0, price) == 1
    assert rate(0, 0, 0, price) == 0


@given(TOKENS, TOKENS, TOKENS, PRICES)
def test_rating_rounds_up_by_less_than_a_micro_dollar(
    prompt: int, completion: int, cached: int, price: TokenPrice
) -> None:
    cached = min(cached, prompt)
    exact = Fraction(
        (prompt - cached) * price.prompt_microusd_per_million
        + cached * price.cached_microusd_per_million
        + completion * price.completion_microusd_per_million,
        1_000_000,
    )
    assert 0 <= rate(prompt, completion, cached, price) - exact < 1


@given(TOKENS, TOKENS, TOKENS, PRICES)
def test_the_worst_case_is_never_exceeded(prompt: int, completion: int, cached: int, price: TokenPrice) -> None:
    assert rate(prompt, completion, cached, price) <= worst_case(prompt, completion, dearest(price))


MAYBE = st.none() | TOKENS
SPECIAL = st.builds(SpecialPrices, written_1h=MAYBE, audio_prompt=MAYBE, audio_completion=MAYBE,
                    long_above_tokens=MAYBE, long_prompt=MAYBE, long_completion=MAYBE)  # fmt: skip
USAGES = st.builds(Usage, prompt_tokens=TOKENS, completion_tokens=TOKENS, cached_tokens=TOKENS, written_tokens=TOKENS,
                   written_1h_tokens=TOKENS, heard_tokens=TOKENS, spoken_tokens=TOKENS)  # fmt: skip


@given(USAGES, PRICES, SPECIAL)
def test_special_prices_never_exceed_the_worst_case_and_change_nothing_of_other_tokens(
    usage: Usage, price: TokenPrice, special: SpecialPrices
) -> None:
    dear = replace(price, special=special)
    assert rate_special(usage, dear) <= worst_case(usage.prompt_tokens, usage.completion_tokens, dearest(dear))
    usual = Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    assert rate_special(usage, price) == rate(*_four(usage), price, usage.written_tokens)
    if special.long_above_tokens is None:
        assert rate_special(usual, dear) == rate(*_four(usual), price)


def _four(usage: Usage) -> tuple[int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens


SONNET = TokenPrice(
    prompt_microusd_per_million=3_000_000,
    completion_microusd_per_million=15_000_000,
    cached_microusd_per_million=300_000,
    written_microusd_per_million=3_750_000,
    special=SpecialPrices(
        written_1h=6_000_000,
        audio_prompt=40_000_000,
        audio_completion=80_000_000,
        long_above_tokens=200_000,
        long_prompt=6_000_000,
        long_completion=22_500_000,
    ),
)


@pytest.mark.parametrize(
    ("words", "microusd"),
    [
        (
            {
                "input_tokens": 10,
                "output_tokens": 4,
                "cache_read_input_tokens": 200,
                "cache_creation_input_tokens": 1_000,
                "cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 600},
            },
            10 * 3 + 4 * 15 + 60 + 400 * 3.75 + 600 * 6,
        ),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "prompt_tokens_details": {"cached_tokens": 20, "audio_tokens": 30},
                "completion_tokens_details": {"audio_tokens": 40},
            },
            50 * 3 + 6 + 30 * 40 + 10 * 15 + 40 * 80,
        ),
        ({"prompt_tokens": 200_000, "completion_tokens": 2}, 200_000 * 3 + 30),
        (
            {"input_tokens": 100_000, "output_tokens": 2, "cache_read_input_tokens": 100_010},
            100_000 * 6 + 45 + 60_006,
        ),
    ],
)
def test_tokens_with_prices_of_their_own_are_charged_them(words: dict[str, object], microusd: float) -> None:
    body = json.dumps({"usage": words}).encode()
    used = find_usage(body)
    assert used == read_usage(body) and used is not None
    assert rate_special(used, SONNET) == microusd
    cheaper = saved(used, SONNET)
    assert (cheaper > 0) == (used.cached_tokens > used.written_tokens)


@pytest.mark.parametrize("details", [{"audio_tokens": 0}, {"audio_tokens": "5"}, {}, [5], 5, "audio_tokens", None])
def test_odd_details_of_an_answer_s_tokens_make_no_difference(details: object) -> None:
    words = {"prompt_tokens": 3, "completion_tokens": 4, "completion_tokens_details": details}
    body = json.dumps({"usage": words}).encode()
    assert read_usage(body) == find_usage(body) == Usage(3, 4)


def test_estimates_round_up() -> None:
    assert [estimated_tokens(size) for size in (0, 1, 4, 5)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}', Usage(3, 4)),
        (b'{"usage" : {"prompt_tokens":3,"total_tokens":3}}', Usage(3, 0)),
        (
            b'{"usage":{"prompt_tokens":9,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":5}}}',
            Usage(9, 1, 5),
        ),
        (
            b'{"usage":{"prompt_tokens":2,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":5}}}',
            Usage(2, 1, 2),
        ),
        (b'{"usage":{"prompt_tokens":9,"completion_tokens":1,"prompt_tokens_details":null}}', Usage(9, 1)),
        (b'..."usage":{"prompt_tokens":1,"completion_tokens":1},"x":{"usage":{"prompt_tok', Usage(1, 1)),
        (b'{"usage":null}', None),
        (b'{"usage":{}}', None),
        (b'{"usage":{"prompt_tokens":-1}}', None),
        (b'{"usage":{"prompt_tokens":true}}', None),
        (b'{"usage":{"prompt_tokens":"7"}}', None),
        (b'{"usage":[1]}', None),
        (b"", None),
        (b'{"usage":{"prompt_tokens":7', None),
        (b'{"usage":' + b'{"a":' * 5000, None),
    ],
)
def test_usage_is_found_or_honestly_missing(tail: bytes, expected: Usage | None) -> None:
    assert find_usage(tail) == expected


@given(st.text(max_size=50), TOKENS, TOKENS)
def test_a_models_text_cannot_forge_usage(text: str, prompt: int, completion: int) -> None:
    forged = text + '"usage":{"prompt_tokens":0,"completion_tokens":0}' + text
    body = {
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion},
        "choices": [{"message": {"content": forged}}],
    }
    assert find_usage(json.dumps(body).encode()) == Usage(prompt, completion)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=10), st.data())
def test_frames_survive_and_a_cut_one_is_torn(payloads: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(frame(payload) for payload in payloads)
    found = read_frames(wire)
    assert (found.payloads, found.end, found.tail) == (payloads, len(wire), Tail.CLEAN)
    cut = data.draw(st.integers(0, len(wire)))
    found = read_frames(wire[:cut])
    assert found.payloads == payloads[: len(found.payloads)] and found.end <= cut
    assert (found.tail is Tail.CLEAN) == (found.end == cut)


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=10), st.data())
def test_a_flipped_bit_is_seen(payloads: list[bytes], data: st.DataObject) -> None:
    wire = bytearray(b"".join(frame(payload) for payload in payloads))
    at = data.draw(st.integers(0, len(wire) - 1))
    wire[at] ^= 1 << data.draw(st.integers(0, 7))
    found = read_frames(bytes(wire))
    assert found.tail is not Tail.CLEAN
    assert found.payloads == payloads[: len(found.payloads)] and len(found.payloads) < len(payloads)


def test_a_record_has_a_largest_size() -> None:
    with pytest.raises(ValueError, match="over 65536"):
        frame(b"x" * (FRAME_MAX_BYTES + 1))


@given(st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,20}", fullmatch=True), st.integers(0, 10**9))
def test_segment_names_are_read_back(gateway_id: str, number: int) -> None:
    assert parse_segment_name(segment_name(gateway_id, number)) == (gateway_id, number)


@pytest.mark.parametrize("name", ["cursor.json", "gw.log", "gw-1.tmp", "-1.log", "gw-.log", "gw-²1.log", ""])
def test_other_names_are_no_segments(name: str) -> None:
    assert parse_segment_name(name) is None


def test_an_answer_s_length_is_unknown_until_eight_were_seen() -> None:
    length = AnswerLength()
    for _ in range(7):
        length.learn(5)
    assert length.expected() == 512
    length.learn(5)
    assert length.expected() == 5


@given(st.lists(st.integers(0, 100_000), min_size=100, max_size=600))
def test_what_is_reserved_is_enough_for_98_of_100_answers_and_not_for_twice_the_longest(lengths: list[int]) -> None:
    """Each 512 answers the earlier ones weigh half, so up to twice as many of them may be longer."""
    length = AnswerLength()
    for one in lengths:
        length.learn(one)
    longer = sum(one > length.expected() for one in lengths)
    assert longer <= 2 * 0.02 * len(lengths) + 16
    assert length.expected() <= max(1, 1.19 * max(lengths))


def test_a_change_of_habits_is_learned() -> None:
    length = AnswerLength()
    for one in [50] * 2_000 + [900] * 600:
        length.learn(one)
    assert 900 <= length.expected() <= 900 * 1.19
    for _ in range(6_000):
        length.learn(50)
    assert length.expected() <= 60
