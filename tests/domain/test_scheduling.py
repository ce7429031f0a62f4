"""The scheduler, fact by fact: order, gangs, backfill, quotas, reservations, preemption, and why something waits."""

from __future__ import annotations

from dataclasses import replace

from groundplane.domain.node import Node, NodeAccelerator, Placement
from groundplane.domain.scheduling.scheduler import Scheduler, schedule
from groundplane.domain.scheduling.shares import decayed
from groundplane.domain.scheduling.state import (
    CLASSES,
    Ask,
    Holding,
    PoolState,
    Preempt,
    Quota,
    Reserved,
    Rules,
    Start,
    Wait,
    Waiting,
)

HOUR = 3600.0
SERVING, TRAINING, EXPLORATORY = CLASSES["serving"], CLASSES["training"], CLASSES["exploratory"]


def nodes(count: int, cards: int = 8, **facts: object) -> tuple[Node, ...]:
    return tuple(
        Node(
            name=f"node-{number:03}",
            pool="p",
            cpus=64,
            memory_bytes=2**40,
            accelerators=tuple(NodeAccelerator(index=i, model="h100", memory_bytes=0) for i in range(cards)),
            **facts,  # type: ignore[arg-type]
        )
        for number in range(count)
    )


def wants(id: str, cards: int, **facts: object) -> Waiting:
    count = int(facts.pop("on", 1))  # type: ignore[call-overload]
    run = Waiting(
        id=id,
        project="a",
        priority=TRAINING,
        queued_at=0.0,
        ask=Ask(nodes=count, accelerators=cards, cpus_milli=1000, memory_bytes=2**30),
        expected_s=HOUR,
    )
    return replace(run, **facts)  # type: ignore[arg-type]


def started(state: PoolState, now: float = 0.0) -> dict[str, Start]:
    return {d.id: d for d in schedule(state, now) if isinstance(d, Start)}


def preempted(state: PoolState, now: float = 0.0) -> dict[str, Preempt]:
    return {d.id: d for d in schedule(state, now) if isinstance(d, Preempt)}


def waits(state: PoolState, now: float = 0.0) -> dict[str, Wait]:
    return {d.id: d for d in schedule(state, now) if isinstance(d, Wait)}


def running(id: str, cards: int, node: int, first: int = 0, **facts: object) -> Holding:
    run = Holding(
        id=id,
        project="a",
        priority=TRAINING,
        queued_at=0.0,
        ask=Ask(accelerators=cards, cpus_milli=1000, memory_bytes=2**30),
        places=(Placement(node=f"node-{node:03}", accelerators=tuple(range(first, first + cards))),),
        started_at=0.0,
        ends_at=HOUR,
    )
    return replace(run, **facts)  # type: ignore[arg-type]


def test_a_run_starts_on_the_fullest_node_that_fits_it() -> None:
    state = PoolState(nodes=nodes(2), holding=(running("r", 4, 1),), waiting=(wants("w", 2),))
    (place,) = started(state)["w"].places
    assert place.node == "node-001"
    assert place.accelerators == (4, 5)


def test_a_gang_of_four_never_starts_on_three_nodes() -> None:
    state = PoolState(nodes=nodes(3), waiting=(wants("gang", 8, on=4),))
    assert not started(state)
    assert waits(state)["gang"].layer == "gang"
    assert "3 such nodes in all" in waits(state)["gang"].reason


def test_a_gang_starts_whole() -> None:
    state = PoolState(nodes=nodes(4), waiting=(wants("gang", 8, on=4),))
    assert len(started(state)["gang"].places) == 4


def test_a_gang_that_lacks_one_cordoned_node_says_so() -> None:
    sick = replace(nodes(4)[3], cordoned="Xid 79")
    state = PoolState(nodes=(*nodes(3), sick), waiting=(wants("gang", 8, on=4),))
    assert waits(state)["gang"].layer == "cordon"
    assert "node-003 (Xid 79)" in waits(state)["gang"].reason


def test_a_higher_class_goes_first_however_late_it_came() -> None:
    late = wants("late", 8, priority=SERVING, queued_at=99.0)
    state = PoolState(nodes=nodes(1), waiting=(wants("early", 8), late))
    assert list(started(state, 100.0)) == ["late"]


def test_of_two_projects_the_one_that_had_less_goes_first() -> None:
    waiting = (wants("a1", 8, queued_at=1.0), wants("b1", 8, project="b", queued_at=2.0))
    assert list(started(PoolState(nodes=nodes(1), waiting=waiting, usage={"a": 0.4, "b": 0.1}), 10.0)) == ["b1"]
    assert list(started(PoolState(nodes=nodes(1), waiting=waiting, usage={"a": 0.1, "b": 0.4}), 10.0)) == ["a1"]


