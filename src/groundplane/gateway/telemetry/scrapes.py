"""Answers to Prometheus, put together between requests instead of before them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from time import monotonic_ns

_STEP_NS = 1_000_000
_REST_S = 0.001


class Scrapes:
    """One rendering at a time, a millisecond of work and then a rest; who asks meanwhile gets the same answer."""

    def __init__(self, rendered: Callable[[], Iterator[str]]) -> None:
        self._rendered = rendered
        self._pieces: list[str] = []
        self._waiting: list[Callable[[bytes], None]] = []

    def ask(self, tell: Callable[[bytes], None]) -> None:
        """Tells the whole text, later."""
        self._waiting.append(tell)
        if len(self._waiting) == 1:
            self._work(self._rendered())

    def _work(self, steps: Iterator[str]) -> None:
        over = True
        pieces, waiting = self._pieces, self._waiting
        try:
            over = self._step(steps)
        finally:
            if over:  # or failed: the next one begins anew
                self._pieces, self._waiting = [], []
        if over:
            text = "".join(pieces).encode()
            for tell in waiting:
                tell(text)

    def _step(self, steps: Iterator[str]) -> bool:
        """Whether it was the last."""
        end_ns = monotonic_ns() + _STEP_NS
        for piece in steps:
            self._pieces.append(piece)
            if monotonic_ns() >= end_ns:
                asyncio.get_running_loop().call_later(_REST_S, self._work, steps)
                return False
        return True
