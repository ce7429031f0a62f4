"""What passes through the gateways right now: requests as they end, and where keys stand against their limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from groundplane.errors import InvalidInput

DATAGRAM_MAX_BYTES = 49_152
"""Of lines of JSON, a `Passed` each, from a gateway to who follows."""
_CLASS_CHARACTERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """One request that is over or was refused. `at_s` is epoch seconds; `limit`: the one that refused it."""

    id: str
    at_s: float
    project: str
    key_id: str = ""
    owner: str = ""
    model: str = ""
    target: str = ""
    revision: int = 0
    endpoint: str = ""
    stream: bool = False
    status: int
    error: str = ""
    limit: str = ""
    from_cache: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    amount_microusd: int = 0
    queue_ms: float = 0.0
    ttft_ms: float | None = None
    duration_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which requests are wanted; what is empty does not narrow. `status` is one (429) or a class (5xx)."""

    project: str = ""
    model: str = ""
    key_id: str = ""
    status: str = ""
    slow_ms: float = 0.0

    def __post_init__(self) -> None:
        text = self.status
        if text and not (len(text) == _CLASS_CHARACTERS and text[0] in "12345" and (text[1:].isdigit() or _any(text))):
            raise InvalidInput(f"{text[:20]!r} is no status", "like 429 or 5xx")

    def holds(self, one: Passed) -> bool:
        status = str(one.status)
        return (
            (not self.project or one.project == self.project)
            and (not self.model or one.model == self.model)
            and (not self.key_id or one.key_id == self.key_id)
            and (not self.status or status == self.status or (_any(self.status) and status[0] == self.status[0]))
            and one.duration_ms >= self.slow_ms
        )


def _any(status: str) -> bool:
    return status[1:].lower() == "xx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """Requests after a place in the stream. Ask with `after=next` for what follows.

    `missed`: passed by since then and no longer kept, or dropped on the way. `workers` are gateways that answer.
    """

    requests: tuple[Passed, ...]
    next: int
    missed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What one key sent to a model within the last minute."""

    project: str
    key_id: str
    model: str
    target: str
    requests: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitStanding:
    """A limit and what of it is used now: of the allowance that refills, of the day, or in flight."""

    id: str
    project: str
    scope: str
    name: str
    measure: str
    value: int
    used: int

    @property
    def part(self) -> float:
        """Of the limit; 1 is all of it."""
        return min(1.0, self.used / self.value) if self.value > 0 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRefusal:
    """A request that a limit refused."""

    at_s: float
    request_id: str
    project: str
    key_id: str
    owner: str
    model: str
    scope: str
    name: str
    measure: str
    value: int
    left: int
    requested: int
    retry_after_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The last minute of every gateway on this machine, the newest refusals first. `workers` are those that live."""

    workers: int
    in_flight: int
    rates: tuple[Rate, ...]
    limits: tuple[LimitStanding, ...]
    refusals: tuple[LimitRefusal, ...]


def merge(figures: Iterable[Mapping[str, Any]]) -> Live:
    """The figures that living workers left in their files (`gateway/metrics_files`), as one."""
    workers = in_flight = 0
    rates: dict[tuple[str, str, str, str], list[int]] = {}
    standings: dict[str, tuple[int, LimitStanding]] = {}
    refusals: list[LimitRefusal] = []
    for one in figures:
        workers += 1
        in_flight += int(one.get("in_flight", 0))
        for project, key, model, target, _revision, requests, tokens in one.get("minute", ()):
            known = rates.setdefault((project, key, model, target), [0, 0])
            known[0] += requests
            known[1] += tokens
        for limit in one.get("standings", ()):
            seen = int(limit["seen"])
            if limit["id"] not in standings or standings[limit["id"]][0] < seen:
                values = {name: value for name, value in limit.items() if name != "seen"}
                standings[limit["id"]] = (seen, LimitStanding(project="", **values))
        refusals += [LimitRefusal(**refusal) for refusal in one.get("refusals", ())]
    return Live(
        workers=workers,
        in_flight=in_flight,
        rates=tuple(
            Rate(project=name[0], key_id=name[1], model=name[2], target=name[3], requests=counts[0], tokens=counts[1])
            for name, counts in sorted(rates.items(), key=lambda item: (-item[1][0], item[0]))
        ),
        limits=tuple(sorted((one for _, one in standings.values()), key=lambda one: (-one.part, one.id))),
        refusals=tuple(sorted(refusals, key=lambda one: -one.at_s)),
    )
