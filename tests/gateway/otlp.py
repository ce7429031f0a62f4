"""A collector for the tests: takes OTLP over HTTP as protocol buffers, and reads it with the official definitions."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.stage import Answer, Asked, Played


@dataclass
class Collector:
    """`statuses` are answered first, one a request; then everything is taken."""

    statuses: list[int] = field(default_factory=list)
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answered: int = 0
    port: int = 0
    _played: Played | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/traces"

    def start(self) -> None:
        """Listens, on the port it had before if it had one."""
        self._played = Played(self._take, port=self.port)
        self.port = self._played.port

    def stop(self) -> None:
        if self._played is not None:
            self._played.close()
            self._played = None

    def _take(self, asked: Asked) -> Answer:
        self.answered += 1
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            request = ExportTraceServiceRequest()
            request.ParseFromString(gzip.decompress(asked.body))
            self.requests.append(request)
            self.headers.append({name.lower(): value for name, value in asked.headers.items()})
        return Answer(status)

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def attributes(span: Any) -> dict[str, Any]:
    """A span's attributes as plain values."""

    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {one.key: plain(one.value) for one in span.attributes}
