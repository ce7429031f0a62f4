"""How a desk says no."""

from __future__ import annotations


class No(Exception):
    """The desk's refusal: a `kind` (unavailable, conflict, invalid-input), one line, and the way forward."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind, self.message, self.hint = kind, message, hint