def test_starts_of_one_step_are_shared_out_too() -> None:
    waiting = tuple(wants(f"a{n}", 8, queued_at=float(n)) for n in range(4)) + tuple(
        wants(f"b{n}", 8, project="b", queued_at=10.0 + n) for n in range(4)
    )
    assert sorted(started(PoolState(nodes=nodes(4), waiting=waiting), 20.0)) == ["a0", "a1", "b0", "b1"]


def test_what_waited_too_long_goes_before_its_class() -> None:
    waiting = (wants("old", 8, queued_at=0.0), wants("new", 8, project="b", queued_at=90_000.0))
    state = PoolState(nodes=nodes(1), waiting=waiting, usage={"a": 0.9})
    assert list(started(state, 90_001.0)) == ["old"]


def test_an_hour_old_run_competes_at_every_step() -> None:
    """A back-off would look at the old run ever more rarely and let newcomers take each free slot before it."""
    rules = Rules(fair=False)
    old = wants("old", 8, queued_at=0.0)
    now = HOUR
    for newcomer in range(40):
        new = wants(f"new-{newcomer}", 8, queued_at=now - 1.0)
        assert list(started(PoolState(nodes=nodes(1), waiting=(new, old), rules=rules), now)) == ["old"]
        now += 60.0


def test_a_short_run_is_backfilled_and_a_long_one_is_not() -> None:
    state = PoolState(
        nodes=nodes(1),
        holding=(running("r", 4, 0),),
        waiting=(
            wants("head", 8, queued_at=0.0),
            wants("long", 2, queued_at=1.0, expected_s=2 * HOUR),
            wants("short", 2, queued_at=2.0, expected_s=HOUR / 2),
        ),
    )
    found = schedule(state, 10.0)
    assert [d.id for d in found if isinstance(d, Start)] == ["short"]
    assert waits(state, 10.0)["head"].starts_at == HOUR
    assert waits(state, 10.0)["long"].layer == "queue"


def test_a_long_run_is_backfilled_where_the_head_does_not_need_the_room() -> None:
    state = PoolState(
        nodes=nodes(2),
        holding=(running("r", 8, 0), running("s", 4, 1, ends_at=9 * HOUR)),
        waiting=(wants("head", 8), wants("long", 4, queued_at=1.0, expected_s=8 * HOUR)),
    )
    assert list(started(state)) == ["long"]


def test_a_project_never_exceeds_its_quota_and_others_go_on() -> None:
    state = PoolState(
        nodes=nodes(2),
        quotas=(Quota(project="a", accelerators=8),),
        waiting=(wants("a1", 8), wants("a2", 8, queued_at=1.0), wants("b1", 8, project="b", queued_at=2.0)),
    )
    assert sorted(started(state)) == ["a1", "b1"]
    assert waits(state)["a2"].layer == "project-quota"
    assert "a holds 8 of 8" in waits(state)["a2"].reason


def test_a_cohort_lends_what_is_not_used_and_the_owner_gets_it_back() -> None:
    quotas = (Quota(project="a", accelerators=8, cohort="c"), Quota(project="b", accelerators=8, cohort="c"))
    borrowing = PoolState(nodes=nodes(2), quotas=quotas, waiting=(wants("a1", 8), wants("a2", 8)))
    assert sorted(started(borrowing)) == ["a1", "a2"]
    full = PoolState(
        nodes=nodes(2),
        quotas=quotas,
        holding=(running("a1", 8, 0, kept_at=0.0), running("a2", 8, 1, kept_at=500.0)),
        waiting=(wants("b1", 8, project="b"),),
    )
    (victim,) = preempted(full, 600.0).values()
    assert victim.id == "a2", "it loses the least: its checkpoint is the newest"
    assert victim.why == "reclaim"


def test_an_owner_that_took_its_own_back_is_not_preempted_in_turn() -> None:
    quotas = (Quota(project="a", accelerators=8, cohort="c"), Quota(project="b", accelerators=8, cohort="c"))
    state = PoolState(
        nodes=nodes(2),
        quotas=quotas,
        holding=(running("a1", 8, 0), running("b1", 8, 1, project="b")),
        waiting=(wants("a2", 8, queued_at=0.0),),
    )
    assert not preempted(state, 100_000.0)
    assert not started(state, 100_000.0)


