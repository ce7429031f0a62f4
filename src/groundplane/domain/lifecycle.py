"""The heart: (run, attempt, observation, now) → what to do next.

A run's life: pending → in its pool's queue → placed → an attempt is written down → the executor starts it → it is
observed until it ends → its end reason's row in ENDINGS says finish or back into the queue → finished, hold closed.

Nothing here acts. `services.reconcile` carries the actions out; each is safe to carry out twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from groundplane.domain import watchdogs
from groundplane.domain.queue import QueueEntry, Stage
from groundplane.domain.run import ENDINGS, Attempt, EndReason, Observation, Run, RunStatus
from groundplane.units import format_count, format_duration, format_usd


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Give the run a place in its pool's queue. Capacity is the queue's to give, so nothing starts before."""


@dataclass(frozen=True, slots=True)
class BeginAttempt:
    """Write attempt `number` down, then start it. `resume_step` is the newest checkpoint, if any."""

    number: int


@dataclass(frozen=True, slots=True)
class StartAgain:
    """The attempt is written down but the executor has not confirmed it: start it (idempotent)."""


@dataclass(frozen=True, slots=True)
class NoteRunning:
    """The executor reports the attempt at work: record where and since when."""


@dataclass(frozen=True, slots=True)
class AskToStop:
    """Ask the executor to end the attempt for this reason; the observation that follows confirms it."""

    reason: EndReason


@dataclass(frozen=True, slots=True)
class EndAttempt:
    """Record how the attempt ended."""

    reason: EndReason
    exit_code: int | None
    message: str


@dataclass(frozen=True, slots=True)
class TryAgain:
    """The run gives back what it holds and waits in the queue again, where it stood; not before the back-off is over.

    `preempted` runs made room for others: that is no failure of theirs, and counts as none.
    """

    after_s: float
    preempted: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over; its hold is closed."""

    status: RunStatus
    reason: EndReason
    message: str


NOT_PLACED_PAUSE_S = 2.0
FENCE_MARGIN_S = 60.0
"""What a node's clock, a last beat under way and a slow kill may add to its dead-man timer."""

Action = Enqueue | BeginAttempt | StartAgain | NoteRunning | AskToStop | EndAttempt | TryAgain | Finish


def next_actions(
    run: Run,
    attempt: Attempt | None,
    observation: Observation | None,
    *,
    seat: QueueEntry | None,
    posted_microusd: int,
    now: datetime,
    braked: bool = False,
) -> tuple[Action, ...]:
    """What to do for a run, in order. No actions means: look again later.

    `attempt` is the run's newest; `observation` is what its executor says, None when there is no open attempt.
    `seat` is its place in the queue, None before it has one. `posted_microusd` is what the ledger already holds against
    the run. While `braked`, silence proves nothing: so many nodes are silent that it is us.
    """
    if run.status.is_over:
        return ()
    if attempt is not None and attempt.end_reason is not None and run.status is not RunStatus.PENDING:
        # Its end is on record and what follows from it is not: we died, or a part did not answer, in between.
        ended = EndAttempt(attempt.end_reason, attempt.exit_code, attempt.message)
        return _after_end(run, attempt, ended, seat)
    if attempt is None or attempt.end_reason is not None:
        return _between_attempts(run, seat, posted_microusd, now)
    if observation is None or observation.state == "unknown":
        # Unknown is not dead: acting on it would double-start a job that only lost its network.
        return () if braked else _while_silent(run, attempt, observation, seat, now)
    if observation.state == "absent":
        if attempt.started:
            lost = EndAttempt(EndReason.NODE_LOST, None, f"pool {attempt.pool} no longer knows this attempt")
            return (lost, *_after_end(run, attempt, lost, seat))
        if run.stop_requested is not None:
            never = EndAttempt(run.stop_requested, None, "stopped before it started")
            return (never, *_after_end(run, attempt, never, seat))
        return (StartAgain(),)
    if observation.state == "ended":
        reason = observation.end_reason or EndReason.RUNNER_LOST
        hung = watchdogs.hang_sentence(observation) if reason is EndReason.HUNG else ""
        message = hung or observation.message
        ended = EndAttempt(reason, observation.exit_code, message)
        return (ended, *_after_end(run, attempt, ended, seat))
    return _while_running(run, observation, seat, posted_microusd, now)


