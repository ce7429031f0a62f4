"""What goes along with a request: its caller's id, trace context, and what is asked in the address."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest
from tests.gateway.harness import Exchange, MockUpstream, ask, chat, completion, get, key, post, route, running

from groundplane.gateway.protocol.http1 import parse_request_head


async def test_the_caller_s_request_id_is_everybody_s_but_what_is_charged_goes_by_ours(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    """Two requests with one id are two charges: an id that callers choose can't make a request free."""
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        answers = [await ask(bench.port, post(chat(), headers="x-request-id: job-7/step=3\r\n")) for _ in range(2)]
        refused = await ask(bench.port, post(chat(), secret="wrong", headers="x-request-id: job-8\r\n"))
        no_path = await ask(bench.port, post({}, path="/v1/nothing", headers="x-request-id: job-9\r\n"))
        plain = await ask(bench.port, get("/v1/models"))
        records = await bench.records()
    assert {answer.headers["x-request-id"] for answer in answers} == {"job-7/step=3"}
    assert [seen.headers["x-request-id"] for seen in upstream.seen] == ["job-7/step=3"] * 2
    assert [answer.headers["x-groundplane-request-id"] for answer in answers] == [record.id for record in records]
    assert len({record.id for record in records}) == 2
    assert (refused.headers["x-request-id"], no_path.headers["x-request-id"]) == ("job-8", "job-9")
    assert plain.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("said", ["", "x" * 129, "two words", 'quo"te', "semi;colon", "\xff"])
async def test_what_is_no_id_is_replaced_by_ours(tmp_path: Path, upstream: MockUpstream, said: str) -> None:
    request = post(chat(), headers="x-request-id: ID\r\n").replace(b"ID", said.encode("latin-1"))
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        answer = await ask(bench.port, request)
        (record,) = await bench.records()
    assert answer.status == 200 and answer.headers["x-request-id"] == record.id
    assert upstream.seen[0].headers["x-request-id"] == record.id


async def test_an_error_in_the_words_of_messages_names_the_caller_s_id(tmp_path: Path, upstream: MockUpstream) -> None:
    async def broken(exchange: Exchange) -> None:
        exchange.cut()

    upstream.behave = broken
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        answer = await ask(bench.port, post(chat(), path="/v1/messages", headers="x-request-id: job-7\r\n"))
    assert answer.status == 502 and json.loads(answer.body)["request_id"] == answer.headers["request-id"] == "job-7"


async def test_trace_context_passes_and_baggage_does_not(tmp_path: Path, upstream: MockUpstream) -> None:
    trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: a=1,b=2\r\n"
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        await ask(bench.port, post(chat(), headers=f"{trace}baggage: user=ana\r\n"))
    headers = upstream.seen[0].headers
    assert headers["traceparent"].split("-")[1] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert headers["tracestate"] == "a=1,b=2" and "baggage" not in headers


@pytest.mark.parametrize(
    ("kind", "path", "asked", "expected"),
    [
        ("", "/v1/chat/completions", "?a=1&b=%20", "/v1/chat/completions?a=1&b=%20"),
        ("openai-compatible", "/v1/chat/completions", "?x=y", "/v1/chat/completions?x=y"),
        ("openai", "/v1/chat/completions", "?key=secret", "/v1/chat/completions"),
        ("anthropic", "/v1/messages", "?beta=true&key=secret", "/v1/messages?beta=true"),
        ("azure", "/v1/chat/completions", "", "/openai/deployments/d/chat/completions?api-version=2024-10-21"),
        (
            "azure",
            "/v1/chat/completions",
            "?key=secret&api-version=2025-04-01-preview",
            "/openai/deployments/d/chat/completions?api-version=2025-04-01-preview",
        ),
        ("azure", "/v1/responses", "?api-version=preview", "/openai/v1/responses?api-version=preview"),
    ],
)
async def test_what_is_asked_in_the_address_goes_on_where_it_is_known(
    tmp_path: Path, upstream: MockUpstream, kind: str, path: str, asked: str, expected: str
) -> None:
    more: dict[str, object] = {"upstream_model": "d", "kind": kind, "key_file": "vision/hosted"} if kind else {}
    if kind == "azure":
        more["api_version"] = "2024-10-21"
    (tmp_path / "provider-keys" / "vision").mkdir(parents=True)
    (tmp_path / "provider-keys" / "vision" / "hosted").write_text("sk-x")
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url, **more),)) as bench:
        for query in (asked, asked, ""):
            assert (await ask(bench.port, post(chat(), path=path + query))).status == 200
    assert [seen.path for seen in upstream.seen[:2]] == [expected] * 2
    assert upstream.seen[2].path.partition("?")[0] == expected.partition("?")[0]


async def test_the_client_s_own_extras_arrive(tmp_path: Path, upstream: MockUpstream) -> None:
    async def echo(exchange: Exchange) -> None:
        await exchange.json(completion())

    upstream.behave = echo
    async with (
        running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench,
        openai.AsyncOpenAI(base_url=bench.base_url, api_key="gp-caller-secret", max_retries=0) as client,
    ):
        answer = await client.chat.completions.with_raw_response.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            extra_query={"trial": "7"},
            extra_headers={"X-Request-Id": "mine"},
        )
    assert answer.request_id == "mine"
    assert upstream.seen[0].path.endswith("?trial=7")


def test_the_address_is_taken_apart_once() -> None:
    data = b"POST /v1/x?a=?b HTTP/1.1\r\nhost: x\r\nX-Request-ID: one\r\n\r\n"
    head = parse_request_head(data, len(data))
    assert (head.path, head.query, head.request_id) == (b"/v1/x", b"a=?b", b"one")
