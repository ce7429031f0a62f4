"""What is asked of a node, what follows from its answers, and how jobs are kept apart: decisions alone."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain.isolation import STRENGTH, Isolation, IsolationPolicy, effective
from groundplane.domain.preflight import (
    ACCELERATOR_MTBF_S,
    CheckResult,
    CheckStatus,
    PreflightReport,
    advice_of,
    daly_interval_s,
    lines_of,
    mtbf_of,
    need_of,
    results_of,
    young_interval_s,
)
from groundplane.domain.spec import JobSpec
from groundplane.domain.spec.parse import dump, parse_one
from groundplane.errors import InvalidInput

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
TEXT = """
apiVersion: groundplane/v1
kind: Job
metadata: {name: a, project: p, owner: o, cost_center: c}
spec:
  command: [x]
  resources: {cpus: 1, memory: 1GiB, accelerators: 8, nodes: 8, disk: 10GiB}
  end_date: 7d
  max_cost: $1
  max_duration: 4h
  isolation: bubblewrap
  network: false
  secrets: [hub-token]
  checkpoint_dir: /mnt/ckpt
  checkpoint_size: 140GB
  data: [{name: corpus, path: /data, url: "https://x.example/y", size: 2TB, passes: 2}]
"""


def spec(text: str = TEXT) -> JobSpec:
    found = parse_one(text, now=NOW)
    assert isinstance(found, JobSpec)
    return found


def test_a_spec_with_walls_and_checks_is_written_back_as_it_was() -> None:
    assert parse_one(dump(spec()), now=NOW) == spec()
    off = spec(TEXT.replace("isolation: bubblewrap", "preflight: false"))
    assert parse_one(dump(off), now=NOW) == off and not off.preflight


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("isolation: bubblewrap", "isolation: chroot", "none, user, bubblewrap, podman"),
        ("[hub-token]", "[a, a]", "listed twice"),
        ("[hub-token]", "[../../keys/admin]", "a secret's name"),
        ("/mnt/ckpt", "relative/path", "an absolute path"),
        ("https://x.example/y", "ftp://x/y", "http or https"),
    ],
)
def test_bad_walls_are_refused_with_what_is_taken(before: str, after: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        spec(TEXT.replace(before, after))
    assert words in f"{caught.value} {caught.value.hint}"


def test_a_node_is_asked_for_what_the_spec_needs() -> None:
    need = need_of(spec(), now=NOW, memory_bytes_per_s=3.35e12, budget_s=15)
    assert (need.disk_bytes, need.checkpoint_bytes) == (10 * 2**30, 140 * 10**9)
    (source,) = need.data
    assert (source.url, source.size_bytes, source.passes) == ("https://x.example/y", 2 * 10**12, 2)


def test_a_checkpoints_cost_and_interval_follow_from_its_size_and_what_was_measured() -> None:
    ok = CheckResult(name="checkpoints", status=CheckStatus.OK, figures={"write_bytes_per_s": 1e9})
    cost, interval = advice_of(spec(), [ok])
    assert "takes 140.00 s" in cost
    # 64 cards: one failure every 50,677 h ÷ 64 = 792 h. √(2 × 140 s × 2,850,581 s) = 28,252 s.
    assert round(mtbf_of(spec())) == round(ACCELERATOR_MTBF_S / 64) == 2_850_581
    assert round(young_interval_s(140, mtbf_of(spec()))) == 28_252
    assert "7h 50m" in interval
    assert advice_of(replace(spec(), checkpoint_bytes=0), [ok]) == ()
    assert advice_of(spec(), [replace(ok, status=CheckStatus.FAILED)]) == ()


@given(st.floats(0.01, 1e4), st.floats(1, 1e8))
def test_daly_stays_near_young_while_a_checkpoint_is_cheap_and_is_bounded_when_not(cost: float, mtbf: float) -> None:
    daly = daly_interval_s(cost, mtbf)
    assert daly > 0
    if cost < mtbf / 100:
        assert math.isclose(daly + cost, young_interval_s(cost, mtbf), rel_tol=0.05)
    if cost >= 2 * mtbf:
        assert daly == mtbf


def test_a_nodes_answer_is_read_strictly() -> None:
    (found,) = results_of([{"name": "disk", "status": "ok", "figures": {"free_bytes": 5}}])
    assert found.figures == {"free_bytes": 5.0}
    with pytest.raises(ValueError, match="maybe"):
        results_of([{"name": "disk", "status": "maybe"}])


def test_a_report_is_told_with_each_failure_and_its_way_forward() -> None:
    bad = CheckResult(name="disk", status=CheckStatus.FAILED, need="1 GB", have="2 kB", hint="delete", fault="node")
    report = PreflightReport(
        id="r/n", subject="run-1-1", pool="local", node="n", project="p", results=(bad,), at=NOW, advice=("rest",)
    )
    assert lines_of([report]) == (
        "preflight of run-1-1 on n: 1 failed",
        "disk failed: need 1 GB, have 2 kB; delete",
        "rest",
    )


@given(st.sampled_from(["", *Isolation]), st.sampled_from(Isolation), st.sampled_from(Isolation))
def test_who_says_nothing_gets_the_default_but_never_less_than_the_minimum(
    asked: str, default: Isolation, minimum: Isolation
) -> None:
    mode = effective(asked, IsolationPolicy(default=default, minimum=minimum))
    if asked:
        assert mode == asked  # below the minimum it is refused by the plan, not silently changed
    else:
        assert STRENGTH[mode] == max(STRENGTH[default], STRENGTH[minimum])
