"""How a spec says where its run stands in line: class, needs, arrays, schedules."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from groundplane.domain.spec import ArrayElement, JobSpec, spec_digest
from groundplane.domain.spec.parse import dump, dump_whole, parse, parse_one
from groundplane.errors import InvalidInput

NOW = datetime(2026, 3, 2, tzinfo=UTC)
JOB = """\
apiVersion: groundplane/v1
kind: Job
metadata: {name: sweep, project: vision, owner: ana, cost_center: r1}
spec:
  command: [python, train.py]
  resources: {cpus: 1, memory: 1GiB}
  end_date: 2d
  max_cost: $1
  max_duration: 1h
"""


def job(*lines: str) -> JobSpec:
    (spec,) = parse(JOB + "".join(f"  {line}\n" for line in lines), now=NOW)
    assert isinstance(spec, JobSpec)
    return spec


def test_a_job_trains_unless_it_says_otherwise() -> None:
    assert job().priority == "training"
    assert job("priority: exploratory").priority == "exploratory"
    with pytest.raises(InvalidInput, match="not one of: serving, training, exploratory"):
        job("priority: urgent")


def test_a_spec_without_these_fields_keeps_its_digest() -> None:
    assert spec_digest(job()) == spec_digest(job("priority: training", "timezone: UTC"))
    assert spec_digest(job()) != spec_digest(job("priority: serving"))


def test_an_array_is_one_run_for_each_index() -> None:
    specs = parse(JOB + "  array: 3-5%2\n", now=NOW)
    assert [spec.metadata.name for spec in specs] == ["sweep-3", "sweep-4", "sweep-5"]
    assert all(isinstance(spec, JobSpec) and spec.array is not None and spec.array.at_once == 2 for spec in specs)
    assert isinstance(specs[1], JobSpec)
    assert specs[1].env == {"GROUND_ARRAY_INDEX": "4"}
    alone = replace(specs[1], array=ArrayElement(name="sweep", index=4, at_once=2, first=4, last=4))
    assert parse_one(dump(specs[1]), now=NOW) == alone
    assert parse(dump_whole(specs[1]), now=NOW) == specs


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ("5-3", "ends before it begins"),
        ("1-9000", "the limit is 1,000"),
        ("a-b", "no range of indexes"),
        ("1-3%0", "no range of indexes"),
        ("[1, 2]", "must be a range of indexes"),
    ],
)
def test_a_bad_array_is_refused(written: str, fault: str) -> None:
    with pytest.raises(InvalidInput, match=fault):
        job(f"array: {written}")


def test_needs_are_names_told_once() -> None:
    assert job("needs: [prepare, run-01abc]").needs == ("prepare", "run-01abc")
    assert parse_one(dump(job("needs: [prepare]")), now=NOW) == job("needs: [prepare]")
    with pytest.raises(InvalidInput, match="listed twice"):
        job("needs: [a, a]")
