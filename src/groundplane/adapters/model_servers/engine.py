"""The embedded CPU model server: one Hugging Face Llama folder behind the OpenAI API, as a process of its own.

    python -m groundplane.adapters.model_servers.engine --model-dir DIR --name NAME --port 0 --port-file PATH

Binds loopback only: callers come through the gateway, which knows keys, limits and prices; this process knows none.
The port is open at once and answers 503 until the model is loaded. SIGTERM finishes what is running, then exits 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import uvicorn
import uvloop
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from groundplane.adapters.model_servers.completion_request import (
    ApiError,
    Ask,
    Defaults,
    parse_chat,
    parse_completion,
)
from groundplane.adapters.model_servers.generation import Engine, Finished, Piece, load_timed
from groundplane.errors import GroundError

CLIENT_CLOSED_REQUEST = 499
Parse = Callable[[bytes, Defaults], Ask]


class Metrics:
    """What Prometheus scrapes. Token counts are by what was computed, also for callers that left early."""

    def __init__(self, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "groundplane_engine_requests", "Answered requests.", ["endpoint", "code"], registry=self.registry
        )
        self.prompt_tokens = Counter("groundplane_engine_prompt_tokens", "Prompt tokens read.", registry=self.registry)
        self.completion_tokens = Counter(
            "groundplane_engine_completion_tokens", "Tokens generated.", registry=self.registry
        )
        self.cancelled = Counter(
            "groundplane_engine_cancelled", "Generations whose caller left.", registry=self.registry
        )
        self.first_token_s = Histogram(
            "groundplane_engine_time_to_first_token_seconds",
            "From request to first text.",
            registry=self.registry,
        )
        self.duration_s = Histogram(
            "groundplane_engine_request_duration_seconds", "From request to last byte.", registry=self.registry
        )
        self.load_s = Gauge("groundplane_engine_model_load_seconds", "Conversion and loading.", registry=self.registry)
        for name, read in (("running", running), ("waiting", waiting)):
            Gauge(f"groundplane_engine_requests_{name}", f"Requests {name} now.", registry=self.registry).set_function(
                read
            )


@dataclass(slots=True)
class Answer:
    """One generation on its way out: its id, its sizes and its clock."""

    id: str
    model: str
    chat: bool
    prompt_tokens: int
    created: int = field(default_factory=lambda: int(time.time()))
    started: float = field(default_factory=time.monotonic)
    completion_tokens: int = 0

    def usage(self) -> dict[str, object]:
        """This engine keeps no cache between requests, so no prompt token is ever a cached one."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    def envelope(self, choices: list[dict[str, object]], *, chunk: bool) -> dict[str, object]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def whole(self, text: str, reason: str) -> dict[str, object]:
        said: dict[str, object] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice: dict[str, object] = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return {**self.envelope([choice], chunk=False), "usage": self.usage()}

    def chunk(self, text: str | None, reason: str | None = None, *, first: bool = False) -> dict[str, object]:
        said: dict[str, object]
        if self.chat:
            delta: dict[str, object] = {"role": "assistant"} if first else {}
            if text is not None:
                delta["content"] = text
            said = {"delta": delta}
        else:
            said = {"text": text or ""}
        return self.envelope([{"index": 0, **said, "logprobs": None, "finish_reason": reason}], chunk=True)


