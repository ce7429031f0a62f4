"""Plans as pages: a spec is pasted, its choices stand side by side, and what is wrong with it stays on the page."""

from __future__ import annotations

import json
from typing import Any

from tests.console.plane import HOSTILE, Plane

from groundplane.identity import Role


def spec(**changed: Any) -> str:
    body = {"command": "true", "resources": {"cpus": 1, "memory": "64MiB"}, "end_date": "2d", "max_cost": "$1",
            "max_duration": "10m"}  # fmt: skip
    document = {
        "apiVersion": "groundplane/v1",
        "kind": "Job",
        "metadata": {"name": "pasted", "project": "vision", "owner": "dana", "cost_center": "cc-1"},
        "spec": body | changed,
    }
    return json.dumps(document, indent=1)


def test_a_pasted_spec_becomes_a_plan_with_its_choices_side_by_side(plane: Plane) -> None:
    visitor = plane.browser(plane.key_for(Role.MEMBER))
    page = visitor.post("/console/plans", data={"spec": spec().replace("\n", "\r\n")})
    assert page.status_code == 200 and "/console/plans/plan-" in str(page.url)
    for words in ("Every way to buy it", "pool local", "this plan", "on-prem", "azure eastus", "spot", "idle weekend"):
        assert words in page.text, words
    assert "applied now, it would start at once on pool local" in page.text
    assert "As Markdown" in page.text and "### Alternatives side by side" in page.text
    assert "pasted" in visitor.get("/console/plans").text


def test_a_refused_plan_says_so_with_the_way_forward(plane: Plane) -> None:
    data = [{"name": "corpus", "path": "/mnt/corpus", "size": "2TB", "throughput": "60MB/s"}]
    page = plane.browser().post("/console/plans", data={"spec": spec(max_duration="4h", data=data, max_cost="$10")})
    assert '<p class="sentence">plan-' in page.text and " is refused: policy: " in page.text
    assert "138.9 MB/s for corpus" in page.text and "9.26 h" in page.text and "Staging plan" in page.text


def test_a_fault_keeps_what_was_typed_and_a_viewer_only_reads(plane: Plane) -> None:
    page = plane.browser().post("/console/plans", data={"spec": f"kind: {HOSTILE}"})
    assert page.status_code == 422 and "&lt;script&gt;" in page.text and "<script>document" not in page.text
    viewer = plane.browser(plane.key_for(Role.VIEWER))
    assert "<textarea" not in viewer.get("/console/plans").text
    assert viewer.post("/console/plans", data={"spec": spec()}).status_code == 403
    assert viewer.get("/console/plans/plan-nothing").status_code == 404
