"""What watchdogs conclude, and what they never do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain import watchdogs
from groundplane.domain.run import Attempt, Checkpoint, EndReason, MemberHang, Observation, Run
from groundplane.domain.spec import JobSpec, Metadata, Resources
from groundplane.domain.watchdogs import Fleet

NIGHT = datetime(2026, 11, 20, 3, 0, tzinfo=UTC)


def a_run(price_microusd: int = 27_200_000, nodes: int = 8, **spec: object) -> Run:
    job = JobSpec(
        metadata=Metadata(name="train", project="vision", owner="ana", cost_center="r1"),
        command=("true",), resources=Resources(cpus=1.0, memory_bytes=1, nodes=nodes),
        end_date=NIGHT + timedelta(days=9), max_cost_microusd=1, max_duration_s=1, **spec,  # type: ignore[arg-type]
    )  # fmt: skip
    return Run(
        id="run-1", name="train", project="vision", owner="ana", cost_center="r1", spec=job, spec_digest="", plan_id="",
        hold_id="", pool="lab", price_microusd_per_hour=price_microusd, created_by="ana", created_at=NIGHT,
        end_date=job.end_date, due_at=None,
    )  # fmt: skip


def an_attempt(number: int, start_min: float, end_min: float | None, reason: EndReason | None) -> Attempt:
    return Attempt(
        id=f"run-1-{number}", run_id="run-1", number=number, pool="lab", node="n0", created_at=NIGHT, nodes=8,
        started_at=NIGHT + timedelta(minutes=start_min), end_reason=reason,
        ended_at=None if end_min is None else NIGHT + timedelta(minutes=end_min),
    )  # fmt: skip


@given(st.integers(1, 2000), st.data(), st.integers(1, 100))
def test_the_brake_holds_exactly_above_its_share(nodes: int, data: st.DataObject, percent: int) -> None:
    silent = data.draw(st.integers(0, nodes))
    braked = bool(Fleet(nodes=nodes, silent=silent).storm(percent))
    assert braked == (silent >= 2 and silent / nodes > percent / 100)


def test_one_silent_node_of_two_is_its_own_fault() -> None:
    assert not Fleet(nodes=2, silent=1).storm(30)
    assert Fleet(nodes=20, silent=7).storm(30)
    assert not Fleet(nodes=20, silent=6).storm(30)


def hangs(*unreachable: tuple[int, ...]) -> tuple[MemberHang, ...]:
    return tuple(
        MemberHang(node=f"n{rank}", rank=rank, why="quiet", quiet_s=300.0, unreachable=ranks)
        for rank, ranks in enumerate(unreachable)
    )


def test_the_node_that_most_others_cannot_reach_is_named() -> None:
    named = watchdogs.suspect(hangs((3,), (3,), (3,), (0, 1, 2)))
    assert named is not None
    assert (named.node, named.votes, named.others) == ("n3", 3, 3)
    assert "n3 (rank 3) can't be reached by 3 of the 3 others" in named.sentence


def test_where_witnesses_disagree_nobody_is_named() -> None:
    assert watchdogs.suspect(hangs((1,), (0,))) is None  # of two, neither is more to blame
    assert watchdogs.suspect(hangs((), (), ())) is None
    assert watchdogs.suspect(hangs((2, 3), (2, 3), (0, 1), (0, 1))) is None  # a switch between two halves
    assert watchdogs.suspect(hangs((3,), (), (), ())) is None  # one witness of three


RANKS = st.integers(1, 6).flatmap(
    lambda size: st.lists(st.lists(st.integers(0, 7), max_size=4).map(tuple), min_size=size, max_size=size)
)


@given(RANKS)
def test_whoever_is_named_is_a_member_and_most_others_say_so(said: list[tuple[int, ...]]) -> None:
    named = watchdogs.suspect(hangs(*said))
    if named is not None:
        witnesses = [rank for rank, ranks in enumerate(said) if named.rank in ranks and rank != named.rank]
        assert 2 * len(witnesses) > len(said) - 1


def test_a_gang_hangs_only_when_every_member_does() -> None:
    seen = Observation(attempt_id="a", state="running", members=3, hangs=hangs((), ()))
    assert not watchdogs.is_hung(seen)
    assert watchdogs.is_hung(replace(seen, hangs=hangs((), (), ())))
    assert not watchdogs.is_hung(Observation(attempt_id="a", state="running"))
    assert not watchdogs.is_hung(replace(seen, state="unknown", hangs=hangs((), (), ())))


@given(st.integers(1, 64), st.integers(0, 64), st.integers(0, 64))
def test_a_run_never_asks_for_fewer_nodes_than_it_may_or_more_than_it_wanted(wanted: int, least: int, fit: int) -> None:
    least = min(least, wanted)
    asked = watchdogs.fewer_nodes(wanted, least, fit)
    assert (least or wanted) <= asked <= wanted
    if asked < wanted:
        assert asked == fit


def test_a_crash_costs_the_work_since_its_last_checkpoint_and_a_weekend_is_sixty_hours_of_all_nodes() -> None:
    attempts = [an_attempt(1, 0, 60, EndReason.KILLED), an_attempt(2, 63, None, None)]
    saved = Checkpoint(
        id="run-1:10", run_id="run-1", attempt_id="run-1-1", step=10, path="", size_bytes=1,
        found_at=NIGHT + timedelta(minutes=49),
    )  # fmt: skip
    (cost,) = watchdogs.crash_costs(a_run(), attempts, [saved])
    assert (cost.again_s, cost.down_s) == (11 * 60, 3 * 60)
    assert cost.microusd == round(27.20 * 8 * 11 / 60 * 1e6) + 1  # rounded up
    assert cost.weekend_microusd == 13_056 * 10**6  # 8 × $27.20 × 60 h
    assert cost.sentence.startswith("the crash of attempt 1 cost 14m = $39.8")
    assert cost.sentence.endswith("an unattended weekend of 60 h would have cost $13,056.00")


def test_a_run_that_made_room_or_succeeded_crashed_nothing() -> None:
    attempts = [an_attempt(1, 0, 60, EndReason.PREEMPTED), an_attempt(2, 63, 90, EndReason.SUCCEEDED)]
    assert watchdogs.crash_costs(a_run(), attempts, []) == ()


def test_the_idle_clock_counts_dollars_of_all_nodes() -> None:
    attempt = replace(an_attempt(1, 0, None, None), idle_since=NIGHT, nodes=2)
    said = watchdogs.idle_sentence(a_run(98_320_000, 2), attempt, NIGHT + timedelta(hours=3))
    assert "589.92 so far at $196.64 an hour" in said  # 2 × $98.32 × 3 h
    assert "set spec.idle_limit" in said
    limited = watchdogs.idle_sentence(a_run(idle_limit_s=14_400), attempt, NIGHT + timedelta(hours=3))
    assert "it is stopped after 4h" in limited
