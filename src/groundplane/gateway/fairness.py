"""Who begins next when more requests come at once than one turn of the loop should take: projects take turns.

Without it, a turn lasts as long as everything that came takes, and a project that keeps 200 requests under way makes
every request of the others wait for 200 of its own, twice: until it is read, and until its answer is. With it a turn
begins a few requests, of each project in turn, and what is left stands in its project's line until the next turn. Its
answers bound how much more a flood sends, so a turn stays short.

One project alone loses nothing: its requests begin in the order they came, as fast as the loop turns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

STARTS_PER_TURN = 8
"""About a millisecond of work."""


class Beginner(Protocol):
    """A request that has not begun."""

    def begin(self) -> bool:
        """Its turn has come. False: its caller is gone, and it took no time."""


class Starts:
    """Owned by the event loop's thread.

    A request begins at once where `left` says so, which is then one less; who takes the last one says `used_up`.
    Otherwise it waits. `left` is 0 until the next turn has begun what waits.
    """

    __slots__ = ("_lines", "_per_turn", "left")

    def __init__(self, per_turn: int = STARTS_PER_TURN) -> None:
        self.left = self._per_turn = per_turn
        self._lines: dict[str, deque[Beginner]] = {}

    def used_up(self) -> None:
        """The last one of this turn begins."""
        asyncio.get_running_loop().call_soon(self._turn)

    def wait(self, project: str, who: Beginner) -> None:
        """It begins when its project's turn comes, behind those of its project that came before."""
        line = self._lines.get(project)
        if line is None:
            line = self._lines[project] = deque()  # the last of those who take turns
        line.append(who)

    def _turn(self) -> None:
        """One of each project, round and round. Who was served last in this turn is served last in the next."""
        left, lines = self._per_turn, self._lines
        while left and lines:
            project = next(iter(lines))
            line = lines.pop(project)
            left -= line.popleft().begin()
            if line:
                lines[project] = line
        self.left = left
        if not left:
            self.used_up()
