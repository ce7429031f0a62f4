"""Answers to Prometheus, put together between requests instead of before them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from groundplane.gateway.telemetry.aside import work_off


class Scrapes:
    """One rendering at a time, in steps; who asks meanwhile gets the same answer."""

    def __init__(self, rendered: Callable[[], Iterator[str]]) -> None:
        self._rendered = rendered
        self._waiting: list[Callable[[bytes], None]] = []

    def ask(self, tell: Callable[[bytes], None]) -> None:
        """Tells the whole text, later."""
        self._waiting.append(tell)
        if len(self._waiting) == 1:
            work_off(self._work())

    def _work(self) -> Iterator[None]:
        pieces = []
        waiting = self._waiting
        try:
            for piece in self._rendered():
                pieces.append(piece)
                yield
        finally:
            self._waiting = []  # also when it failed: the next one begins anew
        text = "".join(pieces).encode()
        for tell in waiting:
            tell(text)
