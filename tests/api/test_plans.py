"""Plans through the door: listed, as Markdown, counted, and kept apart by project."""

from __future__ import annotations

import json

import pytest
from tests.api.conftest import Served

from groundplane.client import Client
from groundplane.domain.planning.plan import Plan
from groundplane.errors import NotFound
from groundplane.identity import Role

PROJECT = "planning"


@pytest.fixture(scope="module", autouse=True)
def project(served: Served) -> None:
    served.client.create_project(name=PROJECT, owner="ana", cost_center="r1", monthly_limit_microusd=50_000_000)


def planned(served: Served, name: str = "listed") -> Plan:
    document = {
        "apiVersion": "groundplane/v1",
        "kind": "Job",
        "metadata": {"name": name, "project": PROJECT, "owner": "ana | bo", "cost_center": "r1"},
        "spec": {"command": "true", "resources": {"cpus": 1, "memory": "64MiB"}, "end_date": "2d", "max_cost": "$1",
                 "max_duration": "10m"},
    }  # fmt: skip
    (plan,) = served.client.plan(json.dumps(document))
    return plan


def test_plans_are_listed_newest_first_to_those_who_see_the_project(served: Served) -> None:
    first, second = planned(served), planned(served)
    assert [plan.id for plan in served.client.plans(project=PROJECT, limit=2)] == [second.id, first.id]
    with Client(served.url, served.key(Role.MEMBER)) as other:
        assert not [plan for plan in other.plans() if plan.project == PROJECT]
        with pytest.raises(NotFound):
            other.plan_markdown(first.id)


def test_markdown_holds_what_the_plan_says_and_nothing_breaks_its_tables(served: Served) -> None:
    plan = planned(served)
    text = served.client.plan_markdown(plan.id)
    assert plan.hash in text and "ana \\| bo" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in tables if "WHY NOT" not in line}) <= 2
    assert plan.outlook is not None
    assert f"| {plan.outlook.choices[0].node_type}".replace("_", "\\_") in text


def test_plans_are_counted_by_what_became_of_them(served: Served) -> None:
    planned(served)
    assert 'ground_plans{project="planning",status="ready"}' in served.client.metrics()


def test_a_plan_is_explained_to_those_who_see_it(served: Served) -> None:
    plan = planned(served)
    told = served.client.explain_plan(plan.id)
    assert told.sentence == f"{plan.id} is not applied yet; applied now, it would start at once on pool local."
    with Client(served.url, served.key(Role.MEMBER)) as other, pytest.raises(NotFound):
        other.explain_plan(plan.id)
    (run,) = (served.client.apply_plan(plan.id).run,)
    assert run is not None
    assert served.client.explain_plan(plan.id).sentence == f"{plan.id} was applied: it became {run.id}."
