"""What must hold of every schedule, under random pools, queues, quotas and histories."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.domain.node import Node, NodeAccelerator
from groundplane.domain.scheduling.scheduler import Scheduler, schedule
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
    Waiting,
)

CARDS = 4
PROJECTS = ("a", "b", "c")


def a_node(number: int, cordoned: str = "") -> Node:
    return Node(
        name=f"n{number}",
        pool="p",
        cpus=16,
        memory_bytes=2**36,
        accelerators=tuple(NodeAccelerator(index=i, model="x", memory_bytes=0) for i in range(CARDS)),
        cordoned=cordoned,
    )


asks = st.builds(
    Ask,
    nodes=st.integers(1, 3),
    accelerators=st.integers(0, CARDS),
    cpus_milli=st.integers(1, 16).map(lambda n: n * 1000),
    memory_bytes=st.sampled_from([2**30, 2**34, 2**35]),
)


@st.composite
def waiting(draw: st.DrawFn) -> tuple[Waiting, ...]:
    count = draw(st.integers(1, 14))
    return tuple(
        Waiting(
            id=f"w{number:02}",
            project=draw(st.sampled_from(PROJECTS)),
            priority=draw(st.sampled_from(sorted(CLASSES.values()))),
            queued_at=float(draw(st.integers(0, 50))),
            ask=draw(asks),
            expected_s=float(draw(st.integers(10, 500))),
        )
        for number in range(count)
    )


quotas = st.one_of(
    st.just(()),
    st.builds(
        lambda limits, cohort, runs: tuple(
            Quota(project=p, accelerators=limit, runs=runs, cohort=cohort)
            for p, limit in zip(PROJECTS, limits, strict=True)
        ),
        st.tuples(*[st.integers(0, 8)] * 3),
        st.sampled_from(["", "all"]),
        st.sampled_from([None, 1, 3]),
    ),
)
pools = st.builds(
    lambda count, cordoned: tuple(a_node(n, "sick" if n < cordoned else "") for n in range(count)),
    st.integers(1, 4),
    st.integers(0, 1),
)
reservations = st.lists(
    st.builds(
        lambda n, start, length, cards: Reserved(
            id="r", project="c", node=f"n{n}", start=float(start), end=float(start + length), accelerators=cards
        ),
        st.integers(0, 3),
        st.integers(0, 300),
        st.integers(10, 300),
        st.integers(1, CARDS),
    ),
    max_size=1,
).map(tuple)
states = st.builds(PoolState, nodes=pools, waiting=waiting(), quotas=quotas, reserved=reservations)


class World:
    """A pool whose runs end when they must, or before; what the scheduler decides is carried out and checked."""

    def __init__(self, state: PoolState, early: float = 0.0, seed: int = 0) -> None:
        self.state = state
        self.scheduler = Scheduler(state)
        self.chance = random.Random(seed)
        self.early = early
        self.now = 60.0
        self.first_start: dict[str, float] = {}
        self.preemptions: Counter[str] = Counter()
        self.ends: dict[str, float] = {}
        self.over: set[str] = set()

    def step(self) -> None:
        for decision in self.scheduler.decide(self.now):
            if isinstance(decision, Start):
                run = self.scheduler.holding[decision.id]
                assert len(run.places) == run.ask.nodes, "a gang starts whole"
                assert len({place.node for place in run.places}) == run.ask.nodes
                assert all(len(place.accelerators) == run.ask.accelerators for place in run.places)
                self.first_start.setdefault(run.id, self.now)
                length = (run.ends_at - self.now) * (1.0 - self.early * self.chance.random())
                self.ends[run.id] = self.now + length
            else:
                self.preemptions[decision.id] += 1
                victim, by = self.scheduler.holding[decision.id], self.scheduler.waiting[decision.for_id]
                assert victim.priority < by.priority or decision.why == "reclaim"
                self.ends[decision.id] = min(self.ends[decision.id], self.now + self.state.rules.grace_s)
        self.check()

    def check(self) -> None:
        by_node: Counter[str] = Counter()
        cpus: Counter[str] = Counter()
        memory: Counter[str] = Counter()
        cards: list[tuple[str, int]] = []
        held: Counter[str] = Counter()
        runs: Counter[str] = Counter()
        for run in self.scheduler.holding.values():
            runs[run.project] += 1
            for place in run.places:
                by_node[place.node] += 1
                cpus[place.node] += run.ask.cpus_milli
                memory[place.node] += run.ask.memory_bytes
                cards += [(place.node, index) for index in place.accelerators]
                held[run.project] += len(place.accelerators)
        for node in self.state.nodes:
            assert cpus[node.name] <= node.cpus * 1000
            assert memory[node.name] <= node.memory_bytes
            assert not (node.cordoned and by_node[node.name]), "a cordoned node takes nothing"
        assert len(cards) == len(set(cards)), "no accelerator is held twice"
        for quota in self.state.quotas:
            assert quota.runs is None or runs[quota.project] <= quota.runs
            if not quota.cohort and quota.accelerators is not None:
                assert held[quota.project] <= quota.accelerators
        if self.state.quotas and self.state.quotas[0].cohort:
            assert sum(held.values()) <= sum(quota.accelerators or 0 for quota in self.state.quotas)
        for each in self.state.reserved:
            if each.start <= self.now < each.end:
                others = sum(
                    len(place.accelerators)
                    for run in self.scheduler.holding.values()
                    for place in run.places
                    if place.node == each.node and run.project != each.project
                )
                assert others <= CARDS - each.accelerators, "a reservation is kept"

    def pass_to_next_end(self) -> bool:
        moments = [at for run_id, at in self.ends.items() if run_id in self.scheduler.holding]
        moments += [each.end for each in self.state.reserved if each.end > self.now]
        if not moments:
            return False
        self.now = max(self.now + 0.001, min(moments))
        for run_id, at in sorted(self.ends.items()):
            if run_id in self.scheduler.holding and at <= self.now:
                run = self.scheduler.end(run_id)
                if run.stopping:
                    self.requeue(run)
                else:
                    self.over.add(run_id)
        return True

    def requeue(self, run: Holding) -> None:
        original = next(each for each in self.state.waiting if each.id == run.id)
        self.scheduler.enqueue(replace(original, preemptions=run.preemptions + 1))

    def play(self, steps: int = 2000) -> None:
        for _ in range(steps):
            self.step()
            if not self.pass_to_next_end():
                return
        raise AssertionError(f"it never comes to rest: preemptions {self.preemptions}")


@given(states, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_capacity_quotas_gangs_and_reservations_hold_and_preemption_comes_to_rest(state: PoolState, seed: int) -> None:
    world = World(state, early=0.7, seed=seed)
    world.play()
    assert sum(world.preemptions.values()) <= len(state.waiting) ** 2, "preemption ends"


@given(states)
@settings(max_examples=40, deadline=None)
def test_whoever_can_ever_run_does(state: PoolState) -> None:
    """No starvation: when arrivals end, only what fits no pool or quota is left."""
    world = World(state)
    world.play()
    for run in world.scheduler.waiting.values():
        alone = schedule(replace(state, waiting=(run,), reserved=()), world.now)
        assert not any(isinstance(each, Start) for each in alone), f"{run.id} fits an empty pool and never ran"


@given(states, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_backfill_never_delays_the_head(state: PoolState, seed: int) -> None:
    """The first run that finds no room starts no later than it was planned to, whatever starts behind it."""
    calm = replace(state, rules=Rules(preempt=False, depth=1, fair=False), quotas=())
    world = World(calm, early=0.5, seed=seed)
    promised: dict[str, float] = {}
    for _ in range(500):
        world.step()
        for run_id in world.scheduler.planned():
            at = world.scheduler.plan_of(run_id)
            assert at is not None
            assert at <= promised.get(run_id, at) + 1.0, f"{run_id} was promised {promised[run_id]}, now {at}"
            # Only a run of a higher class that is first now may take a promise back.
            promised = {run_id: min(at, promised.get(run_id, at))}
        if not world.pass_to_next_end():
            break
    for run_id, at in promised.items():
        assert world.first_start.get(run_id, 0.0) <= at + 1.0


@given(states)
@settings(max_examples=60, deadline=None)
def test_no_lower_class_starts_where_a_higher_one_could(state: PoolState) -> None:
    """No inversion: of what is left waiting, nothing of a higher class would fit into what a lower one just took."""
    calm = replace(state, quotas=(), reserved=(), rules=Rules(preempt=False))
    begun = [each.id for each in schedule(calm, 60.0) if isinstance(each, Start)]
    by_id = {run.id: run for run in calm.waiting}
    for run_id in begun:
        started = by_id[run_id]
        above = [run for run in calm.waiting if run.id not in begun and run.priority > started.priority]
        without = tuple(run for run in calm.waiting if run.priority > started.priority)
        again = {each.id for each in schedule(replace(calm, waiting=without), 60.0) if isinstance(each, Start)}
        assert not again & {run.id for run in above}


@given(states, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_input_does_not_matter(state: PoolState, chance: random.Random) -> None:
    def shuffled(items: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(chance.sample(items, len(items)))

    turned = replace(state, nodes=shuffled(state.nodes), waiting=shuffled(state.waiting))  # type: ignore[arg-type]
    assert schedule(state, 60.0) == schedule(turned, 60.0)


def test_a_stream_of_young_runs_never_starves_a_big_old_one() -> None:
    """With equal classes and shares an eight-card run starts though one-card runs never stop coming."""
    scheduler = Scheduler(PoolState(nodes=(a_node(0), a_node(1)), rules=Rules(depth=1)))
    big = Waiting(id="big", project="a", priority=1000, queued_at=5.0, ask=Ask(nodes=2, accelerators=4), expected_s=50)
    now, number, ends = 0.0, 0, {}
    while "big" not in scheduler.holding:
        for _ in range(3):
            small = Waiting(
                id=f"s{number:04}",
                project="b",
                priority=1000,
                queued_at=now,
                ask=Ask(accelerators=1),
                expected_s=30.0 + number % 40,
            )
            scheduler.enqueue(small)
            number += 1
        if now == 5.0:
            scheduler.enqueue(big)
        for decision in scheduler.decide(now):
            assert not isinstance(decision, Preempt)
            ends[decision.id] = scheduler.holding[decision.id].ends_at
        now += 5.0
        for run_id in [each for each, at in ends.items() if at <= now and each in scheduler.holding]:
            scheduler.end(run_id)
        assert now < 300.0, "the big run starves"


def test_what_is_a_projects_own_is_not_hidden_behind_what_it_would_borrow() -> None:
    """`large` is older and would borrow; had it spoken for its project, `borrower` would start first each time, and be
    asked to give way to `own` each time.
    """

    def a_run(name: str, project: str, queued_at: float, cards: int, nodes: int = 1) -> Waiting:
        ask = Ask(nodes=nodes, accelerators=cards, cpus_milli=2000, memory_bytes=2**30)
        return Waiting(id=name, project=project, priority=1000, queued_at=queued_at, ask=ask, expected_s=60.0)

    runs = (a_run("borrower", "a", 2.0, 3), a_run("large", "b", 6.0, 4, nodes=2), a_run("own", "b", 12.0, 2))
    limits = {"a": 0, "b": 5, "c": 4}
    quotas = tuple(Quota(project=name, accelerators=limit, runs=1, cohort="all") for name, limit in limits.items())
    world = World(PoolState(nodes=(a_node(0, "sick"), a_node(1)), waiting=runs, quotas=quotas))
    world.play()
    assert world.over == {"borrower", "own"}
    assert world.preemptions == {}
    assert world.first_start["own"] < world.first_start["borrower"]
