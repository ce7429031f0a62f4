"""The paths that are forwarded: what each reads of a request, how its streams end, and whose words its errors use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StreamRules:
    """How a stream of server-sent events tells that it is complete (`end`) or broken (`error`).

    A frame without the hints' bytes is neither, so that most frames need no regular expression. `asks_usage`: usage
    comes in an event of its own, and only if asked for. `opening` marks the event with the prompt's part of the usage.
    """

    end: re.Pattern[bytes]
    end_hint: bytes
    end_name: str
    error: re.Pattern[bytes]
    error_hint: bytes
    asks_usage: bool = False
    opening: bytes = b""


CHUNKS = StreamRules(
    re.compile(rb"^data: ?\[DONE\]", re.MULTILINE),
    b"[DONE]",
    "[DONE]",
    re.compile(rb'^data: ?\{[ \t]*"error"[ \t]*:', re.MULTILINE),
    b'"error"',
    asks_usage=True,
)
_ERROR_EVENT = re.compile(rb"^event: ?error\r?$", re.MULTILINE)
RESPONSE_EVENTS = StreamRules(
    re.compile(rb"^event: ?response\.(?:completed|incomplete|failed)\r?$", re.MULTILINE),
    b'"response"',
    "response.completed",
    _ERROR_EVENT,
    b"error",
)
MESSAGE_EVENTS = StreamRules(
    re.compile(rb"^event: ?message_stop\r?$", re.MULTILINE),
    b"message_stop",
    "message_stop",
    _ERROR_EVENT,
    b"error",
    opening=b"message_start",
)


@dataclass(frozen=True, slots=True)
class Door:
    """A forwarded path. `bounds`: its answers are text, and these fields bound their length; `makes`: they are
    pictures, sound or what was heard, and nothing bounds their tokens; `form`: its body is multipart; `free`: asking
    costs nothing; `anthropic`: it is of Anthropic's API, and so are its errors."""

    path: bytes
    bounds: tuple[str, ...] = ()
    stream: StreamRules | None = None
    form: bool = False
    free: bool = False
    anthropic: bool = False
    makes: bool = False

    @property
    def pictures(self) -> bool:
        """Whether what is sent as a file is a picture: how many tokens that has does not go by its bytes."""
        return self.path.startswith(b"/v1/images/")

    @property
    def generates(self) -> bool:
        """Whether answers are text whose length is estimated."""
        return bool(self.bounds)

    def broken_stream(self, body: dict[str, Any]) -> dict[str, Any]:
        """What the error event of this path's streams says, from the body an error answer would have."""
        if self.stream is RESPONSE_EVENTS:
            error = body["error"]
            return {"type": "error", "code": error["code"], "message": error["message"], "param": None, **body}
        return body


JSON_DOORS = {b"/v1/images/edits": Door(b"/v1/images/edits", makes=True)}
"""Paths of forms that take a JSON body too. Source: OpenAI's OpenAPI description 2.3.0, createImageEdit."""
DOORS: dict[bytes, Door] = {
    door.path: door
    for door in (
        Door(b"/v1/chat/completions", ("max_completion_tokens", "max_tokens"), stream=CHUNKS),
        Door(b"/v1/completions", ("max_tokens",), stream=CHUNKS),
        Door(b"/v1/responses", ("max_output_tokens",), stream=RESPONSE_EVENTS),
        Door(b"/v1/embeddings"),
        Door(b"/v1/moderations"),
        Door(b"/v1/rerank"),
        Door(b"/v1/images/generations", makes=True),
        Door(b"/v1/images/edits", form=True, makes=True),
        Door(b"/v1/images/variations", form=True, makes=True),
        Door(b"/v1/audio/speech", makes=True),
        Door(b"/v1/audio/transcriptions", form=True, makes=True),
        Door(b"/v1/audio/translations", form=True, makes=True),
        Door(b"/v1/messages", ("max_tokens",), stream=MESSAGE_EVENTS, anthropic=True),
        Door(b"/v1/messages/count_tokens", free=True, anthropic=True),
    )
}
