"""Answers pass through unchanged, whole or streamed; what goes wrong upstream is said, never smoothed over."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from tests.gateway.harness import (
    DONE,
    SECRET,
    Exchange,
    MockUpstream,
    RawClient,
    ask,
    chat,
    completion,
    event,
    get,
    key,
    poll,
    post,
    route,
    running,
    usage_event,
)

from groundplane.gateway.protocol.json_body import read_fields, read_members
from groundplane.gateway.state import Options


def client_of(base_url: str, secret: str = SECRET) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=base_url, api_key=secret, max_retries=0)


async def test_the_unmodified_client_gets_whole_answers(tmp_path: Path, upstream: MockUpstream) -> None:
    async with (
        running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench,
        client_of(bench.base_url) as client,
    ):
        answer = await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content == "hello there"
        assert answer.usage is not None and answer.usage.total_tokens == 12
        models = [model.id async for model in client.models.list()]
        assert models == ["tiny"]
        assert (await client.models.retrieve("tiny")).owned_by == "vision"
        (record,) = await bench.records()
        assert (record.prompt_tokens, record.completion_tokens, record.amount_microusd) == (7, 5, 17)
        assert (record.status, record.estimated, record.key_id, record.project) == (200, False, "key-1", "vision")
        assert record.ttft_ms is not None and record.ttft_ms <= record.duration_ms


async def test_the_unmodified_client_streams_without_seeing_the_usage_we_asked_for(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    async with (
        running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench,
        client_of(bench.base_url) as client,
    ):
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three four five"
        assert all(chunk.usage is None for chunk in chunks)
        assert json.loads(upstream.seen[0].body)["stream_options"] == {"include_usage": True}
        (record,) = await bench.records()
        assert (record.prompt_tokens, record.completion_tokens, record.estimated) == (7, 5, False)


async def test_a_caller_who_asks_for_usage_gets_it(tmp_path: Path, upstream: MockUpstream) -> None:
    async with (
        running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench,
        client_of(bench.base_url) as client,
    ):
        stream = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 5


async def test_bytes_and_unknown_fields_pass_both_ways(tmp_path: Path, upstream: MockUpstream) -> None:
    body = b'{ "model" : "tiny",  "x-new": {"a": [1.50, "\\u00fc"]}, "messages": [] }'
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        answer = await ask(bench.port, post(body, headers="traceparent: 00-ab-cd-01\r\nx-private: 1\r\n"))
    assert upstream.seen[0].body == body
    assert upstream.seen[0].headers["traceparent"] == "00-ab-cd-01"
    assert "authorization" not in upstream.seen[0].headers and "x-private" not in upstream.seen[0].headers
    assert answer.body == json.dumps(completion()).encode()
    assert answer.headers["x-request-id"] == upstream.seen[0].headers["x-request-id"]


async def test_another_upstream_name_replaces_only_the_models_value(tmp_path: Path, upstream: MockUpstream) -> None:
    body = b'{"note": {"model": "tiny"}, "stream":true , "model" : "tiny", "t": "\\"model\\": \\"tiny\\""}'
    routes = (route("tiny", upstream.base_url, upstream_model="tiny-v2"),)
    async with running(tmp_path, keys=(key(),), routes=routes) as bench:
        await ask(bench.port, post(body))
    expected = body[1:].replace(b', "model" : "tiny"', b', "model" : "tiny-v2"')
    assert upstream.seen[0].body == b'{"stream_options":{"include_usage":true},' + expected


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "big", "model": "tiny", "messages": []}',
        b'{"mod\\u0065l": "big", "messages": [], "model": "tiny"}',
        b'{"model": "tiny", "MODEL": "big", "messages": []}',
        b'{"max_tokens": 1, "model": "tiny", "max_tokens": 12}',
        b'{"max_tokens": 12, "model": "tiny", "max_tokens": 1}',
    ],
)
async def test_what_two_servers_could_read_differently_goes_to_none_that_has_a_choice(
    tmp_path: Path, upstream: MockUpstream, body: bytes
) -> None:
    """A server of several models, or a key that may use one of them: the gateway must have read what they read."""
    for number, (owner, name) in enumerate(((key(), "tiny-v2"), (key(models=("tiny",)), "tiny"))):
        routes = (route("tiny", upstream.base_url, upstream_model=name),)
        async with running(tmp_path / str(number), keys=(owner,), routes=routes) as bench:
            answer = await ask(bench.port, post(body))
        assert (answer.status, answer.error["code"]) == (400, "ambiguous_field")
    assert not upstream.seen


def test_where_fields_stand_is_found_without_going_over_what_is_in_them() -> None:
    """Millions of small values cost a few times what the decoder takes, and not hundreds of times."""
    body = b'{"messages": [' + b"[]," * 1_000_000 + b'[]] , "model" :"tiny","x":"}"}'

    def cpu_s(work: Callable[[bytes], object]) -> float:
        began = time.process_time()
        work(body)
        return time.process_time() - began

    assert body[slice(*read_members(body)["model"])] == b'"tiny"'
    assert min(cpu_s(read_members) for _ in range(3)) < 30 * min(cpu_s(read_fields) for _ in range(3))


async def test_a_stream_split_at_every_byte_arrives_whole(tmp_path: Path, upstream: MockUpstream) -> None:
    frames = [event("ünï "), event("two"), usage_event(), DONE]
    wire = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    wire += b"".join(b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames) + b"0\r\n\r\n"
    cut_at = 0

    async def split(exchange: Exchange) -> None:
        await exchange.send(wire[:cut_at])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await exchange.send(wire[cut_at:])

    upstream.behave = split
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        client = await RawClient.open(bench.port)
        for cut_at in range(1, len(wire)):
            await client.send(post(chat(stream=True)))
            answer = await client.answer()
            assert answer.whole and answer.body == frames[0] + frames[1] + DONE, cut_at
        await client.close()
        records = await bench.records()
    assert len(records) == len(wire) - 1
    assert {(r.prompt_tokens, r.completion_tokens, r.estimated) for r in records} == {(7, 5, False)}


async def test_every_byte_on_its_own_arrives_whole(tmp_path: Path, upstream: MockUpstream) -> None:
    body = json.dumps(completion()).encode()

    async def trickle(exchange: Exchange) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        for byte in head + body:
            exchange.writer.write(bytes([byte]))
            await asyncio.sleep(0)

    upstream.behave = trickle
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        client = await RawClient.open(bench.port)
        for byte in post(chat()):
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        answer = await client.answer()
        await client.close()
    assert answer.body == body


async def test_frames_are_forwarded_as_they_come(tmp_path: Path, upstream: MockUpstream) -> None:
    go_on = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(event("first"))
        await go_on.wait()
        await exchange.chunk(DONE)
        await exchange.end()

    upstream.behave = slow
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        client = await RawClient.open(bench.port)
        await client.send(post(chat(stream=True)))
        await client.head()
        line = await client.reader.readuntil(b"\n\n")
        assert b"first" in line and not go_on.is_set()
        go_on.set()
        assert b"[DONE]" in await client.reader.readuntil(b"0\r\n\r\n")
        await client.close()


async def test_a_client_that_leaves_cancels_the_upstream_at_once(tmp_path: Path, upstream: MockUpstream) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(event("one"))
        await exchange.chunk(event("two"))
        await exchange.reader.readexactly(1)  # raises when the gateway hangs up

    upstream.behave = endless
    async with (
        running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench,
        client_of(bench.base_url) as client,
    ):
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        assert (await anext(aiter(stream))).choices[0].delta.content == "one"
        left_at = time.monotonic()
        await stream.close()
        await poll(lambda: upstream.seen[0].aborted_at is not None)
        assert upstream.seen[0].aborted_at is not None
        assert upstream.seen[0].aborted_at - left_at <= 0.1
        (record,) = await bench.records()
        assert (record.status, record.estimated) == (499, True)
        assert record.completion_tokens in {1, 2} and record.prompt_tokens > 0


async def test_a_client_that_leaves_before_the_first_byte_cancels_too(tmp_path: Path, upstream: MockUpstream) -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.reader.readexactly(1)

    upstream.behave = silent
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        client = await RawClient.open(bench.port)
        await client.send(post(chat()))
        await poll(lambda: bool(upstream.seen))
        left_at = time.monotonic()
        await client.close()
        await poll(lambda: upstream.seen[0].aborted_at is not None)
        assert (upstream.seen[0].aborted_at or 0) - left_at <= 0.1
        (record,) = await bench.records()
        assert (record.status, record.completion_tokens) == (499, 0)


async def test_a_cut_stream_ends_in_an_error_event_and_never_cleanly(tmp_path: Path, upstream: MockUpstream) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(event("one"))
        await exchange.chunk(event("two")[:20])
        exchange.cut()

    upstream.behave = cut
    async with (
        running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench,
        client_of(bench.base_url) as client,
    ):
        answer = await ask(bench.port, post(chat(stream=True)))
        assert not answer.whole and b"[DONE]" not in answer.body
        first, error, rest = answer.body.split(b"\n\n")
        assert b"one" in first and rest == b""
        assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "upstream_cut"
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        with pytest.raises(openai.APIError, match="closed the connection"):
            async for _ in stream:
                pass
        records = await bench.records()
        assert [(r.status, r.completion_tokens, r.estimated) for r in records] == [(502, 1, True)] * 2


async def test_a_stream_that_ends_without_done_is_a_cut_stream(tmp_path: Path, upstream: MockUpstream) -> None:
    async def forget(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(event("one"))
        await exchange.end()

    upstream.behave = forget
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        answer = await ask(bench.port, post(chat(stream=True)))
    assert not answer.whole and b"without [DONE]" in answer.body


async def test_an_answer_cut_in_the_middle_is_a_502(tmp_path: Path, upstream: MockUpstream) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{")
        exchange.cut()

    upstream.behave = cut
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        answer = await ask(bench.port, post(chat()))
        assert (answer.status, answer.error["code"]) == (502, "upstream_cut")
        (record,) = await bench.records()
        assert (record.status, record.amount_microusd) == (502, 0)


async def test_garbage_from_the_upstream_is_a_502(tmp_path: Path, upstream: MockUpstream) -> None:
    for wire in (
        b"SMTP ready\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{"cut": ',
    ):

        async def misbehave(exchange: Exchange, wire: bytes = wire) -> None:
            await exchange.send(wire)
            exchange.writer.close()
            await exchange.reader.readexactly(1)

        upstream.behave = misbehave
        folder = tmp_path / str(len(upstream.seen))
        async with running(folder, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
            answer = await ask(bench.port, post(chat()))
        assert answer.status == 502, wire


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (
            b"302 Found\r\nlocation: http://elsewhere/v1/chat/completions\r\ncontent-length: 0\r\n\r\n",
            "upstream_no_answer",
        ),
        (b"204 No Content\r\n\r\n", "upstream_no_answer"),
        (b"304 Not Modified\r\n\r\n", "upstream_no_answer"),
        (b"200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\n\x1f\x8b\x08", "upstream_encoded"),
    ],
)
async def test_what_answers_no_question_goes_to_nobody_and_costs_nothing(
    tmp_path: Path, upstream: MockUpstream, wire: bytes, code: str
) -> None:
    async def misbehave(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 " + wire)

    upstream.behave = misbehave
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        answer = await ask(bench.port, post(chat()))
        assert (answer.status, answer.error["code"]) == (502, code)
        assert "location" not in answer.headers
        (record,) = await bench.records()
    assert (record.prompt_tokens, record.amount_microusd) == (0, 0)


async def test_an_upstream_that_has_lost_count_is_not_believed(tmp_path: Path, upstream: MockUpstream) -> None:
    used: dict[str, object] = {}

    async def miscount(exchange: Exchange) -> None:
        await exchange.json({**completion(), "usage": used})

    upstream.behave = miscount
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        for used in (  # noqa: B007 - read by the upstream
            {"prompt_tokens": 10**30, "completion_tokens": 1},
            {"prompt_tokens": 1, "completion_tokens": 10**18},
            {"input_tokens": 10**18, "output_tokens": 1},
            {"prompt_tokens": -1, "completion_tokens": 1},
        ):
            assert (await ask(bench.port, post(chat()))).status == 200
        records = await bench.records()
    assert [record.estimated for record in records] == [True] * 4
    assert max(record.amount_microusd for record in records) < 1000


async def test_an_upstream_that_cannot_be_reached_is_a_502_and_then_a_503(tmp_path: Path) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", "http://127.0.0.1:1"),)) as bench:
        answers = [await ask(bench.port, post(chat())) for _ in range(6)]
    assert [answer.status for answer in answers] == [502] * 5 + [503]
    assert int(answers[-1].headers["retry-after"]) >= 1


async def test_another_target_answers_when_one_is_gone(tmp_path: Path, upstream: MockUpstream) -> None:
    routes = (route("tiny", "http://127.0.0.1:1", upstream.base_url),)
    async with running(tmp_path, keys=(key(),), routes=routes) as bench:
        answers = [await ask(bench.port, post(chat())) for _ in range(20)]
        records = await bench.records()
    assert {answer.status for answer in answers} == {200}
    assert len(upstream.seen) == len(records) == 20


async def test_a_kept_connection_that_the_upstream_closed_is_replaced(tmp_path: Path, upstream: MockUpstream) -> None:
    async def once(exchange: Exchange) -> None:
        await exchange.json(completion())
        exchange.writer.close()

    upstream.behave = once
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        for _ in range(5):
            assert (await ask(bench.port, post(chat()))).status == 200


async def test_connections_to_the_upstream_are_reused(tmp_path: Path, upstream: MockUpstream) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        for stream in (False, True) * 5:
            assert (await ask(bench.port, post(chat(stream=stream)))).status == 200
    assert upstream.connections == 1


async def test_a_silent_upstream_is_a_504(tmp_path: Path, upstream: MockUpstream) -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.reader.readexactly(1)

    upstream.behave = silent
    options = Options(first_byte_timeout_s=0.2, drain_s=0.2)
    async with running(tmp_path, options, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        answer = await ask(bench.port, post(chat()))
    assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
    assert upstream.seen[0].aborted_at is not None


async def test_a_stream_that_stalls_ends_in_an_error_event(tmp_path: Path, upstream: MockUpstream) -> None:
    async def stall(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(event("one"))
        await exchange.reader.readexactly(1)

    upstream.behave = stall
    options = Options(idle_upstream_timeout_s=0.2, drain_s=0.2)
    async with running(tmp_path, options, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        answer = await ask(bench.port, post(chat(stream=True)))
    assert not answer.whole and b"upstream_timeout" in answer.body


async def test_usage_the_upstream_keeps_to_itself_is_estimated(tmp_path: Path, upstream: MockUpstream) -> None:
    async def untold(exchange: Exchange) -> None:
        if not json.loads(exchange.seen.body)["stream"]:
            await exchange.json({"choices": [], "usage": None})
            return
        await exchange.begin_stream()
        for word in ("one", "two", "three"):
            await exchange.chunk(event(word))
        await exchange.chunk(DONE)
        await exchange.end()

    upstream.behave = untold
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        await ask(bench.port, post(chat()))
        await ask(bench.port, post(chat(stream=True)))
        whole, streamed = await bench.records()
    body_bytes = len(json.dumps(chat()).encode())
    assert (whole.estimated, whole.prompt_tokens) == (True, -(-body_bytes // 4))
    assert (streamed.estimated, streamed.completion_tokens) == (True, 3)


async def test_a_slow_reader_slows_the_upstream_down(tmp_path: Path, upstream: MockUpstream) -> None:
    sent_bytes = 0
    frame = event("x" * 65_536)

    async def flood(exchange: Exchange) -> None:
        nonlocal sent_bytes
        await exchange.begin_stream()
        for _ in range(400):
            await exchange.chunk(frame)
            sent_bytes += len(frame)
        await exchange.chunk(DONE)
        await exchange.end()

    upstream.behave = flood
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        client = await RawClient.open(bench.port)
        client.reader._limit = 65_536  # type: ignore[attr-defined]  # a small window of its own
        await client.send(post(chat(stream=True)))
        await poll(lambda: sent_bytes > 0)
        before = -1
        while before != sent_bytes:
            before = sent_bytes
            await asyncio.sleep(0.2)
        assert sent_bytes < 20 * 2**20, "everything was taken from the upstream although nobody reads"
        answer = await client.answer()
        await client.close()
    assert answer.whole and answer.body == frame * 400 + DONE


async def test_large_answers_pass_through_and_are_metered(tmp_path: Path, upstream: MockUpstream) -> None:
    body = json.dumps({"data": "x" * 3_000_000, "usage": usage_of_embeddings()}).encode()

    async def chunked(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        for start in range(0, len(body), 500_000):
            await exchange.chunk(body[start : start + 500_000])
        await exchange.end()

    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        for behave in (chunked, lambda exchange: exchange.json(body)):
            upstream.behave = behave
            request = post({"model": "tiny", "input": "x"}, path="/v1/embeddings")
            answer = await ask(bench.port, request)
            assert answer.whole and answer.body == body
        records = await bench.records()
    assert [(r.prompt_tokens, r.completion_tokens, r.estimated) for r in records] == [(9, 0, False)] * 2


def usage_of_embeddings() -> dict[str, int]:
    return {"prompt_tokens": 9, "total_tokens": 9}


async def test_errors_of_the_upstream_pass_through_and_cost_nothing(tmp_path: Path, upstream: MockUpstream) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.json({"error": {"message": "context is 256 tokens", "code": "context_length_exceeded"}}, 400)

    upstream.behave = refuse
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        answer = await ask(bench.port, post(chat()))
        (record,) = await bench.records()
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert (record.status, record.amount_microusd) == (400, 0)


async def test_models_are_those_the_key_may_use(tmp_path: Path, upstream: MockUpstream) -> None:
    url = upstream.base_url
    routes = (route("tiny", url), route("big", url), route("foreign", url, project="speech"))
    async with running(tmp_path, keys=(key(models=("tiny",)),), routes=routes) as bench:
        listed = await ask(bench.port, get("/v1/models"))
        assert [one["id"] for one in listed.json["data"]] == ["tiny"]  # type: ignore[index,attr-defined]
        assert (await ask(bench.port, get("/v1/models/big"))).status == 403
        assert (await ask(bench.port, get("/v1/models/foreign"))).status == 404
        assert (await ask(bench.port, post(chat(model="big")))).error["code"] == "model_not_allowed"
        assert (await ask(bench.port, post(chat(model="foreign")))).error["code"] == "model_not_found"
