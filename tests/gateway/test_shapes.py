"""The gateway against the shapes of OpenAI's API, as the official client's types describe them.

Whatever may be asked arrives byte for byte, whatever may be answered comes back byte for byte and is read by the client
in its strict mode, and what the gateway says by itself has the shapes that the client expects.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.pagination import SyncPage
from openai.types import (
    Completion,
    CreateEmbeddingResponse,
    ImagesResponse,
    Model,
    ModerationCreateResponse,
    completion_create_params,
    embedding_create_params,
    image_generate_params,
    moderation_create_params,
)
from openai.types.audio import speech_create_params
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import Response, ResponseStreamEvent, response_create_params
from openai.types.shared import ErrorObject
from pydantic import TypeAdapter
from tests.gateway.harness import (
    SECRET,
    Bench,
    Exchange,
    MockUpstream,
    RawClient,
    ask,
    chat,
    get,
    key,
    post,
    route,
    running,
)
from tests.gateway.shapes import schema_of, values

ROUNDS = settings(
    max_examples=2, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
MANY = 20
"""Values a round; each round is one gateway with one upstream."""

ASKED = {
    "/v1/chat/completions": chat_create_params.CompletionCreateParamsNonStreaming,
    "/v1/completions": completion_create_params.CompletionCreateParamsNonStreaming,
    "/v1/responses": response_create_params.ResponseCreateParamsNonStreaming,
    "/v1/embeddings": embedding_create_params.EmbeddingCreateParams,
    "/v1/moderations": moderation_create_params.ModerationCreateParams,
    "/v1/images/generations": image_generate_params.ImageGenerateParamsNonStreaming,
    "/v1/audio/speech": speech_create_params.SpeechCreateParams,
}
ANSWERED = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/v1/responses": Response,
    "/v1/embeddings": CreateEmbeddingResponse,
    "/v1/moderations": ModerationCreateResponse,
    "/v1/images/generations": ImagesResponse,
}
STREAMED = {"/v1/chat/completions": ChatCompletionChunk, "/v1/responses": ResponseStreamEvent}


async def _each(bench: Bench, path: str, bodies: list[bytes]) -> list[bytes]:
    """Asks one after the other on one connection; every answer is a 200."""
    client = await RawClient.open(bench.port)
    answers = []
    for body in bodies:
        await client.send(post(body, path=path))
        answer = await client.answer()
        assert answer.status == 200, (answer.body, body)
        answers.append(answer.body)
    await client.close()
    return answers


def _play(folder: Path, upstream: MockUpstream, work: Any) -> None:
    async def play() -> None:
        await upstream.start()
        try:
            async with running(folder, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
                await work(bench)
        finally:
            await upstream.stop()

    asyncio.run(play())


@pytest.mark.parametrize("path", ASKED)
def test_whatever_may_be_asked_arrives_byte_for_byte(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    shapes = values(schema_of(ASKED[path]), fixed={"model": "tiny", "stream": None, "background": None})

    @ROUNDS
    @given(st.lists(shapes, min_size=MANY, max_size=MANY))
    def play(asked: list[Any]) -> None:
        bodies = [json.dumps(one, ensure_ascii=bool(number % 2)).encode() for number, one in enumerate(asked)]

        async def answer(exchange: Exchange) -> None:
            await exchange.json({"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})

        upstream = MockUpstream(answer)
        _play(tmp_path_factory.mktemp("asked"), upstream, lambda bench: _each(bench, path, bodies))
        assert [seen.body for seen in upstream.seen] == bodies
        assert {seen.path for seen in upstream.seen} == {path}

    play()


@pytest.mark.parametrize("path", ANSWERED)
def test_whatever_may_be_answered_comes_back_and_the_client_reads_it(
    tmp_path_factory: pytest.TempPathFactory, path: str
) -> None:
    shape = ANSWERED[path]
    reader = TypeAdapter(shape)

    @ROUNDS
    @given(st.lists(values(schema_of(shape)), min_size=MANY, max_size=MANY))
    def play(answered: list[Any]) -> None:
        bodies = [json.dumps(one).encode() for one in answered]
        left = iter(bodies)

        async def answer(exchange: Exchange) -> None:
            await exchange.json(next(left))

        async def work(bench: Bench) -> None:
            came = await _each(bench, path, [json.dumps({"model": "tiny", "input": "x"}).encode()] * MANY)
            assert came == bodies
            for body in came:
                reader.validate_json(body)
            assert len(await bench.records()) == MANY

        _play(tmp_path_factory.mktemp("answered"), MockUpstream(answer), work)

    play()


@pytest.mark.parametrize("path", STREAMED)
def test_whatever_may_be_streamed_comes_back_and_the_client_reads_it(
    tmp_path_factory: pytest.TempPathFactory, path: str
) -> None:
    schema = schema_of(STREAMED[path])

    @ROUNDS
    @given(st.lists(values(schema).filter(_goes_on), min_size=MANY, max_size=MANY))
    def play(events: list[Any]) -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.begin_stream()
            for one in events:
                name = f"event: {one['type']}\n" if path == "/v1/responses" else ""
                await exchange.chunk(f"{name}data: {json.dumps(one)}\n\n".encode())
            end = "[DONE]" if path != "/v1/responses" else json.dumps({"type": "response.completed", "response": {}})
            name = "" if path != "/v1/responses" else "event: response.completed\n"
            await exchange.chunk(f"{name}data: {end}\n\n".encode())
            await exchange.end()

        async def work(bench: Bench) -> None:
            client = openai.AsyncOpenAI(base_url=bench.base_url, api_key=SECRET, max_retries=0)
            stream: Any
            if path == "/v1/responses":
                stream = await client.responses.create(model="tiny", input="x", stream=True)
            else:
                messages: Any = [{"role": "user", "content": "x"}]
                stream = await client.chat.completions.create(
                    model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
                )
            came = [one.to_dict(mode="json", exclude_unset=True) async for one in stream]
            assert [one.get("type") for one in came if _goes_on(one)] == [one.get("type") for one in events]
            await client.close()

        _play(tmp_path_factory.mktemp("streamed"), MockUpstream(answer), work)

    play()


def _goes_on(event: dict[str, Any]) -> bool:
    """Whether a stream may go on after it: not what ends one, nor an error."""
    ends = {"error", "response.completed", "response.failed", "response.incomplete"}
    return event.get("type") not in ends and "error" not in event


async def test_what_the_gateway_says_by_itself_has_the_client_s_shapes(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key(), key("narrow", id="key-2", models=("other",)), key("slow", id="key-3", requests_per_minute=0))
    async with running(tmp_path, keys=keys, routes=(route("tiny", upstream.base_url),)) as bench:
        listed = await ask(bench.port, get("/v1/models"))
        one = await ask(bench.port, get("/v1/models/tiny"))
        refused = [
            await ask(bench.port, post(chat(), secret="wrong")),
            await ask(bench.port, post(chat(), secret="narrow")),
            await ask(bench.port, post(chat(), secret="slow")),
            await ask(bench.port, post(chat() | {"model": "none"})),
            await ask(bench.port, post(b"{")),
            await ask(bench.port, post(chat(max_tokens="many"))),
            await ask(bench.port, get("/v1/models/none")),
            await ask(bench.port, get("/v1/nothing")),
            await ask(bench.port, get("/v1/chat/completions")),
        ]
    SyncPage[Model].model_validate_json(listed.body, strict=True)
    Model.model_validate_json(one.body, strict=True)
    assert [answer.status for answer in refused] == [401, 403, 429, 404, 400, 400, 404, 404, 405]
    for answer in refused:
        assert set(answer.json) == {"error"}
        ErrorObject.model_validate(answer.error, strict=True)