class Server:
    """The HTTP face of one engine. `engine` is None until the model is loaded."""

    def __init__(self, name: str, body_max_bytes: int) -> None:
        self.name = name
        self.engine: Engine | None = None
        self.draining = False
        self.loaded_at = 0
        self._body_max_bytes = body_max_bytes
        self.metrics = Metrics(
            lambda: self.engine.running if self.engine else 0, lambda: self.engine.waiting if self.engine else 0
        )

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route("/v1/models", self._models),
                Route("/v1/models/{model:path}", self._model),
                Route("/v1/completions", self._handler(parse_completion), methods=["POST"]),
                Route("/v1/chat/completions", self._handler(parse_chat), methods=["POST"]),
            ],
            exception_handlers={404: _plain_error, 405: _plain_error},
        )

    async def _health(self, request: Request) -> Response:
        if self.draining or self.engine is None:
            return JSONResponse({"status": "draining" if self.draining else "loading"}, status_code=503)
        return JSONResponse({"status": "ok", "model": self.name})

    async def _metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4")

    def _card(self) -> dict[str, object]:
        context = {"max_model_len": self.engine.model.config.context} if self.engine else {}
        return {
            "id": self.name,
            "object": "model",
            "created": self.loaded_at,
            "owned_by": "groundplane",
            **context,
        }

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _model(self, request: Request) -> Response:
        if request.path_params["model"] != self.name:
            return _error_response(self._unknown(request.path_params["model"]))
        return JSONResponse(self._card())

    def _unknown(self, model: str) -> ApiError:
        return ApiError(
            404,
            f"the model {model!r} is not served here; this server serves {self.name!r}",
            code="model_not_found",
            param="model",
        )

    def _handler(self, parse: Parse) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            try:
                response = await self._complete(request, parse)
            except ApiError as error:
                response = _error_response(error)
            except RuntimeError as error:  # what CTranslate2 raises
                _say(f"error: generation failed: {error}", sys.stderr)
                response = _error_response(ApiError(500, f"generation failed: {error}", kind="server_error"))
            except ClientDisconnect:
                response = Response(status_code=CLIENT_CLOSED_REQUEST)
            self.metrics.requests.labels(request.url.path, str(response.status_code)).inc()
            return response

        return handle

    async def _complete(self, request: Request, parse: Parse) -> Response:
        body = await self._body(request)
        engine = self.engine
        if engine is None or self.draining:
            state = "stopping" if self.draining else "loading its model"
            raise ApiError(
                503,
                f"the server is {state}; try again shortly",
                kind="server_error",
                code="unavailable",
                retry_after_s=1,
            )
        ask = parse(body, engine.model.defaults)
        if ask.model != self.name:
            raise self._unknown(ask.model)
        # Long prompts take tokenizers a while; other callers' tokens go on meanwhile.
        ids, limit = await asyncio.to_thread(engine.prepare, ask)
        chat = ask.messages is not None
        answer = Answer(f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", self.name, chat, prompt_tokens=len(ids))
        place = contextlib.ExitStack()
        place.enter_context(engine.reserve())
        events = self._measured(answer, engine.stream(ids, limit, ask.sampling), place)
        if ask.stream:
            return StreamingResponse(
                _server_sent(answer, events, ask.include_usage),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        return await _unless_gone(request, _collect(answer, events))

    async def _body(self, request: Request) -> bytes:
        """The request body, refused as soon as it is known to be too long."""
        announced, size, parts = request.headers.get("content-length", "0"), 0, []
        too_large = ApiError(413, f"the body is over {self._body_max_bytes} bytes", code="request_too_large")
        if announced.isdigit() and int(announced) > self._body_max_bytes:
            raise too_large
        async for part in request.stream():
            size += len(part)
            if size > self._body_max_bytes:
                raise too_large
            parts.append(part)
        return b"".join(parts)

    async def _measured(
        self, answer: Answer, events: AsyncGenerator[Piece | Finished, None], place: contextlib.ExitStack
    ) -> AsyncGenerator[Piece | Finished, None]:
        """The same events, with the books kept: places, tokens, times, callers that left."""
        first, finished = True, False
        self.metrics.prompt_tokens.inc(answer.prompt_tokens)
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    if first:
                        self.metrics.first_token_s.observe(time.monotonic() - answer.started)
                        first = False
                    if isinstance(event, Finished):
                        answer.completion_tokens, finished = event.completion_tokens, True
                        self.metrics.completion_tokens.inc(event.completion_tokens)
                    yield event
        finally:
            place.close()
            self.metrics.duration_s.observe(time.monotonic() - answer.started)
            if not finished:
                self.metrics.cancelled.inc()


async def _collect(answer: Answer, events: AsyncGenerator[Piece | Finished, None]) -> Response:
    texts: list[str] = []
    reason = "length"
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Piece):
                texts.append(event.text)
            else:
                reason = event.reason
    return JSONResponse(answer.whole("".join(texts), reason))


async def _server_sent(
    answer: Answer, events: AsyncGenerator[Piece | Finished, None], include_usage: bool
) -> AsyncIterator[bytes]:
    """The answer as server-sent events; once the status line is out, a failure can only be said in the stream."""
    async with contextlib.aclosing(events):
        if answer.chat:
            yield _event(answer.chunk("", first=True))
        try:
            async for event in events:
                if isinstance(event, Piece):
                    yield _event(answer.chunk(event.text))
                else:
                    yield _event(answer.chunk(None, event.reason))
        except RuntimeError as error:  # what CTranslate2 raises
            _say(f"error: generation {answer.id} failed: {error}", sys.stderr)
            yield _event(ApiError(500, f"generation failed: {error}", kind="server_error").body())
            return
        if include_usage:
            yield _event({**answer.envelope([], chunk=True), "usage": answer.usage()})
        yield b"data: [DONE]\n\n"


def _event(content: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The answer, or nothing when the caller hangs up first; then the generation stops too."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answering, watching = asyncio.create_task(work), asyncio.create_task(hung_up())
    try:
        await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        answering.cancel()
        watching.cancel()
        await asyncio.gather(answering, watching, return_exceptions=True)


def _error_response(error: ApiError) -> Response:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def _plain_error(request: Request, error: Exception) -> Response:
    status = int(getattr(error, "status_code", 500))
    said = "no such path" if status == 404 else f"{request.method} is not allowed here"
    return _error_response(ApiError(status, f"{said}: {request.url.path}", code="not_found"))


class _Uvicorn(uvicorn.Server):
    """Uvicorn with its signal handling left to us: it would end the process by the signal instead of with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(args: argparse.Namespace) -> int:
    """Opens the port, loads the model beside it, serves until SIGTERM or SIGINT. Returns the exit status."""
    listening = socket.create_server((args.host, args.port), backlog=512)
    host, port = listening.getsockname()[:2]
    if args.port_file:
        partial = args.port_file.with_name(f".{args.port_file.name}.partial")
        partial.write_text(f"{port}\n")
        partial.replace(args.port_file)
    face = Server(args.name, args.body_max_bytes)
    http = _Uvicorn(
        uvicorn.Config(
            face.app(),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=args.drain_timeout_s,
        )
    )

    def stop() -> None:
        face.draining = http.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    serving = asyncio.create_task(http.serve(sockets=[listening]))
    parallel = args.parallel or args.threads
    try:
        model, seconds = await asyncio.to_thread(
            load_timed,
            args.model_dir,
            args.cache_dir,
            parallel=parallel,
            threads_each=max(1, args.threads // parallel),
        )
    except GroundError as error:
        _say(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), sys.stderr)
        stop()
        await serving
        return error.exit_code
    face.metrics.load_s.set(seconds)
    face.engine, face.loaded_at = Engine(model, parallel=parallel, queue=args.queue), int(time.time())
    _say(f"serving {args.name} on http://{host}:{port} (loaded in {seconds:.2f} s)", sys.stdout)
    await serving
    face.engine.close()
    _say("stopped", sys.stdout)
    return 0


def _say(line: str, stream: TextIO) -> None:
    """A line for the process's log, at once: the runner ships it while the server runs."""
    stream.write(line + "\n")
    stream.flush()


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="groundplane-engine", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model-dir", type=Path, required=True, help="Hugging Face folder of a Llama model")
    parser.add_argument("--name", required=True, help="the name callers put in `model`")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="gets the port as text once it is open")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads in all")
    parser.add_argument("--parallel", type=int, default=0, help="generations at once; 0 is one per thread")
    parser.add_argument("--queue", type=int, default=64, help="requests that may wait for their turn")
    parser.add_argument("--cache-dir", type=Path, required=True, help="where converted weights are kept")
    parser.add_argument("--body-max-bytes", type=int, default=1 << 20)
    parser.add_argument("--drain-timeout-s", type=int, default=30, help="how long SIGTERM waits for running answers")
    args = parser.parse_args(argv)
    if not ipaddress.ip_address(args.host).is_loopback:
        parser.error(f"--host {args.host} is not a loopback address; expose models through the gateway")
    if args.threads < 1 or args.parallel < 0 or args.queue < 0:
        parser.error("--threads must be at least 1, --parallel and --queue at least 0")
    return args


def main(argv: list[str] | None = None) -> int:
    args = _parse_args(argv)
    # Idle OpenMP threads spin by default and starve the other generations of their cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(serve(args))
        except OSError as error:
            _say(f"error: can't listen on {args.host}:{args.port}: {error}", sys.stderr)
            return 6


if __name__ == "__main__":
    sys.exit(main())
