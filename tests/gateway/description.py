"""The gateway against OpenAI's description of its API, played by schemathesis: `python -m tests.gateway.description`.

A description comes from the official client's types, which are made from the one that OpenAI publishes, so it is as new
as the client. Or, with `--file openapi.json`, it is a published document itself, cut to the paths that the gateway
serves, with errors and events of streams from the client's types where an older document says them in prose only.
Requests of its shapes, and of shapes it forbids, are sent through a gateway to an upstream that answers well:

* every one has an answer, whole, and never a 5xx; a request that is forwarded arrives as it was sent;
* answers, errors and each event of a stream, usage among them, have the shapes that are described.

Exits 1 when something of that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonschema
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from openai import types
from openai._types import FileTypes
from openai.types import audio, chat, responses, shared
from pydantic import TypeAdapter
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.gateway.harness import (
    DONE,
    SECRET,
    Exchange,
    MockUpstream,
    completion,
    key,
    route,
    running,
    usage_event,
)

from groundplane.gateway.protocol.doors import DOORS
from groundplane.gateway.state import Options

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
REFUSED_ONE_IN = 8
"""So many requests name a model as it was drawn; the others name the one that is served."""
STREAM_ONE_IN = 3
"""So many requests ask for a stream where there is one; of the others, those that were drawn so."""

# ---------------------------------------------------------------- the description


@functools.cache
def of_the_client() -> dict[str, Any]:
    """An OpenAPI document of the paths we serve, from the types of the installed client."""
    asked: dict[str, tuple[Any, Any, Any]] = {  # path: request, answer, event of a stream
        "chat/completions": (
            chat.completion_create_params.CompletionCreateParams,
            chat.ChatCompletion,
            chat.ChatCompletionChunk,
        ),
        "completions": (types.completion_create_params.CompletionCreateParams, types.Completion, types.Completion),
        "responses": (
            responses.response_create_params.ResponseCreateParams,
            responses.Response,
            responses.ResponseStreamEvent,
        ),
        "embeddings": (types.EmbeddingCreateParams, types.CreateEmbeddingResponse, None),
        "moderations": (types.ModerationCreateParams, types.ModerationCreateResponse, None),
        "images/generations": (types.image_generate_params.ImageGenerateParamsNonStreaming, types.ImagesResponse, None),
        "audio/speech": (audio.SpeechCreateParams, None, None),
    }
    forms = {
        "images/edits": (types.image_edit_params.ImageEditParamsNonStreaming, types.ImagesResponse),
        "images/variations": (types.ImageCreateVariationParams, types.ImagesResponse),
        "audio/transcriptions": (
            audio.transcription_create_params.TranscriptionCreateParamsNonStreaming,
            audio.Transcription,
        ),
        "audio/translations": (audio.TranslationCreateParams, audio.Translation),
    }
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for path, (request, answer, streamed) in asked.items():
        body = {"application/json": {"schema": _named(schemas, request)}}
        paths["/" + path] = {"post": _operation(schemas, answer, streamed, body)}
    for path, (request, answer) in forms.items():
        paths["/" + path] = {
            "post": _operation(schemas, answer, None, {"multipart/form-data": _form(schemas, request)})
        }
    models = {"type": "object", "required": ["object", "data"], "properties": {"object": {"const": "list"}}}
    models["properties"]["data"] = {"type": "array", "items": _named(schemas, types.Model)}
    paths["/models"] = {"get": _operation(schemas, models, None, None)}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/models/{model}"] = {"get": _operation(schemas, types.Model, None, None) | {"parameters": [name]}}
    schemas["ErrorResponse"] = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": _named(schemas, shared.ErrorObject)},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "types of openai", "version": types.__name__},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _named(schemas: dict[str, Any], shape: Any) -> dict[str, Any]:
    """A reference to the shape's schema, which stands with all that it needs among the document's."""
    name = f"Shape{len(schemas)}"  # what shapes call their parts is unique within each of them only
    schemas[name] = _schema(schemas, shape, name)
    return {"$ref": f"#/components/schemas/{name}"}


def _schema(schemas: dict[str, Any], shape: Any, prefix: str) -> dict[str, Any]:
    schema = TypeAdapter(shape).json_schema(ref_template=f"#/components/schemas/{prefix}.{{model}}")
    schemas.update({f"{prefix}.{name}": one for name, one in schema.pop("$defs", {}).items()})
    return schema


def _operation(schemas: dict[str, Any], answer: Any, streamed: Any, body: dict[str, Any] | None) -> dict[str, Any]:
    content: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    if answer is not None:
        schema = answer if isinstance(answer, dict) else _named(schemas, answer)
        content = {"application/json": {"schema": schema}}
    if streamed is not None:
        content["text/event-stream"] = {"schema": _named(schemas, streamed)}
    told: dict[str, Any] = {"responses": {"200": {"description": "OK", "content": content}}}
    if body is not None:
        told["requestBody"] = {"required": True, "content": body}
    return told


def _form(schemas: dict[str, Any], shape: Any) -> dict[str, Any]:
    binary = {"type": "string", "format": "binary"}
    members: dict[str, Any] = {}
    for name, hint in get_type_hints(shape).items():
        if hint == FileTypes or FileTypes in get_args(hint) or "FileContent" in str(hint) or "PathLike" in str(hint):
            members[name] = binary
        else:
            members[name] = _schema(schemas, hint, f"{shape.__name__}.{name}")
    needed = sorted(shape.__required_keys__)
    return {"schema": {"type": "object", "required": needed, "properties": members, "additionalProperties": False}}


def cut(document: dict[str, Any]) -> dict[str, Any]:
    """A published description's operations that we serve, and what they reach; any 4xx is an error in its shape."""
    client = of_the_client()
    served = {door.path.decode().removeprefix("/v1"): "post" for door in DOORS.values()}
    served |= {"/models": "get", "/models/{model}": "get"}
    paths: dict[str, Any] = {}
    for path, method in served.items():
        if path in document["paths"]:
            operation = document["paths"][path][method]
            told = operation["responses"]["200"]
            if "/v1" + path in _STREAMS:
                streamed = client["paths"][path][method]["responses"]["200"]["content"]["text/event-stream"]
                told = told | {"content": {"text/event-stream": streamed} | told["content"]}
            paths[path] = {method: operation | {"responses": {"200": told, "4XX": _REFUSED}}}
    schemas = client["components"]["schemas"] | document["components"]["schemas"]
    components = document["components"] | {"schemas": schemas}
    reached: dict[str, Any] = {}
    waiting = [paths]
    while waiting:
        for reference in _references(waiting.pop()):
            kind, name = reference.split("/")[2:4]
            if name not in reached.setdefault(kind, {}):
                reached[kind][name] = components[kind][name]
                waiting.append(reached[kind][name])
    return {"openapi": document["openapi"], "info": document["info"], "paths": paths, "components": reached}


