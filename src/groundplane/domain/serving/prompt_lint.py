"""Prompts in an order that providers' caches can't use: what changes stands before what never does.

A provider's prompt cache holds a prompt's beginning up to the first byte that differs. Prompts are looked at as digests
of their segments (lines of text, tools), in the order providers put them; no text is kept. Where most samples share a
long run of segments, and something before it differs from one to the next, moving that behind would make the run a
prefix. Source: OpenAI and Anthropic, prompt caching: prefixes of 1,024 tokens and more are kept.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from groundplane.domain.spec import TokenPrice

PREFIX_MIN_TOKENS = 1024
SAMPLES_KEPT = 64
SAMPLES_MIN = 8
SEGMENTS_MAX = 512
_COMMON_PERCENT = 80
_TOKENS_PER_PRICE_UNIT = 1_000_000

Segment = tuple[int, int, str]
"""A digest of 64 bits, tokens (about), and where it stands: `tools`, `system`, `messages[0]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFinding:
    """A route's or key's prompts would be cached further if `place` came after what follows it.

    `static_tokens` stand behind it in `common_percent` of the prompts; reordered, that many more tokens of each prompt
    could be read from the provider's cache. Money is per 1,000 requests, at the dearest target that has a cached price.
    """

    project: str
    model: str
    key_id: str
    samples: int
    place: str
    changing_tokens: int
    prefix_tokens: int
    static_tokens: int
    common_percent: int
    saved_tokens_per_1000_requests: int
    saved_microusd_per_1000_requests: int


class Samples:
    """The newest prompts of one key on one route."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: deque[tuple[Segment, ...]] = deque(maxlen=SAMPLES_KEPT)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, segments: Iterable[Segment]) -> None:
        """Takes one prompt in; of a long one its beginning."""
        self._kept.append(tuple(segments)[:SEGMENTS_MAX])

    def finding(self, project: str, model: str, key_id: str, prices: Sequence[TokenPrice]) -> PromptFinding | None:
        """What a reorder would save; None with too few samples, or when there is nothing to win."""
        count = len(self._kept)
        if count < SAMPLES_MIN:
            return None
        least = max(SAMPLES_MIN, -(-_COMMON_PERCENT * count // 100))
        seen: Counter[int] = Counter()
        for prompt in self._kept:
            seen.update({digest for digest, _, _ in prompt})
        static = {digest for digest, times in seen.items() if times >= least}
        shapes = [shape for prompt in self._kept if (shape := _shape(prompt, static)) is not None and shape.behind]
        if len(shapes) < least:
            return None
        place = Counter(one.place for one in shapes).most_common(1)[0][0]
        alike = [one for one in shapes if one.place == place]
        if len(alike) < least:
            return None
        changing = _median([one.changing for one in alike])
        prefix, behind = _median([one.prefix for one in alike]), _median([one.behind for one in alike])
        if prefix + behind < PREFIX_MIN_TOKENS or behind < PREFIX_MIN_TOKENS // 4:
            return None
        # A prefix that is long enough is cached already; a shorter one is cached only together with what is behind.
        won = behind if prefix >= PREFIX_MIN_TOKENS else prefix + behind
        saved_tokens = won * 1000 * len(alike) // count
        spread = max(
            (one.prompt_microusd_per_million - one.cached_microusd_per_million for one in prices if _is_cached(one)),
            default=0,
        )
        return PromptFinding(
            project=project,
            model=model,
            key_id=key_id,
            samples=count,
            place=place,
            changing_tokens=changing,
            prefix_tokens=prefix,
            static_tokens=behind,
            common_percent=100 * len(alike) // count,
            saved_tokens_per_1000_requests=saved_tokens,
            saved_microusd_per_1000_requests=saved_tokens * spread // _TOKENS_PER_PRICE_UNIT,
        )


def _is_cached(price: TokenPrice) -> bool:
    return price.cached_microusd_per_million < price.prompt_microusd_per_million


class _Shape(NamedTuple):
    """One prompt: where the first changing segment stands; tokens that change up to the end of what is static, static
    ones before it, and static ones behind it."""

    place: str
    changing: int
    prefix: int
    behind: int


def _median(numbers: list[int]) -> int:
    return sorted(numbers)[len(numbers) // 2]


def _shape(prompt: Sequence[Segment], static: set[int]) -> _Shape | None:
    """None where nothing changes."""
    prefix = 0
    for at, (digest, tokens, place) in enumerate(prompt):
        if digest in static:
            prefix += tokens
            continue
        changing = behind = pending = 0
        for later, size, _ in prompt[at:]:
            if later in static:
                behind += size
                changing += pending
                pending = 0
            else:
                pending += size
        return _Shape(place, changing, prefix, behind)
    return None
