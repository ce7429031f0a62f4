"""Requests as OpenTelemetry spans, by the conventions for generative AI, sent as OTLP over HTTP.

A request is one span; what it waited for are its children `queue`, `connect`, `first byte` and `relay`. No prompt and
no answer is in them. Spans go out in batches from a thread; while the collector is away they wait in a bounded buffer
and are sent again; what does not fit is dropped and counted. Messages are encoded by hand: five kinds of field, against
a dependency of many megabytes; the tests read them with the official definitions.
Source: opentelemetry-proto 1.x `trace.proto`; OTLP specification 1.x; semantic conventions for generative AI, 2026.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from groundplane import __version__
from groundplane.domain.serving.prediction import read_answer
from groundplane.gateway.telemetry.sighting import Sighting

SPANS_MAX = 8192
BATCH_MAX = 256
_BATCH_S = 1.0
_TIMEOUT_S = 10.0
_BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_AGAIN = frozenset({408, 429, 502, 503, 504})
_CLOSE_S = 4.0
_INTERNAL, _CLIENT = 1, 3
_STATUS_ERROR = 2
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_PROVIDERS = {"openai": "openai", "azure": "azure.ai.openai", "anthropic": "anthropic", "": "groundplane"}
_REQUEST = {
    "max_tokens": ("max_tokens", int),
    "max_completion_tokens": ("max_tokens", int),
    "max_output_tokens": ("max_tokens", int),
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", float),
    "frequency_penalty": ("frequency_penalty", float),
    "presence_penalty": ("presence_penalty", float),
    "seed": ("seed", int),
    "n": ("choice.count", int),
}
Value = str | bool | int | float | Sequence[str]


# ---------------------------------------------------------------- what a request is as spans


def attributes_of(seen: Sighting) -> dict[str, Value]:
    """By the conventions where they have a name, below `groundplane.` where they have none."""
    found: dict[str, Value] = {
        "gen_ai.operation.name": _OPERATIONS.get(seen.path, seen.path.removeprefix("/v1/").replace("/", "_")),
        "gen_ai.provider.name": _PROVIDERS.get(seen.kind, seen.kind),
        "gen_ai.request.model": seen.model,
        "gen_ai.request.stream": seen.stream,
        "gen_ai.usage.input_tokens": seen.prompt_tokens,
        "gen_ai.usage.output_tokens": seen.completion_tokens,
        "http.response.status_code": seen.status,
        "groundplane.request.id": seen.id,
        "groundplane.project": seen.project,
        "groundplane.key.id": seen.key_id,
        "groundplane.owner": seen.owner,
        "groundplane.target": seen.target,
        "groundplane.revision": seen.revision,
        "groundplane.cost.microusd": seen.microusd,
        "groundplane.usage.estimated": seen.estimated,
    }
    if seen.cached_tokens:
        found["gen_ai.usage.cache_read.input_tokens"] = seen.cached_tokens
    if seen.ttft_us is not None:
        found["gen_ai.response.time_to_first_chunk"] = seen.ttft_us / 1_000_000
    if seen.status >= 400:
        found["error.type"] = seen.error or str(seen.status)
    if seen.cached:
        found["groundplane.from_cache"] = True
    if seen.limit:
        found["groundplane.limit"] = seen.limit
    host, _, port = seen.address.rpartition(":")
    if seen.address:
        found["server.address"] = host if port.isdigit() else seen.address
        if port.isdigit():
            found["server.port"] = int(port)
    return found | _asked(seen.request) | _answered(seen.answer)


def _asked(body: bytes) -> dict[str, Value]:
    try:
        value = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    found: dict[str, Value] = {}
    for name, (attribute, kind) in _REQUEST.items():
        said = value.get(name)
        if isinstance(said, int | float) and not isinstance(said, bool) and (name != "n" or said != 1):
            found[f"gen_ai.request.{attribute}"] = kind(said)
    stop = value.get("stop", value.get("stop_sequences"))
    stops = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    if stops and all(isinstance(one, str) for one in stops):
        found["gen_ai.request.stop_sequences"] = stops
    return found


def _answered(body: bytes) -> dict[str, Value]:
    answered = read_answer(body)
    found: dict[str, Value] = {}
    if answered.model:
        found["gen_ai.response.model"] = answered.model
    if answered.id:
        found["gen_ai.response.id"] = answered.id
    if answered.finish_reasons:
        found["gen_ai.response.finish_reasons"] = answered.finish_reasons
    return found


def spans_of(seen: Sighting) -> list[bytes]:
    """The request's span, encoded, and its children."""
    trace, own = bytes.fromhex(seen.trace_id), bytes.fromhex(seen.span_id)
    begin = round(seen.at_s * 1e9)
    attributes = attributes_of(seen)
    name = f"{attributes['gen_ai.operation.name']} {seen.model}"
    end = begin + 1000 * seen.duration_us
    failed = seen.status >= 400
    spans = [_span(trace, own, bytes.fromhex(seen.parent_id), (name, _CLIENT, begin, end), attributes, failed)]
    at = begin
    for part, took_us in (
        ("queue", seen.queue_us),
        ("connect", seen.connect_us),
        ("first byte", seen.first_byte_us),
        ("relay", seen.relay_us),
    ):
        if took_us is None:
            break
        spans.append(_span(trace, os.urandom(8), own, (part, _INTERNAL, at, at + 1000 * took_us), {}, False))
        at += 1000 * took_us
    return spans


