"""The policy page: the rules in force, why the folder is not, exceptions made and ended by a form."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.console.plane import HOSTILE, Plane

from groundplane.identity import Role

DAY = (datetime.now(UTC) + timedelta(days=5)).date().isoformat()


def test_everybody_sees_the_rules_and_only_some_the_forms(plane: Plane) -> None:
    page = plane.browser(plane.key_for(Role.VIEWER)).get("/console/policy").text
    for words in (
        "built-in ones alone",
        "image-pinned",
        "spec.images.all(",
        "asks for approval",
        "locked",
        "in Python",
    ):
        assert words in page
    assert '<form method="post" action="/console/policy' not in page
    assert '<a href="/console/policy"' in page


def test_an_exception_is_made_and_ended_on_the_page(plane: Plane) -> None:
    operator = plane.browser()
    form = {"rule": "sku-allowed", "project": "vision", "owner": "dana", "reason": HOSTILE, "expires": DAY}
    page = operator.post("/console/policy/exceptions", data=form)
    assert page.status_code == 200
    assert "&lt;script&gt;" in page.text and HOSTILE not in page.text
    (made,) = plane.client.policy_exceptions(project="vision")
    assert made.expires_at.isoformat() == f"{DAY}T23:59:59+00:00"
    ended = operator.post(f"/console/policy/exceptions/{made.id}/remove", data={"reason": "over"})
    assert "Nobody is excepted" in ended.text
    for wrong in ({"expires": "soon"}, {"rule": "owner"}, {"reason": ""}):
        refused = operator.post("/console/policy/exceptions", data={**form, **wrong})
        assert refused.status_code == 422
    viewer = plane.browser(plane.key_for(Role.VIEWER, "looks"))
    assert viewer.post("/console/policy/exceptions", data=form).status_code == 403


def test_a_request_says_on_its_page_which_rule_it_breaks(plane: Plane) -> None:
    rule = plane.home / "policy" / "polite.yaml"
    rule.parent.mkdir(exist_ok=True)
    require = "'request.message.contains(\"please\")'"
    polite = f"{{id: polite, over: request, require: {require}, why: W., hint: say it}}"
    rule.write_text(f"policy: groundplane/policy/v1\nrules:\n  - {polite}\n")
    plane.client.reload_policy()
    try:
        made = plane.client.create_request("We need 2 GPUs by Friday.", project="vision")
        page = plane.browser().get(f"/console/requests/{made.id}").text
        assert "<strong>polite</strong>: needs W, has it does not hold" in page
        assert "say it" in page
    finally:
        rule.unlink()
        plane.client.reload_policy()


def test_a_broken_folder_is_told_on_the_page(plane: Plane) -> None:
    folder = plane.home / "policy"
    folder.mkdir(exist_ok=True)
    broken = folder / "broken.yaml"
    broken.write_text(
        "policy: groundplane/policy/v1\nrules:\n  - {id: x, over: spec, require: spec.nods > 1, why: y, hint: z}\n"
    )
    operator = plane.browser()
    try:
        assert "has changed since it was read" in operator.get("/console/policy").text
        assert operator.post("/console/policy/reload", data={"reason": "try"}).status_code == 422
        page = operator.get("/console/policy").text
        assert "are not in force" in page and "broken.yaml:3" in page
        assert "the policy files are not in force: broken.yaml:3" in operator.get("/console").text
    finally:
        broken.unlink()
    assert "are not in force" not in operator.post("/console/policy/reload", data={"reason": "mended"}).text
