"""What a provider's model costs, says and reads at most, by the catalogue, where nobody names it for a target.

What somebody names wins. A model is filled in from exactly one row of its provider's own prices, or from the row it is
said to be like; where several rows or none may be meant, nothing is filled in, and they are named.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from urllib.parse import urlsplit

from groundplane.domain.catalogue.entries import TokenListPrice
from groundplane.domain.serving.provider import Listed, Provider, ProviderKind, RouteTarget
from groundplane.domain.spec import SpecialPrices, TokenPrice
from groundplane.errors import InvalidInput

_NEAR_MAX = 4
_ALL = "ground catalog show token_prices"
_VENDORS = {
    ProviderKind.OPENAI: "openai",
    ProviderKind.AZURE: "azure",
    ProviderKind.ANTHROPIC: "anthropic",
}
_VENDORS_BY_HOST = {
    "api.openai.com": "openai",
    "openai.azure.com": "azure",
    "services.ai.azure.com": "azure",
    "models.ai.azure.com": "azure",
    "generativelanguage.googleapis.com": "google",
    "amazonaws.com": "aws-bedrock",
    "api.mistral.ai": "mistral",
    "api.together.xyz": "together",
    "api.deepinfra.com": "deepinfra",
    "api.groq.com": "groq",
    "api.deepseek.com": "deepseek",
    "api.x.ai": "xai",
    "api.cohere.ai": "cohere",
    "api.cohere.com": "cohere",
}
"""Whose prices hold at an address, or below it. Who runs a server of their own has prices of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """Prices that somebody names for a target, in micro-dollars per million tokens; None where they name none. The
    `long_` ones are of prompts of more than `long_above` tokens."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    written: int | None = None
    written_1h: int | None = None
    audio_prompt: int | None = None
    audio_completion: int | None = None
    long_above: int | None = None
    long_prompt: int | None = None
    long_completion: int | None = None

    def price(self) -> TokenPrice | None:
        """None where a token of the prompt or of the answer has none. A cached price that nobody knows is the prompt's:
        nothing is charged less by mistake."""
        if self.prompt is None or self.completion is None:
            return None
        special = SpecialPrices(
            written_1h=self.written_1h,
            audio_prompt=self.audio_prompt,
            audio_completion=self.audio_completion,
            long_above_tokens=self.long_above,
            long_prompt=self.long_prompt,
            long_completion=self.long_completion,
        )
        return TokenPrice(
            prompt_microusd_per_million=self.prompt,
            completion_microusd_per_million=self.completion,
            cached_microusd_per_million=self.prompt if self.cached is None else self.cached,
            written_microusd_per_million=self.written,
            special=None if special == SpecialPrices() else special,
        )


def check_named(named: Named) -> None:
    """InvalidInput for dearer prices of longer prompts that are not whole."""
    if len({one is None for one in (named.long_above, named.long_prompt, named.long_completion)}) > 1:
        raise InvalidInput(
            "prices of longer prompts need all of three", "long_above=272000,long_prompt=10,long_completion=45"
        )


def find_row(
    provider: Provider, model: str, rows: Sequence[TokenListPrice]
) -> tuple[TokenListPrice | None, tuple[str, ...]]:
    """The row of this model among the prices of who runs the provider; or None, and the rows that may be meant."""
    vendor = _vendor(provider)
    found = _called(model, [row for row in rows if row.provider == vendor])
    if len(found) == 1:
        return found[0], ()
    own_first = sorted(rows, key=lambda row: row.provider != vendor)
    return None, _near(model, found, own_first)


def row_like(name: str, rows: Sequence[TokenListPrice]) -> TokenListPrice:
    """The row somebody says a model is like. InvalidInput where that is none, or several."""
    found = _called(name, rows)
    if len(found) == 1:
        return found[0]
    near = ", ".join(f"like={one}" for one in _near(name, found, rows)) or _ALL
    what = f"is {len(found)} rows" if found else "is no row"
    raise InvalidInput(f"{name[:100]!r} {what} of the catalogue's token prices", near)


def filled_in(target: RouteTarget, named: Named, row: TokenListPrice | None) -> RouteTarget:
    """The target with a price, its longest answer and its context, as far as they are named or the row has them."""
    if row is None:
        return replace(target, price=named.price())
    listed, longer = _listed(row), row.long_context
    # A price of one's own is not mixed with the list's for the same tokens in a cache, or in longer prompts.
    if named.prompt is not None:
        listed = replace(listed, cached=None, written=None, written_1h=None)
    if (named.prompt, named.completion, named.long_above) != (None, None, None):
        listed = replace(listed, long_above=None, long_prompt=None, long_completion=None)
    prices = {one.name: (getattr(named, one.name), getattr(listed, one.name)) for one in fields(Named)}
    known = {
        **prices,
        "max_output": (target.max_output_tokens, row.max_output),
        "context": (target.context_tokens, row.context),
    }
    return replace(
        _within(target, row),
        price=Named(**{name: _or(*pair) for name, pair in prices.items()}).price(),
        listed=Listed(
            row=row.id,
            as_of=row.as_of,
            took=tuple(name for name, (said, here) in known.items() if said is None and here is not None),
            long_above_tokens=None if longer is None or listed.long_above is not None else longer.above_tokens,
        ),
    )


def _listed(row: TokenListPrice) -> Named:
    longer = row.long_context
    return Named(
        prompt=row.prompt_microusd_per_million,
        completion=row.completion_microusd_per_million,
        cached=row.cached_microusd_per_million,
        written=row.written_microusd_per_million,
        written_1h=row.written_1h_microusd_per_million,
        long_above=None if longer is None else longer.above_tokens,
        long_prompt=None if longer is None else longer.prompt_microusd_per_million,
        long_completion=None if longer is None else longer.completion_microusd_per_million,
    )


def bounded(target: RouteTarget, provider: Provider, rows: Sequence[TokenListPrice]) -> RouteTarget:
    """A target kept from before with the bounds the catalogue knows by now; its price stays as it was set."""
    if target.max_output_tokens is not None and target.context_tokens is not None:
        return target
    row, _ = find_row(provider, target.model, rows)
    return target if row is None else _within(target, row)


def check_known(target: RouteTarget, near: Sequence[str]) -> None:
    """InvalidInput when nobody says what a provider's model costs, or how long an answer that costs something gets."""
    what = f"{target.model[:100]} of provider {target.provider[:63]}"
    like = "".join(f", or ,like={one}" for one in near) or f", or ,like= and a row of: {_ALL}"
    if target.price is None:
        hint = f"add ,prompt=2.50,completion=10 (dollars per million tokens){like}"
        raise InvalidInput(f"what are callers charged for {what}?", hint)
    unbounded = target.max_output_tokens is None and target.context_tokens is None
    if unbounded and target.price.completion_microusd_per_million:
        hint = f"add ,max_output=16384 (what a request that names no limit is reserved for){like}"
        raise InvalidInput(f"how many tokens has the longest answer of {what}?", hint)


