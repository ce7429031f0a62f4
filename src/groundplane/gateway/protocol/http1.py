"""HTTP/1.1 framing, strictly: one grammar for heads, one decoder for chunked bodies.

What two parsers could read differently is refused, never repaired: both Content-Length and Transfer-Encoding, either
of them twice, bare line feeds, folded lines, spaces before the colon, any transfer coding but `chunked`. One regular
expression per head is faster in CPython than a parser with callbacks, and small enough to be checked against one
(the tests compare it with llhttp). Source: RFC 9112.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

from groundplane.gateway.protocol.errors import Fault, bad_request

HEAD_MAX_BYTES = 16_384
HEADERS_MAX = 100
_MEMO_HEAD_MAX_BYTES = 2048
_MEMO_HEADS_MAX = 4096
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?(\d{1,15})\r\n").search
_DIGITS_MAX = 15
_NEVER_AGAIN = re.compile(rb"\r\n(?:[Tt]raceparent|[Xx]-[Rr]equest-[Ii][Dd]|[Ii]dempotency-[Kk]ey):").search
"""Fields that differ from request to request."""
_CHUNK_LINE_MAX_BYTES = 256
_TRAILERS_MAX_BYTES = 4096

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_FIELD = _TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+\r\n"
_ORIGIN = rb"(?:[Hh][Tt][Tt][Pp][Ss]?://[0-9A-Za-z.:\-\[\]]++)?"
"""Stands before the path when a caller takes us for a proxy (RFC 9112, 3.2.2). As with Host, we are whoever it asks."""
_REQUEST = re.compile(
    rb"(" + _TOKEN + rb"++) " + _ORIGIN + rb"(/[\x21-\x7e]*+) HTTP/(\d\.\d)\r\n((?:" + _FIELD + rb")*+)\r\n"
)
_RESPONSE = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)(?: [\t\x20-\x7e\x80-\xff]*+)?\r\n((?:" + _FIELD + rb")*+)\r\n")
_PAIR = re.compile(rb"([^:]++):([^\r]*+)\r\n")
_ONE_FIELD = re.compile(_FIELD)
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_DECIMAL = re.compile(rb"\d{1,9}(?:\.\d{1,9})?")
_REQUEST_ID = re.compile(rb"[0-9A-Za-z._~:=+/@-]{1,128}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_OWN_FIELDS = frozenset(
    b"keep-alive proxy-authenticate proxy-connection te trailer upgrade x-request-id set-cookie server alt-svc"
    b" request-id anthropic-organization-id openai-organization openai-project cf-ray cf-cache-status".split()
)
"""What an upstream's answer says about its own connection or server, or what the gateway says itself."""
_OWN_PREFIXES = (b"x-ratelimit-", b"anthropic-ratelimit-")
_SINGLE = (
    b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key", b"expect", b"content-type"
)  # fmt: skip
_PASSED = (b"traceparent", b"tracestate", b"anthropic-version", b"anthropic-beta", b"openai-beta")


@lru_cache(_MEMO_HEADS_MAX)
def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).hexdigest().encode()


@dataclass(slots=True)
class RequestHead:
    """A request's head. `content_length` is None for a chunked body, 0 for none.

    `secret_sha256` is the digest, in hex, of what it brought as a bearer's secret or else as `x-api-key`; `passed` are
    the lines that an upstream may see: W3C trace context, API versions, and never the key. `request_id` is the caller's
    own, empty when it has none or one that is no id. `plain`: a POST, uncompressed, that asks nothing more.
    """

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    content_length: int | None
    close: bool
    path: bytes = b""
    query: bytes = b""
    request_id: bytes = b""
    secret_sha256: bytes | None = None
    passed: bytes = b""
    plain: bool = False

    def __post_init__(self) -> None:
        headers = self.headers
        self.path, _, self.query = self.target.partition(b"?")
        request_id = headers.get(b"x-request-id", b"")
        if request_id and _REQUEST_ID.fullmatch(request_id):
            self.request_id = request_id
        scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
        if secret and scheme.lower() == b"bearer":
            self.secret_sha256 = _digest(secret.strip(b" "))
        elif not scheme and headers.get(b"x-api-key"):
            self.secret_sha256 = _digest(headers[b"x-api-key"])
        asks_more = self.close or self.expects_continue or b"content-encoding" in headers
        self.plain = self.method == b"POST" and not asks_more
        for name in _PASSED:
            if name in headers:
                self.passed += b"%b: %b\r\n" % (name, headers[name])

    @property
    def expects_continue(self) -> bool:
        return b"expect" in self.headers


@dataclass(slots=True)
class ResponseHead:
    """An answer's head. `content_length` is None when the body is chunked or ends with the connection.

    `passed` are the header lines that go on to the caller, as they came. `encoded`: its content is compressed.
    """

    status: int
    passed: bytes
    content_length: int | None
    chunked: bool
    close: bool
    content_type: bytes
    encoded: bool = False
    retry_after_s: float | None = None


