"""Aliases moved and rolled back by forms, gates and datasets as pages."""

from __future__ import annotations

import json
import struct

import pytest
from tests.console.plane import HOSTILE, Plane

from groundplane.domain.dataset import DatasetFacts
from groundplane.domain.model import ManifestFile
from groundplane.domain.provenance.certificate import DataFact, Facts
from groundplane.identity import Role

GATE = """
apiVersion: groundplane/v1
kind: Gate
metadata: {name: production, project: vision}
spec:
  model: paged
  aliases: [production]
  requirements:
    - {metric: f1, at_least: 92%}
"""


@pytest.fixture(scope="module")
def paged(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> Plane:
    """Three versions of `paged` in project vision, the third below its gate; and a dataset of hostile words."""
    folder = tmp_path_factory.mktemp("model")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    weights = folder / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    for f1 in (0.93, 0.95, 0.9):
        facts = Facts(
            owner=HOSTILE, license="MIT", data=(DataFact(name="d", sha256="7" * 64),), code_commit="1" * 40,
            training_run="elsewhere", metrics={"f1": f1},
        )  # fmt: skip
        upload = plane.client.create_upload()
        plane.client.upload_file(upload.id, "model.safetensors", weights)
        plane.client.register_model("paged", upload_id=upload.id, project="vision", facts=facts)
    plane.client.define_gates(GATE)
    plane.client.register_dataset(
        "rows",
        project="vision",
        facts=DatasetFacts(owner=HOSTILE, license="MIT", classification="internal", description=HOSTILE),
        location="/data/rows",
        files=[ManifestFile(path="a.csv", sha256="7" * 64, size_bytes=3)],
    )
    return plane


def test_an_alias_is_moved_and_rolled_back_on_the_versions_page(paged: Plane) -> None:
    browser = paged.browser()
    for number in (1, 2):
        moved = browser.post(f"/console/models/paged@{number}/alias", data={"alias": "production", "reason": HOSTILE})
        assert moved.status_code == 200
        assert HOSTILE not in moved.text
        assert "&lt;script&gt;" in moved.text
        assert "f1 ≥ 0.92" in moved.text
    back = browser.post("/console/models/paged@2/rollback", data={"alias": "production", "reason": "slow"})
    assert back.url.path == "/console/models/paged@1"
    assert "rollback" in back.text


def test_a_bare_name_leads_to_what_is_in_production_or_else_to_the_newest(paged: Plane) -> None:
    browser = paged.browser()
    paged.client.move_alias("paged", "production", to="2", reason="ready")
    page = browser.get("/console/models/paged")
    assert page.url.path == "/console/models/paged@2"
    assert '<span class="tag">production 2</span>' in browser.get("/console/models").text
    table = page.text.partition("Versions of paged")[2]
    assert "paged@2, this one" in table and '<a href="/console/models/paged@3">paged@3</a>' in table
    paged.client.remove_alias("paged", "production", "anew")
    assert browser.get("/console/models/paged").url.path == "/console/models/paged@3"
    missing = browser.get("/console/models/page")
    assert (missing.status_code, "did you mean paged?" in missing.text) == (404, True)


def test_each_model_is_listed_once_with_its_newest_version(paged: Plane) -> None:
    browser = paged.browser()
    listed = browser.get("/console/models").text
    assert '<a href="/console/models/paged@3">paged@3</a>' in listed and "paged@2" not in listed
    assert "paged@3" not in browser.get("/console/models?after=paged").text
    assert browser.get("/console/models?after=-").status_code == 422


def test_two_versions_are_shown_beside_each_other(paged: Plane) -> None:
    browser = paged.browser()
    link = "/console/models/paged@3/against/paged@1"
    assert link in browser.get("/console/models/paged@3").text
    page = browser.get(link).text
    assert '<td>metrics</td><th scope="row">f1</th><td>0.93</td><td>0.9</td>' in page
    assert "Nothing differs" in browser.get("/console/models/paged@1/against/paged@1").text
    assert browser.get("/console/models/paged@9/against/paged@1").status_code == 404


def test_a_gate_refuses_the_form_with_its_figure(paged: Plane) -> None:
    page, gate = "/console/models/paged@3", f"{GATE}    - {{latency: p95, below: 200ms, requests: 9}}\n"
    paged.client.define_gates(gate)
    data = {"alias": "production", "reason": "why"}
    refused = paged.browser().post(f"{page}/alias", data=data, headers={"Referer": f"{paged.url}{page}"})
    paged.client.define_gates(GATE)
    assert refused.status_code == 409
    for said in ("Refused, for 2 reasons", "f1 0.9", "no measured run of paged@3", f'<a href="{page}">Back'):
        assert said in refused.text
    page = paged.browser().get("/console/models/paged@3").text
    assert "not-met" in page
    viewer = paged.browser(paged.key_for(Role.VIEWER))
    shown = viewer.get("/console/models/paged@1").text
    assert "Move an alias here" not in shown and "Copy it to another name" not in shown
    assert viewer.post("/console/models/paged@1/alias", data={"alias": "x-y", "reason": "w"}).status_code == 403


def test_a_version_is_copied_to_another_name_on_its_page(paged: Plane) -> None:
    browser = paged.browser()
    copied = browser.post("/console/models/paged@3/copy", data={"name": "paged-live", "reason": HOSTILE})
    assert copied.url.path == "/console/models/paged-live@1"
    assert "paged@3" in copied.text.partition("Birth certificate")[2]
    assert browser.post("/console/models/paged@3/copy", data={"name": "No Name"}).status_code == 422


def test_gates_and_datasets_have_pages(paged: Plane) -> None:
    browser = paged.browser()
    assert "vision/production" in browser.get("/console/gates").text
    listed = browser.get("/console/datasets").text
    assert "rows@1" in listed
    assert HOSTILE not in listed
    page = browser.get("/console/datasets/rows@1").text
    assert "/data/rows" in page
    assert '<a href="/console/models/paged@1">paged@1</a>' in page
    assert browser.get("/console/datasets/none@1").status_code == 404


def test_later_facts_scans_and_required_facts_are_pages_with_forms(paged: Plane) -> None:
    browser = paged.browser()
    page = browser.get("/console/models/paged@1").text
    assert "What became known later" in page
    told = browser.post("/console/models/paged@1/addenda", data={"kind": "sla", "text": HOSTILE})
    assert told.is_success, told.text
    assert [str(each.kind) for each in paged.client.addenda("paged@1") if each.kind == "sla"] == ["sla"]
    page = browser.get("/console/models/paged@1").text
    assert HOSTILE not in page and "sla" in page
    assert browser.post("/console/models/paged@1/addenda", data={"kind": "waiver", "text": "x"}).status_code == 422
    scans = browser.get("/console/scans").text
    assert "paged@1" in scans and "clean" in scans
    assert browser.post("/console/models/paged@1/scan").is_success
    assert len(paged.client.scans("paged@1")) == 2

    rule = {"project": "vision", "facts": "licence, energy", "reason": "audit"}
    assert browser.post("/console/gates/required-facts", data=rule).is_success
    assert "licence, energy" in browser.get("/console/gates").text
    assert "Its project requires more" in browser.get("/console/models/paged@1").text
    viewer = paged.browser(paged.key_for(Role.VIEWER, "vision"))
    assert viewer.post("/console/gates/required-facts", data=rule).status_code == 403
    assert browser.post("/console/gates/required-facts", data={**rule, "facts": ""}).is_success
    assert paged.client.required_facts() == []
