"""Server-sent events on their way through: whole frames only, so that a cut stream ends between two of them."""

from __future__ import annotations

import re

import msgspec

from groundplane.domain.serving.usage import Usage, find_usage_words, read_usage_words
from groundplane.gateway.protocol.doors import CHUNKS, StreamRules

FRAME_MAX_BYTES = 16 * 2**20
_USAGE = re.compile(rb'"usage"[ \t]*:[ \t]*\{')
_FRAME = re.compile(rb".*?(?:\n\n|\n\r\n)", re.DOTALL)


class FrameTooLarge(ValueError):
    """An event that does not end within FRAME_MAX_BYTES."""


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None


class EventStream:
    """Follows one stream: its `frames`, its `usage`, and whether its end (`done`) or an error (`failed`) came.

    `usage` may be the prompt's alone until `usage_is_final`.
    """

    __slots__ = (
        "_end_hint", "_error_hint", "_partial", "_remove_usage", "_words", "done", "failed", "frames", "rules", "usage",
        "usage_is_final",
    )  # fmt: skip

    def __init__(self, *, remove_usage: bool, rules: StreamRules = CHUNKS) -> None:
        self.rules = rules
        self._end_hint = rules.end_hint
        self._error_hint = rules.error_hint
        self._words: dict[str, object] = {}
        self.usage_is_final = False
        self._remove_usage = remove_usage
        self._partial = b""
        self.done = False
        self.failed = False
        self.frames = 0
        self.usage: Usage | None = None

    def pass_on(self, data: bytes, start: int) -> bool:
        """Whether the chunk's content, `data[start:-2]`, is whole frames that hold nothing for us; counts them.

        False changes nothing: `feed` it then.
        """
        if (
            self._partial
            or data[-4:] != b"\n\n\r\n"
            or (data.find(b'"usage"', start) >= 0 and _USAGE.search(data, start) is not None)
            or data.find(self._end_hint, start) >= 0
            or data.find(self._error_hint, start) >= 0
            or data.find(b"\r", start, -2) >= 0
        ):
            return False
        self.frames += data.count(b"\n\n", start)
        return True

    def feed(self, data: bytes) -> bytes:
        """The frames that are whole by now, as they came. Raises FrameTooLarge."""
        if self._partial:
            data = self._partial + data
        end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\n\r\n") + 3)
        if end < 3:
            if len(data) > FRAME_MAX_BYTES:
                raise FrameTooLarge
            self._partial = data
            return b""
        self._partial = data[end:]
        whole = data[:end] if self._partial else data
        self.frames += whole.count(b"\n\n") + whole.count(b"\n\r\n")
        if _USAGE.search(whole) is not None:
            whole = self._take_usage(whole)
        if self._end_hint in whole and self.rules.end.search(whole) is not None:
            self.done = True
            self.frames -= 1
        if self._error_hint in whole and self.rules.error.search(whole) is not None:
            self.failed = True
        return whole

    def finish(self) -> bytes:
        """What is left when the upstream has ended: an unfinished frame counts only if it is `[DONE]`."""
        rest, self._partial = self._partial, b""
        if rest and self.rules is CHUNKS and CHUNKS.end.match(rest) is not None:
            self.done = True
            return rest.rstrip(b"\r\n") + b"\n\n"
        return b""

    def _take_usage(self, whole: bytes) -> bytes:
        kept: list[bytes] = []
        for frame in _FRAME.findall(whole):
            if _USAGE.search(frame) is None:
                kept.append(frame)
                continue
            found = find_usage_words(frame)
            if found is not None:
                # Messages say the prompt's part first, and then what grows; later words replace earlier ones.
                self._words.update({name: value for name, value in found.items() if value is not None})
                self.usage = read_usage_words(self._words) or self.usage
                self.usage_is_final = not (self.rules.opening and self.rules.opening in frame)
            if self.rules.asks_usage and _is_extra(frame):
                self.frames -= 1
                if self._remove_usage:
                    continue
            kept.append(frame)
        return b"".join(kept)


def _is_extra(frame: bytes) -> bool:
    """Whether a frame is the one `include_usage` adds: usage, and no choice."""
    _, _, data = frame.partition(b"data:")
    try:
        chunk = msgspec.json.decode(data, type=_Chunk)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False  # several data lines, or no JSON: not ours to judge
    return chunk.choices == []
