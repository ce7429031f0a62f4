"""What is free on each node of a pool, now and later: releases give back, claims take ahead of time.

Nodes are numbered by name; a set of nodes is an integer with one bit each, so that searches stay fast on large pools.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import nsmallest

from groundplane.domain.node import Node, Placement
from groundplane.domain.scheduling.state import Amount, Ask, Holding, Reserved

NEVER = float("inf")
_REPLAN_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Claim:
    """Capacity of one node that is spoken for from `start` to `end`; only `project` may use it, "" is nobody else."""

    start: float
    end: float
    accelerators: int
    cpus_milli: int
    memory_bytes: int
    project: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """What one run gives back on one node at its end."""

    at: float
    accelerators: int
    cpus_milli: int
    memory_bytes: int
    project: str


class Capacity:
    """The nodes of one pool. `now` of every method is at or after that of the call before."""

    def __init__(self, nodes: Iterable[Node], reserved: Iterable[Reserved] = ()) -> None:
        self.nodes = sorted(nodes, key=lambda node: node.name)
        self._index = {node.name: number for number, node in enumerate(self.nodes)}
        self._cards = [{card.index for card in node.accelerators} for node in self.nodes]
        self._cpus = [round(node.cpus * 1000) for node in self.nodes]
        self._memory = [node.memory_bytes for node in self.nodes]
        self._whole = [
            (len(cards), cpus, memory)
            for cards, cpus, memory in zip(self._cards, self._cpus, self._memory, strict=True)
        ]
        self._releases: list[dict[str, Release]] = [{} for _ in self.nodes]
        most = max((len(cards) for cards in self._cards), default=0)
        self._with_free = [0] * (most + 1)
        self._models: dict[str, int] = {}
        self._open = 0
        for number, node in enumerate(self.nodes):
            self._with_free[len(self._cards[number])] |= 1 << number
            self._open |= (1 << number) if node.takes_work else 0
            for model in {card.model for card in node.accelerators}:
                self._models[model] = self._models.get(model, 0) | 1 << number
        self._reserved: dict[int, list[Claim]] = {}
        for each in reserved:
            if each.node in self._index:
                claim = Claim(each.start, each.end, each.accelerators, each.cpus_milli, 0, each.project)
                self._reserved.setdefault(self._index[each.node], []).append(claim)
        self._claims: dict[int, list[Claim]] = {number: list(own) for number, own in self._reserved.items()}

    # ------------------------------------------------------------ what is there

    def total(self) -> Amount:
        """Everything on nodes that take work."""
        open_nodes = list(_bits(self._open))
        return Amount(
            sum(len(self.nodes[number].accelerators) for number in open_nodes),
            sum(round(self.nodes[number].cpus * 1000) for number in open_nodes),
            sum(self.nodes[number].memory_bytes for number in open_nodes),
        )

    def free_nodes(self, ask: Ask, *, empty: bool, cordoned: bool = False) -> int:
        """How many nodes could take a member of the ask: `empty` as if nothing ran there, `cordoned` with those."""
        candidates = self._candidates(ask) | (self._of_model(ask) if cordoned else 0)
        fits = self._could_fit if empty else self._fits_free
        return sum(1 for number in _bits(candidates) if fits(number, ask))

    # ------------------------------------------------------------ taking and giving

    def hold(self, run: Holding) -> None:
        """Takes what a run has been placed on. Nodes that the pool does not have are skipped."""
        ask = run.ask
        for place in run.places:
            number = self._index.get(place.node)
            if number is None:
                continue
            cards = self._cards[number]
            wanted = place.accelerators or sorted(cards)[: ask.accelerators]
            taken = [index for index in wanted if index in cards]
            self._move(number, removed=taken)
            self._cpus[number] -= ask.cpus_milli
            self._memory[number] -= ask.memory_bytes
            # What it holds but the node no longer has can't be given back.
            self._releases[number][run.id] = Release(
                run.ends_at, len(taken), ask.cpus_milli, ask.memory_bytes, run.project
            )

    def give_back(self, run: Holding) -> None:
        for place in run.places:
            number = self._index.get(place.node)
            if number is None or self._releases[number].pop(run.id, None) is None:
                continue
            present = {card.index for card in self.nodes[number].accelerators}
            back = place.accelerators or sorted(present - self._cards[number])[: run.ask.accelerators]
            self._move(number, added=[index for index in back if index in present])
            self._cpus[number] += run.ask.cpus_milli
            self._memory[number] += run.ask.memory_bytes

    def end_at(self, run: Holding, at: float) -> None:
        """The run's expected end changed."""
        for place in run.places:
            number = self._index.get(place.node)
            old = self._releases[number].get(run.id) if number is not None else None
            if number is not None and old is not None:
                self._releases[number][run.id] = Release(
                    at, old.accelerators, old.cpus_milli, old.memory_bytes, old.project
                )

    def claim(self, numbers: Iterable[int], ask: Ask, start: float, end: float) -> None:
        """Speaks for capacity ahead of time: nothing that would be in its way starts from now on."""
        claim = Claim(start, end, ask.accelerators, ask.cpus_milli, ask.memory_bytes)
        for number in numbers:
            self._claims.setdefault(number, []).append(claim)

    def drop_claims(self) -> None:
        """Forgets claims; reservations stay."""
        self._claims = {number: list(own) for number, own in self._reserved.items()}

    def places(self, numbers: Iterable[int], ask: Ask) -> tuple[Placement, ...]:
        """Lowest free indexes on each node: neighbours share links more often than not."""
        return tuple(
            Placement(node=self.nodes[number].name, accelerators=tuple(sorted(self._cards[number])[: ask.accelerators]))
            for number in numbers
        )

    # ------------------------------------------------------------ searching

    def find(self, ask: Ask, project: str, now: float, duration_s: float) -> tuple[int, ...] | None:
        """Nodes that can take the whole ask now and keep every claim, the fullest that fit first. None when too few."""
        found: list[int] = []
        candidates = self._candidates(ask)
        for count in range(ask.accelerators, len(self._with_free)):
            for number in _bits(self._with_free[count] & candidates):
                if not self._fits_free(number, ask):
                    continue
                if number in self._claims and not self._fits_at(number, ask, project, now, now, duration_s):
                    continue
                found.append(number)
                if len(found) == ask.nodes:
                    return tuple(found)
        return None

    def plan(self, ask: Ask, project: str, now: float, duration_s: float) -> tuple[float, tuple[int, ...]] | None:
        """The earliest time at which the whole ask fits, counting on every run to end when it must; and where.

        None when no end of any run makes room.
        """
        earliest: dict[int, float] = {}
        for number in _bits(self._candidates(ask)):
            at = self._earliest(number, ask, project, now, now, duration_s)
            if at < NEVER:
                earliest[number] = at
        for _ in range(_REPLAN_LIMIT):
            if len(earliest) < ask.nodes:
                return None
            best = nsmallest(ask.nodes, earliest.items(), key=lambda item: (item[1], item[0]))
            at = best[-1][1]
            # A node that fits early may be spoken for later: all must fit at one time.
            late = [
                number
                for number, first in best
                if first < at
                and number in self._claims
                and not self._fits_at(number, ask, project, now, at, duration_s)
            ]
            if not late:
                return at, tuple(number for number, _ in best)
            for number in late:
                again = self._earliest(number, ask, project, now, at, duration_s)
                if again < NEVER:
                    earliest[number] = again
                else:
                    del earliest[number]
        return None

    def open_candidates(self, ask: Ask) -> Iterator[int]:
        """Nodes that take work and could hold a member of the ask when empty."""
        return (number for number in _bits(self._candidates(ask)) if self._could_fit(number, ask))

    def shortage(self, number: int, ask: Ask) -> Amount:
        """What is missing on a node now; 0 and below is enough."""
        return Amount(
            ask.accelerators - len(self._cards[number]),
            ask.cpus_milli - self._cpus[number],
            ask.memory_bytes - self._memory[number],
        )

    def held_on(self, number: int) -> dict[str, Release]:
        """Run id → what it will give back on this node."""
        return self._releases[number]

    # ------------------------------------------------------------ inside

    def _of_model(self, ask: Ask) -> int:
        everything = (1 << len(self.nodes)) - 1
        return self._models.get(ask.accelerator, 0) if ask.accelerator and ask.accelerators else everything

    def _candidates(self, ask: Ask) -> int:
        return self._of_model(ask) & self._open

    def _could_fit(self, number: int, ask: Ask) -> bool:
        accelerators, cpus, memory = self._whole[number]
        return accelerators >= ask.accelerators and cpus >= ask.cpus_milli and memory >= ask.memory_bytes

    def _fits_free(self, number: int, ask: Ask) -> bool:
        return (
            self._cpus[number] >= ask.cpus_milli
            and self._memory[number] >= ask.memory_bytes
            and len(self._cards[number]) >= ask.accelerators
        )

    def _fits_at(self, number: int, ask: Ask, project: str, now: float, start: float, duration_s: float) -> bool:
        """Whether a member fits from `start` on for its whole duration. Only where a claim begins is there less."""
        claims, end = self._claims.get(number, ()), start + duration_s
        moments = [start, *(claim.start for claim in claims if start < claim.start < end)]
        return all(self._enough(number, ask, project, now, moment) for moment in moments)

    def _enough(self, number: int, ask: Ask, project: str, now: float, at: float) -> bool:
        accelerators, cpus = len(self._cards[number]), self._cpus[number]
        memory = self._memory[number]
        for release in self._releases[number].values():
            # A run that is over its time ends any moment, but not now.
            if max(release.at, now + 1.0) <= at:
                accelerators += release.accelerators
                cpus += release.cpus_milli
                memory += release.memory_bytes
        for claim in self._claims.get(number, ()):
            if claim.start <= at < claim.end and (not claim.project or claim.project != project):
                used_accelerators, used_cpus = self._used_by(number, claim.project, now, at)
                accelerators -= max(0, claim.accelerators - used_accelerators)
                cpus -= max(0, claim.cpus_milli - used_cpus)
                memory -= claim.memory_bytes
        return accelerators >= ask.accelerators and cpus >= ask.cpus_milli and memory >= ask.memory_bytes

    def _used_by(self, number: int, project: str, now: float, at: float) -> tuple[int, int]:
        """What a project already uses of its own reservation on a node at a time."""
        if not project:
            return 0, 0
        own = [r for r in self._releases[number].values() if r.project == project and max(r.at, now + 1.0) > at]
        return sum(r.accelerators for r in own), sum(r.cpus_milli for r in own)

    def _earliest(self, number: int, ask: Ask, project: str, now: float, after: float, duration_s: float) -> float:
        if not self._could_fit(number, ask):
            return NEVER
        claims = self._claims.get(number)
        releases = self._releases[number]
        if not claims:
            accelerators = ask.accelerators - len(self._cards[number])
            cpus, memory = ask.cpus_milli - self._cpus[number], ask.memory_bytes - self._memory[number]
            if accelerators <= 0 and cpus <= 0 and memory <= 0:
                return after
            for release in sorted(releases.values(), key=_by_end):
                accelerators -= release.accelerators
                cpus -= release.cpus_milli
                memory -= release.memory_bytes
                if accelerators <= 0 and cpus <= 0 and memory <= 0:
                    return max(release.at, now + 1.0, after)
            return NEVER
        moments = {after, *(max(release.at, now + 1.0) for release in releases.values())}
        moments |= {claim.end for claim in claims}
        for moment in sorted(moment for moment in moments if moment >= after):
            if self._fits_at(number, ask, project, now, moment, duration_s):
                return moment
        return NEVER

    def _move(self, number: int, *, added: Iterable[int] = (), removed: Iterable[int] = ()) -> None:
        cards = self._cards[number]
        self._with_free[len(cards)] &= ~(1 << number)
        cards.update(added)
        cards.difference_update(removed)
        self._with_free[len(cards)] |= 1 << number


def _by_end(release: Release) -> float:
    return release.at


def _bits(numbers: int) -> Iterator[int]:
    """The positions of the ones, ascending."""
    while numbers:
        low = numbers & -numbers
        yield low.bit_length() - 1
        numbers ^= low
