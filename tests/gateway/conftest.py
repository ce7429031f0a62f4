"""A mock upstream for every test that wants one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.gateway.harness import MockUpstream, well_behaved


@pytest.fixture
async def upstream() -> AsyncIterator[MockUpstream]:
    mock = MockUpstream(well_behaved)
    await mock.start()
    yield mock
    await mock.stop()
