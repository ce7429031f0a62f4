"""Which checkpoints stay, which come back, and what proves a resume."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain import checkpoints as rules
from groundplane.domain.run import Checkpoint, CopyState
from groundplane.domain.spec import CheckpointPolicy

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def checkpoint(step: int, copy: CopyState = CopyState.WAITING, **metrics: float) -> Checkpoint:
    return Checkpoint(
        id=f"run-1:{step}", run_id="run-1", attempt_id="run-1-1", step=step, path=f"/c/step-{step}", size_bytes=10,
        found_at=NOON, metrics=metrics, copy=copy,
    )  # fmt: skip


POLICIES = st.builds(
    CheckpointPolicy,
    keep_last=st.integers(0, 5),
    keep_every=st.integers(0, 30),
    best_by=st.sampled_from(["", "loss"]),
    best_mode=st.sampled_from(["min", "max"]),
)
CHECKPOINTS = st.lists(
    st.tuples(st.integers(0, 200), st.sampled_from(CopyState), st.none() | st.floats(-10, 10)),
    max_size=30,
    unique_by=lambda row: row[0],
).map(lambda rows: [checkpoint(step, copy, **({} if loss is None else {"loss": loss})) for step, copy, loss in rows])


@given(CHECKPOINTS, POLICIES, st.sets(st.integers(0, 200), max_size=3))
def test_the_newest_the_best_and_those_in_use_never_leave_their_node(
    found: list[Checkpoint], policy: CheckpointPolicy, in_use: set[int]
) -> None:
    leaving = {each.step for each in rules.leaving_node(found, policy, in_use)}
    assert not leaving & in_use
    if found:
        assert max(each.step for each in found) not in leaving
    best = rules.best_of(found, policy)
    assert best is None or best.step not in leaving
    if not policy.keep_last and not policy.keep_every:
        assert not leaving


@given(CHECKPOINTS, POLICIES)
def test_what_leaves_its_node_is_copied_or_was_not_to_be(found: list[Checkpoint], policy: CheckpointPolicy) -> None:
    copies = rules.stored(found, policy)
    for each in rules.leaving_node(found, policy, ()):
        assert each.copy is not CopyState.WAITING or each.step not in copies


@given(CHECKPOINTS, POLICIES)
def test_the_newest_copy_and_the_best_copy_never_leave_the_store(
    found: list[Checkpoint], policy: CheckpointPolicy
) -> None:
    copied = [each for each in found if each.copy is CopyState.COPIED]
    leaving = {each.step for each in rules.leaving_store(found, policy)}
    assert leaving <= {each.step for each in copied}
    if copied:
        assert max(each.step for each in copied) not in leaving
        best = rules.best_of(copied, policy)
        assert best is None or best.step not in leaving


@given(CHECKPOINTS, POLICIES)
def test_keeping_twice_keeps_the_same(found: list[Checkpoint], policy: CheckpointPolicy) -> None:
    left = [each for each in found if each.step in rules.kept(found, policy)]
    assert rules.kept(left, policy) == {each.step for each in left}


@given(CHECKPOINTS, st.none() | st.integers(0, 200))
def test_a_restore_takes_the_newest_copy_and_only_what_the_node_lacks(
    found: list[Checkpoint], step_on_node: int | None
) -> None:
    chosen = rules.to_restore(found, step_on_node)
    copies = [each.step for each in found if each.copy is CopyState.COPIED]
    newest = max(copies, default=None)
    if chosen is None:
        assert newest is None or (step_on_node is not None and step_on_node >= newest)
    else:
        assert chosen.step == newest
        assert chosen.copy is CopyState.COPIED
        assert step_on_node is None or chosen.step > step_on_node


def test_last_every_and_best_add_up() -> None:
    found = [checkpoint(step, loss=abs(step - 35)) for step in range(10, 100, 10)]
    policy = CheckpointPolicy(keep_last=2, keep_every=50, best_by="loss", best_mode="min")
    assert sorted(rules.kept(found, policy)) == [40, 50, 80, 90]


def test_a_job_that_writes_an_early_step_again_did_not_resume() -> None:
    later = NOON + timedelta(seconds=5)
    fresh = rules.judge_resume(20, [(10, later), (20, NOON - timedelta(minutes=1))], NOON, over=False)
    assert fresh is not None
    assert not fresh.proved
    assert "wrote step 10 again" in fresh.sentence
    resumed = rules.judge_resume(20, [(20, NOON - timedelta(minutes=1)), (30, later)], NOON, over=False)
    assert resumed is not None
    assert (resumed.proved, resumed.step) == (True, 30)
    assert rules.judge_resume(20, [(20, None)], NOON, over=False) is None
    silent = rules.judge_resume(20, [(20, None)], NOON, over=True)
    assert silent is not None
    assert not silent.proved
