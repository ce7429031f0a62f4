"""What projects may hold, what they hold, and who borrows from whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from groundplane.domain.scheduling.state import Amount, Quota

NOTHING = Amount()


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one more run would put a project. `short` is what is missing, in `whose` quota; nothing is missing at 0."""

    borrows: bool = False
    short: Amount = NOTHING
    whose: str = ""

    @property
    def blocked(self) -> bool:
        return bool(self.whose)


class Quotas:
    """Quotas with what is held under them, kept up to date run by run."""

    def __init__(self, quotas: Iterable[Quota], held: Mapping[str, Amount]) -> None:
        self._quotas = {quota.project: quota for quota in quotas}
        self._held: dict[str, Amount] = dict(held)
        self._members: dict[str, list[Quota]] = {}
        for quota in self._quotas.values():
            if quota.cohort:
                self._members.setdefault(quota.cohort, []).append(quota)
        # Asked for every line in every pass, and changed only by what starts or ends: (project, amount) → answer.
        self._judged: dict[tuple[str, int, int, int, int], Standing] = {}
        self._used: dict[str, Amount] = {}
        self._limits: dict[str, tuple[int | None, int | None, int | None]] = {}
        for cohort, members in self._members.items():
            self._used[cohort] = _sum(self.held(member.project) for member in members)
            self._limits[cohort] = (
                _together(member.accelerators for member in members),
                _together(member.cpus_milli for member in members),
                _together(member.memory_bytes for member in members),
            )

    def held(self, project: str) -> Amount:
        return self._held.get(project, NOTHING)

    def weight(self, project: str) -> float:
        quota = self._quotas.get(project)
        return quota.weight if quota else 1.0

    def quota(self, project: str) -> Quota | None:
        return self._quotas.get(project)

    def take(self, project: str, amount: Amount) -> None:
        """The project holds so much more from now on."""
        self._judged.clear()
        self._held[project] = self.held(project).plus(amount)
        if (cohort := self._cohort(project)) is not None:
            self._used[cohort] = self._used[cohort].plus(amount)

    def give_back(self, project: str, amount: Amount) -> None:
        """The project holds so much less from now on."""
        self._judged.clear()
        self._held[project] = self.held(project).minus(amount)
        if (cohort := self._cohort(project)) is not None:
            self._used[cohort] = self._used[cohort].minus(amount)

    def judge(self, project: str, amount: Amount, *, leaving: Mapping[str, Amount] | None = None) -> Standing:
        """Whether the project may hold this much more. `leaving`: what runs asked to give way still hold."""
        if leaving:
            return self._judge(project, amount, leaving)
        # A tuple of plain values is hashed several times faster than an Amount, and this is asked most of all.
        key = (project, amount.accelerators, amount.cpus_milli, amount.memory_bytes, amount.runs)
        known = self._judged.get(key)
        if known is None:
            known = self._judged[key] = self._judge(project, amount, {})
        return known

    def _judge(self, project: str, amount: Amount, gone: Mapping[str, Amount]) -> Standing:
        quota = self._quotas.get(project)
        if quota is None:
            return Standing()
        after = self.held(project).minus(gone.get(project, NOTHING)).plus(amount)
        over = _over(quota, after)
        if not quota.cohort or over.runs > 0:
            return Standing(short=over, whose=project) if any(_parts(over)) else Standing()
        short = self._cohort_short(quota.cohort, amount, gone)
        borrows = any(_parts(over))
        if any(_parts(short)):
            return Standing(borrows=borrows, short=short, whose=quota.cohort)
        return Standing(borrows=borrows)

    def borrowing(self, project: str, *, less: Amount = NOTHING) -> bool:
        """Whether a project of a cohort holds more than its own, `less` taken off."""
        quota = self._quotas.get(project)
        return quota is not None and bool(quota.cohort) and any(_parts(_over(quota, self.held(project).minus(less))))

    def same_cohort(self, one: str, other: str) -> bool:
        first, second = self._quotas.get(one), self._quotas.get(other)
        return first is not None and second is not None and bool(first.cohort) and first.cohort == second.cohort

    def _cohort(self, project: str) -> str | None:
        quota = self._quotas.get(project)
        return quota.cohort or None if quota is not None else None

    def _cohort_short(self, cohort: str, amount: Amount, gone: Mapping[str, Amount]) -> Amount:
        used = self._used[cohort].plus(amount)
        if gone:
            used = used.minus(_sum(gone.get(member.project, NOTHING) for member in self._members[cohort]))
        accelerators, cpus_milli, memory_bytes = self._limits[cohort]
        return Amount(
            max(0, used.accelerators - accelerators) if accelerators is not None else 0,
            max(0, used.cpus_milli - cpus_milli) if cpus_milli is not None else 0,
            max(0, used.memory_bytes - memory_bytes) if memory_bytes is not None else 0,
        )


def _sum(amounts: Iterable[Amount]) -> Amount:
    total = NOTHING
    for amount in amounts:
        total = total.plus(amount)
    return total


def _together(limits: Iterable[int | None]) -> int | None:
    """What a cohort may hold: a member without a limit lends without end, so then there is none."""
    known = list(limits)
    return None if None in known else sum(limit for limit in known if limit is not None)


def _over(quota: Quota, held: Amount) -> Amount:
    """By how much `held` is above the project's own limits, per dimension."""
    return Amount(
        max(0, held.accelerators - quota.accelerators) if quota.accelerators is not None else 0,
        max(0, held.cpus_milli - quota.cpus_milli) if quota.cpus_milli is not None else 0,
        max(0, held.memory_bytes - quota.memory_bytes) if quota.memory_bytes is not None else 0,
        max(0, held.runs - quota.runs) if quota.runs is not None else 0,
    )


def _parts(amount: Amount) -> tuple[int, int, int, int]:
    return amount.accelerators, amount.cpus_milli, amount.memory_bytes, amount.runs
