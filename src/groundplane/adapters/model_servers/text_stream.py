"""From token ids to text that may be sent: whole characters only, and never a piece of a stop string."""

from __future__ import annotations

from typing import Protocol

REPLACEMENT = "\ufffd"
_PENDING_MAX = 8
"""A character has at most 4 bytes, so at most 4 tokens: what waits longer is broken, not incomplete."""


class Decoder(Protocol):
    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str: ...


class Detokenizer:
    """Incremental decoding. Tokens are held back while their bytes end in the middle of a character.

    A token's text can depend on the token before it, so each piece is the difference of two decodings that share
    the last emitted tokens as context. Source: the offsets of text-generation-inference and vLLM.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._ids: list[int] = []
        self._context = 0
        self._emitted = 0

    def push(self, token_id: int) -> str:
        """The text that became complete with this token, possibly empty."""
        self._ids.append(token_id)
        known, whole = self._texts()
        waiting = len(self._ids) - self._emitted
        if len(whole) <= len(known) or (whole.endswith(REPLACEMENT) and waiting <= _PENDING_MAX):
            return ""
        self._context, self._emitted = self._emitted, len(self._ids)
        return whole[len(known) :]

    def finish(self) -> str:
        """What is still held back, without the incomplete character at its end."""
        known, whole = self._texts()
        return whole[len(known) :].rstrip(REPLACEMENT)

    def _texts(self) -> tuple[str, str]:
        known = self._decoder.decode(self._ids[self._context : self._emitted], skip_special_tokens=True)
        whole = self._decoder.decode(self._ids[self._context :], skip_special_tokens=True)
        return known, whole


class StopStrings:
    """Cuts the text before the first stop string, also when that arrives in pieces."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that can't be part of a stop string any more; sets `found` when one is complete."""
        self._held += text
        cuts = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if cuts:
            self.found = True
            out, self._held = self._held[: min(cuts)], ""
            return out
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        out = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return out

    def finish(self) -> str:
        """What was held back for a stop string that did not come."""
        out, self._held = self._held, ""
        return out

    def _overlap(self, stop: str) -> int:
        """The longest end of the held text that is a beginning of `stop`."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
