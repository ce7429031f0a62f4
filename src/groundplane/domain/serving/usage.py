"""What a request used and what that costs: tokens read from the upstream's own words, rated with the route's price.

Shared by the gateway (which settles) and the control plane (which bills), so both compute the same micro-dollars.

Estimates, used only where the upstream gave no `usage` (the record then says `estimated`):
prompt tokens = request body bytes / 4, rounded up; completion tokens = one per relayed event of a stream, or
answer bytes / 4 of a whole answer. Worst cases, used to reserve money: no tokenizer makes two tokens of one byte.
"""

from __future__ import annotations

import json
import math
import re
from array import array

import msgspec

from groundplane.domain.spec import SpecialPrices, TokenPrice

BYTES_PER_TOKEN = 4
TOKENS_MAX = 10**9
"""More than any request can have: an upstream that says more has lost count, and is not believed."""
_UNKNOWN_ANSWER_TOKENS = 512
_ANSWERS_MIN = 8
_QUANTILE = 0.98
_STEPS_PER_OCTAVE = 4
_BUCKETS = 21 * _STEPS_PER_OCTAVE
_MEMORY = 512.0
_TOKENS_PER_PRICE_UNIT = 1_000_000
_USAGE = re.compile(rb'"usage"[ \t\r\n]*:[ \t\r\n]*(?=\{)')
_DECODER = json.JSONDecoder()


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one request. `cached_tokens` were read from a provider's prompt cache and `written_tokens` written to
    it, `written_1h_tokens` of them for an hour; `heard_tokens` are sound: all are part of `prompt_tokens`, as
    `spoken_tokens` are of `completion_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    estimated: bool = False
    written_tokens: int = 0
    written_1h_tokens: int = 0
    heard_tokens: int = 0
    spoken_tokens: int = 0


NOTHING = Usage(0, 0)


def rate(
    prompt_tokens: int, completion_tokens: int, cached_tokens: int, price: TokenPrice, written_tokens: int = 0
) -> int:
    """Micro-dollars of one request, rounded up once per request: a bill never rounds to free.

    `cached_tokens` of the prompt are charged at the cached price, `written_tokens` at the written one, the rest at the
    prompt price.
    """
    cached = min(cached_tokens, prompt_tokens)
    parts = (
        (prompt_tokens - cached) * price.prompt_microusd_per_million
        + cached * price.cached_microusd_per_million
        + completion_tokens * price.completion_microusd_per_million
    )
    if written_tokens:
        written = min(written_tokens, prompt_tokens - cached)
        parts += written * (price.written - price.prompt_microusd_per_million)
    return -(-parts // _TOKENS_PER_PRICE_UNIT)


def rate_special(usage: Usage, price: TokenPrice) -> int:
    """`rate` with a price of which some tokens have special ones."""
    special = price.special or SpecialPrices()
    of_prompt, of_completion, times, per = _in_length(usage.prompt_tokens, price)
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    written = min(usage.written_tokens, usage.prompt_tokens - cached)
    hour = min(usage.written_1h_tokens, written)
    heard = min(usage.heard_tokens, usage.prompt_tokens - cached - written)
    spoken = min(usage.spoken_tokens, usage.completion_tokens)
    # A longer prompt makes what is read from and written to a cache dearer by as much as the rest of it.
    cache = cached * price.cached_microusd_per_million + (written - hour) * price.written
    cache += hour * _or(special.written_1h, price.written)
    parts = (
        (usage.prompt_tokens - cached - written - heard) * of_prompt
        + -(-cache * times // per)
        + heard * _or(special.audio_prompt, of_prompt)
        + (usage.completion_tokens - spoken) * of_completion
        + spoken * _or(special.audio_completion, of_completion)
    )
    return -(-parts // _TOKENS_PER_PRICE_UNIT)


def _in_length(prompt_tokens: int, price: TokenPrice) -> tuple[int, int, int, int]:
    """Prices of the prompt and of the answer for a prompt of this length, and the two numbers by which cached tokens
    are dearer."""
    prompt, completion = price.prompt_microusd_per_million, price.completion_microusd_per_million
    special = price.special
    if special is None or special.long_above_tokens is None or prompt_tokens <= special.long_above_tokens:
        return prompt, completion, 1, 1
    longer = _or(special.long_prompt, prompt)
    return longer, _or(special.long_completion, completion), *((longer, prompt) if prompt else (1, 1))


def _or(given: int | None, otherwise: int) -> int:
    return otherwise if given is None else given


def saved(usage: Usage, price: TokenPrice) -> int:
    """Micro-dollars that a provider's prompt cache made this request cheaper by: what it would cost without, less what
    it costs. Below zero where writing cost more than reading saved."""
    if not usage.cached_tokens and not usage.written_tokens:
        return 0
    if price.special is not None:
        without = msgspec.structs.replace(usage, cached_tokens=0, written_tokens=0, written_1h_tokens=0)
        return rate_special(without, price) - rate_special(usage, price)
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    with_cache = rate(prompt, completion, usage.cached_tokens, price, usage.written_tokens)
    return rate(prompt, completion, 0, price) - with_cache


def dearest(price: TokenPrice) -> tuple[int, int]:
    """What a token of the prompt can cost at most, and one of the answer, in micro-dollars per million."""
    prompt = max(price.prompt_microusd_per_million, price.cached_microusd_per_million, price.written)
    special = price.special
    if special is None:
        return prompt, price.completion_microusd_per_million
    of_prompt, of_completion, times, per = _in_length(TOKENS_MAX, price)
    cache = max(price.cached_microusd_per_million, price.written, _or(special.written_1h, 0))
    return (
        max(prompt, of_prompt, cache, -(-cache * times // per), _or(special.audio_prompt, 0)),
        max(price.completion_microusd_per_million, of_completion, _or(special.audio_completion, 0)),
    )


def worst_case(prompt_bytes: int, completion_tokens_max: int, prices: tuple[int, int]) -> int:
    """The most micro-dollars a request of this size can cost, every byte being a token. `prices` as of `dearest`."""
    of_prompt, of_completion = prices
    return -(-(prompt_bytes * of_prompt + completion_tokens_max * of_completion) // _TOKENS_PER_PRICE_UNIT)


def estimated_tokens(size_bytes: int) -> int:
    """Tokens in that many bytes of text or JSON, about: bytes / 4, rounded up."""
    return -(-size_bytes // BYTES_PER_TOKEN)


class AnswerLength:
    """How long answers are whose request names no limit: a histogram in steps of 19 %, recent ones counting more."""

    __slots__ = ("_counts", "_expected", "_seen", "_sum")

    def __init__(self) -> None:
        self._counts = array("f", bytes(4 * _BUCKETS))
        self._sum = 0.0
        self._seen = 0
        self._expected = _UNKNOWN_ANSWER_TOKENS

    def expected(self) -> int:
        """Completion tokens to reserve: 98 of 100 answers are no longer; 512 until eight answers were seen."""
        return self._expected

    def learn(self, completion_tokens: int) -> None:
        """Takes one answer in. Each 512 answers, those before weigh half."""
        step = math.ceil(_STEPS_PER_OCTAVE * math.log2(completion_tokens)) if completion_tokens > 1 else 0
        self._counts[min(step, _BUCKETS - 1)] += 1
        self._sum += 1
        self._seen += 1
        if self._sum >= _MEMORY:
            self._counts = array("f", [count / 2 for count in self._counts])
            self._sum = sum(self._counts)
        # A change of one answer in many is not worth a look at all steps.
        if self._seen >= _ANSWERS_MIN and (self._seen < _MEMORY / 8 or self._seen % 16 == 0):
            self._expected = self._quantile()

    def _quantile(self) -> int:
        above = self._sum * (1 - _QUANTILE)
        for step in range(_BUCKETS - 1, 0, -1):
            above -= self._counts[step]
            if above < 0:
                return int(2 ** (step / _STEPS_PER_OCTAVE))
        return 1


def find_usage(tail: bytes) -> Usage | None:
    """The last complete `"usage": {…}` in the tail of a JSON body or in an event of a stream; None when there is none.

    Text of the model can't forge one: inside a JSON string the quotes are escaped, so `"usage"` does not occur there.
    """
    words = find_usage_words(tail)
    return None if words is None else read_usage_words(words)


def find_usage_words(tail: bytes) -> dict[str, object] | None:
    """What that object says, as it says it."""
    for match in reversed(list(_USAGE.finditer(tail))):
        try:
            value, _ = _DECODER.raw_decode(tail[match.end() :].decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue  # cut in the middle: an earlier one may be whole
        if isinstance(value, dict) and any(_count(value, name) is not None for name in _COUNTS):
            return value
    return None


_COUNTS = ("prompt_tokens", "input_tokens", "output_tokens", "total_tokens")


def read_usage_words(words: dict[str, object]) -> Usage | None:
    """Usage in the words of chat completions, of OpenAI's responses, or of Anthropic's messages; None if unclear.

    `input_tokens` of a message leave out what was read from or written to the prompt cache; those of a response do
    not. What was written to the cache has a price of its own. Rerankers say `total_tokens` alone.
    Source: OpenAI API reference, usage objects of completions and responses; Anthropic API reference, Messages, usage.
    """
    completion = _count(words, "completion_tokens")
    prompt = _count(words, "prompt_tokens")
    details, answered = words.get("prompt_tokens_details"), words.get("completion_tokens_details")
    if prompt is None:
        prompt, completion = _count(words, "input_tokens"), _count(words, "output_tokens")
        details, answered = words.get("input_tokens_details"), words.get("output_tokens_details")
    if prompt is None:
        total = _count(words, "total_tokens")
        return None if total is None else Usage(total, 0)
    read, written = _count(words, "cache_read_input_tokens"), _count(words, "cache_creation_input_tokens")
    if read is not None or written is not None:
        hour = min(_detail(words.get("cache_creation"), "ephemeral_1h_input_tokens"), written or 0)
        return Usage(
            prompt + (read or 0) + (written or 0),
            completion or 0,
            read or 0,
            written_tokens=written or 0,
            written_1h_tokens=hour,
        )
    return Usage(
        prompt,
        completion or 0,
        min(_detail(details, "cached_tokens"), prompt),
        heard_tokens=_detail(details, "audio_tokens"),
        spoken_tokens=_detail(answered, "audio_tokens"),
    )


def _detail(details: object, name: str) -> int:
    return (_count(details, name) or 0) if isinstance(details, dict) else 0


def _count(value: dict[str, object], name: str) -> int | None:
    number = value.get(name)
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= TOKENS_MAX:
        return number
    return None
