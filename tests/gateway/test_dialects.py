"""Each API speaks for itself: Anthropic's messages, OpenAI's responses, and forms, with unmodified clients."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import anthropic
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.harness import (
    SECRET,
    Exchange,
    MockUpstream,
    RawClient,
    ask,
    chat,
    key,
    post,
    route,
    running,
)

from groundplane.domain.serving.usage import Usage, find_usage
from groundplane.gateway.protocol.errors import Fault
from groundplane.gateway.protocol.form_body import read_form

MESSAGE_USAGE = {
    "input_tokens": 7,
    "cache_creation_input_tokens": 2,
    "cache_read_input_tokens": 4,
    "output_tokens": 5,
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "tiny",
    "content": [{"type": "text", "text": "hello there"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": MESSAGE_USAGE,
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": "tiny",
    "output": [
        {
            "type": "message",
            "id": "m",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "hello", "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 3},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 13,
    },
}


def named(name: str, **more: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **more})}\n\n".encode()


def message_events() -> list[bytes]:
    begun = {**MESSAGE, "content": [], "stop_reason": None, "usage": {**MESSAGE_USAGE, "output_tokens": 1}}
    deltas = [
        named("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
        for text in ("one ", '"event: message_stop"\n', "two")
    ]
    return [
        named("message_start", message=begun),
        named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        named("ping"),
        *deltas,
        named("content_block_stop", index=0),
        named(
            "message_delta",
            delta={"stop_reason": "end_turn", "stop_sequence": None},
            usage={"input_tokens": None, "output_tokens": 5},
        ),
        named("message_stop"),
    ]


def response_events() -> list[bytes]:
    begun = {**RESPONSE, "status": "in_progress", "output": [], "usage": None}
    return [
        named("response.created", sequence_number=0, response=begun),
        named(
            "response.output_text.delta",
            sequence_number=1,
            item_id="m",
            output_index=0,
            content_index=0,
            delta='say "event: response.completed"',
            logprobs=[],
        ),
        named("response.completed", sequence_number=2, response=RESPONSE),
    ]


async def speaks_all(exchange: Exchange) -> None:
    """Answers in the words of the path that was asked."""
    path = exchange.seen.path
    if path.endswith("/count_tokens"):
        await exchange.json({"input_tokens": 42})
        return
    body = json.loads(exchange.seen.body) if exchange.seen.headers["content-type"] == "application/json" else {}
    if body.get("stream"):
        await exchange.begin_stream()
        for frame in message_events() if path == "/v1/messages" else response_events():
            await exchange.chunk(frame)
        await exchange.end()
    else:
        await exchange.json(MESSAGE if path == "/v1/messages" else RESPONSE)


def claude(port: int, secret: str = SECRET) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{port}", api_key=secret, max_retries=0)


HI = [{"role": "user", "content": "hi"}]


async def test_the_anthropic_client_gets_whole_messages_and_streams(tmp_path: Path, upstream: MockUpstream) -> None:
    upstream.behave = speaks_all
    async with (
        running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench,
        claude(bench.port) as client,
    ):
        whole = await client.messages.create(model="tiny", max_tokens=64, messages=HI)  # type: ignore[arg-type]
        assert whole.content[0].text == "hello there"  # type: ignore[union-attr]
        assert whole._request_id is not None
        async with client.messages.stream(model="tiny", max_tokens=64, messages=HI) as stream:  # type: ignore[arg-type]
            text = "".join([piece async for piece in stream.text_stream])
            assert text == 'one "event: message_stop"\ntwo'
            assert (await stream.get_final_message()).usage.output_tokens == 5
        counted = await client.messages.count_tokens(model="tiny", messages=HI)  # type: ignore[arg-type]
        assert counted.input_tokens == 42
        assert [model.id async for model in client.models.list()] == ["tiny"]
        assert (await client.models.retrieve("tiny")).display_name == "tiny"
        records = await bench.records()
    # 7 read anew, 2 written to the cache, 4 read from it: 13 of the prompt, 4 of them cached.
    assert [(r.prompt_tokens, r.completion_tokens, r.cached_tokens, r.estimated) for r in records] == [
        (13, 5, 4, False),
        (13, 5, 4, False),
        (0, 0, 0, False),
    ]
    seen = upstream.seen[0].headers
    assert seen["anthropic-version"] and "x-api-key" not in seen


async def test_anthropic_errors_are_said_as_its_client_reads_them(tmp_path: Path, upstream: MockUpstream) -> None:
    upstream.behave = speaks_all
    keys = (key(requests_per_minute=1),)
    async with running(tmp_path, keys=keys, routes=(route("tiny", upstream.base_url),)) as bench:
        async with claude(bench.port, "gp-wrong") as client:
            with pytest.raises(anthropic.AuthenticationError) as refused:
                await client.messages.create(model="tiny", max_tokens=4, messages=HI)  # type: ignore[arg-type]
            assert refused.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
        async with claude(bench.port) as client:
            with pytest.raises(anthropic.NotFoundError):
                await client.messages.create(model="huge", max_tokens=4, messages=HI)  # type: ignore[arg-type]
            await client.messages.create(model="tiny", max_tokens=4, messages=HI)  # type: ignore[arg-type]
            with pytest.raises(anthropic.RateLimitError) as limited:
                await client.messages.create(model="tiny", max_tokens=4, messages=HI)  # type: ignore[arg-type]
            assert limited.value.response.headers["retry-after"] and limited.value.request_id
            assert limited.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]


@pytest.mark.parametrize("kept", range(1, 9))
async def test_a_cut_message_stream_ends_with_an_error_event_and_no_stop(
    tmp_path: Path, upstream: MockUpstream, kept: int
) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for frame in message_events()[:kept]:
            await exchange.chunk(frame)
        exchange.cut()

    upstream.behave = cut
    async with (
        running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench,
        claude(bench.port) as client,
    ):
        with pytest.raises(anthropic.APIError):
            async with client.messages.stream(model="tiny", max_tokens=9, messages=HI) as stream:  # type: ignore[arg-type]
                await stream.until_done()
        (record,) = await bench.records()
    # What the prompt came to was said first; the answer is estimated until its last words.
    assert (record.prompt_tokens, record.cached_tokens, record.status) == (13, 4, 502)
    assert record.estimated is (kept < 8)


async def test_an_error_event_of_the_upstream_goes_on_as_it_came(tmp_path: Path, upstream: MockUpstream) -> None:
    error = named("error", error={"type": "overloaded_error", "message": "Overloaded"})

    async def overloaded(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(message_events()[0])
        await exchange.chunk(error)
        await exchange.end()

    upstream.behave = overloaded
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        answer = await ask(bench.port, post(chat(stream=True), path="/v1/messages"))
    assert answer.whole and answer.body == message_events()[0] + error


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_an_event_stream_split_at_every_byte_arrives_whole(
    tmp_path: Path, upstream: MockUpstream, path: str
) -> None:
    frames = message_events() if path == "/v1/messages" else response_events()
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
            await client.send(post(chat(stream=True), path=path))
            answer = await client.answer()
            assert answer.whole and answer.body == b"".join(frames), cut_at
        await client.close()
        records = await bench.records()
    expected = (13, 5, 4, False) if path == "/v1/messages" else (9, 4, 3, False)
    assert {(r.prompt_tokens, r.completion_tokens, r.cached_tokens, r.estimated) for r in records} == {expected}
    assert len(records) == len(wire) - 1


async def test_the_openai_client_uses_responses(tmp_path: Path, upstream: MockUpstream) -> None:
    upstream.behave = speaks_all
    async with (
        running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench,
        openai.AsyncOpenAI(base_url=bench.base_url, api_key=SECRET, max_retries=0) as client,
    ):
        whole = await client.responses.create(model="tiny", input="hi", max_output_tokens=16)
        assert whole.output_text == "hello"
        events = [one async for one in await client.responses.create(model="tiny", input="hi", stream=True)]
        assert [one.type for one in events][-1] == "response.completed"
        records = await bench.records()
    assert json.loads(upstream.seen[1].body) == {"input": "hi", "model": "tiny", "stream": True}
    assert [(r.prompt_tokens, r.completion_tokens, r.cached_tokens, r.estimated) for r in records] == [
        (9, 4, 3, False)
    ] * 2


async def test_a_cut_responses_stream_raises_in_the_client(tmp_path: Path, upstream: MockUpstream) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for frame in response_events()[:2]:
            await exchange.chunk(frame)
        exchange.cut()

    upstream.behave = cut
    async with (
        running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench,
        openai.AsyncOpenAI(base_url=bench.base_url, api_key=SECRET, max_retries=0) as client,
    ):
        with pytest.raises(openai.APIError):
            async for _ in await client.responses.create(model="tiny", input="hi", stream=True):
                pass


async def test_forms_and_binary_answers_pass_through(tmp_path: Path, upstream: MockUpstream) -> None:
    sound = bytes(range(256)) * 20_000

    async def behave(exchange: Exchange) -> None:
        if exchange.seen.path == "/v1/audio/speech":
            head = f"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: {len(sound)}\r\n\r\n"
            await exchange.send(head.encode() + sound)
        elif exchange.seen.path == "/v1/audio/transcriptions":
            await exchange.json({"text": "hello", "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 3}})
        else:
            await exchange.json({"id": "m", "model": "tiny", "results": [], "data": [], "created": 1})

    upstream.behave = behave
    routes = (route("tiny", upstream.base_url, upstream_model="tiny-v2"),)
    async with (
        running(tmp_path, keys=(key(),), routes=routes) as bench,
        openai.AsyncOpenAI(base_url=bench.base_url, api_key=SECRET, max_retries=0) as client,
    ):
        heard = await client.audio.transcriptions.create(model="tiny", file=("a.wav", sound[:70_000]))
        assert heard.text == "hello"
        assert (await client.audio.speech.create(model="tiny", voice="alloy", input="hello")).content == sound
        await client.moderations.create(model="tiny", input="hello")
        await client.images.generate(model="tiny", prompt="a cat")
        assert (await ask(bench.port, post({"model": "tiny", "query": "q"}, path="/v1/rerank"))).status == 200
        records = await bench.records()
    body = upstream.seen[0].body
    assert b'name="model"\r\n\r\ntiny-v2\r\n' in body and sound[:70_000] in body
    assert [one.path for one in upstream.seen] == [
        "/v1/audio/transcriptions",
        "/v1/audio/speech",
        "/v1/moderations",
        "/v1/images/generations",
        "/v1/rerank",
    ]
    assert (records[0].prompt_tokens, records[0].completion_tokens) == (14, 3)
    assert all(record.completion_tokens == 0 for record in records[1:])


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--b\r\n%b\r\n\r\n%b\r\n" % (head.encode(), value) for head, value in parts) + end


MODEL = 'Content-Disposition: form-data; name="model"'
COUNT = 'Content-Disposition: form-data; name="n"'
FORM = b"multipart/form-data; boundary=b"


@given(value=st.binary(max_size=200), name=st.text("abcdefgh-_.", min_size=1))
def test_a_form_is_read_whatever_its_file_holds(value: bytes, name: str) -> None:
    if b"\r\n--b" in b"\r\n" + value or name.startswith("--b"):
        return
    data = form(('Content-Disposition: form-data; name="file"; filename="x"', value), (MODEL, name.encode()))
    read = read_form(data, FORM)
    assert (read.answers, read.has_files) == (1, True)
    start, end = read.model_span
    assert (read.model, data[start:end]) == (name, name.encode())


def test_a_form_says_how_many_pictures_it_wants() -> None:
    read = read_form(form((MODEL, b"a"), (COUNT, b"4")), FORM)
    assert (read.answers, read.has_files) == (4, False)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (form((MODEL, b"a"), (COUNT, b"-4")), FORM, 400),
        (form((MODEL, b"a"), (COUNT, b"4" * 5000)), FORM, 400),
        (form((MODEL, b"a"), (MODEL, b"b")), FORM, 400),
        (form((MODEL, b"")), FORM, 400),
        (form(('Content-Disposition: form-data; name="prompt"', b"a")), FORM, 400),
        (form(("Content-Disposition: form-data; name=model", b"a")), FORM, 400),
        (form(('Content-Disposition: form-data; name="mod%65l"', b"a")), FORM, 400),
        (form((f"{MODEL}\r\n{MODEL}", b"a")), FORM, 400),
        (form((f"{MODEL}\r\n folded", b"a")), FORM, 400),
        (form((MODEL, b"a"), end=b""), FORM, 400),
        (form((MODEL, b"a"), end=b"--b--\r\nmore"), FORM, 400),
        (b"preamble\r\n" + form((MODEL, b"a")), FORM, 400),
        (form((MODEL, b"a")), b"application/json", 415),
        (form((MODEL, b"a")), b"multipart/form-data; boundary=b; boundary=c", 415),
    ],
)
def test_a_form_two_servers_could_read_differently_is_refused(body: bytes, content_type: bytes, status: int) -> None:
    with pytest.raises(Fault) as refused:
        read_form(body, content_type)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"input_tokens": 5, "output_tokens": 2}, Usage(5, 2)),
        ({"input_tokens": 5, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}}, Usage(5, 2, 4)),
        ({"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 10}, Usage(15, 2, 10)),
        (
            {"input_tokens": 5, "cache_creation_input_tokens": 3, "cache_read_input_tokens": None},
            Usage(8, 0, written_tokens=3),
        ),
        ({"total_tokens": 11}, Usage(11, 0)),
        ({"input_tokens": -1, "output_tokens": 2}, None),
    ],
)
def test_usage_is_read_in_every_dialect(said: dict[str, object], expected: Usage | None) -> None:
    assert find_usage(json.dumps({"usage": said}).encode()) == expected


async def test_an_image_is_edited_by_form_or_by_json(tmp_path: Path, upstream: MockUpstream) -> None:
    body = {"model": "tiny", "prompt": "add a hat", "images": [{"image_url": "https://example.com/a.png"}]}
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        json_line = "Content-Type: application/json; charset=utf-8\r\n"
        told = await ask(bench.port, post(body, path="/v1/images/edits", headers=json_line))
        refused = await ask(bench.port, post(body, path="/v1/audio/translations", headers=json_line))
    assert told.status == 200 and json.loads(upstream.seen[0].body) == body
    assert upstream.seen[0].headers["content-type"] == "application/json"
    assert (refused.status, refused.error["code"]) == (415, "unsupported_media_type")
