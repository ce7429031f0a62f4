"""Evaluations and batches as pages: hostile words stay words, the wrong answers come first, two stand side by side."""

from __future__ import annotations

from tests.console.plane import HOSTILE, Plane


def test_the_pages_say_what_to_do_before_there_is_anything(plane: Plane) -> None:
    browser = plane.browser()
    assert "ground eval run -f FILE" in browser.get("/console/evaluations").text
    assert "ground batch run -f FILE" in browser.get("/console/batches").text


def test_what_is_not_there_is_a_page_that_says_so(plane: Plane) -> None:
    browser = plane.browser()
    for path in ("evaluations/run-nobody", "evaluations/compare?before=a&after=b"):
        answer = browser.get(f"/console/{path}")
        assert answer.status_code == 404
        assert "there is no evaluation" in answer.text
    assert HOSTILE not in browser.get("/console/evaluations", params={"name": HOSTILE}).text
