"""Samples of prompts for the lint of their order: digests of segments, in the order providers put them. No text stays.

Providers render tools first, then the system prompt, then messages. Text is cut at line breaks, and long lines at
sentences, so that what changes inside a message can be told from what does not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import msgspec

from groundplane.domain.serving.prompt_lint import SEGMENTS_MAX, Segment
from groundplane.domain.serving.usage import estimated_tokens
from groundplane.gateway.protocol.doors import Door

SAMPLE_MAX_BYTES = 262_144
SAMPLE_EVERY = 32
"""One of so many requests of a key on a route is looked at, beside the first after each change of configuration."""
_CUT = re.compile(r"[^\n]{0,400}?(?:\n|(?<=[.!?]) |$)|[^\n]{400}", re.DOTALL)


class _Prompt(msgspec.Struct):
    tools: list[msgspec.Raw] | None = None
    system: str | list[msgspec.Raw] | None = None
    instructions: str | None = None
    messages: list[msgspec.Raw] | None = None
    input: str | list[msgspec.Raw] | None = None
    prompt: str | list[msgspec.Raw] | None = None


class _Message(msgspec.Struct):
    role: str = ""
    content: str | list[msgspec.Raw] | None = None


_DECODER = msgspec.json.Decoder(_Prompt)
_MESSAGE = msgspec.json.Decoder(_Message)


def sample(door: Door, body: bytes) -> list[Segment] | None:
    """A prompt as digests; None where the body is too large, or has another shape."""
    if not door.generates or len(body) > SAMPLE_MAX_BYTES:
        return None
    try:
        return list(_bounded(_segments(_DECODER.decode(body))))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _bounded(segments: Iterator[Segment]) -> Iterator[Segment]:
    for number, segment in enumerate(segments):
        if number == SEGMENTS_MAX:
            return
        yield segment


def _segments(prompt: _Prompt) -> Iterator[Segment]:
    for tool in prompt.tools or ():
        yield _segment(bytes(tool), "tools")
    for name, value in (("system", prompt.system), ("instructions", prompt.instructions)):
        yield from _texts(value, name)
    for name, value in (("messages", prompt.messages), ("input", prompt.input), ("prompt", prompt.prompt)):
        if isinstance(value, list):
            for number, raw in enumerate(value):
                yield from _message(bytes(raw), f"{name}[{number}]")
        else:
            yield from _texts(value, name)


def _message(raw: bytes, place: str) -> Iterator[Segment]:
    if not raw.startswith(b"{"):
        yield _segment(raw, place)
        return
    message = _MESSAGE.decode(raw)
    if message.content is None:
        yield _segment(raw, place)
    else:
        yield from _texts(message.content, f"{place} ({message.role[:20]})" if message.role else place)


def _texts(value: str | list[msgspec.Raw] | None, place: str) -> Iterator[Segment]:
    if isinstance(value, str):
        line = 1
        for piece in _pieces(value):
            yield _segment(piece.encode("utf-8", "surrogatepass"), f"{place} line {line}")
            line += piece.count("\n")
    elif value is not None:
        for part in value:
            yield _segment(bytes(part), place)


def _pieces(text: str) -> Iterator[str]:
    """Lines and sentences: cut where the text itself says, so that what changes before does not move what follows."""
    return (match.group() for match in _CUT.finditer(text) if match.group())


def _segment(data: bytes, place: str) -> Segment:
    digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
    return digest, estimated_tokens(len(data)), place
