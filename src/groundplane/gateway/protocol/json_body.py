"""What routing needs to know of a request body, and how single fields of it are replaced.

Only the routing fields are decoded; the caller's bytes are forwarded as they are, spliced where a field must differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from groundplane.domain.serving.usage import BYTES_PER_TOKEN, TOKENS_MAX, Usage, read_usage_words
from groundplane.gateway.protocol.errors import bad_request

_SPACE = rb"[ \t\r\n]*+"
_NAME = re.compile(_SPACE + rb'("(?:[^"\\]++|\\.)*+")' + _SPACE + b":" + _SPACE, re.DOTALL)
_AFTER = re.compile(_SPACE + rb"([,}])")

FILE_BYTES_PER_TOKEN = 64
"""Recorded speech at 6 kbit/s has 75 bytes for each of the ten tokens a second that speech models count."""
_WEIGHED_MIN_BYTES = 16_384
_STRINGS_MAX = 100_000
_BASE64 = bytes(range(48, 58)) + bytes(range(65, 91)) + bytes(range(97, 123)) + b"+/=-_\\"
_ELSEWHERE = re.compile(
    rb'"(?:(?:image_|file_)?url"[ \t\r\n]*:[ \t\r\n]*"http|file_id"[ \t\r\n]*:'
    rb'|data:(?:image|application)/|media_type"[ \t\r\n]*:[ \t\r\n]*"(?:image|application)/)'
)
_BASE64_HEAD = re.compile(rb"data:[^,]{0,200};base64,")

Members = Mapping[str, tuple[int, int]]
"""Where the value of each field of the outermost object stands."""
NO_MEMBERS: Members = {}


class StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class Fields(msgspec.Struct, gc=False):
    """The routing fields of whatever is asked. Everything else is the upstream's."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    background: msgspec.Raw = msgspec.Raw()
    previous_response_id: msgspec.Raw = msgspec.Raw()
    conversation: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def answer_tokens_max(self, names: tuple[str, ...]) -> int | None:
        """The most completion tokens of one answer that the caller asked for, in the fields of this path; None when it
        named no limit. Engines read 0 and -1 as none, and which of two fields counts differs: the larger is safe."""
        most = None
        for name in names:
            limit: int | None = getattr(self, name)
            if limit is not None:
                if limit < 1:
                    return None
                most = limit if most is None else max(most, limit)
        return most

    @property
    def goes_on(self) -> bool:
        """Whether the prompt has a part that the upstream keeps, and the body does not have."""
        return not {bytes(self.previous_response_id), bytes(self.conversation)} <= {b"", b"null"}

    def answers(self) -> int:
        """How many answers are asked for: choices times prompts. A list of texts or of token lists is a batch."""
        choices = 1 if self.n is None and self.best_of is None else max(self.n or 1, self.best_of or 1, 1)
        return choices * self._prompts() if self.prompt else choices

    def _prompts(self) -> int:
        raw = bytes(self.prompt)
        prompts: list[Any] = msgspec.json.decode(raw, type=list[Any]) if raw.startswith(b"[") else []
        return 1 if not prompts or isinstance(prompts[0], int) else len(prompts)


_DECODER = msgspec.json.Decoder(Fields)
_ROUTING = frozenset(Fields.__struct_fields__)
_MEMBERS_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Used(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    prompt_tokens_details: dict[str, Any] | None = None
    completion_tokens_details: Any = None


class _Answer(msgspec.Struct, gc=False):
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
    if used is None or not 0 <= used.completion_tokens <= TOKENS_MAX:
        return None
    if used.prompt_tokens is None:
        words = _WORDS_DECODER.decode(body).usage
        return None if words is None else read_usage_words(words)
    if not 0 <= used.prompt_tokens <= TOKENS_MAX:
        return None
    details, answered = used.prompt_tokens_details, used.completion_tokens_details
    if answered is not None and isinstance(answered, dict) and answered.get("audio_tokens"):
        return read_usage_words(msgspec.structs.asdict(used))
    if not details:
        return Usage(used.prompt_tokens, used.completion_tokens)
    if details.get("audio_tokens"):
        return read_usage_words(msgspec.structs.asdict(used))
    cached = details.get("cached_tokens")
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


def refers(body: bytes) -> bool:
    """Whether it names pictures or files that the upstream is to fetch or has: they are of the prompt as well. So are
    those that are in it, and a white picture of a kilobyte has as many tokens as any of its size."""
    return _ELSEWHERE.search(body) is not None


def weight_bytes(body: bytes) -> int:
    """What a body counts as, as text: pictures, sound and files that are in it as base64 are no text."""
    weight = len(body)
    if weight < _WEIGHED_MIN_BYTES or body.count(b'"') > _STRINGS_MAX:
        return weight
    for text in body.split(b'"'):
        if len(text) >= _WEIGHED_MIN_BYTES // 4:
            head = _BASE64_HEAD.match(text)
            encoded = text if head is None else text[head.end() :]
            if not encoded.translate(None, _BASE64):
                weight -= len(encoded) - -(-len(encoded) // (FILE_BYTES_PER_TOKEN // BYTES_PER_TOKEN))
    return weight


def read_members(body: bytes) -> Members:
    """Raises Fault 400 when two servers could read different fields. `read_fields` has accepted the body.

    The decoder goes over the values, whatever is in them; Python only steps from one to the next.
    """
    found: dict[str, tuple[int, int]] = {}
    values = _MEMBERS_DECODER.decode(body)
    position = body.index(b"{") + 1
    while (match := _NAME.match(body, position)) is not None:
        name, start = msgspec.json.decode(match[1], type=str), match.end()
        # Of a field that is there twice the decoder keeps the last value, which is not what stands here first.
        value = bytes(values[name])
        after = _AFTER.match(body, start + len(value)) if body.startswith(value, start) else None
        if after is None or name in found:
            raise bad_request(f"the field {name[:100]!r} is given twice", "ambiguous_field", name[:100])
        if name not in _ROUTING and name.lower() in _ROUTING:
            message = f"the field {name[:100]!r} is one that some servers take for {name.lower()!r}"
            raise bad_request(message, "ambiguous_field", name[:100])
        found[name] = start, start + len(value)
        position = after.end()
    return found


def splice(body: bytes, members: Members, *, model: str | None, include_usage: bool) -> bytes:
    """The body with another model name and, when asked, with `stream_options.include_usage` set; all else untouched.

    `members` may lack what the body does not have.
    """
    replacements: list[tuple[int, int, bytes]] = []
    if model is not None:
        replacements.append((*members["model"], msgspec.json.encode(model)))
    if include_usage:
        if "stream_options" in members:
            start, end = members["stream_options"]
            replacements.append((start, end, _with_usage(body[start:end])))
        else:
            opening = body.index(b"{") + 1
            replacements.append((opening, opening, b'"stream_options":{"include_usage":true},'))
    for start, end, text in sorted(replacements, reverse=True):
        body = body[:start] + text + body[end:]
    return body


def _with_usage(value: bytes) -> bytes:
    options: dict[str, msgspec.Raw] | None = msgspec.json.decode(value, type=dict[str, msgspec.Raw] | None)
    return msgspec.json.encode({**(options or {}), "include_usage": msgspec.Raw(b"true")})
