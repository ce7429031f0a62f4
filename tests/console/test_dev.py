"""Dev environments as a page: what runs, how to attach, how long it idles, and stopping one."""

from __future__ import annotations

import json

from tests.console.plane import HOSTILE, Plane, poll

from groundplane.domain.run import RunStatus
from groundplane.identity import Role


def start(plane: Plane, name: str) -> str:
    document = {
        "apiVersion": "groundplane/v1",
        "kind": "Dev",
        "metadata": {"name": name, "project": "vision", "owner": "dana", "cost_center": "cc-1"},
        "spec": {"dev": "shell", "resources": {"cpus": 0.5, "memory": "64MiB"}, "end_date": "2h", "max_duration": "1h",
                 "max_cost": "$1", "idle_limit": "30m", "env": {"WORD": HOSTILE}},
    }  # fmt: skip
    return plane.client.apply(json.dumps(document)).runs[0].id


def test_a_dev_environment_is_listed_with_its_way_in_and_stopped_from_the_page(plane: Plane) -> None:
    visitor = plane.browser(plane.key_for(Role.MEMBER))
    run_id = start(plane, "bench")
    plane.wait(run_id, RunStatus.RUNNING)
    attached = plane.client.attach(run_id)
    poll(lambda: plane.client.dev_environments()[0].idle_s is not None, "its runner's first sample")
    page = visitor.get("/console/dev").text
    for words in (f"ground attach {run_id}", ">bench</a>", " of 30m</td>", "<td>admin</td>"):
        assert words in page, words
    assert "<script>document" not in page and "ground dev ssh-config" not in page
    (use,) = plane.client.dev_environments()
    assert (use.run_id, use.attached, use.idle_limit_s) == (run_id, ("admin",), 1800) and use.idle_s is not None
    plane.client.detach(run_id, attached)
    viewer = plane.browser(plane.key_for(Role.VIEWER))
    assert f"/console/dev/{run_id}/stop" not in viewer.get("/console/dev").text
    assert viewer.post(f"/console/dev/{run_id}/stop", data={"reason": "x"}).status_code == 403
    assert visitor.post(f"/console/dev/{run_id}/stop", data={"reason": "done for today"}).status_code == 200
    plane.wait(run_id, RunStatus.STOPPED)
    assert "None now." in visitor.get("/console/dev").text
    (event,) = [each for each in plane.client.audit_events() if each.action == "run.stop" and each.object_id == run_id]
    assert event.reason == "done for today"
