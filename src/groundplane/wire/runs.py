"""What crosses the HTTP door about runs besides the domain's own records: details, explanations, pieces of logs."""

from __future__ import annotations

from dataclasses import dataclass

from groundplane.domain.run import Attempt, Checkpoint, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetail:
    run: Run
    attempts: tuple[Attempt, ...]
    checkpoints: tuple[Checkpoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunExplanation:
    """Why a run is where it is: one sentence, then the facts behind it."""

    sentence: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPiece:
    """A piece of one attempt's log. `complete` when this attempt writes no more."""

    data: bytes
    attempt: int
    next_offset: int
    complete: bool
