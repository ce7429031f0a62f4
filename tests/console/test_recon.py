"""The recon page: this machine, pools and clouds in one look; a filter that names nothing keeps what was typed."""

from __future__ import annotations

from tests.console.plane import Plane

from groundplane.identity import Role


def test_the_page_shows_machine_pools_and_skus_and_says_what_is_unknown(plane: Plane) -> None:
    page = plane.browser(plane.key_for(Role.VIEWER)).get("/console/recon?gpu_memory=80GB&cloud=azure")
    assert page.status_code == 200
    for words in ("This machine", "set by the operator", "Standard_NC24ads_A100_v4", "catalogue (as of", "unknown"):
        assert words in page.text
    assert "p4d.24xlarge" not in page.text


def test_a_misspelt_filter_is_answered_on_the_page_with_the_way_forward(plane: Plane) -> None:
    visitor = plane.browser(plane.key_for(Role.VIEWER))
    page = visitor.get("/console/recon?gpu=h1000")
    assert page.status_code == 422
    assert "did you mean" in page.text and 'value="h1000"' in page.text
    assert "is no size" in visitor.get("/console/recon?gpu_memory=lots").text
    assert "&lt;script&gt;" in visitor.get("/console/recon?gpu=<script>").text