_ERROR = {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}
_REFUSED = {"description": "refused", "content": {"application/json": _ERROR}}
_STREAMS = {door.path.decode() for door in DOORS.values() if door.stream is not None}


def _references(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_references, value))
    if not isinstance(value, dict):
        return set()
    mine = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
    return mine.union(*map(_references, value.values()))


# ---------------------------------------------------------------- an upstream that answers well

_IMAGES = {"created": 1, "data": [{"b64_json": "aGk="}]}
_FLAGS = {
    name: TypeAdapter(shape).json_schema(by_alias=True)["properties"]
    for name, shape in (
        ("categories", types.moderation.Categories),
        ("category_scores", types.moderation.CategoryScores),
        ("category_applied_input_types", types.moderation.CategoryAppliedInputTypes),
    )
}
_VALUES: dict[str, Any] = {"categories": False, "category_scores": 0.25, "category_applied_input_types": ["text"]}
_RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "completed_at": 2,
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "metadata": {},
    "model": "tiny",
    "output": [],
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "top_p": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 12,
    },
}
_CHOICE = {"index": 0, "message": {"role": "assistant", "content": "hi", "refusal": None}, "finish_reason": "stop"}
_TEXT_CHOICE = {"index": 0, "text": "hi", "logprobs": None, "finish_reason": "stop"}
_TEXT = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "tiny", "choices": [_TEXT_CHOICE]}
_USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
ANSWERS: dict[str, Any] = {
    "/v1/chat/completions": completion() | {"choices": [_CHOICE | {"logprobs": None}]},
    "/v1/completions": _TEXT | {"usage": _USAGE},
    "/v1/responses": _RESPONSE,
    "/v1/embeddings": {
        "object": "list",
        "model": "tiny",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    },
    "/v1/moderations": {
        "id": "modr-1",
        "model": "tiny",
        "results": [{"flagged": False} | {one: dict.fromkeys(_FLAGS[one], _VALUES[one]) for one in _FLAGS}],
    },
    "/v1/images/generations": _IMAGES,
    "/v1/images/edits": _IMAGES,
    "/v1/images/variations": _IMAGES,
    "/v1/audio/transcriptions": {"text": "hi"},
    "/v1/audio/translations": {"text": "hi"},
}


