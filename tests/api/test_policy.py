"""Policy through the door: who may see and change it, faults with their place, exceptions, replays and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from tests.api.conftest import Served

from groundplane.client import Client
from groundplane.errors import Forbidden, InvalidInput, NotFound
from groundplane.identity import Role

SOON = datetime.now(UTC) + timedelta(days=7)
RULE = """\
policy: groundplane/policy/v1
rules:
  - id: api-team
    over: spec
    when: spec.name.startsWith("api-policy")
    require: has(spec.labels.team)
    why: Somebody must be called.
    hint: set metadata.labels.team
  - {id: asked-politely, over: request, require: 'request.message.contains("please")', why: Manners., hint: say please}
"""
JOB = """\
apiVersion: groundplane/v1
kind: Job
metadata: {name: api-policy, project: default, owner: ana, cost_center: research}
spec: {command: [x], resources: {cpus: 0.1, memory: 64MiB}, end_date: 1d, max_cost: $1, max_duration: 1m}
"""


@pytest.fixture
def own_rules(served: Served) -> Iterator[Served]:
    """One rule in force during a test; the control plane is shared, so it goes again."""
    folder = served.home / "policy"
    folder.mkdir(exist_ok=True)
    (folder / "team.yaml").write_text(RULE)
    served.client.reload_policy("tests")
    yield served
    for path in folder.glob("*.yaml"):
        path.unlink()
    served.client.reload_policy("the test is over")


def test_everybody_reads_the_rules_and_few_change_them(served: Served) -> None:
    viewer = Client(served.url, served.key(Role.VIEWER))
    assert {"owner", "image-pinned"} <= {rule.id for rule in viewer.policy().rules}
    assert viewer.policy_rule("image-pinned").text.startswith("when size(spec.images) > 0; require")
    assert viewer.policy_exceptions() == []
    for refused in (
        viewer.reload_policy,
        lambda: viewer.replay_policy({}, SOON),
        lambda: viewer.remove_policy_exception("exc-1"),
        lambda: viewer.add_policy_exception(rule="x", project="default", owner="a", reason="b", expires_at=SOON),
    ):
        with pytest.raises(Forbidden):
            refused()
    viewer.close()
    security = Client(served.url, served.key(Role.SECURITY))
    assert security.reload_policy().problems == ()
    security.close()


def test_a_rule_in_force_refuses_and_is_counted(own_rules: Served) -> None:
    (plan,) = own_rules.client.plan(JOB)
    (refused,) = [verdict.refused for verdict in plan.verdicts if verdict.refused is not None]
    assert (refused.rule, refused.hint) == ("api-team", "set metadata.labels.team")
    metrics = own_rules.raw("GET", "/metrics").text
    assert 'ground_policy_refusals{rule="api-team"}' in metrics
    assert "ground_policy_current 1.0" in metrics


def test_an_exception_through_the_door_lifts_and_its_end_restores(own_rules: Served) -> None:
    made = own_rules.client.add_policy_exception(
        rule="api-team", project="default", name="api-policy", owner="ana", reason="founding", expires_at=SOON
    )
    (plan,) = own_rules.client.plan(JOB)
    assert [v.exception for v in plan.verdicts if v.exception] == [str(made)]
    assert made.id in {each.id for each in own_rules.client.policy_exceptions(project="default")}
    assert own_rules.client.policy_exceptions(project="nowhere") == []
    own_rules.client.remove_policy_exception(made.id, "founded")
    (again,) = own_rules.client.plan(JOB)
    assert again.status == "refused"
    with pytest.raises(NotFound):
        own_rules.client.remove_policy_exception(made.id)


def test_a_fault_in_the_folder_is_422_with_file_and_line_and_changes_nothing(own_rules: Served) -> None:
    before = own_rules.client.policy()
    (own_rules.home / "policy" / "broken.yaml").write_text(RULE.replace("labels.team", "lables.team"))
    answer = own_rules.raw("POST", "/v1/policy/reload", json={})
    assert answer.status_code == 422
    problem = answer.json()["error"]["problems"][0]
    assert problem["field"] == "broken.yaml:6"
    assert problem["hint"] == "did you mean spec.labels?"
    state = own_rules.client.policy()
    assert (state.version, state.pending) == (before.version, True)
    assert [each.field for each in state.problems] == ["broken.yaml:6"]
    assert "ground_policy_current 0.0" in own_rules.raw("GET", "/metrics").text


def test_a_replay_through_the_door(own_rules: Served) -> None:
    own_rules.client.plan(JOB)
    day = datetime.now(UTC) - timedelta(days=1)
    softer = own_rules.client.replay_policy({"team.yaml": RULE.replace("has(spec.labels.team)", "true")}, day)
    assert set(softer.by_rule) == {"api-team"}
    assert softer.by_rule["api-team"] >= softer.newly_allowed >= 1
    with pytest.raises(InvalidInput, match="line|new.yaml:1"):
        own_rules.client.replay_policy({"new.yaml": "rules"}, day)
    for body in ({"files": {}, "since": "2026-11-20T12:00:00"}, {"files": {"a": 1}, "since": str(day)}, {}):
        assert own_rules.raw("POST", "/v1/policy/replay", json=body).status_code == 422


def test_rules_over_requests_are_asked_by_id(own_rules: Served) -> None:
    made = own_rules.client.create_request("We need 2 GPUs by Friday.")
    (verdict,) = own_rules.client.request_verdicts(made.id)
    assert verdict.refused is not None and verdict.refused.hint == "say please"
    with pytest.raises(NotFound):
        own_rules.client.request_verdicts("req-nowhere")


def test_what_is_wrong_with_an_exception_is_told(served: Served) -> None:
    good = {
        "rule": "sku-allowed",
        "project": "default",
        "owner": "ana",
        "reason": "trial",
        "expires_at": SOON.isoformat(),
    }
    for status, changed in (
        (404, {"rule": "nowhere"}),
        (422, {"rule": "owner"}),
        (422, {"expires_at": "2020-01-01T00:00:00Z"}),
        (422, {"expires_at": "2027-01-01T00:00:00"}),
        (422, {"reason": ""}),
        (422, {"colour": "red"}),
    ):
        answer = served.raw("POST", "/v1/policy/exceptions", json={**good, **changed})
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["hint"]