# ---------------------------------------------------------------- protocol buffers


def _varint(number: int) -> bytes:
    number &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _fixed64(field: int, number: int) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<Q", number)


def _any(value: Value) -> bytes:
    if isinstance(value, bool):
        return _varint(2 << 3) + _varint(int(value))
    if isinstance(value, str):
        return _bytes(1, value.encode("utf-8", "replace"))
    if isinstance(value, int):
        return _varint(3 << 3) + _varint(value)
    if isinstance(value, float):
        return _varint(4 << 3 | 1) + struct.pack("<d", value)
    return _bytes(5, b"".join(_bytes(1, _any(one)) for one in value))


def _attributes(field: int, values: Mapping[str, Value]) -> bytes:
    return b"".join(_bytes(field, _bytes(1, name.encode()) + _bytes(2, _any(value))) for name, value in values.items())


def _span(
    trace: bytes,
    own: bytes,
    parent: bytes,
    what: tuple[str, int, int, int],
    attributes: Mapping[str, Value],
    failed: bool,
) -> bytes:
    name, kind, begin, end = what
    status = _bytes(15, _varint(3 << 3) + _varint(_STATUS_ERROR)) if failed else b""
    return (
        _bytes(1, trace)
        + _bytes(2, own)
        + (_bytes(4, parent) if parent else b"")
        + _bytes(5, name.encode("utf-8", "replace"))
        + _varint(6 << 3)
        + _varint(kind)
        + _fixed64(7, begin)
        + _fixed64(8, end)
        + _attributes(9, attributes)
        + status
    )


def request_of(spans: Sequence[bytes], gateway_id: str) -> bytes:
    """An `ExportTraceServiceRequest`."""
    resource = _attributes(
        1,
        {
            "service.name": "groundplane-gateway",
            "service.version": __version__,
            "service.instance.id": f"{socket.gethostname()}/{gateway_id}",
        },
    )
    scope = _bytes(1, b"groundplane.gateway") + _bytes(2, __version__.encode())
    scoped = _bytes(1, scope) + b"".join(_bytes(2, span) for span in spans)
    return _bytes(1, _bytes(1, resource) + _bytes(2, scoped))


# ---------------------------------------------------------------- sending


