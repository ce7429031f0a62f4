"""The order of prompts: what changes before what never does is found, and what a reorder saves is a sum."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain.serving.prompt_lint import Samples, Segment
from groundplane.domain.spec import TokenPrice

PRICE = TokenPrice(
    prompt_microusd_per_million=2_500_000,
    completion_microusd_per_million=10_000_000,
    cached_microusd_per_million=1_250_000,
)
STATIC: list[Segment] = [(1000 + n, 100, f"messages[0] (system) line {n + 2}") for n in range(18)]


def changing(number: int, tokens: int = 12, place: str = "messages[0] (system) line 1") -> Segment:
    return number, tokens, place


def test_a_clock_before_a_long_system_prompt_is_found() -> None:
    samples = Samples()
    for number in range(20):
        samples.add([changing(number), *STATIC, changing(5000 + number, 30, "messages[1] (user)")])
    found = samples.finding("vision", "tiny", "key-1", [PRICE])
    assert found is not None
    assert (found.place, found.changing_tokens, found.static_tokens) == ("messages[0] (system) line 1", 12, 1800)
    assert (found.prefix_tokens, found.common_percent, found.samples) == (0, 100, 20)
    assert found.saved_tokens_per_1000_requests == 1_800_000
    assert found.saved_microusd_per_1000_requests == 1_800_000 * 1_250_000 // 1_000_000 == 2_250_000


def test_a_prompt_in_good_order_has_nothing_to_tell() -> None:
    samples = Samples()
    for number in range(20):
        samples.add([*STATIC, changing(number, place="messages[1] (user)")])
    assert samples.finding("vision", "tiny", "key-1", [PRICE]) is None


def test_too_few_samples_too_short_prompts_and_no_common_part_tell_nothing() -> None:
    few, short, different = Samples(), Samples(), Samples()
    for number in range(20):
        if number < 7:
            few.add([changing(number), *STATIC])
        short.add([changing(number), *STATIC[:3]])
        different.add([changing(100_000 + 100 * number + n, 100) for n in range(20)])
    assert [one.finding("v", "t", "k", [PRICE]) for one in (few, short, different)] == [None] * 3


def test_a_prefix_that_is_cached_already_is_not_won_again() -> None:
    samples = Samples()
    for number in range(20):
        samples.add([*STATIC[:12], changing(number, place="messages[1] (user)"), *STATIC[12:]])
    found = samples.finding("vision", "tiny", "key-1", [PRICE])
    assert found is not None and found.prefix_tokens == 1200 and found.saved_tokens_per_1000_requests == 600_000


def test_without_a_cheaper_cached_price_tokens_are_saved_and_no_dollars() -> None:
    samples = Samples()
    for number in range(20):
        samples.add([changing(number), *STATIC])
    dear = TokenPrice(prompt_microusd_per_million=5, completion_microusd_per_million=5, cached_microusd_per_million=5)
    found = samples.finding("vision", "tiny", "key-1", [dear])
    assert found is not None and found.saved_microusd_per_1000_requests == 0


parts = st.lists(st.tuples(st.integers(0, 6), st.integers(100, 900), st.just("p")), max_size=12)


@given(st.lists(parts, max_size=80), parts, st.integers(0, 80))
def test_no_more_is_promised_than_the_prompts_hold(odd: list[list[Segment]], shared: list[Segment], many: int) -> None:
    samples = Samples()
    prompts = [*odd, *([changing(100 + number), *shared] for number in range(many))]
    for prompt in prompts:
        samples.add(prompt)
    assert len(samples) <= 64
    found = samples.finding("v", "t", "k", [PRICE])
    if found is not None:
        largest = max(sum(tokens for _, tokens, _ in prompt) for prompt in prompts)
        assert 0 < found.saved_tokens_per_1000_requests <= 1000 * largest
        assert found.samples <= 64 and 80 <= found.common_percent <= 100