_Head = TypeVar("_Head", RequestHead, ResponseHead)


@dataclass(slots=True, eq=False)
class Shape(Generic[_Head]):
    """A good head, as what stands before and after the digits of its content length."""

    head: _Head
    before: bytes
    after: bytes
    digits_at: int


class HeadMemo(Generic[_Head]):
    """Heads seen before, by their bytes without the digits of the content length: peers repeat themselves.

    A good head says its length once; one that differs from it in nothing but those digits is as good.
    """

    def __init__(self, parse: Callable[[bytes, int], _Head]) -> None:
        self._parse: Callable[[bytes, int], _Head] = parse
        self._known: dict[bytes, Shape[_Head]] = {}

    def whole(self, data: bytes, last: Shape[_Head] | None) -> tuple[Shape[_Head], int] | None:
        """The shape of the head that `data` begins with, and where its content begins, if all of `data` is that head
        and its content; None when it is not, or the head has to be parsed for itself. `last` is tried first."""
        if last is not None and data.startswith(last.before):
            stop = data.find(b"\r", last.digits_at)
            digits = data[last.digits_at : stop]
            if len(digits) <= _DIGITS_MAX and digits.isdigit() and data.startswith(last.after, stop):
                begin = stop + len(last.after)
                return (last, begin) if len(data) - begin == int(digits) else None
        end = data.find(b"\r\n\r\n") + 4
        match = _LENGTH(data, 0, end) if end >= 4 else None
        if match is None or int(match[1]) != len(data) - end:
            return None
        start, stop = match.span(1)
        text = data[:start] + data[stop:end]
        shape = self._known.get(text)
        if shape is None:
            if end > _MEMO_HEAD_MAX_BYTES:
                return None
            head = self._parse(data, end)
            if head.content_length != len(data) - end or data[:end].lower().count(b"content-length") != 1:
                return None
            shape = Shape(head, data[:start], data[stop:end], start)
            if _NEVER_AGAIN(data, 0, end) is None:
                if len(self._known) >= _MEMO_HEADS_MAX:
                    self._known.clear()
                self._known[text] = shape
        return shape, end


class Malformed(ValueError):
    """Bytes from an upstream that are no HTTP/1.1 answer."""


def parse_request_head(data: bytes, end: int) -> RequestHead:
    """The head in `data[:end]`, which ends with an empty line. Raises Fault 400, 417, 431, 501 or 505."""
    if end > HEAD_MAX_BYTES:
        raise Fault(431, f"the request head is over the limit of {HEAD_MAX_BYTES} bytes", "headers_too_large")
    match = _REQUEST.fullmatch(data, 0, end)
    if match is None:
        raise bad_request("this is no well-formed HTTP/1.1 request head", "bad_http")
    method, target, version, block = match.groups()
    if version != b"1.1":
        raise Fault(505, f"HTTP/{version.decode()} is not spoken here; use HTTP/1.1", "http_version")
    pairs = _PAIR.findall(block)
    if len(pairs) > HEADERS_MAX:
        raise Fault(431, f"{len(pairs)} header fields are over the limit of {HEADERS_MAX}", "headers_too_large")
    headers = {name.lower(): value.strip(b" \t") for name, value in pairs}
    if len(headers) != len(pairs):
        _refuse_repeats(pairs)
    if b"host" not in headers:
        raise bad_request("the Host header is missing", "bad_http")
    connection = headers.get(b"connection")
    close = connection is not None and b"close" in _list(connection)
    if b"expect" in headers and headers[b"expect"].lower() != b"100-continue":
        raise Fault(417, "the only expectation understood is 100-continue", "expectation_failed")
    return RequestHead(method, target, headers, _request_length(headers), close)


def _refuse_repeats(pairs: list[tuple[bytes, bytes]]) -> None:
    names = [name.lower() for name, _ in pairs]
    for name in _SINGLE:
        if names.count(name) > 1:
            raise bad_request(f"the header {name.decode()} may be given once", "bad_http")


def _request_length(headers: dict[bytes, bytes]) -> int | None:
    length, coding = headers.get(b"content-length"), headers.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            # Two framings in one request is how requests are smuggled (RFC 9112, 6.1).
            raise bad_request("Content-Length and Transfer-Encoding exclude each other", "bad_http")
        if coding.lower() != b"chunked":
            raise Fault(501, "the only transfer coding understood is chunked", "transfer_coding")
        return None
    if length is None:
        return 0
    if not length.isdigit() or len(length) > 15:
        raise bad_request("Content-Length is no whole number", "bad_http")
    return int(length)


def refuse_early(data: bytes) -> None:
    """Raises Fault as soon as an unfinished head can no longer become a good one."""
    if len(data) > HEAD_MAX_BYTES:
        raise Fault(431, f"the request head is over the limit of {HEAD_MAX_BYTES} bytes", "headers_too_large")
    if _BARE_LINE_FEED.search(data):
        raise bad_request("a line of the request head ends without a carriage return", "bad_http")


