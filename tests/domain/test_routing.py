"""Targets are chosen by weight, among those that may answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain.routing import Candidate, Circuit, choose

SECOND = 1_000_000_000


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