def remaining_duration_s(run: Run, attempts: tuple[Attempt, ...]) -> float:
    """How long the next attempt may run: the spec's bound covers all attempts together, so the hold does too."""
    used_s = sum(max(0.0, (a.ended_at - a.started_at).total_seconds()) for a in attempts if a.started_at and a.ended_at)
    return max(0.0, run.spec.max_duration_s - used_s)


def limit_reached(run: Run, posted_microusd: int, now: datetime) -> EndReason | None:
    """The limit of the run's own spec that forbids going on, if any."""
    if now >= run.end_date:
        return EndReason.END_DATE
    if posted_microusd >= run.spec.max_cost_microusd:
        return EndReason.MAX_COST
    return None


def _between_attempts(run: Run, seat: QueueEntry | None, posted_microusd: int, now: datetime) -> tuple[Action, ...]:
    reason = run.stop_requested or limit_reached(run, posted_microusd, now)
    if reason is not None:
        return (Finish(ENDINGS[reason].status, reason, f"{ENDINGS[reason].meaning} No attempt was running."),)
    if seat is None:
        return (Enqueue(),)
    match seat.stage:
        case Stage.PLACED:
            return (BeginAttempt(run.attempt + 1),)
        case Stage.LEAVING:
            return (TryAgain(0.0, preempted=True),)
        case _:
            return ()


def _while_silent(
    run: Run, attempt: Attempt, observation: Observation | None, seat: QueueEntry | None, now: datetime
) -> tuple[Action, ...]:
    """Nothing, until a clock of the node's own must have ended the job: then it may start elsewhere."""
    given_up = given_up_at(run, observation) if observation is not None else None
    if observation is None or observation.silent_since is None or given_up is None or now < given_up[0]:
        return ()
    silent_s = (now - observation.silent_since).total_seconds()
    message = f"{attempt.node or attempt.pool} has been silent for {format_duration(silent_s)}; {given_up[1]}"
    lost = EndAttempt(EndReason.NODE_LOST, None, message)
    return (lost, *_after_end(run, attempt, lost, seat))


def given_up_at(run: Run, observation: Observation) -> tuple[datetime, str] | None:
    """(when a silent node's job must be over by the node's own clocks, which clock ends it); None when none is silent.

    The first of its dead-man timer, which counts from when the node last heard of us, and the run's end date.
    """
    if observation.silent_since is None:
        return None
    margin = timedelta(seconds=run.spec.stop_grace_s + FENCE_MARGIN_S)
    limit_s = run.spec.control_plane_gone_limit_s or observation.gone_limit_s
    by_date = run.end_date + margin, "the node ends the job at its end date"
    if limit_s is None:
        return by_date
    fired = observation.silent_since + timedelta(seconds=limit_s) + margin
    by_timer = fired, f"its dead-man timer ends the job after {format_duration(limit_s)} of silence"
    return min(by_timer, by_date)


def _while_running(
    run: Run, observation: Observation, seat: QueueEntry | None, posted_microusd: int, now: datetime
) -> tuple[Action, ...]:
    actions: list[Action] = []
    if observation.state == "running" and run.status in {RunStatus.PENDING, RunStatus.STARTING}:
        actions.append(NoteRunning())
    reason = run.stop_requested or limit_reached(run, posted_microusd, now)
    if reason is None and seat is not None and seat.stage is Stage.LEAVING:
        reason = EndReason.PREEMPTED
    if reason is None and watchdogs.is_hung(observation):
        reason = EndReason.HUNG
    if reason is not None:
        actions.append(AskToStop(reason))
    return tuple(actions)


