"""Short forms of what `make soak` plays for longer: gateways that share limits, and gateways left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.gateway.laws import alone_round, pause_round, redis_round


@pytest.mark.needs("redis")
async def test_two_machines_on_one_redis_pass_no_limit(tmp_path: Path) -> None:
    broken, said = await redis_round(tmp_path, 2.0)
    assert not broken, said


@pytest.mark.needs("redis")
async def test_each_limit_does_what_it_says_while_redis_stands_still(tmp_path: Path) -> None:
    broken, said = await pause_round(tmp_path, 2.0)
    assert not broken, said


async def test_without_a_control_plane_serving_goes_on_and_a_revoked_key_stays_revoked(tmp_path: Path) -> None:
    broken, said = await alone_round(tmp_path, 60)
    assert not broken, said
