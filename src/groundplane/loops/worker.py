"""The one worker machinery: take a step, then wait for the period or a wake-up, for ever, whatever happens.

A step that fails is recorded and tried again with back-off: this is a process boundary, the one place where
every exception is caught.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from groundplane.errors import GroundError

log = logging.getLogger(__name__)
BACKOFF_MAX_S = 30.0
SPELL_S = 120.0
"""A failure within so long of the last one belongs to the same spell: what a step has claimed when it fails comes back
only when its lease is over, and the steps between have nothing to fail at."""
_LINE_LETTERS_MAX = 300


@dataclass(slots=True, kw_only=True)
class Loop:
    """A named step and how often it is taken. The step returns True when there is more to do at once."""

    name: str
    period_s: float
    step: Callable[[], Awaitable[bool]]
    wakeable: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    steps: int = 0
    failures: int = 0
    failures_in_a_row: int = 0
    last_error: str = ""
    last_step_s: float = 0.0
    spell_failures: int = 0
    _spell_began_s: float = 0.0
    _failed_s: float = -math.inf

    def failed(self, error: Exception, now_s: float) -> None:
        """Records a failure; `now_s` is of a clock that only grows."""
        if now_s - self._failed_s > SPELL_S and not self.failures_in_a_row:
            self.spell_failures, self._spell_began_s = 0, now_s
        self._failed_s = now_s
        self.spell_failures += 1
        self.failures += 1
        self.failures_in_a_row += 1
        self.last_error = str(error) or type(error).__name__

    def failing_for_s(self, now_s: float) -> float | None:
        """How long it has failed; None when it does its work, or failed once and then did it."""
        again = self.spell_failures > 1 and now_s - self._failed_s <= SPELL_S
        return now_s - self._spell_began_s if self.failures_in_a_row or again else None

    @property
    def error_line(self) -> str:
        """The last error's first line: what a database says further down can hold values."""
        return self.last_error.strip().partition("\n")[0][:_LINE_LETTERS_MAX]


async def run_loop(loop: Loop, stop: asyncio.Event) -> None:
    """Takes the loop's steps until `stop` is set; a step under way is finished first."""
    while not stop.is_set():
        loop.wake.clear()
        began = time.monotonic()
        try:
            more = await loop.step()
            loop.failures_in_a_row = 0
            wait_s = 0.0 if more else loop.period_s
        except Exception as error:
            loop.failed(error, time.monotonic())
            wait_s = min(loop.period_s * 2**loop.failures_in_a_row, BACKOFF_MAX_S)
            known = isinstance(error, GroundError)
            log.error("loop %s failed, next try in %.1f s: %s", loop.name, wait_s, error, exc_info=not known)
        loop.steps += 1
        loop.last_step_s = time.monotonic() - began
        await _wait(loop, stop, wait_s)


async def _wait(loop: Loop, stop: asyncio.Event, wait_s: float) -> None:
    if wait_s <= 0:
        await asyncio.sleep(0)
        return
    waiters = [asyncio.ensure_future(stop.wait())]
    if loop.wakeable and loop.failures_in_a_row == 0:
        waiters.append(asyncio.ensure_future(loop.wake.wait()))
    await asyncio.wait(waiters, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
    for waiter in waiters:
        waiter.cancel()
