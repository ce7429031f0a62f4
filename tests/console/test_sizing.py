"""The sizing pages: a form, its answer, and what is wrong beside what was filled in."""

from __future__ import annotations

from tests.console.plane import HOSTILE, Plane

from groundplane.identity import Role


def test_a_size_shows_its_sum_its_time_and_its_ways_out(plane: Plane) -> None:
    answer = plane.browser().get("/console/sizing", params={"params": "7B", "gpus": "a100-40gb-sxm4", "tokens": 2_048})
    assert answer.status_code == 200
    for words in ("Does not fit", "7B parameters × 8 B", "93.52 GB", "gradient checkpointing", "tokens/s"):
        assert words in answer.text


def test_a_comparison_shows_its_options(plane: Plane) -> None:
    answer = plane.browser().get("/console/sizing/compare", params={"api": "azure/gpt-4o", "model": "llama-3.3-70b"})
    assert answer.status_code == 200
    for words in ("provisioned", "self-hosted", "azure/gpt-4o", "break-even:"):
        assert words in answer.text


def test_a_wrong_name_is_told_beside_the_form_and_stays_text(plane: Plane) -> None:
    browser = plane.browser()
    answer = browser.get("/console/sizing", params={"model": "lama-3.1-70b"})
    assert answer.status_code == 422
    assert "did you mean llama-3.1-70b" in answer.text
    assert 'value="lama-3.1-70b"' in answer.text
    for path, field in (("sizing", "model"), ("sizing", "params"), ("sizing/compare", "api")):
        assert HOSTILE not in browser.get(f"/console/{path}", params={field: HOSTILE}).text
    assert browser.get("/console/sizing/compare", params={"api": "gpt-4o", "peak_factor": 0}).status_code == 422


def test_a_viewer_may_size(plane: Plane) -> None:
    assert plane.browser(plane.key_for(Role.VIEWER)).get("/console/sizing").status_code == 200
