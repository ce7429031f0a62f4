"""What projects may hold, what they hold, and who borrows from whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from groundplane.domain.scheduling.state import Amount, Quota

_DIMENSIONS = ("accelerators", "cpus_milli", "memory_bytes", "runs")
_BORROWABLE = ("accelerators", "cpus_milli", "memory_bytes")
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

    def held(self, project: str) -> Amount:
        return self._held.get(project, NOTHING)

    def weight(self, project: str) -> float:
        quota = self._quotas.get(project)
        return quota.weight if quota else 1.0

    def quota(self, project: str) -> Quota | None:
        return self._quotas.get(project)

    def take(self, project: str, amount: Amount) -> None:
        self._held[project] = self.held(project).plus(amount)

    def give_back(self, project: str, amount: Amount) -> None:
        self._held[project] = self.held(project).minus(amount)

    def judge(self, project: str, amount: Amount, *, leaving: Mapping[str, Amount] | None = None) -> Standing:
        """Whether the project may hold this much more. `leaving`: what runs asked to give way still hold."""
        quota = self._quotas.get(project)
        if quota is None:
            return Standing()
        gone = leaving or {}
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

    def _cohort_short(self, cohort: str, amount: Amount, gone: Mapping[str, Amount]) -> Amount:
        members = self._members[cohort]
        missing: dict[str, int] = {}
        for name in _BORROWABLE:
            limits = [getattr(member, name) for member in members]
            if any(limit is None for limit in limits):
                continue  # a member without a limit lends without end
            used = sum(
                getattr(self.held(member.project), name) - getattr(gone.get(member.project, NOTHING), name)
                for member in members
            )
            missing[name] = max(0, used + getattr(amount, name) - sum(limits))
        return Amount(**missing)


def _over(quota: Quota, held: Amount) -> Amount:
    """By how much `held` is above the project's own limits, per dimension."""
    above = {
        name: max(0, getattr(held, name) - limit) for name in _DIMENSIONS if (limit := getattr(quota, name)) is not None
    }
    return Amount(**above)


def _parts(amount: Amount) -> tuple[int, int, int, int]:
    return amount.accelerators, amount.cpus_milli, amount.memory_bytes, amount.runs
