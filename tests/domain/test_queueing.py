"""Lines, replicas and storms: who is served before whom, how many at once, and who comes back too soon."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain.serving.queueing import (
    PRIORITY_WEIGHTS,
    Concurrency,
    KeyPriority,
    Line,
    Place,
    Priority,
    QueueRule,
    RefusalPace,
    RetryWatch,
    Storm,
    check_queue,
    priority_of,
    read_timeout_ns,
)
from groundplane.errors import InvalidInput

_HIGH, _NORMAL, _LOW = Priority
_joins = st.tuples(st.sampled_from(Priority), st.sampled_from("abc"), st.integers(1, 500))
_steps = st.lists(st.one_of(_joins, st.just("serve"), st.integers(0, 40)), max_size=120)


def drain(line: Line[str], count: int | None = None) -> list[Place[str]]:
    served: list[Place[str]] = []
    while (first := line.first()) is not None and (count is None or len(served) < count):
        line.served(first)
        served.append(first)
    return served


@given(_steps)
def test_nobody_is_lost_served_twice_or_overtaken_by_its_like(steps: list[object]) -> None:
    line: Line[int] = Line()
    waiting: dict[int, Place[int]] = {}
    numbers = iter(range(1000))
    last: dict[tuple[Priority, str], int] = defaultdict(lambda: -1)

    def serve() -> None:
        first = line.first()
        assert (first is None) == (not waiting)
        if first is not None:
            line.served(first)
            del waiting[first.who]
            flow = first.priority, first.project
            assert first.who > last[flow]
            last[flow] = first.who

    for step in steps:
        if isinstance(step, tuple):
            number = next(numbers)
            waiting[number] = line.join(number, *step)
        elif step == "serve":
            serve()
        elif step in waiting:
            line.leave(waiting.pop(step))  # type: ignore[arg-type]
        assert len(line) == len(waiting) == len(list(line))
    while waiting:
        serve()
    assert line.first() is None


@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.lists(st.integers(1, 300), min_size=1, max_size=8))
def test_a_flood_of_one_project_moves_another_by_its_fair_part_only(flood: list[int], few: list[int]) -> None:
    line: Line[str] = Line()
    for cost in flood:
        line.join("flood", _NORMAL, "a", cost)
    for cost in few:
        line.join("few", _NORMAL, "b", cost)
    ahead = 0
    mine = 0
    for place in drain(line):
        if place.project == "b":
            mine += place.cost
            assert ahead <= mine + 2 * 300, "as much of others as of its own, and two that were under way"
        else:
            ahead += place.cost


@given(st.integers(1, 10), st.integers(1, 10), st.integers(1, 200))
def test_projects_are_served_by_their_weights(weight_a: int, weight_b: int, cost: int) -> None:
    line: Line[str] = Line()
    for _ in range(200):
        line.join("", _NORMAL, "a", cost, weight_a)
        line.join("", _NORMAL, "b", cost, weight_b)
    seen = Counter(place.project for place in drain(line, 150))
    assert abs(seen["a"] / weight_a - seen["b"] / weight_b) <= 1 / weight_a + 1 / weight_b


@given(st.integers(1, 50))
def test_priorities_share_and_the_lowest_does_not_starve(cost: int) -> None:
    line: Line[str] = Line()
    for priority in Priority:
        for _ in range(100):
            line.join("", priority, "a", cost)
    seen = Counter(place.priority for place in drain(line, 84))
    assert seen == {priority: 4 * weight for priority, weight in PRIORITY_WEIGHTS.items()}


def test_who_comes_one_at_a_time_does_not_overtake_who_waits() -> None:
    line: Line[str] = Line()
    for _ in range(20):
        line.join("waits", _NORMAL, "a", 10)
    served = []
    for _ in range(20):
        line.join("comes", _NORMAL, "b", 10)
        served += [place.project for place in drain(line, 2)]
    assert served.count("a") == served.count("b") == 20


def test_high_goes_before_low_even_when_it_comes_later() -> None:
    line: Line[str] = Line()
    for _ in range(5):
        line.join("low", _LOW, "a", 10)
    drain(line, 1)
    line.join("high", _HIGH, "a", 10)
    assert drain(line, 1)[0].who == "high"


@given(st.lists(_joins, max_size=60), _joins)
def test_what_is_told_to_be_ahead_is_about_what_is_served_before(
    others: list[tuple[Priority, str, int]], mine: tuple[Priority, str, int]
) -> None:
    line: Line[str] = Line()
    for priority, project, cost in others:
        line.join("other", priority, project, cost)
    told = line.ahead(*mine)
    line.join("mine", *mine)
    before = 0
    for place in drain(line):
        if place.who == "mine":
            break
        before += place.cost
    total = sum(cost for _, _, cost in others)
    assert 0 <= told <= total
    # Fairness is kept to the largest request of each flow, weighted by how much sooner a higher priority is served.
    assert before <= told + 500 * 9 * 16


def test_of_equals_exactly_what_came_before_is_ahead() -> None:
    line: Line[str] = Line()
    for cost in (5, 7, 9):
        line.join("", _NORMAL, "a", cost)
    assert line.ahead(_NORMAL, "a", 3) == 21
    assert line.ahead(_NORMAL, "b", 3) == 3, "another project's fair part, however long the line"


def test_a_place_can_be_left_once() -> None:
    line: Line[str] = Line()
    place = line.join("", _NORMAL, "a", 1)
    line.leave(place)
    with pytest.raises(ValueError, match="no place"):
        line.leave(place)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (QueueRule(size=-1), "queue of -1"),
        (QueueRule(wait_ms=700_000), "700000 ms"),
        (QueueRule(weight=0), "weight of 0"),
        (QueueRule(concurrency_max=0), "0 requests at once"),
        (QueueRule(keys=(KeyPriority(key_id="k", priority=_LOW),) * 2), "two priorities"),
    ],
)
def test_a_queue_that_can_not_be_kept_is_refused_with_its_number(rule: QueueRule, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        check_queue(rule)


def test_nobody_gets_more_than_its_key_may() -> None:
    assert priority_of(_NORMAL, _HIGH) is _NORMAL
    assert priority_of(_NORMAL, _LOW) is _LOW
    assert priority_of(_HIGH, None) is _HIGH


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [(b"30", 30 * 10**9), (b"1.5", 1_500_000_000), (b"250ms", 250_000_000), (b"2s", 2 * 10**9), (b"600.0", 6 * 10**11)],
)
def test_a_deadline_is_read_in_seconds(text: bytes, nanoseconds: int) -> None:
    assert read_timeout_ns(text) == nanoseconds


@pytest.mark.parametrize("text", [b"", b"soon", b"-1", b"1e9", b"NOT_GIVEN", b"99999999"])
def test_what_is_no_deadline_is_none(text: bytes) -> None:
    assert read_timeout_ns(text) is None


# ---------------------------------------------------------------- replicas


def play(replica: Concurrency, ttft_ns: int, requests: int) -> None:
    """As many at once as it lets, each answered after so long."""
    done = 0
    while done < requests:
        while replica.has_room:
            replica.began()
        for _ in range(replica.in_flight):
            replica.ended(ttft_ns)
            done += 1


@given(st.integers(1, 200), st.lists(st.one_of(st.none(), st.integers(0, 10**11)), max_size=300))
def test_a_replicas_limit_stays_within_its_bounds(most: int, answers: list[int | None]) -> None:
    replica = Concurrency(most)
    for ttft_ns in answers:
        replica.began()
        replica.ended(ttft_ns)
        if ttft_ns is None:
            replica.refused()
        assert 1 <= replica.limit <= most and replica.in_flight == 0 and replica.has_room


def test_a_replica_that_slows_down_is_sent_less_and_one_that_recovers_more() -> None:
    replica = Concurrency(64)
    play(replica, 50_000_000, 2000)
    fast = replica.limit
    play(replica, 500_000_000, 300)
    slow = replica.limit
    play(replica, 50_000_000, 2000)
    assert fast > 16 and slow < fast / 2 and replica.limit > slow


def test_a_replica_nobody_fills_is_not_sent_more() -> None:
    replica = Concurrency(64)
    for _ in range(500):
        replica.began()
        replica.ended(10_000_000)
    assert replica.limit == 16


def test_longer_prompts_do_not_press_a_replica_down_forever() -> None:
    replica = Concurrency(8)
    play(replica, 10_000_000, 100)
    play(replica, 100_000_000, 60)
    assert replica.limit < 3
    play(replica, 100_000_000, 1500)
    assert replica.limit == 8


# ---------------------------------------------------------------- storms

_S = 1_000_000_000


def test_a_key_that_comes_back_too_soon_is_told() -> None:
    watch = RetryWatch()
    storm = Storm()
    for second in range(4):
        storm = watch.seen("vision", "k", b"body", second * _S)
        watch.refused("vision", "k", b"body", second * _S, second * _S + 10 * _S)
    assert storm == Storm(early=3, repeated=4) and storm.told
    assert watch.storms(4 * _S) == {("vision", "k"): storm}
    assert watch.storms(70 * _S) == {}


def test_who_waits_as_told_is_no_storm() -> None:
    watch = RetryWatch()
    for number in range(9):
        now = number * 5 * _S
        assert not watch.seen("vision", "k", b"body", now).told
        watch.refused("vision", "k", b"body", now, now + 4 * _S)


def test_a_burst_that_was_on_its_way_is_no_retry() -> None:
    watch = RetryWatch()
    for number in range(9):
        storm = watch.seen("vision", "k", b"body", number)
        watch.refused("vision", "k", b"body", number, 10 * _S)
        assert storm.early == 0


def test_one_body_over_and_over_is_told() -> None:
    watch = RetryWatch()
    storms = [watch.seen("vision", "k", b"same", number * _S) for number in range(10)]
    assert [one.told for one in storms] == [False] * 9 + [True]
    assert not any(watch.seen("vision", "k", b"%d" % number, 11 * _S).repeated > 10 for number in range(10))


@given(st.lists(st.tuples(st.integers(0, 30), st.binary(max_size=2), st.integers(0, 10**12)), max_size=300))
def test_what_is_remembered_of_retries_is_bounded(seen: list[tuple[int, bytes, int]]) -> None:
    watch = RetryWatch(keys_max=8)
    for key, digest, now in seen:
        watch.seen("vision", str(key), digest, now)
        assert len(watch._callers) <= 8
        assert all(len(one.bodies) <= 256 for one in watch._callers.values())


# ---------------------------------------------------------------- the pace of refusals

_MS = 1_000_000


def test_refusals_up_to_the_pace_are_not_late() -> None:
    pace = RefusalPace(per_s=100)
    assert [pace.refused(("vision", "k"), 0) for _ in range(100)] == [0] * 100
    assert [pace.refused(("vision", "k"), 0) for _ in range(3)] == [10 * _MS, 20 * _MS, 30 * _MS]
    assert [pace.refused(("vision", "other"), 0), pace.came(("vision", "k"), 0)] == [0, 40 * _MS]
    assert pace.late(0) == {("vision", "k"): 4} and pace.late(61 * _S) == {}


def test_nobody_is_later_than_a_second_and_nobody_owes_more_than_that() -> None:
    pace = RefusalPace(per_s=10)
    late_ns = [pace.refused(("", "192.0.2.1"), 0) for _ in range(1000)]
    assert max(late_ns) == _S
    assert pace.refused(("", "192.0.2.1"), 2 * _S) == 0


def test_a_new_connection_of_somebody_within_the_pace_counts_nothing() -> None:
    pace = RefusalPace(per_s=1)
    assert [pace.came(("", "a"), now) for now in range(9)] == [0] * 9
    assert pace.refused(("", "a"), 9) == 0


@given(st.integers(1, 99), st.integers(1, 200), st.integers(0, 4))
def test_a_closed_loop_over_many_connections_gets_its_pace(connections: int, per_s: int, seconds: int) -> None:
    """Each asks again when it is read again. One refusal of each connection is out before it is read late."""
    pace, refusals = RefusalPace(per_s), 0
    due_ns = [0] * min(connections, per_s)
    while min(due_ns) <= seconds * _S:
        first = due_ns.index(min(due_ns))
        now_ns = due_ns[first]
        due_ns[first] = now_ns + pace.refused(("vision", "k"), now_ns)
        refusals += 1
    assert per_s * (1 + seconds) <= refusals <= per_s * (1 + seconds) + connections + 1


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10**10)), max_size=300))
def test_what_is_remembered_of_refusals_is_bounded(seen: list[tuple[int, int]]) -> None:
    pace = RefusalPace(names_max=8)
    for key, now in seen:
        assert 0 <= pace.refused(("vision", str(key)), now) <= _S
        assert len(pace._clocks) <= 8
