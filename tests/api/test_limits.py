"""Limits and rotations over HTTP, the command line and the SDK: set, listed, lifted, refused."""

from __future__ import annotations

from typing import Any

from groundplane.identity import Role

LIMIT = {"project": "default", "scope": "project", "name": "", "measure": "tokens per minute", "value": 80_000}


def test_a_limit_is_set_listed_and_lifted(served: Any) -> None:
    made = served.raw("PUT", "/v1/limits", json=LIMIT | {"when_down": "fail-closed"})
    assert made.status_code == 200, made.text
    assert (made.json()["id"], made.json()["value"]) == ("project:default:tokens per minute", 80_000)
    assert [one["when_down"] for one in served.raw("GET", "/v1/limits").json()] == ["fail-closed"]
    assert served.raw("DELETE", "/v1/limits", params={"id": made.json()["id"]}).status_code == 200
    assert served.raw("GET", "/v1/limits").json() == []
    gone = served.raw("DELETE", "/v1/limits", params={"id": made.json()["id"]})
    assert gone.status_code == 404 and gone.json()["error"]["hint"] == "ground limits list"


def test_a_limit_that_is_none_is_refused_with_its_reason(served: Any) -> None:
    for change in ({"scope": "team"}, {"measure": "budget"}, {"value": -1}, {"measure": "bananas"}, {"more": 1}):
        assert served.raw("PUT", "/v1/limits", json=LIMIT | change).status_code == 422, change


def test_who_may_not_make_keys_sets_no_limits(served: Any) -> None:
    assert served.raw("PUT", "/v1/limits", key=served.key(Role.VIEWER), json=LIMIT).status_code == 403
    assert served.raw("GET", "/v1/limits", key=served.key(Role.CALLER)).status_code == 403


def test_a_rotated_key_answers_a_secret_once_and_never_a_hash(served: Any) -> None:
    body = {"name": "app", "project": "default", "owner": "ana", "role": "viewer", "networks": ["10.0.0.0/8"]}
    made = served.raw("POST", "/v1/keys", json=body).json()
    assert made["key"]["networks"] == ["10.0.0.0/8"]
    path = f"/v1/keys/{made['key']['id']}/rotate"
    rotated = served.raw("POST", path, json={"grace_s": 60}).json()
    assert rotated["secret"] != made["secret"]
    assert rotated["key"]["secret_sha256"] == rotated["key"]["old_secret_sha256"] == ""
    for secret in (made["secret"], rotated["secret"]):
        assert served.raw("GET", "/v1/whoami", key=secret).status_code == 200
    served.raw("POST", path, json={"grace_s": 0})
    assert served.raw("GET", "/v1/whoami", key=made["secret"]).status_code == 401
    assert served.raw("POST", path, json={"grace_s": -1}).status_code == 422
    actions = [event["action"] for event in served.raw("GET", "/v1/audit/events").json()]
    assert "key.rotate" in actions