def _streamed(path: str) -> list[bytes]:
    if path == "/v1/responses":
        told: dict[str, Any] = {"type": "response.completed", "sequence_number": 1, "response": _RESPONSE}
        return [b"event: response.completed\ndata: %b\n\n" % json.dumps(told).encode()]
    if path == "/v1/chat/completions":
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
        choice = {"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}
        return [b"data: %b\n\n" % json.dumps(chunk | {"choices": [choice]}).encode(), usage_event(), DONE]
    text, used = _TEXT, _TEXT | {"choices": [], "usage": _USAGE}
    return [b"data: %b\n\n" % json.dumps(one).encode() for one in (text, used)] + [DONE]


async def answers_well(exchange: Exchange) -> None:
    path, body = exchange.seen.path, exchange.seen.body
    if path == "/v1/audio/speech":
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 2\r\n\r\nhi"
        await exchange.send(head)
    elif path in _STREAMS and json.loads(body).get("stream") is True:
        await exchange.begin_stream()
        for one in _streamed(path):
            await exchange.chunk(one)
        await exchange.end()
    else:
        await exchange.json(ANSWERS[path])


# ---------------------------------------------------------------- playing


@dataclass
class Play:
    """What was sent to one gateway, what came of it, and what did not hold. Runs beside the gateway's loop."""

    base_url: str
    upstream: MockUpstream
    document: dict[str, Any]
    examples: int
    seed: int
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    relayed: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def play(self) -> None:
        """Each operation with requests of its shapes, and with requests of other shapes."""
        schema = schemathesis.openapi.from_dict(self.document)
        with requests.Session() as self.session:
            for found in schema.get_all_operations():
                operation = found.ok()
                self._operation(operation, GenerationMode.POSITIVE)
                content = operation.definition.raw.get("requestBody", {}).get("content", {})
                if list(content) == ["application/json"]:  # what a form must not be, schemathesis can't say
                    self._operation(operation, GenerationMode.NEGATIVE)

    def _operation(self, operation: Any, mode: GenerationMode) -> None:
        rounds = settings(
            max_examples=self.examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        number = 0

        @seed(self.seed)
        @rounds
        @given(case=operation.as_strategy(generation_mode=mode))
        def each(case: Case) -> None:
            nonlocal number
            number += 1
            if self.stop.is_set() or len(self.broken) > 20:
                return
            if number % REFUSED_ONE_IN:
                _name_the_model(case)
            if number % STREAM_ONE_IN == 0 and "/v1" + case.operation.path in _STREAMS and isinstance(case.body, dict):
                case.body["stream"] = True
            self._send(case)

        each()

    def _send(self, case: Case) -> None:
        path = case.operation.path
        before = len(self.upstream.seen)
        try:
            answer = case.call(
                base_url=self.base_url, session=self.session, headers={"authorization": f"Bearer {SECRET}"}
            )
        except requests.RequestException as error:
            self.broken.append(f"{path}: no whole answer: {error!r}\n{case.as_curl_command()}")
            return
        self.answered[path, answer.status_code] += 1
        is_stream = "event-stream" in str(answer.headers.get("content-type"))
        try:
            case.validate_response(answer, checks=CHECKS[:-1] if is_stream else CHECKS)
        except FailureGroup as failed:
            self.broken += [f"{path}: {one}\n{case.as_curl_command()}" for one in failed.exceptions]
        forwarded = self.upstream.seen[before:]
        if forwarded:
            self.relayed[path] += 1
            self._compare(path, answer.request, forwarded[-1].body)
        if is_stream:
            self._check_events(path, answer.text)

    def _compare(self, path: str, sent: Any, arrived: bytes) -> None:
        """Byte for byte; but a stream that does not ask for its usage is made to."""
        body = sent.body.encode() if isinstance(sent.body, str) else sent.body
        if body == arrived:
            return
        asked, came = json.loads(body), json.loads(arrived)
        options = came.pop("stream_options", None) or {}
        wanted = asked.pop("stream_options", None) or {}
        if asked != came or options != wanted | {"include_usage": True}:
            self.broken.append(f"{path}: {body!r} arrived as {arrived!r}")

    def _check_events(self, path: str, text: str) -> None:
        described = self.document["paths"][path]["post"]["responses"]["200"]["content"].get("text/event-stream")
        if described is None:
            return
        schema = {**described["schema"], "components": self.document["components"]}
        for line in text.splitlines():
            if line.startswith("data: ") and line != "data: [DONE]":
                self.events[path] += 1
                for error in jsonschema.Draft202012Validator(schema).iter_errors(json.loads(line[6:])):
                    self.broken.append(f"{path}: event {line[:200]}: {error.message[:300]}")


def _name_the_model(case: Case) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("model", ""), str):
        case.body["model"] = "tiny"
    if case.operation.path == "/models/{model}":
        case.path_parameters["model"] = "tiny"


async def play(document: dict[str, Any], *, examples: int, chance: int = 1) -> Play:
    """One gateway, one upstream, `examples` requests of each operation in each mode."""
    upstream = MockUpstream(answers_well)
    await upstream.start()
    routes = (route("tiny", upstream.base_url),)
    with tempfile.TemporaryDirectory() as folder:
        async with running(Path(folder), Options(drain_s=0.2), keys=(key(),), routes=routes) as bench:
            one = Play(bench.base_url, upstream, cut(document), examples, chance)
            try:
                await asyncio.to_thread(one.play)
            finally:
                one.stop.set()
    await upstream.stop()
    return one


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--file", type=Path, help="the published openapi.json, instead of the client's types")
    arguments.add_argument("--examples", type=int, default=300, help="requests of each operation and mode")
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    document = of_the_client() if options.file is None else json.loads(options.file.read_text())
    one = asyncio.run(play(document, examples=options.examples, chance=options.seed))
    statuses = Counter(status for (_, status), count in one.answered.items() for _ in range(count))
    print(
        f"{sum(one.answered.values())} requests to {len(one.document['paths'])} paths: "
        f"{', '.join(f'{count} × {status}' for status, count in sorted(statuses.items()))}; "
        f"{sum(one.relayed.values())} relayed, {sum(one.events.values())} events checked; {len(one.broken)} broken"
    )
    for words in one.broken:
        print(f"BROKEN: {words}")
    return 1 if one.broken else 0


if __name__ == "__main__":
    sys.exit(main())
