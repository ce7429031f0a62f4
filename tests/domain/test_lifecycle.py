"""The heart, fact by fact, then under random histories."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.domain import lifecycle
from groundplane.domain.lifecycle import (
    AskToStop,
    BeginAttempt,
    EndAttempt,
    Enqueue,
    Finish,
    NoteRunning,
    StartAgain,
    TryAgain,
    next_actions,
)
from groundplane.domain.queue import QueueEntry, Stage
from groundplane.domain.run import ENDINGS, Attempt, EndReason, Observation, Run, RunStatus
from groundplane.domain.spec import JobSpec, Metadata, Resources, Retry

NOW = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
SPEC = JobSpec(
    metadata=Metadata(name="train", project="vision", owner="ana", cost_center="r1"),
    command=("python", "train.py"),
    resources=Resources(cpus=1, memory_bytes=2**30),
    end_date=NOW + timedelta(days=3),
    max_cost_microusd=1_000_000,
    max_duration_s=3600,
    retry=Retry(max_attempts=3, backoff_s=2),
)


def a_run(**changes: object) -> Run:
    run = Run(
        id="run-1",
        name="train",
        project="vision",
        owner="ana",
        cost_center="r1",
        spec=SPEC,
        spec_digest="d",
        plan_id="plan-1",
        hold_id="hold-1",
        pool="local",
        price_microusd_per_hour=100_000,
        created_by="ana",
        created_at=NOW,
        end_date=SPEC.end_date,
        due_at=NOW,
    )
    return replace(run, **changes)  # type: ignore[arg-type]


def an_attempt(number: int = 1, **changes: object) -> Attempt:
    attempt = Attempt(
        id=f"run-1-{number}", run_id="run-1", number=number, pool="local", started=True, created_at=NOW, started_at=NOW
    )
    return replace(attempt, **changes)  # type: ignore[arg-type]


def seen(state: str, **facts: object) -> Observation:
    return Observation(attempt_id="run-1-1", state=state, **facts)  # type: ignore[arg-type]


def a_seat(**changes: object) -> QueueEntry:
    seat = QueueEntry(
        id="run-1",
        name="train",
        project="vision",
        pool="local",
        owner="ana",
        priority=100_000,
        queued_at=NOW,
        stage=Stage.PLACED,
        nodes=1,
        accelerators=0,
        cpus_milli=1000,
        memory_bytes=2**30,
        expected_s=3600,
    )
    return replace(seat, **changes)  # type: ignore[arg-type]


def decide(
    run: Run,
    attempt: Attempt | None = None,
    observation: Observation | None = None,
    *,
    seat: QueueEntry | None = None,
    posted: int = 0,
) -> tuple[lifecycle.Action, ...]:
    return next_actions(run, attempt, observation, seat=seat, posted_microusd=posted, now=NOW)


def test_a_new_run_gets_a_place_in_the_queue_and_begins_when_it_has_one_on_nodes() -> None:
    assert decide(a_run()) == (Enqueue(),)
    assert decide(a_run(), seat=a_seat(stage=Stage.WAITING)) == ()
    assert decide(a_run(), seat=a_seat()) == (BeginAttempt(1),)


def test_a_run_asked_to_give_way_is_stopped_and_then_waits_where_it_stood() -> None:
    leaving = a_seat(stage=Stage.LEAVING)
    run = a_run(status=RunStatus.RUNNING, attempt=1)
    assert decide(run, an_attempt(), seen("running"), seat=leaving) == (AskToStop(EndReason.PREEMPTED),)
    over = seen("ended", end_reason=EndReason.PREEMPTED, exit_code=143)
    assert decide(run, an_attempt(), over, seat=leaving)[-1] == TryAgain(0.0, preempted=True)
    assert decide(a_run(), seat=leaving) == (TryAgain(0.0, preempted=True),), "before it had begun"


def test_a_preemption_counts_as_no_failure() -> None:
    run = a_run(status=RunStatus.RUNNING, attempt=4)
    killed = seen("ended", end_reason=EndReason.KILLED, exit_code=137)
    assert decide(run, an_attempt(4), killed, seat=a_seat(preemptions=2))[-1] == TryAgain(4.0)
    assert isinstance(decide(run, an_attempt(4), killed, seat=a_seat(preemptions=1))[-1], Finish)


def test_an_attempt_written_down_but_unknown_to_the_pool_is_started_again() -> None:
    run = a_run(status=RunStatus.STARTING, attempt=1)
    assert decide(run, an_attempt(started=False), seen("absent")) == (StartAgain(),)


def test_unknown_is_not_dead() -> None:
    run = a_run(status=RunStatus.RUNNING, attempt=1)
    assert decide(run, an_attempt(), seen("unknown")) == ()
    assert decide(run, an_attempt(), None) == ()


@pytest.mark.parametrize(
    ("of_the_spec_s", "of_the_pool_s", "lost_after"),
    [
        (600, None, timedelta(minutes=10)),
        (None, 3600, timedelta(hours=1)),
        (600, 3600, timedelta(minutes=10)),
        (None, None, None),  # at the end date, when the node ends every job
    ],
)
def test_a_silent_node_is_given_up_once_its_own_clock_must_have_ended_the_job(
    of_the_spec_s: int | None, of_the_pool_s: float | None, lost_after: timedelta | None
) -> None:
    run = a_run(status=RunStatus.RUNNING, attempt=1)
    run = replace(run, spec=replace(run.spec, control_plane_gone_limit_s=of_the_spec_s, stop_grace_s=10))
    ends = NOW + lost_after if lost_after else run.end_date
    silent = seen("unknown", silent_since=NOW, gone_limit_s=of_the_pool_s, message="node n1 did not answer")

    def at(moment: datetime) -> tuple[lifecycle.Action, ...]:
        return next_actions(run, an_attempt(), silent, seat=None, posted_microusd=0, now=moment)

    assert at(ends + timedelta(seconds=69)) == ()
    lost = at(ends + timedelta(seconds=70))[0]
    assert isinstance(lost, EndAttempt) and lost.reason is EndReason.NODE_LOST
    told = lifecycle.waits_for_node(run, an_attempt(), silent, NOW + timedelta(minutes=2))
    assert "silent for 2m" in told
    assert f"{ends + timedelta(seconds=70):%Y-%m-%d %H:%M} UTC" in told
    assert "node n1 did not answer" in told
    assert lifecycle.waits_for_node(run, an_attempt(), seen("running"), NOW) == ""


def test_the_first_sight_of_a_running_job_is_noted_once() -> None:
    assert decide(a_run(status=RunStatus.STARTING, attempt=1), an_attempt(), seen("running")) == (NoteRunning(),)
    assert decide(a_run(status=RunStatus.RUNNING, attempt=1), an_attempt(), seen("running")) == ()


def test_a_killed_job_is_tried_again_after_a_doubling_back_off() -> None:
    run = a_run(status=RunStatus.RUNNING, attempt=2)
    ended, again = decide(run, an_attempt(2), seen("ended", end_reason=EndReason.KILLED))
    assert ended == EndAttempt(EndReason.KILLED, None, "")
    assert again == TryAgain(4.0)


def test_the_last_attempt_of_a_killed_job_finishes_the_run_and_says_how_many() -> None:
    run = a_run(status=RunStatus.RUNNING, attempt=3)
    _, finish = decide(run, an_attempt(3), seen("ended", end_reason=EndReason.KILLED))
    assert isinstance(finish, Finish)
    assert finish.status is RunStatus.FAILED
    assert "attempt 3 of 3" in finish.message


def test_a_failing_command_is_not_paid_for_twice() -> None:
    run = a_run(status=RunStatus.RUNNING, attempt=1)
    _, finish = decide(run, an_attempt(), seen("ended", end_reason=EndReason.COMMAND_FAILED, exit_code=3))
    assert isinstance(finish, Finish)
    assert (finish.status, finish.reason) == (RunStatus.FAILED, EndReason.COMMAND_FAILED)


def test_a_started_attempt_its_pool_forgot_is_lost_and_retried() -> None:
    run = a_run(status=RunStatus.RUNNING, attempt=1)
    ended, again = decide(run, an_attempt(), seen("absent"))
    assert isinstance(ended, EndAttempt)
    assert ended.reason is EndReason.NODE_LOST
    assert isinstance(again, TryAgain)


@pytest.mark.parametrize(
    ("changes", "posted", "reason"),
    [
        ({"stop_requested": EndReason.STOPPED_BY_USER}, 0, EndReason.STOPPED_BY_USER),
        ({"end_date": NOW}, 0, EndReason.END_DATE),
        ({}, 1_000_000, EndReason.MAX_COST),
    ],
)
def test_a_running_job_is_asked_to_stop_for_the_limit_that_binds(
    changes: dict[str, object], posted: int, reason: EndReason
) -> None:
    run = a_run(status=RunStatus.RUNNING, attempt=1, **changes)
    assert AskToStop(reason) in decide(run, an_attempt(), seen("running"), posted=posted)


def test_a_stop_before_the_first_attempt_finishes_without_starting_anything() -> None:
    (finish,) = decide(a_run(stop_requested=EndReason.STOPPED_BY_USER))
    assert isinstance(finish, Finish)
    assert finish.status is RunStatus.STOPPED


def test_a_job_that_succeeds_while_it_is_asked_to_stop_has_succeeded() -> None:
    run = a_run(status=RunStatus.STOPPING, attempt=1, stop_requested=EndReason.STOPPED_BY_USER)
    _, finish = decide(run, an_attempt(), seen("ended", end_reason=EndReason.SUCCEEDED, exit_code=0))
    assert isinstance(finish, Finish)
    assert finish.status is RunStatus.SUCCEEDED


def test_the_duration_bound_covers_all_attempts_together() -> None:
    used = an_attempt(1, ended_at=NOW + timedelta(minutes=50), end_reason=EndReason.KILLED)
    assert lifecycle.remaining_duration_s(a_run(), (used, an_attempt(2))) == 600


def test_a_clock_set_back_never_makes_a_negative_duration() -> None:
    backwards = an_attempt(1, ended_at=NOW - timedelta(hours=1), end_reason=EndReason.KILLED)
    assert lifecycle.remaining_duration_s(a_run(), (backwards,)) == 3600


@settings(max_examples=500, deadline=None)
@given(
    status=st.sampled_from(RunStatus),
    attempt_number=st.integers(0, 4),
    ended=st.booleans(),
    stop=st.sampled_from([None, EndReason.STOPPED_BY_USER, EndReason.ENDPOINT_STOPPED]),
    state=st.sampled_from([None, "absent", "starting", "running", "ended", "unknown"]),
    reason=st.sampled_from(EndReason),
    posted=st.sampled_from([0, SPEC.max_cost_microusd - 1, SPEC.max_cost_microusd]),
    late=st.booleans(),
    started=st.booleans(),
    stage=st.sampled_from([None, *Stage]),
)
def test_decisions_hold_their_laws_in_every_situation(
    status: RunStatus,
    attempt_number: int,
    ended: bool,
    stop: EndReason | None,
    state: str | None,
    reason: EndReason,
    posted: int,
    late: bool,
    started: bool,
    stage: Stage | None,
) -> None:
    run = a_run(status=status, attempt=attempt_number, stop_requested=stop, end_date=NOW if late else SPEC.end_date)
    end_reason = reason if ended else None
    attempt = an_attempt(attempt_number, end_reason=end_reason, started=started) if attempt_number else None
    seat = None if stage is None else a_seat(stage=stage)
    observation = None if state is None else seen(state, end_reason=reason if state == "ended" else None)
    actions = decide(run, attempt, observation, seat=seat, posted=posted)

    if status.is_over:
        assert actions == ()
    begins = [a for a in actions if isinstance(a, BeginAttempt)]
    if begins:
        assert attempt is None or attempt.end_reason is not None, "an open attempt is never doubled"
        assert stop is None
        assert not late
        assert posted < SPEC.max_cost_microusd
        assert stage is Stage.PLACED, "capacity is the queue's to give"
    if any(isinstance(a, StartAgain) for a in actions):
        assert state == "absent" and not started
    finishes = [a for a in actions if isinstance(a, Finish)]
    if finishes:
        assert actions[-1] is finishes[0], "nothing follows the end"
        assert finishes[0].status.is_over
    if any(isinstance(a, TryAgain) for a in actions):
        assert ENDINGS[reason].retry or state == "absent" or stage is Stage.LEAVING
        # What made room for others or found no node has not failed: it costs no try.
        costs_a_try = not any(isinstance(a, TryAgain) and a.preempted for a in actions)
        assert not costs_a_try or attempt_number < SPEC.retry.max_attempts
        assert stop is None
