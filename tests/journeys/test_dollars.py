"""A key's dollars per day, from the command to the refused call and back into the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from openai import AuthenticationError, OpenAI, RateLimitError
from tests.stage import Answer, Asked, Played

COST = 50 * 2 + 10 * 10
"""Micro-dollars of each answer: 50 prompt and 10 completion tokens at $2 and $10 per million."""


def answer(asked: Asked) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 50, "completion_tokens": 10, "total_tokens": 60}
    return Answer(
        200, {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    )


@pytest.fixture
def provider_url() -> Iterator[str]:
    with closing(Played(answer)) as played:
        yield f"{played.url}/v1"


def test_a_key_spends_its_day_and_no_more(installation: Any, provider_url: str, wait: Callable[..., Any]) -> None:
    ground = installation.ground
    ground("projects", "create", "shop", "--owner", "ana", "--cost-center", "c1", "--budget", "$50")
    ground(
        *("providers", "add", "hosted", "--project", "shop", "--kind", "openai-compatible", "--url", provider_url),
        *("--private", "--key-file", "-"),
        text="sk-of-the-provider",
    )
    target = "provider:hosted/m,prompt=2,completion=10,max_output=900,context=8000"
    route = installation.data("routes", "set", "big", "--project", "shop", "--target", target)
    assert (route["targets"][0]["max_output_tokens"], route["targets"][0]["context_tokens"]) == (900, 8000)
    _set_from_the_catalogue(installation)
    keys = [
        installation.data("keys", "create", "--name", name, "--project", "shop", "--owner", "ana")
        for name in ("app", "other")
    ]
    key_id = keys[0]["key"]["id"] if "key" in keys[0] else keys[0]["id"]
    wrong = ground(*("limits", "set", "--project", "shop", "--key", key_id, "--dollars-per-day", "some"), expect=2)
    assert wrong.stderr.startswith("error: 'some' is no sum of dollars")
    limited = ("limits", "set", "--project", "shop", "--key", key_id, "--dollars-per-month", "1", "--dollars-per-day")
    rules = installation.data(*limited, "0.01", "--reason", "tried")
    assert {rule["when_down"] for rule in rules} == {"fail-closed"}
    clients = [OpenAI(base_url=f"{installation.gateway_url}/v1", api_key=one["secret"], max_retries=0) for one in keys]

    def say(client: OpenAI, model: str = "big", **more: Any) -> None:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "may I?"}], **more)

    # Without max_tokens 900 tokens are reserved, nine thousand micro-dollars of ten; and one more fits no more.
    def is_known() -> bool:
        try:
            return "big" in {one.id for one in clients[0].models.list()}
        except AuthenticationError:  # the key is a moment old
            return False

    wait(is_known, "the route at the gateway", 30)
    wait(lambda: _is_limited(clients[0]), "the limit at the gateway", 30)
    served = 0
    with pytest.raises(RateLimitError) as refused:
        while True:
            say(clients[0], max_tokens=20)
            served += 1
    assert refused.value.code == "insufficient_quota" and "dollars per day" in refused.value.message
    assert 10_000 - 500 - COST < served * COST <= 10_000
    say(clients[1])
    say(clients[1], "deep")  # its longest answer is reserved, three times what is held ahead without such a route
    assert _is_limited(clients[0])

    def spent() -> dict[str, int]:
        return {one["measure"]: one["spent_microusd"] for one in installation.data("limits", "list")}

    wait(lambda: spent()["dollars per day"] == served * COST, "the ledger's word")
    assert spent()["dollars per month"] == served * COST
    assert f"{key_id}:dollars per day" in ground("limits", "list").stdout
    installation.data(*limited, "0.02")
    wait(lambda: not _refused(clients[0]), "the new limit at the gateway", 30)
    ground("limits", "lift", *f"key:{key_id}:dollars per day".split(), "--reason", "done")
    events = [event["action"] for event in installation.data("audit", "log")]
    assert events.count("limit.set") == 4 and events.count("limit.lift") == 1


def _set_from_the_catalogue(installation: Any) -> None:
    """What nobody names is a dated row's, and said to be; what nobody knows is asked for."""

    def set_route(target: str, **more: Any) -> Any:
        return installation.ground("routes", "set", "deep", "--project", "shop", "--target", target, **more)

    nobodys = set_route("provider:hosted/gpt-4o", expect=2).stderr
    assert nobodys.startswith("error: what are callers charged for gpt-4o of provider hosted?")
    assert ",like=gpt-4o, or ,like=azure/gpt-4o" in nobodys
    endless = set_route("provider:hosted/m,prompt=2,completion=10", expect=2).stderr
    assert endless.startswith("error: how many tokens has the longest answer of m of provider hosted?")
    assert "max_output=16384" in endless
    set_route("provider:hosted/m,like=gpt-nothing", expect=2)
    said = set_route("provider:hosted/m,like=claude-opus-5,prompt=4").stdout
    assert "claude-opus-5 of 2026-08-01" in said and "max_output 128,000 tokens" in said
    (target,) = next(one for one in installation.data("routes", "list") if one["model"] == "deep")["targets"]
    assert target["listed"]["took"] == ["completion", "max_output", "context"]
    assert target["price"]["prompt_microusd_per_million"] == 4_000_000
    listed = [one["after"]["listed"] for one in installation.data("audit", "log") if "listed" in one["after"]]
    assert [one["hosted/m"]["completion"] for one in listed] == [25_000_000]


def _is_limited(client: OpenAI) -> bool:
    """Whether two hundred times the day's dollars are refused."""
    return _refused(client, max_tokens=200_000)


def _refused(client: OpenAI, max_tokens: int = 20) -> bool:
    try:
        client.chat.completions.create(
            model="big", messages=[{"role": "user", "content": "may I?"}], max_tokens=max_tokens
        )
    except RateLimitError:
        return True
    return False
