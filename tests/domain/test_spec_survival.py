"""What a spec says of checkpoints, hangs and machines that are taken away."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from groundplane.domain.spec import CheckpointPolicy, JobSpec, spec_digest
from groundplane.domain.spec.parse import dump, parse_one
from groundplane.errors import InvalidInput

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
JOB = """\
apiVersion: groundplane/v1
kind: Job
metadata: {{name: train, project: vision, owner: ana, cost_center: r1}}
spec:
  command: [python, train.py]
  resources: {{cpus: 1, memory: 1GiB, nodes: 4{nodes}}}
  end_date: 2d
  max_cost: $5
  max_duration: 1h
{more}
"""


def job(more: str = "", nodes: str = "") -> JobSpec:
    spec = parse_one(JOB.format(more=more, nodes=nodes), now=NOW)
    assert isinstance(spec, JobSpec)
    return spec


def test_everything_said_is_read_and_written_back() -> None:
    spec = job(
        "  checkpoints: {keep_last: 3, keep_every: 10000, best_by: eval/loss/min, bandwidth: 200MB/s, copy: false}\n"
        "  hang_limit: 10m\n  spot: true",
        ", nodes_min: 3",
    )
    assert spec.checkpoints == CheckpointPolicy(
        keep_last=3, keep_every=10_000, best_by="eval/loss", best_mode="min", bytes_per_s=200_000_000, copy=False
    )
    assert (spec.hang_limit_s, spec.spot, spec.resources.nodes_min) == (600, True, 3)
    assert parse_one(dump(spec), now=NOW) == spec


def test_a_spec_that_says_nothing_keeps_its_digest() -> None:
    assert job().checkpoints == CheckpointPolicy()
    assert spec_digest(job()) == spec_digest(job("  spot: false"))
    assert spec_digest(job()) != spec_digest(job("  checkpoints: {keep_last: 1}"))


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ("  checkpoints: {keep_last: 0}", "keep_last"),
        ("  checkpoints: {best_by: loss}", "best_by"),
        ("  checkpoints: {best_by: loss/median}", "best_by"),
        ("  checkpoints: {bandwidth: 60}", "bandwidth"),
        ("  checkpoints: {keep: 3}", "keep"),
        ("  hang_limit: 0s", "hang_limit"),
        ("  spot: perhaps", "spot"),
    ],
)
def test_what_can_not_be_is_refused_by_name(said: str, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        job(said)
    assert field in str(refused.value.problems[0].field)
