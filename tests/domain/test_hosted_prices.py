"""What nobody names of a provider's model is the catalogue's, where exactly one row can be meant."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from groundplane.adapters.catalog_files import load_catalogue
from groundplane.domain.catalogue.entries import TokenListPrice
from groundplane.domain.serving.hosted_prices import (
    Named,
    bounded,
    check_known,
    check_named,
    filled_in,
    find_row,
    row_like,
)
from groundplane.domain.serving.provider import Listed, Provider, ProviderKind, RouteTarget
from groundplane.domain.serving.snapshot import LONGEST_ANSWER_TOKENS, LONGEST_CONTEXT_TOKENS
from groundplane.errors import InvalidInput

ROWS = load_catalogue().token_prices
OPENAI = Provider(
    id="vision:hosted",
    name="hosted",
    project="vision",
    kind=ProviderKind.OPENAI,
    base_url="https://api.openai.com/v1",
    set_by="ana",
    set_at=datetime(2026, 3, 2, 9, 0, tzinfo=UTC),
)
AZURE = replace(OPENAI, kind=ProviderKind.AZURE, base_url="https://eu.openai.azure.com")
ANTHROPIC = replace(OPENAI, kind=ProviderKind.ANTHROPIC, base_url="https://api.anthropic.com")


def at(url: str) -> Provider:
    return replace(OPENAI, kind=ProviderKind.COMPATIBLE, base_url=url)


def to(model: str = "gpt-4o", **more: object) -> RouteTarget:
    return RouteTarget(provider="hosted", model=model, **more)  # type: ignore[arg-type]


def row(name: str) -> TokenListPrice:
    return next(one for one in ROWS if one.id == name)


@pytest.mark.parametrize(
    ("provider", "model", "found"),
    [
        (OPENAI, "gpt-4o", "gpt-4o"),
        (OPENAI, "GPT-4o", "gpt-4o"),
        (AZURE, "gpt-4o-mini", "azure/gpt-4o-mini"),
        (AZURE, "Phi-4", "azure_ai/Phi-4"),
        (ANTHROPIC, "claude-opus-5", "claude-opus-5"),
        (at("https://api.mistral.ai/v1"), "mistral-large-latest", "mistral/mistral-large-latest"),
        (at("https://api.together.xyz/v1"), "Qwen/Qwen3.5-397B-A17B", "together_ai/Qwen/Qwen3.5-397B-A17B"),
        (at("https://bedrock-runtime.us-east-1.amazonaws.com/v1"), "amazon.nova-pro-v1:0", "amazon.nova-pro-v1:0"),
    ],
)
def test_a_model_is_found_among_the_prices_of_who_runs_the_provider(provider: Provider, model: str, found: str) -> None:
    assert find_row(provider, model, ROWS) == (row(found), ())


@pytest.mark.parametrize(
    ("provider", "model", "near"),
    [
        (at("https://llm.example.com/v1"), "gpt-4o", ("gpt-4o", "azure/gpt-4o")),
        (at("https://notapi.mistral.ai.example.com"), "codestral-latest", ("mistral/codestral-latest",)),
        (AZURE, "gpt-5.6", ("gpt-5.6",)),
        (OPENAI, "gpt-4o-mini-2024-07-18", ("gpt-4o-mini", "azure/gpt-4o-mini")),
        (AZURE, "codestral-lates", ("mistral/codestral-latest",)),
        (AZURE, "our-chat", ()),
    ],
)
def test_where_no_row_or_several_may_be_meant_none_is_taken_and_they_are_named(
    provider: Provider, model: str, near: tuple[str, ...]
) -> None:
    assert find_row(provider, model, ROWS) == (None, near)


def test_two_rows_of_one_name_are_nobodys() -> None:
    twice = (replace(row("azure/gpt-4o"), id="azure/eu/gpt-4o"), replace(row("azure/gpt-4o"), id="azure/us/gpt-4o"))
    assert find_row(AZURE, "gpt-4o", twice) == (None, ("azure/eu/gpt-4o", "azure/us/gpt-4o"))
    with pytest.raises(InvalidInput, match="is 2 rows") as refused:
        row_like("gpt-4o", twice)
    assert refused.value.hint == "like=azure/eu/gpt-4o, like=azure/us/gpt-4o"
    assert [row_like(name, ROWS).id for name in ("gpt-4o", "Azure/GPT-4o", "phi-4")] == [
        "gpt-4o",
        "azure/gpt-4o",
        "azure_ai/Phi-4",
    ]
    assert row_like("us/gpt-4o", twice).id == "azure/us/gpt-4o"
    with pytest.raises(InvalidInput, match="'gpt-5' is no row"):
        row_like("gpt-5", twice)


def test_what_nobody_names_is_the_rows_and_said_to_be() -> None:
    target = filled_in(to("claude-sonnet-4-5"), Named(), row("claude-sonnet-4-5"))
    assert target.taken == {
        "prompt": 3_000_000,
        "completion": 15_000_000,
        "cached": 300_000,
        "written": 3_750_000,
        "written_1h": 6_000_000,
        "long_above": 200_000,
        "long_prompt": 6_000_000,
        "long_completion": 22_500_000,
        "max_output": 64_000,
        "context": 200_000,
    }
    assert target.listed == Listed(row="claude-sonnet-4-5", as_of="2026-08-01", took=tuple(target.taken))


def test_the_list_s_prices_of_long_prompts_and_caches_are_not_mixed_with_a_price_of_ones_own() -> None:
    target = filled_in(to("claude-sonnet-4-5"), Named(prompt=1, completion=2), row("claude-sonnet-4-5"))
    assert target.listed is not None and target.listed.long_above_tokens == 200_000
    assert target.price is not None and target.price.special is None
    assert (target.price.cached_microusd_per_million, target.price.written) == (1, 1), "as the prompt, and not cheaper"
    own = Named(prompt=1, completion=2, long_above=9, long_prompt=3, long_completion=4)
    check_named(own)
    price = filled_in(to("claude-sonnet-4-5"), own, row("claude-sonnet-4-5")).price
    assert price is not None and price.special is not None and price.special.long_prompt == 3
    with pytest.raises(InvalidInput, match="all of three"):
        check_named(Named(prompt=1, completion=2, long_above=9))


def test_what_somebody_names_wins() -> None:
    named = Named(prompt=2_000_000, completion=0)
    target = filled_in(to(max_output_tokens=100), named, row("gpt-4o"))
    assert target.taken == {"context": 128_000}
    assert target.price is not None and target.max_output_tokens == 100
    assert (target.price.prompt_microusd_per_million, target.price.completion_microusd_per_million) == (2_000_000, 0)
    alone = filled_in(to(), Named(prompt=7, completion=9), None)
    assert alone.listed is None and alone.price is not None
    assert alone.price.cached_microusd_per_million == 7, "nothing is charged less by mistake"


def test_a_target_nobody_knows_the_price_or_the_longest_answer_of_is_refused() -> None:
    with pytest.raises(InvalidInput, match="what are callers charged for gpt-9 of provider hosted") as refused:
        check_known(filled_in(to("gpt-9"), Named(prompt=1), None), ("gpt-5", "azure/gpt-5"))
    assert refused.value.hint.endswith("or ,like=gpt-5, or ,like=azure/gpt-5")
    prices = Named(prompt=1, completion=2)
    with pytest.raises(InvalidInput, match="how many tokens has the longest answer of gpt-9") as refused:
        check_known(filled_in(to("gpt-9"), prices, None), ())
    assert "max_output=16384" in refused.value.hint
    for bounds in ({"max_output_tokens": 5}, {"context_tokens": 5}):
        check_known(filled_in(to("gpt-9", **bounds), prices, None), ())
    check_known(filled_in(to("embedder"), Named(prompt=1, completion=0), None), ())


def test_a_route_from_before_gets_bounds_and_keeps_its_price() -> None:
    price = Named(prompt=1, completion=2).price()
    before = to(price=price)
    assert bounded(before, OPENAI, ROWS) == replace(before, max_output_tokens=16_384, context_tokens=128_000)
    assert bounded(replace(before, max_output_tokens=9), OPENAI, ROWS).max_output_tokens == 9
    unknown = to("gpt-9", price=price)
    assert bounded(unknown, OPENAI, ROWS) == unknown


def test_for_a_model_nobody_knows_more_is_reserved_than_any_says_it_answers_with() -> None:
    said = [one.max_output for one in ROWS if one.max_output and one.context and one.max_output < one.context]
    assert 2 * max(said) <= LONGEST_ANSWER_TOKENS
    assert max(one.context or 0 for one in ROWS) <= LONGEST_CONTEXT_TOKENS