class TraceExporter:
    """Buffers spans and sends them from a thread. `counts` gets `span/sent`, `span/dropped` and `span/failed`, which
    count requests."""

    def __init__(self, url: str, headers: str, gateway_id: str, counts: dict[str, int]) -> None:
        self._url = urlsplit(url)
        self._headers = parse_headers(headers)
        self._gateway_id = gateway_id
        self._counts = counts
        self._waiting: deque[list[bytes]] = deque()
        self._event = threading.Event()
        self._closing = False
        self._closes_at = float("inf")
        self.trouble = ""
        self._thread: threading.Thread | None = None

    def add(self, seen: Sighting) -> None:
        if len(self._waiting) >= SPANS_MAX:
            self._count("dropped", 1)
            return
        self._waiting.append(spans_of(seen))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
            self._thread.start()
        elif len(self._waiting) >= BATCH_MAX:
            self._event.set()

    def close(self) -> None:
        """Sends what waits, for a few seconds at most; the rest is dropped and counted."""
        if self._thread is not None:
            self._closes_at = time.monotonic() + _CLOSE_S
            self._closing = True
            self._event.set()
            self._thread.join(_CLOSE_S + 1)
        self._count("dropped", len(self._waiting))
        self._waiting.clear()

    def _count(self, outcome: str, number: int) -> None:
        if number:
            name = f"span/{outcome}"
            self._counts[name] = self._counts.get(name, 0) + number

    def _run(self) -> None:
        while not (self._closing and not self._waiting):
            self._event.wait(_BATCH_S)
            self._event.clear()
            while self._waiting and time.monotonic() < self._closes_at:
                batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
                self._deliver(batch)
            if time.monotonic() >= self._closes_at:
                return

    def _deliver(self, batch: list[list[bytes]]) -> None:
        """Tries until it is taken or refused for good, or the time to close has come."""
        body = gzip.compress(request_of([span for spans in batch for span in spans], self._gateway_id), 1)
        tries = 0
        while True:
            status, wait_s = self._post(body)
            if 200 <= status < 300:
                self.trouble = ""
                self._count("sent", len(batch))
                return
            if status and status not in _AGAIN:
                self.trouble = f"the collector refuses spans with status {status}"
                self._count("failed", len(batch))
                return
            self.trouble = f"the collector does not take spans: {f'status {status}' if status else 'no answer'}"
            pause_s = max(wait_s, _BACKOFF_S[min(tries, len(_BACKOFF_S) - 1)])
            tries += 1
            if self._pause(pause_s):
                self._count("dropped", len(batch))
                return

    def _pause(self, pause_s: float) -> bool:
        """Whether the time to close came meanwhile."""
        until = time.monotonic() + pause_s
        while time.monotonic() < until:
            if time.monotonic() >= self._closes_at:
                return True
            time.sleep(0.05)
        return False

    def _post(self, body: bytes) -> tuple[int, float]:
        """(status, seconds it asks to wait); status 0 for no answer."""
        url = self._url
        host, port = url.hostname or "", url.port
        connection: http.client.HTTPConnection
        if url.scheme == "https":
            connection = http.client.HTTPSConnection(
                host, port, timeout=_TIMEOUT_S, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        headers = {"content-type": "application/x-protobuf", "content-encoding": "gzip", **self._headers}
        try:
            path = (url.path or "/v1/traces") + (f"?{url.query}" if url.query else "")
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            answer.read(65_536)
            said: Any = answer.headers.get("retry-after", "0")
            return answer.status, min(float(said), 60.0) if said.isdigit() else 0.0
        except (OSError, http.client.HTTPException):
            return 0, 0.0
        finally:
            connection.close()


def parse_headers(text: str) -> dict[str, str]:
    """`name=value,name=value`, percent-encoded, as OpenTelemetry's own settings have it."""
    pairs = (one.partition("=") for one in text.split(",") if "=" in one)
    return {name.strip().lower(): unquote(value.strip()) for name, _, value in pairs}
