"""Queues, kept answers and the order of prompts, from the command to the provider and back into the bill."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest
from openai import OpenAI, RateLimitError
from tests.stage import Answer, Asked, Played

RULES = "".join(f"Rule {number}: be kind, be brief, and never promise what can't be kept.\n" for number in range(90))


class Provider(Played):
    """Answers like OpenAI; a gate lets it answer, and requests are counted."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.asked: list[dict[str, Any]] = []
        super().__init__(self._answer)
        self.url += "/v1"

    def _answer(self, asked: Asked) -> Answer:
        self.asked.append(asked.json)
        self.open.wait(60)
        used = {"prompt_tokens": 2000, "completion_tokens": 10, "total_tokens": 2010}
        used |= {"prompt_tokens_details": {"cached_tokens": 1024}}
        message = {"role": "assistant", "content": f"answer {asked.json.get('user')}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": used}
        return Answer(200, body)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with closing(Provider()) as played:
        yield played
        played.open.set()


def test_queues_caches_and_lint_from_the_command_to_the_bill(
    installation: Any, provider: Provider, wait: Callable[..., Any]
) -> None:
    ground = installation.ground
    ground("projects", "create", "shop", "--owner", "ana", "--cost-center", "c1", "--budget", "$50")
    ground(
        *("providers", "add", "hosted", "--project", "shop", "--kind", "openai-compatible", "--url", provider.url),
        *("--private", "--key-file", "-"),
        text="sk-of-the-provider",
    )
    made = installation.data("keys", "create", "--name", "app", "--project", "shop", "--owner", "ana", "--rpm", "6000")
    key_id = made["key"]["id"] if "key" in made else made["id"]
    target = "provider:hosted/m,prompt=2,completion=10,cached=0.5,max_output=4096"
    refused = ground(
        *("routes", "set", "big", "--project", "shop", "--target", target, "--queue-key", "key-nobody=high"), expect=4
    )
    assert "no key 'key-nobody'" in refused.stderr
    wrong = ground(*("routes", "set", "big", "--project", "shop", "--target", target, "--queue-wait", "2h"), expect=2)
    assert "7200000 ms is not between 0 and 600000" in wrong.stderr
    rule = installation.data(
        *("routes", "set", "big", "--project", "shop", "--target", target, "--queue-size", "3", "--queue-wait", "40s"),
        *("--queue-key", f"{key_id}=high", "--concurrency-max", "1", "--cache", "10m", "--reason", "tried"),
    )
    assert rule["queue"]["concurrency_max"] == 1 and rule["cache"]["ttl_s"] == 600
    base = installation.gateway_url
    headers = {"authorization": f"Bearer {made['secret']}"}
    wait(lambda: "big" in httpx.get(f"{base}/v1/models", headers=headers).text, "the route at the gateway", 30)
    client = OpenAI(base_url=f"{base}/v1", api_key=made["secret"], max_retries=0, timeout=60)

    def say(number: int, temperature: float = 1) -> str:
        system = f"It is {number} seconds past noon.\n{RULES}"
        messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": f"question {number}"}]
        done = client.chat.completions.create(
            model="big", messages=messages, temperature=temperature, user=str(number), max_tokens=20
        )
        return str(done.choices[0].message.content)

    # One at once: the second and third wait, and the operator sees them.
    provider.open.clear()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(say, number) for number in range(4)]
        wait(lambda: _waiting(installation) == 3, "three in the queue")
        (queue,) = installation.data("routes", "queue")["queues"]
        assert (queue["project"], queue["model"], queue["by_priority"]["high"]) == ("shop", "big", 3)
        page = console(installation)
        assert "Waiting at the gateway" in page and "high 3" in page and "1 in flight" in page
        with pytest.raises(RateLimitError, match="3 requests wait already"):
            say(99)
        assert len(provider.asked) == 1
        text = httpx.get(f"{base}/metrics").text
        assert 'groundplane_gateway_shed_total{model="big",reason="queue full"} 1' in text
        provider.open.set()
        assert sorted(one.result() for one in asked) == [f"answer {number}" for number in range(4)]

    # What has one answer is asked once.
    before = len(provider.asked)
    assert [say(7, temperature=0) for _ in range(5)] == ["answer 7"] * 5
    assert len(provider.asked) == before + 1

    # The order of the prompts is told.
    for number in range(100, 380):
        say(number)
    (finding,) = wait(lambda: installation.data("routes", "lint"), "a finding", 40)
    assert (finding["model"], finding["key_id"]) == ("big", key_id)
    assert finding["place"] == "messages[0] (system) line 1" and finding["saved_microusd_per_1000_requests"] > 0
    assert "SAVES/1000 REQ" in ground("routes", "lint").stdout
    assert "messages[0] (system) line 1 changes before" in console(installation)

    def row() -> dict[str, Any]:
        (found,) = installation.data("cost", "--by", "key")
        return dict(found)

    wait(lambda: row()["requests"] >= 289, "every request in the ledger", 40)
    billed = row()
    each = (2000 - 1024) * 2 + 1024 // 2 + 10 * 10
    assert billed["tokens_microusd"] == 285 * each and billed["cache_hits"] == 4
    assert billed["saved_microusd"] == 285 * 1024 * 3 // 2 + 4 * each
    client.close()
    (event, *_) = [one for one in installation.data("audit", "log") if one["action"] == "route.set"]
    assert event["after"]["priorities"] == {key_id: "high"} and event["after"]["cache"]["ttl_s"] == 600


def console(installation: Any) -> str:
    """The page of routes."""
    url = f"http://127.0.0.1:{installation.port}"
    with httpx.Client(base_url=url, headers={"Origin": url}, timeout=30) as visitor:
        visitor.post("/console/login", data={"key": installation.admin_key, "next": "/console/routes"})
        return visitor.get("/console/routes").text


def _waiting(installation: Any) -> int:
    return sum(one["waiting"] for one in installation.data("routes", "queue")["queues"])
