"""Approvals as pages: what waits is on the overview, the buttons do what they say, and only for those who may."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from tests.console.plane import HOSTILE, Plane

from groundplane.client import Client
from groundplane.domain.access import SelfService
from groundplane.domain.planning.plan import Plan, PlanStatus
from groundplane.identity import Role


@pytest.fixture(scope="module")
def ana(plane: Plane) -> Iterator[Client]:
    """A member of a project that may begin nothing alone."""
    plane.client.create_project(name="asking", owner="bo", cost_center="r1", monthly_limit_microusd=20_000_000)
    plane.client.set_self_service("asking", SelfService(plan_max_microusd=0))
    with Client(plane.url, _key(plane, "ana", Role.MEMBER)) as client:
        yield client


def _key(plane: Plane, owner: str, role: Role) -> str:
    return plane.client.create_key(name=owner, project="asking", owner=owner, role=role).secret


def planned(client: Client, name: str) -> Plan:
    document = {
        "apiVersion": "groundplane/v1",
        "kind": "Job",
        "metadata": {"name": name, "project": "asking", "owner": HOSTILE, "cost_center": "r1"},
        "spec": {
            "command": ["true"],
            "resources": {"cpus": 1, "memory": "64MiB"},
            "end_date": (datetime.now(UTC) + timedelta(days=2)).date().isoformat(),
            "max_cost": "$0.10",
            "max_duration": "10m",
        },
    }
    return client.plan(json.dumps(document))[0]


def test_a_waiting_plan_needs_somebody_and_a_button_approves_it(plane: Plane, ana: Client) -> None:
    plan = planned(ana, "seen-and-approved")
    lea = plane.browser(_key(plane, "lea", Role.LEAD))
    overview = lea.get("/console").text
    assert (
        f'<a href="/console/approvals/{plan.id}">job seen-and-approved of asking waits for a yes to $0.06' in overview
    )
    assert plan.id in lea.get("/console/approvals").text
    shown = lea.get(f"/console/approvals/{plan.id}").text
    assert "self-service-plan: up to $0.06; project asking spends up to $0.00 a plan without approval" in shown
    assert "<script>document.title" not in shown and "&lt;script&gt;" in shown
    whole = lea.get(f"/console/plans/{plan.id}").text
    assert f'action="/console/approvals/{plan.id}/approve"' in whole and "Reject seen-and-approved for good" in whole
    stale = lea.post(f"/console/approvals/{plan.id}/approve", data={"hash": "0" * 64})
    assert stale.status_code == 409 and "approval-hash" in stale.text
    done = lea.post(f"/console/approvals/{plan.id}/approve", data={"hash": plan.hash, "comment": HOSTILE})
    assert done.status_code == 200 and "1 of 1" in done.text and "<script>document.title" not in done.text
    assert ana.get_plan(plan.id).status is PlanStatus.APPROVED
    assert plan.id not in lea.get("/console").text


def test_a_plan_is_rejected_with_a_reason(plane: Plane, ana: Client) -> None:
    plan = planned(ana, "seen-and-rejected")
    admin = plane.browser()
    assert admin.post(f"/console/approvals/{plan.id}/reject", data={"reason": ""}).status_code == 422
    rejected = admin.post(f"/console/approvals/{plan.id}/reject", data={"reason": "not this week"})
    assert "not this week" in rejected.text and "Reject seen-and-rejected" not in rejected.text
    assert "seen-and-rejected" in admin.get("/console/approvals").text


def test_who_may_not_agree_sees_no_button_and_is_refused(plane: Plane, ana: Client) -> None:
    plan = planned(ana, "no-button")
    member = plane.browser(_key(plane, "mia", Role.MEMBER))
    page = member.get(f"/console/approvals/{plan.id}").text
    assert "may agree" in page.lower() and "<button>Approve" not in page and "Reject no-button" not in page
    assert member.post(f"/console/approvals/{plan.id}/approve").status_code == 403
    with Client(plane.url, _key(plane, "lou", Role.LEAD)) as client:
        own = planned(client, "own")
    lead = plane.browser(_key(plane, "lou", Role.LEAD))
    assert "<button>Approve" not in lead.get(f"/console/approvals/{own.id}").text
    assert "four-eyes" in lead.post(f"/console/approvals/{own.id}/approve").text
    assert lead.get("/console/approvals/plan-nowhere").status_code == 404


def test_limits_are_set_from_the_page(plane: Plane, ana: Client) -> None:
    plane.client.create_project(name="limited", owner="bo", cost_center="r1", monthly_limit_microusd=20_000_000)
    admin = plane.browser()
    form = {"accelerators": "8", "per_plan": "$750", "per_month": "2000", "several_above": "", "several": "2"}
    answer = admin.post("/console/approvals/limits/limited", data={**form, "reason": "new team"})
    assert answer.status_code == 200 and "$750.00" in answer.text
    limits = plane.client.project("limited").self_service
    assert (limits.accelerators_max, limits.month_max_microusd) == (8, 2_000_000_000)
    wrong = admin.post("/console/approvals/limits/limited", data={**form, "per_plan": "much"})
    assert wrong.status_code == 422
    assert plane.client.project("limited").self_service == limits
    lead = plane.browser(_key(plane, "lia", Role.LEAD))
    assert lead.post("/console/approvals/limits/asking", data=form).status_code == 403
