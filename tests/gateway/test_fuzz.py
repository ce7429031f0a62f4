"""Damaged requests: a few seconds of what `python -m tests.gateway.fuzz` does for as long as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.gateway.fuzz import fuzz


@pytest.mark.parametrize("seed", [1, 2])
async def test_damaged_requests_are_answered_and_what_reaches_an_upstream_is_accounted(
    tmp_path: Path, seed: int
) -> None:
    found = await fuzz(tmp_path, 4.0, seed)
    assert found.reached > 0 and found.answers[200] > 0 and found.answers[400] > 0
