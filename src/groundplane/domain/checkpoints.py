"""Which checkpoints stay, which are copied next, what an attempt resumes from, and whether a job was seen to resume.

A checkpoint here is complete and verified: the runner reports no others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from groundplane.domain.run import Checkpoint, CopyState
from groundplane.domain.spec import CheckpointPolicy, JobSpec

STORED_LAST = 3
"""How many the artifact store keeps of a run whose spec doesn't say; its node keeps them all."""


def kept(checkpoints: Collection[Checkpoint], policy: CheckpointPolicy) -> frozenset[int]:
    """The steps that stay: the newest `keep_last`, every one whose step is a multiple of `keep_every`, and the best.

    The newest and the best always stay. A policy that limits nothing keeps all.
    """
    if not policy.keep_last and not policy.keep_every:
        return frozenset(each.step for each in checkpoints)
    by_step = sorted((each.step for each in checkpoints), reverse=True)
    steps = set(by_step[: max(1, policy.keep_last)])
    if policy.keep_every:
        steps |= {step for step in by_step if step % policy.keep_every == 0}
    best = best_of(checkpoints, policy)
    if best is not None:
        steps.add(best.step)
    return frozenset(steps)


def stored(checkpoints: Collection[Checkpoint], policy: CheckpointPolicy) -> frozenset[int]:
    """The steps whose copies the artifact store keeps."""
    if not policy.keep_last and not policy.keep_every:
        policy = CheckpointPolicy(keep_last=STORED_LAST, best_by=policy.best_by, best_mode=policy.best_mode)
    return kept(checkpoints, policy)


def best_of(checkpoints: Iterable[Checkpoint], policy: CheckpointPolicy) -> Checkpoint | None:
    """The best by the policy's metric, of equals the newest; None without a metric, or where none has it."""
    rated = [each for each in checkpoints if policy.best_by in each.metrics]
    if not policy.best_by or not rated:
        return None
    sign = 1.0 if policy.best_mode == "max" else -1.0
    return max(rated, key=lambda each: (sign * each.metrics[policy.best_by], each.step))


def leaving_node(
    checkpoints: Collection[Checkpoint], policy: CheckpointPolicy, in_use: Collection[int]
) -> tuple[Checkpoint, ...]:
    """What its node need not keep any longer: neither kept, nor in use, nor still to be copied."""
    there = [each for each in checkpoints if each.removed_at is None]
    steps, copies = kept(there, policy), stored(checkpoints, policy)
    return tuple(
        each
        for each in there
        if each.step not in steps
        and each.step not in in_use
        and not (each.copy is CopyState.WAITING and each.step in copies)
    )


def leaving_store(checkpoints: Collection[Checkpoint], policy: CheckpointPolicy) -> tuple[Checkpoint, ...]:
    """Copies that the store need not keep. The newest copy stays, whatever newer ones still wait to be copied."""
    copied = [each for each in checkpoints if each.copy is CopyState.COPIED]
    steps = stored(copied, policy)
    return tuple(each for each in copied if each.step not in steps)


def not_worth_copying(checkpoints: Collection[Checkpoint], policy: CheckpointPolicy) -> tuple[Checkpoint, ...]:
    """What waits to be copied and would be dropped at once: newer ones came meanwhile."""
    steps = stored(checkpoints, policy)
    return tuple(each for each in checkpoints if each.copy is CopyState.WAITING and each.step not in steps)


def to_restore(checkpoints: Collection[Checkpoint], step_on_node: int | None) -> Checkpoint | None:
    """The newest copy, when it is newer than what the node has; None when the node has what is needed."""
    copies = [each for each in checkpoints if each.copy is CopyState.COPIED]
    newest = max(copies, key=lambda each: each.step, default=None)
    return None if newest is None or (step_on_node is not None and step_on_node >= newest.step) else newest


# ---------------------------------------------------------------- proofs


class ProofStatus(StrEnum):
    RUNNING = "running"
    PROVED = "proved"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeProof:
    """Whether a job was seen to go on from its checkpoint after a kill. id = `<project>/<resume digest>`."""

    id: str
    project: str
    run_id: str
    status: ProofStatus = ProofStatus.RUNNING
    killed_at_step: int | None = None
    continued_at_step: int | None = None
    message: str = ""
    asked_by: str
    asked_at: datetime
    ended_at: datetime | None = None
    version: int = 0


def resume_digest(spec: JobSpec) -> str:
    """What a proof is of: the command, where it starts, and what it runs in. Sizes and limits may change."""
    facts = {"command": list(spec.command), "workdir": spec.workdir, "image": spec.image, "env": dict(spec.env)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def proof_id(spec: JobSpec) -> str:
    return f"{spec.metadata.project}/{resume_digest(spec)[:32]}"


@dataclass(frozen=True, slots=True)
class Judged:
    """A finished proof: whether it holds, at which step it went on, and a sentence."""

    proved: bool
    step: int | None
    sentence: str


def judge_resume(
    killed_at_step: int, found: Sequence[tuple[int, datetime | None]], resumed_at: datetime, *, over: bool
) -> Judged | None:
    """`found` are the second attempt's checkpoints with when they were written, `resumed_at` its start; `over` when it
    has ended. None while it is not known yet.

    A job that starts from nothing writes the early steps once more: that is what tells it from one that resumes.
    """
    again = [step for step, at in found if step <= killed_at_step and at is not None and at > resumed_at]
    if again:
        return Judged(False, None, f"after the kill at step {killed_at_step} it wrote step {min(again)} again")
    further = [step for step, _ in found if step > killed_at_step]
    if further:
        step = min(further)
        return Judged(True, step, f"killed at step {killed_at_step}, it went on and wrote step {step}")
    if over:
        return Judged(False, None, f"after the kill at step {killed_at_step} it wrote no further checkpoint")
    return None
