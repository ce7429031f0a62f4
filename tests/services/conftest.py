"""What tests of artifacts and of arrivals stand on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import ManualClock

from groundplane.adapters.artifacts import PackStore, folder_store
from groundplane.domain.access import Project
from groundplane.ports import Ids, Store
from groundplane.services.artifacts import Artifacts


@pytest.fixture
def blobs(tmp_path: Path) -> PackStore:
    return folder_store(tmp_path / "store")


@pytest.fixture
async def artifacts(store: Store, clock: ManualClock, ids: Ids, blobs: PackStore) -> Artifacts:
    """With the projects vision and speech."""
    async with store.transaction() as tx:
        for name in ("vision", "speech"):
            await tx.insert(Project(id=name, owner="o", cost_center="c", created_at=clock.now()))
    return Artifacts(store=store, clock=clock, ids=ids, blobs=blobs)