def _or(named: int | None, listed: int | None) -> int | None:
    return listed if named is None else named


def _within(target: RouteTarget, row: TokenListPrice) -> RouteTarget:
    return replace(
        target,
        max_output_tokens=_or(target.max_output_tokens, row.max_output),
        context_tokens=_or(target.context_tokens, row.context),
    )


def _vendor(provider: Provider) -> str | None:
    if provider.kind in _VENDORS:
        return _VENDORS[provider.kind]
    host = urlsplit(provider.base_url).hostname or ""
    known = (vendor for place, vendor in _VENDORS_BY_HOST.items() if host == place or host.endswith(f".{place}"))
    return next(known, None)


def _called(name: str, rows: Sequence[TokenListPrice]) -> list[TokenListPrice]:
    """Rows of this name: in full, else without their vendor's prefix, else by its last part."""
    wanted = name.lower()
    in_full = [row for row in rows if row.id.lower() == wanted]
    without = in_full or [row for row in rows if row.id.lower().partition("/")[2] == wanted]
    return without or [row for row in rows if _last(row.id) == _last(wanted)]


def _near(name: str, found: Sequence[TokenListPrice], rows: Sequence[TokenListPrice]) -> tuple[str, ...]:
    """Rows that may be meant: of that name; else of the longest name it begins with; else of names like it."""
    wanted, names = _last(name), {_last(row.id): 0 for row in rows}
    likely = [each for each in names if wanted == each or wanted.startswith(f"{each}-")]
    likely = [max(likely, key=len)] if likely else difflib.get_close_matches(wanted, names, _NEAR_MAX, 0.7)
    same = list(found) or [row for each in likely for row in rows if _last(row.id) == each]
    return tuple(row.id for row in same[:_NEAR_MAX])


def _last(name: str) -> str:
    return name.lower().rpartition("/")[2]
