"""What is sent wrong: bodies too large, broken JSON, misspelt fields, numbers beyond reason, unknown paths."""

from __future__ import annotations

import asyncio
import http.client
import logging
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import APIRouter

from groundplane.api.app import create_app

MEGABYTE = 2**20


def blocks(count: int) -> Iterator[bytes]:
    block = b"x" * MEGABYTE
    for _ in range(count):
        yield block


def test_a_body_of_100_mb_is_refused(served: Any) -> None:
    headers = {"Content-Length": str(100 * MEGABYTE), "Content-Type": "application/json"}
    answer = served.raw("POST", "/v1/plans", content=blocks(100), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too-large"
    assert "8.0 MiB" in answer.json()["error"]["message"]


def test_a_body_without_a_length_is_refused_when_it_passes_the_limit(served: Any) -> None:
    answer = served.raw("POST", "/v1/plans", content=blocks(12), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]


def test_the_answer_comes_before_the_body_has(served: Any) -> None:
    address = urlsplit(served.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    connection.putrequest("POST", "/v1/plans")
    connection.putheader("Authorization", f"Bearer {served.admin_key}")
    connection.putheader("Content-Length", str(100 * MEGABYTE))
    connection.endheaders()
    connection.send(b"x" * 1000)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_flood_of_headers_is_cut_off_before_it_fills_memory(served: Any) -> None:
    address = urlsplit(served.url)
    with socket.create_connection((str(address.hostname), address.port), timeout=60) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        with pytest.raises(OSError):
            for number in range(64):
                connection.sendall(b"X-%d: " % number + b"y" * MEGABYTE + b"\r\n")


def test_a_body_under_the_limit_passes(served: Any) -> None:
    spec = "# " + "x" * (MEGABYTE // 2)
    assert served.raw("POST", "/v1/plans", json={"spec": spec}).status_code == 422


@pytest.mark.parametrize("body", [b"{", b'{"spec": }', b"not json", b'{"spec": "a"} trailing', b'{"spec": "\x01"}'])
def test_invalid_json_is_named_with_its_place(served: Any, body: bytes) -> None:
    answer = served.raw("POST", "/v1/plans", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "invalid-input"
    assert "no valid JSON" in error["message"]
    assert "byte" in error["message"]


def test_a_form_in_place_of_json_is_told_what_to_send(served: Any) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # as curl -d sends it
    error = served.raw("POST", "/v1/plans", content=b'{"spec": "a"}', headers=form).json()["error"]
    assert (error["message"], error["hint"].partition(";")[0]) == (
        "the body was not sent as JSON", "send Content-Type: application/json"
    )  # fmt: skip


@pytest.mark.parametrize("body", [b"\xff\xfe{}", b"[" * 100_000])
def test_bytes_that_are_no_text_and_endless_nesting_are_refused(served: Any, body: bytes) -> None:
    answer = served.raw("POST", "/v1/plans", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.json()["error"]["code"] == "invalid-input"


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({}, "spec", "is required"),
        ({"spec": 3}, "spec", "should be a valid string"),
        ({"spec": "a", "specs": "b"}, "specs", "is no field of this request"),
    ],
)
def test_a_wrong_field_is_named(served: Any, body: dict[str, Any], field: str, words: str) -> None:
    error = served.raw("POST", "/v1/plans", json=body).json()["error"]
    assert error["problems"][0]["field"] == field
    assert words in error["problems"][0]["message"]
    assert field in error["message"]


BUDGET = {"monthly_limit_microusd": 1, "thresholds_percent": [50], "reason": ""}


@pytest.mark.parametrize(
    "change",
    [
        {"monthly_limit_microusd": 10**30},
        {"monthly_limit_microusd": -1},
        {"thresholds_percent": [0]},
        {"thresholds_percent": list(range(1, 100))},
        {"reason": "x" * 5000},
        {"reason": "bell\u0007"},
        {"reason": "half \ud800 a pair"},
        {"reason": "nul \u0000"},
        {"monthly_limit_microusd": 1.5},
        {"monthly_limit_microusd": "NaN"},
    ],
)
def test_values_beyond_reason_are_the_callers_fault_not_ours(served: Any, change: dict[str, Any]) -> None:
    import json

    body = json.dumps({**BUDGET, **change}).encode()
    answer = served.raw(
        "PUT", "/v1/projects/default/budget", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/v1/runs?limit=0",
        "/v1/runs?limit=many",
        "/v1/runs?limit=99999999999999999999999",
        "/v1/runs?status=sleeping",
        "/v1/costs?by=weather",
        "/v1/costs?since=2026-01-01",
        "/v1/costs?since=2026-01-01T00:00:00",
        "/v1/runs/run-x/log?offset=-1",
        "/v1/models/x/versions/0",
    ],
)
def test_a_query_that_makes_no_sense_is_told_so(served: Any, path: str) -> None:
    answer = served.raw("GET", path)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/v1/runs/run%00x", "/v1/runs/%F0%9F%92%A9", "/v1/runs/..%2F..%2Fetc", "/v1/projects/%FF"]
)
def test_strange_names_are_not_found_and_break_nothing(served: Any, path: str) -> None:
    answer = served.raw("GET", path)
    assert answer.status_code in {404, 422}, answer.text


def test_an_unknown_path_and_a_wrong_verb_answer_in_our_shape(served: Any) -> None:
    missing = served.raw("GET", "/v1/unicorns")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not-found")
    wrong = served.raw("PATCH", "/v1/runs")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "invalid-input")


def test_every_answer_has_a_request_id_and_keeps_the_callers(served: Any) -> None:
    assert served.raw("GET", "/healthz").headers["x-request-id"].startswith("req-")
    assert served.raw("GET", "/healthz", headers={"X-Request-ID": "trace-7"}).headers["x-request-id"] == "trace-7"
    odd = served.raw("GET", "/healthz", headers={"X-Request-ID": "a b<script>"}).headers["x-request-id"]
    assert odd.startswith("req-")


def test_metrics_count_by_route_template_and_need_a_key(served: Any) -> None:
    served.raw("GET", "/v1/runs/run-1234567")
    served.raw("GET", "/v1/unicorns/77")
    text = served.client.metrics()
    assert 'ground_http_requests_total{method="GET",route="/v1/runs/{run_id}",status="404"}' in text
    assert 'route="unmatched",status="404"' in text
    assert "run-1234567" not in text
    assert "ground_http_request_seconds_bucket" in text


def test_a_defect_is_a_500_with_a_request_id_and_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    router = APIRouter()

    @router.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the secret innards")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(None, routers=(router,)))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.get("/broken")

    with caplog.at_level(logging.ERROR):
        answer = asyncio.run(ask())
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (500, "internal")
    assert error["request_id"] == answer.headers["x-request-id"]
    assert error["request_id"] in caplog.text
    assert "innards" not in answer.text
    assert "innards" in caplog.text
