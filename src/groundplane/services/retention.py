"""Datasets past their retention: marked and told at once, erased after a notice where that is switched on.

Nothing goes silently: each step is an event on the trail, the erasure is the signed one that a person's would be, and
what registered models were made from stays until somebody decides.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from groundplane.audit import Event
from groundplane.domain.conditions import Below
from groundplane.domain.dataset import DatasetVersion
from groundplane.domain.model import ModelVersion
from groundplane.domain.run import Run
from groundplane.identity import SYSTEM
from groundplane.ports import Clock, Notice, Notifier, Store
from groundplane.services.audit_trail import Teller
from groundplane.services.datasets import Datasets
from groundplane.units import format_duration

_MARKED, _KEPT = "dataset.retention-over", "dataset.retention-kept"


class Retention:
    """`notice_s` is how long after the mark a managed copy is erased; 0 marks and tells only."""

    def __init__(self, *, store: Store, clock: Clock, datasets: Datasets, notify: Notifier, notice_s: int) -> None:
        self._store = store
        self._clock = clock
        self._on_trail = Teller(clock, "dataset")
        self._datasets = datasets
        self._notify = notify
        self._notice_s = notice_s
        self.outcomes: Counter[str] = Counter()

    async def sweep(self) -> int:
        """One look at everything that is past its retention; returns how many versions were erased.

        Twice is the same as once: what was done stands on the trail. Unavailable when people can't be told; the mark
        follows the telling, so it is told again.
        """
        now, erased = self._clock.now(), 0
        async with self._store.transaction() as tx:
            over = await tx.find(DatasetVersion, {"retain_until": Below(now), "erased_at": None}, order="retain_until")
        for found in over:
            marked = await self._events(found)
            if _MARKED not in marked:
                await self._mark(found)
            elif self._notice_s and found.kept and marked[_MARKED].at + timedelta(seconds=self._notice_s) <= now:
                erased += await self._end(found, told_kept=_KEPT in marked)
        return erased

    async def _events(self, found: DatasetVersion) -> dict[str, Event]:
        async with self._store.transaction() as tx:
            told = await tx.find(Event, {"object_kind": "dataset", "object_id": found.id}, order="id")
        return {event.action: event for event in told}

    async def _mark(self, found: DatasetVersion) -> None:
        assert found.retain_until is not None
        if not found.kept:
            then = f"its bytes at {found.location} are its owner's to delete"
        elif self._notice_s:
            then = f"it is erased in {format_duration(self._notice_s)} unless a model was made from it"
        else:
            then = f"nothing is erased by itself: ground datasets erase {found.id}"
        title = f"{found.id} is past its retention"
        text = f"it was to be kept until {found.retain_until:%Y-%m-%d}; {then}"
        await self._tell(found, _MARKED, title, text)

    async def _end(self, found: DatasetVersion, *, told_kept: bool) -> int:
        line = await self._datasets.lineage(SYSTEM, found.id)
        async with self._store.transaction() as tx:
            models = await tx.find(ModelVersion, {"id": line.models}) if line.models else []
            runs = await tx.find(Run, {"id": line.runs}) if line.runs else []
        held = sorted([model.id for model in models] + [run.id for run in runs if not run.status.is_over])
        if held:
            if not told_kept:
                text = f"{', '.join(held[:5])} {'was' if len(held) == 1 else 'were'} made from it or read it"
                fix = f"erase it yourself when that is right: ground datasets erase {found.id}"
                await self._tell(found, _KEPT, f"{found.id} is past its retention and stays", f"{text}; {fix}")
            return 0
        assert found.retain_until is not None
        reason = f"retention ended {found.retain_until:%Y-%m-%d}"
        await self._datasets.erase(SYSTEM, found.id, records="all", reason=reason)
        self.outcomes["erased"] += 1
        return 1

    async def _tell(self, found: DatasetVersion, action: str, title: str, text: str) -> None:
        now = self._clock.now()
        await self._notify.send(Notice(kind="retention", title=title, text=text, project=found.project, at=now))
        async with self._store.transaction() as tx:
            after = {"retain_until": found.retain_until, "owner": found.owner}
            await self._on_trail(tx, SYSTEM, action, found.id, found.project, after, text)
        self.outcomes["marked" if action == _MARKED else "kept"] += 1
