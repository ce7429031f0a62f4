"""A short campaign of faults; `make soak` plays the long one (tests/faults.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.faults import play
from tests.hosts import Hosts

SEED = int(os.environ.get("FAULTS_SEED", "20261121"))


@pytest.mark.needs("sshd")
def test_no_run_is_lost_doubled_or_left_unpaid_under_random_faults(hosts: Hosts, tmp_path: Path) -> None:
    report = play(tmp_path, hosts, seed=SEED, faults=16, limit_s=12, patience_s=90, runs_at_once=6)
    assert "faults" in report
