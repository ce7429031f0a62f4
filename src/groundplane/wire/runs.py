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
class ProofRequest:
    """Prove that a job resumes: one `spec` as YAML, or the spec of the run `run_id`."""

    spec: str = ""
    run_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest:
    """Lay a copy of a checkpoint on a node. `pool` is the run's own when empty, `step` the newest copy's when None."""

    node: str
    pool: str = ""
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPiece:
    """A piece of one attempt's log. `complete` when this attempt writes no more."""

    data: bytes
    attempt: int
    next_offset: int
    complete: bool
