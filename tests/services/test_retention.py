"""The end of a dataset's retention: told, then erased where that is switched on, unless a model was made from it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.conftest import ManualClock
from tests.services.model_house import ADA, FACTS, NOW, built
from tests.services.test_datasets import POINTED, STATED, Archive

from groundplane.adapters.notify import MemoryNotifier
from groundplane.adapters.store.memory import MemoryStore
from groundplane.domain.artifact import Artifact
from groundplane.domain.dataset import DatasetVersion
from groundplane.domain.provenance.certificate import DataFact
from groundplane.ports import Store
from groundplane.services.artifacts import Pushed
from groundplane.services.datasets import Offered
from groundplane.services.retention import Retention

DAY_S = 24 * 3600


class Sweep:
    def __init__(self, archive: Archive, clock: ManualClock, notice_s: int) -> None:
        self.archive, self.clock, self.notices = archive, clock, MemoryNotifier()
        self.retention = Retention(
            store=archive.house.store, clock=clock, datasets=archive.datasets, notify=self.notices, notice_s=notice_s
        )

    async def managed(self) -> DatasetVersion:
        """A managed copy that is to go in a day."""
        (self.archive.house.home / "row.csv").write_text("id\n1\n")
        pushed = Pushed(name="c", project="vision", sources={"a": self.archive.house.home / "row.csv"})
        artifact = await self.archive.artifacts.push(ADA, pushed)
        stated = replace(STATED, retain_until=NOW + timedelta(days=1))
        offered = Offered(name="corpus", project="vision", artifact_id=artifact.id)
        return await self.archive.datasets.register(ADA, offered, stated)

    async def days_later(self, days: float) -> int:
        self.clock.advance(days * DAY_S)
        return await self.retention.sweep()

    async def actions(self) -> list[str]:
        return [action for action in await self.archive.house.actions() if action.startswith("dataset.")]


async def made(store: Store, clock: ManualClock, home: Path, notice_s: int) -> Sweep:
    return Sweep(Archive(await built(store, clock, home), clock), clock, notice_s)


async def test_it_is_told_once_and_erased_after_the_notice(store: Store, clock: ManualClock, tmp_path: Path) -> None:
    sweep = await made(store, clock, tmp_path, 7 * DAY_S)
    found = await sweep.managed()
    assert await sweep.days_later(0.5) == 0
    assert sweep.notices.sent == []
    for days in (1, 1, 5):
        assert await sweep.days_later(days) == 0
    assert [notice.title for notice in sweep.notices.sent] == ["corpus@1 is past its retention"]
    assert "erased in 7d" in sweep.notices.sent[0].text
    assert await sweep.days_later(1.1) == 1
    assert await sweep.days_later(1) == 0
    gone = await sweep.archive.datasets.get(ADA, found.id)
    assert (gone.kept, gone.erased_at is not None) == (False, True)
    (erasure,) = await sweep.archive.datasets.erasures(ADA)
    assert erasure.reason == "retention ended 2026-11-21"
    assert await sweep.actions() == ["dataset.register", "dataset.retention-over", "dataset.erase"]


async def test_without_the_setting_it_is_marked_and_told_only(clock: ManualClock, tmp_path: Path) -> None:
    sweep = await made(MemoryStore(), clock, tmp_path, 0)
    await sweep.managed()
    for _ in range(3):
        assert await sweep.days_later(400) == 0
    assert "nothing is erased by itself" in sweep.notices.sent[0].text
    async with sweep.archive.house.store.transaction() as tx:
        assert len(await tx.find(Artifact)) == 1


async def test_what_a_model_was_made_from_stays_and_is_told_of_once(clock: ManualClock, tmp_path: Path) -> None:
    sweep = await made(MemoryStore(), clock, tmp_path, DAY_S)
    found = await sweep.managed()
    await sweep.archive.house.register(facts=replace(FACTS, data=(DataFact(name="any", sha256=found.digest),)))
    for _ in range(4):
        assert await sweep.days_later(2) == 0
    assert len(sweep.notices.sent) == 2
    assert "tiny@1 was made from it" in sweep.notices.sent[1].text
    assert (await sweep.actions())[-1] == "dataset.retention-kept"


async def test_bytes_that_lie_elsewhere_are_their_owners_to_delete(clock: ManualClock, tmp_path: Path) -> None:
    sweep = await made(MemoryStore(), clock, tmp_path, DAY_S)
    await sweep.archive.datasets.register(ADA, POINTED, replace(STATED, retain_until=NOW + timedelta(days=1)))
    for _ in range(3):
        assert await sweep.days_later(5) == 0
    (notice,) = sweep.notices.sent
    assert "/data/corpus are its owner's to delete" in notice.text


@pytest.mark.parametrize("notice_s", [0, DAY_S])
async def test_data_without_a_limit_is_left_alone(clock: ManualClock, tmp_path: Path, notice_s: int) -> None:
    sweep = await made(MemoryStore(), clock, tmp_path, notice_s)
    await sweep.archive.datasets.register(ADA, POINTED, STATED)
    assert await sweep.days_later(4000) == 0
    assert sweep.notices.sent == []
