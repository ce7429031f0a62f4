"""Preflight on a run's page: each check with its verdict, and whatever a job's author writes stays text."""

from __future__ import annotations

from tests.console.plane import Plane

from groundplane.domain.run import RunStatus


def test_a_runs_page_tells_what_was_checked_before_its_attempts(plane: Plane) -> None:
    run_id = plane.submit("checked", "true")
    plane.wait(run_id, RunStatus.SUCCEEDED)
    page = plane.browser().get(f"/console/runs/{run_id}").text
    assert '<h2 id="preflight-title">Preflight</h2>' in page
    assert "write, sync and read back in" in page
    assert f"<summary>{run_id}-1 on " in page and ": fit</summary>" in page
