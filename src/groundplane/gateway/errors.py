"""Answers the gateway writes itself: heads, and errors in the OpenAI error format."""

from __future__ import annotations

import http
from dataclasses import dataclass

import msgspec

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

    def body(self) -> bytes:
        """`{"error": {…}}` as OpenAI clients read it."""
        return _ENCODER.encode(
            {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
        )

    def answer(self, request_id: bytes, *, close: bool) -> bytes:
        """The whole HTTP answer."""
        return answer(self.status, self.body(), request_id, close=close, headers=self.headers)


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


def error_event(fault: Fault) -> bytes:
    """The same as a server-sent event: what a stream that can't go on ends with, in place of `[DONE]`."""
    return b"data: %b\n\n" % fault.body()
