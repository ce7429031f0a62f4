"""Targets are chosen by weight, among those that may answer."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain.serving.routing import Candidate, Circuit, RoutePolicy, Standing, Wish
from groundplane.domain.serving.routing import choose as choose_by

SECOND = 1_000_000_000


def choose(candidates: list[Candidate], draw: float) -> int | None:
    return choose_by(candidates, RoutePolicy.WEIGHTED, Wish((draw, 0.0)))


def targets(*weights: int, open_: tuple[int, ...] = (), tried: tuple[int, ...] = ()) -> list[Candidate]:
    return [Candidate(weight, index in open_, index in tried) for index, weight in enumerate(weights)]


def test_traffic_follows_the_weights() -> None:
    draws = [choose(targets(9, 1), number / 1000) for number in range(1000)]
    assert (draws.count(0), draws.count(1)) == (900, 100)


def test_open_and_tried_targets_are_skipped() -> None:
    assert choose(targets(1, 1, 1, open_=(0,), tried=(2,)), 0.99) == 1
    assert choose(targets(1, open_=(0,)), 0.5) is None
    assert choose([], 0.0) is None


def test_weight_zero_is_a_last_resort() -> None:
    assert {choose(targets(0, 5), number / 10) for number in range(10)} == {1}
    assert choose(targets(0, 5, open_=(1,)), 0.9) == 0


@given(
    st.lists(st.builds(Candidate, st.integers(0, 100), st.booleans(), st.booleans()), max_size=6),
    st.floats(0, 1, exclude_max=True),
)
def test_the_choice_is_always_usable(candidates: list[Candidate], draw: float) -> None:
    index = choose(candidates, draw)
    usable = [one for one in candidates if not one.open and not one.tried]
    if index is None:
        assert not usable
        return
    assert candidates[index] in usable
    assert candidates[index].weight > 0 or all(one.weight == 0 for one in usable)


def test_a_circuit_opens_after_failures_in_a_row_and_tries_again_later() -> None:
    circuit = Circuit()
    for _ in range(4):
        circuit.failed(0)
    circuit.succeeded()
    for _ in range(4):
        circuit.failed(0)
    assert not circuit.is_open(0)
    circuit.failed(0)
    assert circuit.is_open(0) and circuit.is_open(SECOND - 1) and not circuit.is_open(SECOND)
    circuit.failed(SECOND)
    assert circuit.is_open(3 * SECOND - 1) and not circuit.is_open(3 * SECOND), "the second pause is twice as long"
    circuit.succeeded()
    circuit.failed(10 * SECOND)
    assert not circuit.is_open(10 * SECOND)


def test_pauses_stay_bounded() -> None:
    circuit, now = Circuit(), 0
    for _ in range(40):
        circuit.failed(now)
        now = max(now, circuit.closed_at_ns)
    circuit.failed(now)
    assert circuit.closed_at_ns - now == 30 * SECOND


# ---------------------------------------------------------------- policies

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        weight=st.integers(0, 100),
        open=st.booleans(),
        tried=st.booleans(),
        order=st.integers(0, 3),
        load=st.integers(0, 10**6),
        region=st.sampled_from(["", "eu", "us"]),
    ),
    max_size=8,
).map(lambda found: [replace(one, name=str(index)) for index, one in enumerate(found)])
DRAW = st.floats(0, 1, exclude_max=True)
WISHES = st.builds(
    Wish,
    draws=st.tuples(DRAW, DRAW),
    affinity=st.binary(max_size=80),
    bounded=st.booleans(),
    far_from=st.sampled_from(["", "eu"]),
    near=st.sampled_from(["", "us"]),
)


@given(CANDIDATES, st.sampled_from(RoutePolicy), WISHES)
def test_every_policy_chooses_whenever_something_can_be_asked(
    candidates: list[Candidate], policy: RoutePolicy, wish: Wish
) -> None:
    index = choose_by(candidates, policy, wish)
    usable = [one for one in candidates if not one.open and not one.tried]
    assert (index is None) == (not usable)
    if index is None:
        return
    chosen = candidates[index]
    assert chosen in usable
    if any(one.weight for one in usable):
        assert chosen.weight
        usable = [one for one in usable if one.weight]
    if wish.far_from and any(one.region != wish.far_from for one in usable):
        assert chosen.region != wish.far_from
        usable = [one for one in usable if one.region != wish.far_from]
    elif not wish.far_from and wish.near and any(one.region == wish.near for one in usable):
        assert chosen.region == wish.near
        usable = [one for one in usable if one.region == wish.near]
    assert chosen.order == min(one.order for one in usable), "a higher order takes only what lower ones can't"


@given(CANDIDATES, st.sampled_from(RoutePolicy), WISHES)
def test_asking_on_tries_every_target_once(candidates: list[Candidate], policy: RoutePolicy, wish: Wish) -> None:
    tried: list[int] = []
    while (index := choose_by(candidates, policy, wish)) is not None:
        assert index not in tried
        tried.append(index)
        candidates = [replace(one, tried=one.tried or i in tried) for i, one in enumerate(candidates)]
    assert all(one.open or one.tried for one in candidates)


def test_of_two_draws_the_less_loaded_is_taken() -> None:
    loads = (500, 10, 300)
    candidates = [Candidate(1, False, False, load=load) for load in loads]
    for number in range(100):
        wish = Wish((number / 100, number * 37 % 100 / 100))
        chosen = choose_by(candidates, RoutePolicy.LEAST_LOADED, wish)
        assert chosen != 0, "the most loaded one loses against either of the others"
    heavy = [Candidate(10, False, False, load=500), Candidate(1, False, False, load=100)]
    assert {choose_by(heavy, RoutePolicy.LEAST_LOADED, Wish((n / 10, n / 10))) for n in range(10)} == {0}


def test_two_choices_spread_better_than_one() -> None:
    chance = random.Random(7)

    def most(policy: RoutePolicy) -> int:
        loads = [0] * 10
        for _ in range(1000):
            candidates = [Candidate(1, False, False, load=load) for load in loads]
            index = choose_by(candidates, policy, Wish((chance.random(), chance.random())))
            assert index is not None
            loads[index] += 1
        return max(loads)

    assert most(RoutePolicy.LEAST_LOADED) <= 104 < most(RoutePolicy.WEIGHTED)


@given(st.binary(min_size=1, max_size=64), st.integers(2, 8))
def test_a_prompt_moves_only_when_its_own_target_goes(affinity: bytes, count: int) -> None:
    candidates = [Candidate(1, False, False, name=f"t{n}") for n in range(count)]
    home = choose_by(candidates, RoutePolicy.PREFIX, Wish(affinity=affinity))
    assert home is not None
    for gone in range(count):
        less = [replace(one, open=index == gone) for index, one in enumerate(candidates)]
        assert (choose_by(less, RoutePolicy.PREFIX, Wish(affinity=affinity)) == home) == (gone != home)


def test_prompts_spread_by_weight() -> None:
    candidates = [Candidate(3, False, False, name="a"), Candidate(1, False, False, name="b")]
    chosen = [choose_by(candidates, RoutePolicy.PREFIX, Wish(affinity=b"%d" % n)) for n in range(2000)]
    assert 1400 < chosen.count(0) < 1600


def test_a_prompt_leaves_a_crowded_target_and_a_session_does_not() -> None:
    def at(load: int, policy: RoutePolicy, bounded: bool) -> int | None:
        wish = Wish(affinity=b"x", bounded=bounded)
        free = [Candidate(1, False, False, name=name, load=100) for name in "abc"]
        home = choose_by(free, policy, wish)
        crowded = [replace(one, load=load if index == home else 100) for index, one in enumerate(free)]
        return None if choose_by(crowded, policy, wish) == home else 1

    assert at(120, RoutePolicy.PREFIX, bounded=True) is None
    assert at(1000, RoutePolicy.PREFIX, bounded=True) == 1
    assert at(1000, RoutePolicy.WEIGHTED, bounded=False) is None


def test_a_target_rests_as_long_as_it_says() -> None:
    standing = Standing()
    standing.rest(0, 2.5)
    assert standing.rests_until_ns == 2_500_000_000
    standing.rest(0, None)
    assert standing.rests_until_ns == 2_500_000_000, "a shorter wait does not undo a longer one"
    standing.rest(0, 1e9)
    assert standing.rests_until_ns == 3600 * SECOND, "an hour at most"
