"""Silence and half-done steps: a silent node is lost only when its own timer says so; an end decides once."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st
from tests.domain.test_lifecycle import NOW, SPEC, a_run, an_attempt, seen

from groundplane.domain.lifecycle import FENCE_MARGIN_S, EndAttempt, Finish, TryAgain, next_actions
from groundplane.domain.run import EndReason, RunStatus

FENCED = replace(SPEC, control_plane_gone_limit_s=600, stop_grace_s=10)


def after_silence(silent_s: float, spec: object = FENCED) -> tuple[object, ...]:
    run = a_run(spec=spec, status=RunStatus.RUNNING, attempt=1)
    observation = seen("unknown", silent_since=NOW - timedelta(seconds=silent_s))
    return next_actions(run, an_attempt(node="n1"), observation, seat=None, posted_microusd=0, now=NOW)


@given(st.floats(0, 600 + 10 + FENCE_MARGIN_S - 0.001))
def test_while_a_job_may_still_run_on_a_silent_node_nothing_is_started_elsewhere(silent_s: float) -> None:
    assert after_silence(silent_s) == ()


def test_a_node_silent_for_longer_than_its_dead_man_timer_is_lost_and_the_run_tries_again() -> None:
    ended, again = after_silence(671)
    assert isinstance(ended, EndAttempt)
    assert ended.reason is EndReason.NODE_LOST
    assert "n1 has been silent" in ended.message
    assert isinstance(again, TryAgain)


def test_without_a_dead_man_timer_silence_is_waited_out() -> None:
    assert after_silence(10**7, SPEC) == ()


def test_an_end_on_record_is_followed_though_the_step_that_wrote_it_died() -> None:
    run = a_run(status=RunStatus.RUNNING, attempt=1)
    over = an_attempt(end_reason=EndReason.SUCCEEDED, exit_code=0, ended_at=NOW)
    (finish,) = next_actions(run, over, None, seat=None, posted_microusd=0, now=NOW)
    assert isinstance(finish, Finish)
    assert finish.status is RunStatus.SUCCEEDED


def test_a_node_that_could_not_take_the_run_costs_it_no_try() -> None:
    run = a_run(status=RunStatus.STARTING, attempt=3)
    over = an_attempt(3, started=False, end_reason=EndReason.NOT_PLACED, ended_at=NOW)
    (again,) = next_actions(run, over, None, seat=None, posted_microusd=0, now=NOW)
    assert isinstance(again, TryAgain)
    assert again.preempted
