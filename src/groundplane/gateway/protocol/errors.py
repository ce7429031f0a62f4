"""Answers the gateway writes itself: heads, and errors in the OpenAI error format."""

from __future__ import annotations

import http
from dataclasses import dataclass
from typing import Any

import msgspec

from groundplane.domain.serving.limits import Binding
from groundplane.gateway.protocol.doors import CHUNKS, Door

REASONS: dict[int, bytes] = {one.value: one.phrase.encode() for one in http.HTTPStatus}
_ENCODER = msgspec.json.Encoder()


@dataclass(eq=False)
class Fault(Exception):
    """A request that gets an error instead of an answer. `headers` are whole lines, each ending in CRLF."""

    status: int
    message: str
    code: str
    type: str = "invalid_request_error"
    param: str | None = None
    headers: bytes = b""
    binding: Binding | None = None
    """The limit that refused the request, where one did."""

    def said(self, door: Door | None, request_id: bytes) -> dict[str, Any]:
        """`{"error": {…}}` as OpenAI's clients read it, or as Anthropic's do."""
        if door is not None and door.anthropic:
            kind = _ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
            error = {"type": kind, "message": self.message, "code": self.code}
            return {"type": "error", "error": error, "request_id": request_id.decode()}
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def answer(self, request_id: bytes, *, close: bool, door: Door | None = None) -> bytes:
        """The whole HTTP answer."""
        body, headers = _ENCODER.encode(self.said(door, request_id)), self.headers
        if door is not None and door.anthropic:
            headers += b"request-id: %b\r\n" % request_id
        return answer(self.status, body, request_id, close=close, headers=headers)


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Source: Anthropic API reference, Errors."""


def answer(
    status: int,
    body: bytes,
    request_id: bytes,
    *,
    close: bool,
    headers: bytes = b"",
    content_type: bytes = b"application/json",
) -> bytes:
    """A whole HTTP answer with a known length."""
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b%b\r\n%b" % (
        status,
        REASONS[status],
        content_type,
        len(body),
        request_id,
        headers,
        b"connection: close\r\n" if close else b"",
        body,
    )


def bad_request(message: str, code: str = "invalid_request", param: str | None = None) -> Fault:
    return Fault(400, message, code, param=param)


def upstream_fault(status: int, message: str, code: str, headers: bytes = b"") -> Fault:
    """502, 503 or 504: the caller did nothing wrong, and may try again."""
    return Fault(status, message, code, type="server_error", headers=headers)


def error_event(fault: Fault, door: Door, request_id: bytes) -> bytes:
    """The same as a server-sent event: what a stream that can't go on ends with, in place of its usual end."""
    body = _ENCODER.encode(door.broken_stream(fault.said(door, request_id)))
    return (b"data: %b\n\n" if door.stream is CHUNKS else b"event: error\ndata: %b\n\n") % body
