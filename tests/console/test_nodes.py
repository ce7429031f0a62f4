"""The nodes page: how machines are, and a form that keeps new work away from one."""

from __future__ import annotations

import os

from tests.console.plane import HOSTILE, Plane

from groundplane.identity import Role

HERE = os.uname().nodename


def test_a_node_is_cordoned_and_let_to_work_again_by_its_forms(plane: Plane) -> None:
    visitor = plane.browser()
    assert f">{HERE}</th>" in visitor.get("/console/nodes").text
    page = visitor.post(f"/console/nodes/local/{HERE}/cordon", data={"reason": HOSTILE})
    assert page.status_code == 200
    assert "cordoned" in page.text
    assert HOSTILE not in page.text
    assert plane.client.node("local", HERE).cordoned == HOSTILE
    page = visitor.post(f"/console/nodes/local/{HERE}/uncordon", data={"reason": "well again"})
    assert "Lift" not in page.text


def test_a_viewer_sees_nodes_and_no_form(plane: Plane) -> None:
    page = plane.browser(plane.key_for(Role.VIEWER)).get("/console/nodes")
    assert page.status_code == 200
    assert '<form method="post" action="/console/nodes' not in page.text
