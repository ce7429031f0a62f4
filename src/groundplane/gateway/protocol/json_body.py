"""What routing needs to know of a request body, and how single fields of it are replaced.

Only the routing fields are decoded; the caller's bytes are forwarded as they are, spliced where a field must differ.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from groundplane.domain.usage import Usage, read_usage_words
from groundplane.gateway.protocol.errors import Fault, bad_request

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_TOKENS = re.compile(_STRING + rb"|[{}\[\]]", re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb"[^,}\] \t\r\n]++")


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Fields(msgspec.Struct):
    """The routing fields of whatever is asked. Everything else is the upstream's."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    prompt: msgspec.Raw = msgspec.Raw()

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def answer_tokens_max(self) -> int | None:
        """The most completion tokens of one answer that the caller asked for, if it named a limit."""
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        limit = self.max_output_tokens if limit is None else limit
        return None if limit is None else max(0, limit)

    def answers(self) -> int:
        """How many answers are asked for: choices times prompts. A list of texts or of token lists is a batch."""
        choices = max(self.n or 1, self.best_of or 1, 1)
        raw = bytes(self.prompt)
        return choices * self._prompts(raw) if raw.startswith(b"[") else choices

    @staticmethod
    def _prompts(raw: bytes) -> int:
        prompts: list[Any] = msgspec.json.decode(raw, type=list[Any])
        return 1 if not prompts or isinstance(prompts[0], int) else len(prompts)


_DECODER = msgspec.json.Decoder(Fields)


class _Used(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    prompt_tokens_details: dict[str, Any] | None = None


class _Answer(msgspec.Struct):
    usage: _Used | None = None


_ANSWER_DECODER = msgspec.json.Decoder(_Answer)


class _WordsOfAnswer(msgspec.Struct):
    usage: dict[str, Any] | None = None


_WORDS_DECODER = msgspec.json.Decoder(_WordsOfAnswer)


def read_usage(body: bytes) -> Usage | None:
    """The usage of a whole answer, from its outermost object; None when it has none that can be understood."""
    try:
        used = _ANSWER_DECODER.decode(body).usage
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if used is None or used.completion_tokens < 0:
        return None
    if used.prompt_tokens is None:
        words = _WORDS_DECODER.decode(body).usage
        return None if words is None else read_usage_words(words)
    if used.prompt_tokens < 0:
        return None
    cached = used.prompt_tokens_details.get("cached_tokens") if used.prompt_tokens_details else None
    known = cached if isinstance(cached, int) and 0 < cached <= used.prompt_tokens else 0
    return Usage(used.prompt_tokens, used.completion_tokens, known)


def read_fields(body: bytes) -> Fields:
    """Raises Fault 400 when the body is no JSON object or a routing field has the wrong type."""
    try:
        if not body.isascii():
            body.decode()  # the decoder looks at the routing fields only; JSON is UTF-8 throughout
        fields = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        text = str(error)
        param = text.partition("`$.")[2].rstrip("`") or None
        raise bad_request(f"the request body is not as expected: {text}", "invalid_type", param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"the request body is no valid JSON: {error}", "invalid_json") from None
    if not fields.model:
        raise bad_request("you must name a model", "missing_required_parameter", "model")
    return fields


def splice(body: bytes, *, model: str | None, include_usage: bool) -> bytes:
    """The body with another model name and, when asked, with `stream_options.include_usage` set; all else untouched."""
    replacements: list[tuple[int, int, bytes]] = []
    opening = body.index(b"{") + 1
    if model is not None:
        name = msgspec.json.encode(model)
        replacements += [(start, end, name) for start, end in top_level_values(body, "model")]
    if include_usage:
        # The substring test is exact enough: a false alarm only costs a scan.
        found = top_level_values(body, "stream_options") if b"stream_options" in body or b"\\u" in body else []
        if found:
            replacements += [(start, end, _with_usage(body[start:end])) for start, end in found]
        else:
            replacements.append((opening, opening, b'"stream_options":{"include_usage":true},'))
    for start, end, text in sorted(replacements, reverse=True):
        body = body[:start] + text + body[end:]
    return body


def _with_usage(value: bytes) -> bytes:
    options: dict[str, msgspec.Raw] | None = msgspec.json.decode(value, type=dict[str, msgspec.Raw] | None)
    return msgspec.json.encode({**(options or {}), "include_usage": msgspec.Raw(b"true")})


def top_level_values(body: bytes, key: str) -> list[tuple[int, int]]:
    """Where the values of a key of the outermost object stand, every one if it is repeated. The body is valid JSON."""
    found: list[tuple[int, int]] = []
    position = _skip(body, body.index(b"{") + 1)
    while body[position : position + 1] == b'"':
        end = _value_end(body, position)
        name = msgspec.json.decode(body[position:end], type=str)
        start = _skip(body, _skip(body, end) + 1)
        end = _value_end(body, start)
        if name == key:
            found.append((start, end))
        position = _skip(body, _skip(body, end) + 1)
    return found


def _skip(body: bytes, position: int) -> int:
    match = _SPACE.match(body, position)
    return position if match is None else match.end()


def _value_end(body: bytes, start: int) -> int:
    """The index after the value that starts at `start`."""
    first = body[start : start + 1]
    if first not in b'"{[':
        match = _SCALAR.match(body, start)
        assert match is not None, "the decoder has accepted this body"
        return match.end()
    depth = 0
    for token in _TOKENS.finditer(body, start):
        kind = token.group()[:1]
        if kind in b"{[":
            depth += 1
        elif kind in b"}]":
            depth -= 1
        if depth == 0:
            return token.end()
    raise Fault(400, "the request body is no valid JSON: it ends in the middle", "invalid_json")