def test_a_higher_class_preempts_the_cheapest_lower_one_and_takes_its_place() -> None:
    state = PoolState(
        nodes=nodes(2),
        holding=(
            running("dear", 8, 0, priority=EXPLORATORY, kept_at=0.0),
            running("cheap", 8, 1, priority=EXPLORATORY, kept_at=990.0),
        ),
        waiting=(wants("serve", 8, priority=SERVING, queued_at=1000.0),),
    )
    (victim,) = preempted(state, 1000.0).values()
    assert victim == Preempt(id="cheap", for_id="serve", why="priority", lost_s=10.0)
    wait = waits(state, 1000.0)["serve"]
    assert (wait.layer, wait.starts_at) == ("preempting", 1010.0)


def test_nobody_is_asked_twice_for_the_same_room() -> None:
    stopping = running("e", 8, 0, priority=EXPLORATORY, stopping=True, ends_at=1005.0)
    other = running("f", 8, 1, priority=EXPLORATORY)
    state = PoolState(nodes=nodes(2), holding=(stopping, other), waiting=(wants("serve", 8, priority=SERVING),))
    assert not preempted(state, 1000.0)


def test_nobody_is_preempted_when_that_makes_no_room() -> None:
    state = PoolState(
        nodes=nodes(2),
        holding=(running("e", 8, 0, priority=EXPLORATORY), running("s", 8, 1, priority=SERVING)),
        waiting=(wants("gang", 8, on=2),),
    )
    assert not preempted(state)


def test_equals_do_not_preempt_each_other() -> None:
    state = PoolState(nodes=nodes(1), holding=(running("r", 8, 0),), waiting=(wants("w", 8),))
    assert not preempted(state)


def test_a_project_makes_room_in_its_own_quota_for_its_more_important_work() -> None:
    state = PoolState(
        nodes=nodes(2),
        quotas=(Quota(project="a", accelerators=8),),
        holding=(running("toy", 8, 0, priority=EXPLORATORY),),
        waiting=(wants("real", 8),),
    )
    assert preempted(state)["toy"].why == "quota"


def test_a_reservation_keeps_others_out_and_lets_its_owner_in() -> None:
    tuesday = Reserved(id="r", project="b", node="node-000", start=HOUR, end=5 * HOUR, accelerators=8)
    long = wants("a1", 8, expected_s=2 * HOUR)
    state = PoolState(nodes=nodes(1), reserved=(tuesday,), waiting=(long,))
    assert not started(state)
    assert waits(state)["a1"].layer == "reservation"
    assert waits(state)["a1"].starts_at == 5 * HOUR
    assert list(started(replace(state, waiting=(replace(long, expected_s=HOUR),)))) == ["a1"]
    assert list(started(replace(state, waiting=(replace(long, project="b"),)), HOUR)) == ["a1"]


def test_a_cordoned_node_takes_nothing() -> None:
    assert not started(PoolState(nodes=nodes(2, cordoned="ECC"), waiting=(wants("w", 1),)))


def test_a_share_decays_by_half_in_a_half_life() -> None:
    assert decayed({"a": 0.8}, {}, elapsed_s=100, half_life_s=100) == {"a": 0.4}
    steady = {"a": 0.0}
    for _ in range(50):
        steady = decayed(steady, {"a": 0.5}, elapsed_s=100, half_life_s=100)
    assert abs(steady["a"] - 0.5) < 1e-6


def test_the_same_state_in_any_order_gives_the_same_decisions() -> None:
    waiting = tuple(wants(f"w{n}", n % 4 + 1, project="ab"[n % 2], queued_at=float(n % 3)) for n in range(12))
    state = PoolState(nodes=nodes(2), waiting=waiting, holding=(running("r", 3, 0), running("s", 2, 0, 4)))
    turned = replace(state, nodes=state.nodes[::-1], waiting=state.waiting[::-1], holding=state.holding[::-1])
    assert schedule(state, 5.0) == schedule(turned, 5.0)


def test_an_object_told_of_changes_decides_like_one_made_afresh() -> None:
    scheduler = Scheduler(PoolState(nodes=nodes(1)))
    scheduler.enqueue(wants("one", 6))
    assert [d.id for d in scheduler.decide(0.0)] == ["one"]
    scheduler.enqueue(wants("two", 6, queued_at=1.0))
    assert scheduler.decide(1.0) == []
    assert scheduler.plan_of("two") == HOUR
    scheduler.end("one")
    assert [d.id for d in scheduler.decide(2.0)] == ["two"]
