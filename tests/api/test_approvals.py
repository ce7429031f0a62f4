"""Approvals through the HTTP door: who passes, what is answered, and that an endpoint stands before the same gate."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundplane.client import Client
from groundplane.domain.access import SelfService
from groundplane.domain.approval import ApprovalStatus
from groundplane.domain.planning.plan import Plan, PlanStatus
from groundplane.domain.provenance.certificate import DataFact, Facts
from groundplane.errors import ApprovalNeeded, Forbidden, InvalidInput, NotFound, Refusal
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
ENDPOINT = """\
apiVersion: groundplane/v1
kind: Endpoint
metadata: {name: served-late, project: asking, owner: bo, cost_center: r1}
spec:
  model: waiting-lm@1
  resources: {cpus: 1, memory: 64MiB}
  end_date: 1d
  max_cost: $5
  max_duration: 2h
  token_price: {prompt: $0.10, completion: $0.40}
"""


@pytest.fixture(scope="module")
def project(served: Any) -> str:
    """A project that may begin nothing alone."""
    served.client.create_project(name="asking", owner="bo", cost_center="r1", monthly_limit_microusd=50_000_000)
    served.client.set_self_service("asking", SelfService(plan_max_microusd=0), "tests")
    return "asking"


def person(served: Any, name: str, role: Role) -> Client:
    made = served.client.create_key(name=name, project="asking", owner=name, role=role)
    return Client(served.url, made.secret)


@pytest.fixture(scope="module")
def ana(served: Any, project: str) -> Iterator[Client]:
    with person(served, "ana", Role.MEMBER) as client:
        yield client


@pytest.fixture(scope="module")
def lea(served: Any, project: str) -> Iterator[Client]:
    with person(served, "lea", Role.LEAD) as client:
        yield client


def planned(client: Client, text: str = JOB, name: str = "late") -> Plan:
    return client.plan(text.replace("NAME", name))[0]


def test_a_plan_is_asked_about_approved_and_applied(served: Any, ana: Client, lea: Client) -> None:
    plan = planned(ana)
    with pytest.raises(ApprovalNeeded) as told:
        ana.apply_plan(plan.id)
    assert (told.value.exit_code, told.value.http_status) == (10, 409)
    view = ana.approval(plan.id)
    assert (view.approval.status, view.approvers) == (ApprovalStatus.WAITING, ("admin", "lea"))
    assert view.approval.plan_hash == plan.hash
    assert plan.id in {asked.id for asked in ana.approvals(status="open")}
    assert lea.approve_plan(plan.id, "go on", hash=plan.hash).votes[0].comment == "go on"
    assert ana.apply_plan(plan.id).run is not None
    assert ana.approval(plan.id).approval.status is ApprovalStatus.APPLIED
    metrics = served.client.metrics()
    assert 'ground_approvals{project="asking",status="applied"} 1.0' in metrics
    assert 'ground_approval_wait_seconds{project="asking"}' in metrics


def test_who_may_not_is_told_so(served: Any, ana: Client, lea: Client) -> None:
    plan = planned(ana, name="mine")
    for attempt in (lambda: ana.approve_plan(plan.id), lambda: ana.reject_plan(plan.id, "no")):
        with pytest.raises(Forbidden, match="plans:approve"):
            attempt()
    with pytest.raises(Forbidden, match="projects:write"):
        lea.set_self_service("asking", SelfService())
    own = planned(lea, name="own")
    with pytest.raises(Refusal, match="four-eyes"):
        lea.approve_plan(own.id)
    with pytest.raises(Refusal, match="approval-hash"):
        lea.approve_plan(plan.id, hash="0" * 64)
    with Client(served.url, served.key(Role.LEAD)) as stranger:  # of another project
        for call in (stranger.approve_plan, stranger.approval):
            with pytest.raises(NotFound):
                call(plan.id)
        assert stranger.approvals() == []


def test_nothing_of_a_file_begins_before_all_of_it_is_approved(ana: Client) -> None:
    both = JOB.replace("NAME", "first") + "---\n" + JOB.replace("NAME", "second")
    with pytest.raises(ApprovalNeeded) as told:
        ana.apply(both)
    assert len(told.value.refusals) == 2
    assert not {run.name for run in ana.runs()} & {"first", "second"}


@pytest.mark.parametrize(
    ("verb", "path", "body", "says"),
    [
        ("POST", "/v1/plans/PLAN/reject", {"reason": " "}, "reason is required"),
        ("POST", "/v1/plans/PLAN/approve", {"comment": "x" * 2000}, "1000 is the most"),
        ("POST", "/v1/plans/PLAN/approve", {"sure": True}, "is no field of this request"),
        ("PUT", "/v1/projects/asking/self-service", {"accelerators_max": -1, "plan_max_microusd": 1}, "between"),
        ("PUT", "/v1/projects/asking/self-service", {"accelerators_max": 1}, "is required"),
        ("GET", "/v1/approvals?status=maybe", None, "unknown approval status"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    served: Any, ana: Client, verb: str, path: str, body: object, says: str
) -> None:
    plan = planned(ana, name="untouched")
    answer = served.raw(verb, path.replace("PLAN", plan.id), json=body)
    assert answer.status_code == 422 and says in answer.text
    assert ana.get_plan(plan.id).status is PlanStatus.NEEDS_APPROVAL


def test_an_endpoint_waits_before_anything_is_verified_or_laid_out(
    served: Any, ana: Client, lea: Client, tmp_path: Path
) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    facts = Facts(
        owner="ana", license="Apache-2.0", framework="jax", data=(DataFact(name="c", sha256="a" * 64),),
        code_commit="0" * 40, training_run="elsewhere-1", metrics={"loss": 1.5},
    )  # fmt: skip
    upload = served.client.create_upload()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        served.client.upload_file(upload.id, name, tmp_path / name)
    served.client.register_model("waiting-lm", upload_id=upload.id, project="asking", facts=facts)
    plan = planned(ana, ENDPOINT)
    assert plan.status is PlanStatus.NEEDS_APPROVAL, [v.refused for v in plan.verdicts if v.refused]
    with pytest.raises(ApprovalNeeded, match="self-service-plan"):
        ana.apply_plan(plan.id)
    assert not (served.home / "models" / "waiting-lm@1").exists()
    with pytest.raises(InvalidInput):
        lea.reject_plan(plan.id, "")
    lea.reject_plan(plan.id, "no model of that name")
    with pytest.raises(Refusal, match="approval-rejected"):
        ana.apply_plan(plan.id)
