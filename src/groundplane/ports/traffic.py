"""What is asked of the outside world about requests that passed through the gateways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from groundplane.domain.serving.prediction import Erasure, Form, Holdings, PredictionRule, Wanted
from groundplane.domain.serving.prompt_lint import PromptFinding
from groundplane.domain.serving.queueing import QueueStanding
from groundplane.domain.serving.traffic import Live, Passed


@dataclass(frozen=True, slots=True)
class Page:
    """Records, and where to go on; an empty `next` is the end."""

    records: list[dict[str, Any]]
    next: str


class PredictionLog(Protocol):
    """What gateways' recorders keep of requests. They append, in their own processes; here it is read and shortened."""

    async def read(self, project: str, wanted: Wanted, limit: int, *, after: str = "", newest: bool = False) -> Page:
        """At most `limit` records that are wanted, oldest first unless `newest`. Unavailable for what is damaged.

        `wanted.subject` may be in plain words: what stands for it in the project's records is looked up.
        """
        ...

    async def holdings(self, project: str) -> Holdings:
        """What is kept of the project."""
        ...

    async def erase(self, project: str, subject: str, at: datetime) -> Erasure:
        """Removes the subject's records, then looks again. Again: removes what came since. Dies halfway: each hour is
        as it was or without them, and the next call goes on."""
        ...

    async def upkeep(self, project: str, rules: Sequence[PredictionRule], now: datetime) -> int:
        """Removes days that are past the retention of the rule they are under, and gives hours that are over that
        rule's form; how many hours of a recorder were removed. Again, or after dying halfway: goes on."""
        ...

    def can_write(self, form: Form) -> bool:
        """Whether what the form needs is installed."""
        ...


class RequestTail(Protocol):
    """Live requests, told by the gateways of this machine while somebody listens."""

    async def after(self, place: int | None, wait_s: float) -> tuple[list[tuple[int, Passed]], int, int]:
        """What came after a place in the stream (None: from now on), waiting for the first of it: the requests with
        their places, the place to go on from, and how many were dropped or no longer kept in between."""
        ...

    async def close(self) -> None:
        """Stops listening."""
        ...


class GatewayFigures(Protocol):
    """What gateways leave of their figures for each other."""

    async def live(self) -> Live:
        """Those of every living gateway of this machine, as one."""
        ...


class GatewayReports(Protocol):
    """What living gateways tell of who waits and of the order of prompts. Reading changes nothing."""

    async def standing(self) -> QueueStanding:
        """Queues, adapted replicas and retry storms, over all workers, a second old at most."""
        ...

    async def findings(self) -> list[PromptFinding]:
        """Prompts whose order providers' caches can't use, the dearest first."""
        ...