def _after_end(run: Run, attempt: Attempt, ended: EndAttempt, seat: QueueEntry | None) -> tuple[Action, ...]:
    ending = ENDINGS[ended.reason]
    if run.stop_requested is not None and ended.reason is not EndReason.SUCCEEDED:
        stop = ENDINGS[run.stop_requested]
        return (Finish(stop.status, run.stop_requested, stop.meaning),)
    if ended.reason in {EndReason.PREEMPTED, EndReason.SPOT_RECLAIMED}:
        return (TryAgain(0.0, preempted=True),)
    if ended.reason is EndReason.NOT_PLACED:
        return (TryAgain(NOT_PLACED_PAUSE_S, preempted=True),)
    failures = attempt.number - (seat.preemptions if seat is not None else 0)
    if ending.retry and failures < run.spec.retry.max_attempts:
        # Doubling, capped at five minutes: the queue, not the back-off, decides who runs first.
        return (TryAgain(min(run.spec.retry.backoff_s * 2.0 ** max(0, failures - 1), 300.0)),)
    message = ended.message or ending.meaning
    if ending.retry:
        message = f"{message} That was attempt {attempt.number} of {run.spec.retry.max_attempts}."
    return (Finish(ending.status, ended.reason, message),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a run is where it is: one sentence, and the facts behind it."""

    sentence: str
    lines: tuple[str, ...]


def waits_for_node(run: Run, attempt: Attempt, observation: Observation, now: datetime) -> str:
    """In a sentence, what a run waits for whose node does not answer; empty when it does."""
    given_up = given_up_at(run, observation) if observation.state == "unknown" else None
    if given_up is None or observation.silent_since is None:
        return ""
    at, clock = given_up
    silent = format_duration(max(0.0, (now - observation.silent_since).total_seconds()))
    return (
        f"{run.id} waits for {attempt.node or 'a node of pool ' + attempt.pool}, silent for {silent}: {clock};"
        f" it is taken for lost at {at:%Y-%m-%d %H:%M} UTC, not before"
        f" ({observation.message.rstrip('.')})."
    )


def explain(run: Run, attempts: tuple[Attempt, ...], *, posted_microusd: int, now: datetime) -> Explanation:
    """One sentence a person can act on, then one line per attempt with its reason and cost so far."""
    bound = f"${run.spec.max_cost_microusd / 1e6:.2f}"
    lines = [_attempt_line(attempt) for attempt in attempts]
    lines.append(f"cost so far {format_usd(posted_microusd)} of at most {bound}")
    resumed = next((a.resumed_from_step for a in reversed(attempts) if a.resumed_from_step is not None), None)
    resumed_text = f", resumed from step {resumed}" if resumed is not None else ""
    match run.status:
        case RunStatus.PENDING if run.attempt == 0:
            waiting = format_duration((now - run.created_at).total_seconds())
            sentence = f"{run.id} is waiting for pool {run.pool} to take it (for {waiting})."
        case RunStatus.PENDING:
            reason = attempts[-1].end_reason if attempts else None
            sentence = f"{run.id} is between attempts: attempt {run.attempt} ended with {reason}; the next is due."
        case RunStatus.STARTING:
            sentence = f"{run.id} is starting attempt {run.attempt} on pool {run.pool}."
        case RunStatus.RUNNING | RunStatus.STOPPING:
            since = attempts[-1].started_at if attempts else None
            spent = format_duration((now - since).total_seconds()) if since else "moments"
            verb = "stopping" if run.stop_requested else "running"
            sentence = f"{run.id} is {verb}: attempt {run.attempt} has run for {spent}{resumed_text}."
        case _:
            tries = format_count(run.attempt, "attempt")
            sentence = f"{run.id} {run.status} after {tries}{resumed_text}: {run.message}"
    return Explanation(sentence=sentence, lines=tuple(lines))


def _attempt_line(attempt: Attempt) -> str:
    parts = [f"attempt {attempt.number} on {attempt.node or attempt.pool}"]
    if attempt.resumed_from_step is not None:
        parts.append(f"resumed from step {attempt.resumed_from_step}")
    if attempt.started_at is not None:
        until = f" to {attempt.ended_at:%H:%M:%S}" if attempt.ended_at else ""
        parts.append(f"{attempt.started_at:%Y-%m-%d %H:%M:%S}{until} UTC")
    if attempt.end_reason is not None:
        code = f" (exit {attempt.exit_code})" if attempt.exit_code is not None else ""
        parts.append(f"ended: {attempt.end_reason}{code}")
        parts.append(attempt.message or ENDINGS[attempt.end_reason].meaning)
    return "; ".join(parts)
