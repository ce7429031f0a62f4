"""Providers and routes over HTTP, the SDK and the console: set, listed, refused, and no key in any answer."""

from __future__ import annotations

from typing import Any

from groundplane.identity import Role

PROVIDER = {"project": "default", "name": "hosted", "kind": "openai", "key": "sk-very-secret"}
TARGET = {
    "provider": "hosted",
    "model": "gpt-4o",
    "prompt_microusd_per_million": 5,
    "completion_microusd_per_million": 9,
}
ROUTE = {"project": "default", "model": "big", "targets": [TARGET], "policy": "failover"}


def test_a_provider_and_a_route_are_set_listed_and_removed(served: Any) -> None:
    answers = [
        served.raw("PUT", "/v1/providers", json=PROVIDER),
        served.raw("PUT", "/v1/routes", json=ROUTE),
        served.raw("GET", "/v1/providers"),
        served.raw("GET", "/v1/routes"),
    ]
    assert [one.status_code for one in answers] == [200] * 4, [one.text for one in answers]
    assert answers[3].json()[0]["targets"][0]["price"]["cached_microusd_per_million"] == 5, "not given: not cheaper"
    assert served.raw("DELETE", "/v1/providers/default/hosted").status_code == 409
    assert served.raw("DELETE", "/v1/routes", params={"project": "default", "model": "big"}).status_code == 200
    answers += [served.raw("DELETE", "/v1/providers/default/hosted"), served.raw("GET", "/v1/audit/events")]
    actions = [event["action"] for event in answers[-1].json()]
    assert {"provider.set", "route.set", "route.remove", "provider.remove"} <= set(actions)
    assert not any("sk-very-secret" in one.text for one in answers)


def test_what_is_no_provider_or_route_is_refused(served: Any) -> None:
    for change in ({"kind": "bananas"}, {"base_url": "http://x"}, {"key": ["sk-very-secret"]}, {"more": 1}):
        refused = served.raw("PUT", "/v1/providers", json=PROVIDER | change)
        assert refused.status_code == 422 and "sk-very-secret" not in refused.text, change
    for change in ({"targets": []}, {"policy": "luck"}, {"targets": [TARGET | {"wieght": 2}]}):
        assert served.raw("PUT", "/v1/routes", json=ROUTE | change).status_code == 422, change


def test_how_requests_wait_and_which_answers_are_kept_is_set_with_the_route(served: Any) -> None:
    queue = {"size": 50, "wait_ms": 20000, "priority": "low", "keys": [], "weight": 3, "concurrency_max": 8}
    assert served.raw("PUT", "/v1/providers", json=PROVIDER).status_code == 200
    made = served.raw("PUT", "/v1/routes", json=ROUTE | {"queue": queue, "cache": {"ttl_s": 600}})
    assert made.status_code == 200, made.text
    assert made.json()["queue"] == queue and made.json()["cache"] == {"ttl_s": 600, "sampled": False}
    (event, *_) = served.raw("GET", "/v1/audit/events").json()
    assert event["after"]["queue"]["wait_ms"] == 20000 and event["after"]["cache"]["ttl_s"] == 600
    for change, told in (
        ({"queue": queue | {"wait_ms": 700000}}, "700000 ms"),
        ({"queue": queue | {"weight": 0}}, "weight of 0"),
        ({"queue": queue | {"priority": "urgent"}}, "priority"),
        ({"queue": queue | {"sizes": 1}}, "sizes"),
        ({"cache": {"ttl_s": 0}}, "0 s"),
        ({"cache": {}}, "ttl_s"),
    ):
        refused = served.raw("PUT", "/v1/routes", json=ROUTE | change)
        assert refused.status_code == 422 and told in refused.text, (change, refused.text)
    unknown = queue | {"keys": [{"key_id": "key-nobody", "priority": "high"}]}
    assert served.raw("PUT", "/v1/routes", json=ROUTE | {"queue": unknown}).status_code == 404
    assert served.raw("DELETE", "/v1/routes", params={"project": "default", "model": "big"}).status_code == 200
    assert served.raw("DELETE", "/v1/providers/default/hosted").status_code == 200


def test_where_no_gateway_tells_nothing_waits(served: Any) -> None:
    standing = served.raw("GET", "/v1/routes/queue").json()
    assert standing == {"workers": 0, "queues": [], "replicas": [], "storms": []}
    assert served.raw("GET", "/v1/routes/lint").json() == []
    for path in ("queue", "lint"):
        assert served.raw("GET", f"/v1/routes/{path}", key=served.key(Role.CALLER)).status_code == 403


def test_who_may_not_make_keys_sets_no_routes(served: Any) -> None:
    viewer = served.key(Role.VIEWER)
    assert served.raw("PUT", "/v1/providers", key=viewer, json=PROVIDER).status_code == 403
    assert served.raw("PUT", "/v1/routes", key=viewer, json=ROUTE).status_code == 403
    assert served.raw("GET", "/v1/providers", key=served.key(Role.CALLER)).status_code == 403
