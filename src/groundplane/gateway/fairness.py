"""Who goes on next when more comes at once than one turn of the loop should take: projects take turns.

A request is two pieces of work or more: it begins, and what its upstream says goes to its caller. Without a bound, a
turn lasts as long as all that came takes, and a project that keeps 200 requests under way makes every request of the
others wait for 200 pieces of its own, twice. With one a turn takes a few pieces, and what is left stands in its
project's line; lines are served in turn, a piece each. Who has none in line when a turn is full goes on at once: a
request now and then does not wait for a flood's pieces at all.

One project alone loses nothing: its pieces are done in the order they came, as fast as the loop turns, and in turns so
long that turning costs nothing. They get short when a second project comes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

PIECES_PER_TURN = 8
"""A third of a millisecond of work."""
_TIMES_ALONE = 8
"""How much longer a turn is for a project alone. Bounded, for those who ask less than once in all the turns below."""
_SHORT_TURNS = 4_096
"""How many stay short after the last request of another project: seconds of a busy worker."""


class Pieces:
    """Owned by the event loop's thread.

    A piece of work is done at once where `left` says so, which is then one less; who takes the last one says `used_up`.
    Otherwise it asks whether it `waits`. `left` is 0 until the next turn has done what waits.

    `project` is the one that asked last: a request of another one says that it `came`.
    """

    __slots__ = ("_beyond", "_lines", "_per_turn", "_short", "left", "project")

    def __init__(self, per_turn: int = PIECES_PER_TURN) -> None:
        self.left = self._per_turn = per_turn
        self.project = ""
        self._lines: dict[str, deque[Callable[[], bool]]] = {}
        self._beyond: set[str] = set()
        self._short = 0

    def came(self, project: str) -> None:
        """A request of another project than the last one: there are several."""
        if self.project:
            self._short = _SHORT_TURNS
            self.left = min(self.left, self._per_turn)
        self.project = project

    def used_up(self) -> None:
        """The last one of this turn is done now."""
        asyncio.get_running_loop().call_soon(self._turn)

    def waits(self, project: str, work: Callable[[], bool]) -> bool:
        """Whether it is done when its project's turn comes, behind what came before; if not, it is to be done now.

        `work` returns False when there was nothing left to do: its caller is gone, and it took no time.
        """
        line = self._lines.get(project)
        if line is None:
            if project not in self._beyond and len(self._beyond) < self._per_turn:
                self._beyond.add(project)
                return False
            line = self._lines[project] = deque()  # the last of those who take turns
        line.append(work)
        return True

    def _turn(self) -> None:
        """One of each project, round and round. Who was served last in this turn is served last in the next."""
        lines, left = self._lines, self._per_turn
        self._beyond.clear()
        if self._short:
            self._short -= 1
        else:
            left *= _TIMES_ALONE
        while left and lines:
            project, line = next(iter(lines.items()))
            left -= line.popleft()()
            if not line:
                del lines[project]
            elif len(lines) > 1:
                lines[project] = lines.pop(project)
        self.left = left
        if not left:
            self.used_up()
