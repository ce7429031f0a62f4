"""Approvals at the command line: what each command says, its exit status and its machine output."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from groundplane.identity import Role

JOB = """\
apiVersion: groundplane/v1
kind: Job
metadata: {name: NAME, project: asking, owner: bo, cost_center: r1}
spec:
  command: ["true"]
  resources: {cpus: 1, memory: 64MiB}
  end_date: 2d
  max_cost: $1
  max_duration: 10m
"""


@pytest.fixture(scope="module")
def people(up: Any) -> Iterator[dict[str, Any]]:
    """A project that may begin nothing alone, as its admin, a member and a lead meet it."""
    found = {"admin": up}
    with up.client as client:
        client.create_project(name="asking", owner="bo", cost_center="r1", monthly_limit_microusd=20_000_000)
        for name, role in (("ana", Role.MEMBER), ("lea", Role.LEAD)):
            secret = client.create_key(name=name, project="asking", owner=name, role=role).secret
            found[name] = replace(up, extra={**up.extra, "GROUND_KEY": secret})
    up.ground("projects", "set", "asking", "--per-plan", "0", "--several-above", "100", "--several", "3")
    yield found
    up.ground("projects", "set", "asking", "--per-plan", "500")


def spec(folder: Path, name: str) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(JOB.replace("NAME", name))
    return str(path)


def test_a_plan_that_waits_says_why_who_may_and_what_to_type(people: Any, say: Any, tmp_path: Path) -> None:
    said = say(people["ana"], "plan", "-f", spec(tmp_path, "told"))
    assert said.code == 0
    plan = re.match(r"(plan-\w+): job told of project asking needs approval", said.out)
    assert plan
    assert re.search(r"self-service-plan +asks +up to \$0.02; project asking spends up to \$0.00 a plan", said.out)
    assert ", 1 ask" in said.out
    assert f"{plan[1]} needs 1 approval until " in said.err and "four eyes" in said.err
    assert "may agree: admin, lea" in said.err
    assert f"ground approve {plan[1]}, then ground apply {plan[1]}" in said.err
    shown = say(people["ana"], "approvals", plan[1])
    assert "approvals   0 of 1, four eyes" in shown.out and "may agree   admin, lea" in shown.out
    assert say(people["ana"], "approvals", plan[1], "-o", "json").data["approvers"] == ["admin", "lea"]


def test_who_plans_the_same_anew_is_told_of_what_was_approved(people: Any, say: Any, tmp_path: Path) -> None:
    first = say(people["ana"], "plan", "-f", spec(tmp_path, "twice"), "-o", "json").data[0]["id"]
    assert say(people["lea"], "approve", first).code == 0
    again = say(people["ana"], "apply", "-f", spec(tmp_path, "twice"), "--yes")
    assert again.code == 10
    assert f"{first}, of the same name, is approved already: ground apply {first}" in again.err
    assert say(people["ana"], "apply", first, "--yes").code == 0


def test_a_file_of_several_documents_names_each_that_waits(people: Any, say: Any, tmp_path: Path) -> None:
    both = tmp_path / "both.yaml"
    both.write_text(JOB.replace("NAME", "one") + "---\n" + JOB.replace("NAME", "two"))
    said = say(people["ana"], "apply", "-f", str(both), "--yes")
    assert said.code == 10 and "refused for 2 reasons" in said.err and said.err.count("ground approve plan-") == 2


@pytest.mark.parametrize(
    ("who", "words", "code", "says"),
    [
        ("admin", ("approve", "plan-nowhere"), 4, "no plan plan-nowhere"),
        ("admin", ("reject", "plan-nowhere"), 2, "missing option '--reason'"),
        ("admin", ("approvals", "plan-nowhere"), 4, "no approval of plan-nowhere"),
        ("admin", ("approvals", "--status", "maybe"), 2, "'maybe' is not one of"),
        ("ana", ("approve", "plan-nowhere"), 7, "may not plans:approve"),
        ("ana", ("projects", "set", "asking", "--per-plan", "1"), 7, "may not projects:write"),
        ("admin", ("projects", "set", "asking"), 2, "at least one limit"),
        ("admin", ("projects", "set", "nowhere", "--per-plan", "1"), 4, "no project 'nowhere'"),
        ("admin", ("projects", "set", "asking", "--per-month", "much"), 2, "much"),
        ("admin", ("apply", "plan-x", "--wait-approval", "soon"), 2, "soon"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_status(
    people: Any, say: Any, who: str, words: tuple[str, ...], code: int, says: str
) -> None:
    said = say(people[who], *words)
    assert (said.code, said.out) == (code, "") and says in said.err
    assert "hint: " in said.err


def test_nothing_that_waits_is_said_in_words_and_in_json(people: Any, say: Any) -> None:
    assert say(people["admin"], "approvals", "--project", "research").out == "no plan waits for approval\n"
    assert say(people["admin"], "approvals", "--project", "research", "-o", "json").data == []
