"""Who gets in: no key, a wrong one, too small a role, somebody else's project."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.requests import Request

from groundplane.api.access import same_origin
from groundplane.api.sessions import SESSIONS_MAX, Sessions
from groundplane.errors import Forbidden, NotFound, Unauthenticated
from groundplane.identity import Permission, Role

ROUTES = ["/v1/runs", "/v1/status", "/v1/keys", "/v1/costs", "/v1/audit/events", "/v1/models", "/metrics", "/v1/whoami"]


@pytest.mark.parametrize("path", ROUTES)
def test_without_a_key_nothing_answers(served: Any, path: str) -> None:
    answer = served.raw("GET", path, key="")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.json()["error"]["code"] == "unauthenticated"
    assert "GROUND_KEY" in answer.json()["error"]["hint"]


@pytest.mark.parametrize("key", ["gp-admin-wrong", "x" * 5000, "gp-admin-%00", "ключ"])
def test_a_wrong_key_is_told_that_it_is_not_known(served: Any, key: str) -> None:
    answer = served.raw("GET", "/v1/runs", key="", headers={"Authorization": f"Bearer {key}".encode()})
    assert answer.status_code == 401
    assert "not known" in answer.json()["error"]["message"]
    assert key not in answer.text


@pytest.mark.parametrize("header", ["Bearer", "Basic dXNlcjpwYXNz", "gp-admin-x", "Bearer,"])
def test_a_header_that_is_no_key_is_no_key(served: Any, header: str) -> None:
    answer = served.raw("GET", "/v1/runs", key="", headers={"Authorization": header})
    assert answer.status_code == 401


def test_health_and_readiness_need_no_key(served: Any) -> None:
    assert served.raw("GET", "/healthz", key="").json()["status"] == "ok"
    assert served.raw("GET", "/readyz", key="").json()["status"] == "ok"


def test_a_viewer_reads_and_changes_nothing(served: Any) -> None:
    key = served.key(Role.VIEWER)
    assert served.raw("GET", "/v1/runs", key=key).status_code == 200
    refused = served.raw("POST", "/v1/plans", key=key, json={"spec": "x"})
    assert refused.status_code == 403
    assert "viewer" in refused.json()["error"]["message"]
    assert "runs:write" in refused.json()["error"]["message"]


def test_a_caller_key_reads_nothing_here_but_itself(served: Any) -> None:
    key = served.key(Role.CALLER)
    assert served.raw("GET", "/v1/runs", key=key).status_code == 403
    assert served.raw("GET", "/v1/whoami", key=key).json()["permissions"] == ["inference:call"]


def test_another_teams_project_does_not_exist(served: Any) -> None:
    served.client.create_project(name="secret-team", owner="eve", cost_center="c9", monthly_limit_microusd=1_000_000)
    key = served.key(Role.MEMBER)
    for path in ("/v1/projects/secret-team", "/v1/projects/secret-team/budget"):
        unseen, missing = (
            served.raw("GET", path, key=key),
            served.raw("GET", path.replace("secret-team", "nobody"), key=key),
        )
        assert (unseen.status_code, missing.status_code) == (404, 404)
        assert unseen.json()["error"]["message"] == missing.json()["error"]["message"].replace("nobody", "secret-team")


def test_whoami_tells_the_role_and_what_it_may_do(served: Any) -> None:
    me = served.client.whoami()
    assert me.role is Role.ADMIN
    assert set(me.permissions) == set(Permission)


def test_hashes_of_secrets_never_leave(served: Any) -> None:
    made = served.client.create_key(name="shy", project="default", owner="tests", role=Role.CALLER)
    assert made.key.secret_sha256 == ""
    listed = served.client.keys()
    assert {key.secret_sha256 for key in listed} == {""}
    assert made.secret not in served.raw("GET", "/v1/keys").text


def test_a_revoked_key_opens_nothing_from_then_on(served: Any) -> None:
    made = served.client.create_key(name="brief", project="default", owner="tests", role=Role.VIEWER)
    assert served.raw("GET", "/v1/runs", key=made.secret).status_code == 200
    served.client.revoke_key(made.key.id, "over")
    assert served.raw("GET", "/v1/runs", key=made.secret).status_code == 401


def test_the_sdk_raises_the_same_errors_as_the_control_plane(served: Any) -> None:
    from groundplane.client import Client

    with Client(served.url, "gp-admin-wrong") as stranger, pytest.raises(Unauthenticated):
        stranger.runs()
    with Client(served.url, served.key(Role.VIEWER)) as viewer, pytest.raises(Forbidden):
        viewer.create_project(name="mine", owner="x", cost_center="y")
    with pytest.raises(NotFound):
        served.client.run("run-nowhere")


def test_exposures_are_added_listed_and_withdrawn(served: Any) -> None:
    expires = datetime.now(UTC) + timedelta(days=1)
    served.client.expose(address="10.1.2.3:4710", owner="ana", reason="pilot", expires_at=expires)
    assert [exposure.id for exposure in served.client.exposures()] == ["10.1.2.3:4710"]
    served.client.withdraw_exposure("10.1.2.3:4710", "over")
    assert served.client.exposures() == []


# ---------------------------------------------------------------- sessions


def test_a_session_stands_for_its_key_until_it_is_ended() -> None:
    sessions = Sessions()
    token = sessions.seal("gp-viewer-x")
    assert sessions.open(token) == "gp-viewer-x"
    assert "gp-viewer" not in token
    sessions.end(token)
    sessions.end(token)
    assert sessions.open(token) == ""


def test_a_session_of_elsewhere_opens_nothing() -> None:
    assert Sessions().open(Sessions().seal("gp-viewer-x")) == ""


def test_the_oldest_session_makes_room() -> None:
    sessions = Sessions()
    first = sessions.seal("gp-a")
    for _ in range(SESSIONS_MAX):
        last = sessions.seal("gp-b")
    assert sessions.open(first) == ""
    assert sessions.open(last) == "gp-b"


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:4700"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"origin": "http://127.0.0.1:4700"}, True),
        ({"origin": "http://127.0.0.1:8888"}, False),
        ({"origin": "null"}, False),
        ({}, False),
    ],
)
def test_a_change_by_cookie_comes_from_our_own_pages(headers: dict[str, str], same: bool) -> None:
    listed = [(name.encode(), value.encode()) for name, value in {"host": "127.0.0.1:4700", **headers}.items()]
    scope = {"type": "http", "method": "POST", "scheme": "http", "path": "/", "query_string": b"", "headers": listed}
    assert same_origin(Request(scope)) is same