def parse_response_head(data: bytes, end: int) -> ResponseHead:
    """The head in `data[:end]`. Raises Malformed."""
    match = _RESPONSE.fullmatch(data, 0, end)
    if match is None:
        raise Malformed("the upstream's answer is no HTTP/1.1")
    length: bytes | None = None
    chunked = close = encoded = False
    content_type = passed = b""
    retry: dict[bytes, bytes] = {}
    for raw_name, raw_value in _PAIR.findall(match[2]):
        name = raw_name.lower()
        if name == b"content-length":
            value = raw_value.strip(b" \t")
            if length is not None and length != value:
                raise Malformed("the upstream's answer has two lengths")
            length = value
        elif name == b"transfer-encoding":
            if chunked or raw_value.strip(b" \t").lower() != b"chunked":
                raise Malformed("the upstream's answer has a transfer coding other than chunked")
            chunked = True
        elif name == b"connection":
            close = close or b"close" in _list(raw_value)
        elif name not in _OWN_FIELDS and not name.startswith(_OWN_PREFIXES):
            passed += b"%b:%b\r\n" % (raw_name, raw_value)
            if name == b"content-type":
                content_type = raw_value.strip(b" \t").lower()
            elif name == b"content-encoding":
                encoded = raw_value.strip(b" \t").lower() not in {b"", b"identity"}
            elif name.startswith(b"retry-after"):
                retry[name] = raw_value.strip(b" \t")
    if length is not None and (chunked or not length.isdigit() or len(length) > 15):
        raise Malformed("the upstream's answer has no clear length")
    status = int(match[1])
    known = 0 if status in {204, 304} else None if length is None else int(length)
    return ResponseHead(
        status, passed, known, chunked and known is None, close, content_type, encoded, _retry_after(retry)
    )


def _retry_after(said: dict[bytes, bytes]) -> float | None:
    """Seconds; None where nothing is said, or a date is."""
    for name, scale in ((b"retry-after-ms", 1000.0), (b"retry-after", 1.0)):
        if _DECIMAL.fullmatch(said.get(name, b"")):
            return float(said[name]) / scale
    return None


def _list(value: bytes) -> list[bytes]:
    return [one.strip(b" \t") for one in value.lower().split(b",")]


class ChunkDecoder:
    """Takes a chunked body apart, however its bytes arrive. After `done`, `rest` holds what follows the body."""

    __slots__ = ("_left", "_pending", "_step", "_trailer_bytes", "done", "rest")

    def __init__(self) -> None:
        self._step = self._size
        self._left = 0
        self._pending = b""
        self._trailer_bytes = 0
        self.done = False
        self.rest = b""

    @property
    def at_size(self) -> bool:
        """Whether the next byte begins a chunk."""
        return not self._left and not self._pending and self._step == self._size

    def feed(self, data: bytes) -> bytes:
        """The content in `data`. Raises Malformed. Not to be called again once `done`."""
        if self._pending:
            data, self._pending = self._pending + data, b""
        content: list[bytes] = []
        position = 0
        while position >= 0 and not self.done:
            if self._left:
                piece = data[position : position + self._left]
                if piece:
                    content.append(piece)
                    self._left -= len(piece)
                    position += len(piece)
                if self._left:
                    break
                self._step = self._after_content
            position = self._step(data, position)
        return content[0] if len(content) == 1 else b"".join(content)

    def _size(self, data: bytes, position: int) -> int:
        end = data.find(b"\r\n", position, position + _CHUNK_LINE_MAX_BYTES)
        if end < 0:
            if len(data) - position >= _CHUNK_LINE_MAX_BYTES:
                raise Malformed("a chunk size is over 256 bytes long")
            return self._wait(data, position)
        match = _CHUNK_SIZE.fullmatch(data, position, end)
        if match is None:
            raise Malformed("a chunk size is no hexadecimal number")
        self._left = int(match[1], 16)
        self._step = self._after_content if self._left else self._trailer
        return end + 2

    def _after_content(self, data: bytes, position: int) -> int:
        if len(data) - position < 2:
            return self._wait(data, position)
        if data[position : position + 2] != b"\r\n":
            raise Malformed("a chunk is longer than its size")
        self._step = self._size
        return position + 2

    def _trailer(self, data: bytes, position: int) -> int:
        end = data.find(b"\r\n", position)
        if self._trailer_bytes + (end if end >= 0 else len(data)) - position > _TRAILERS_MAX_BYTES:
            raise Malformed("the trailer fields are over 4096 bytes long")
        if end < 0:
            return self._wait(data, position)
        if end == position:
            self.done, self.rest = True, data[position + 2 :]
        elif _ONE_FIELD.fullmatch(data, position, end + 2) is None:
            raise Malformed("a trailer field is malformed")
        self._trailer_bytes += end - position
        return end + 2

    def _wait(self, data: bytes, position: int) -> int:
        self._pending = data[position:]
        return -1
