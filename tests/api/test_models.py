"""Files on their way to the registry: where they may land, how much they may weigh, and what becomes of them."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest

from groundplane.api import staging as api_staging
from groundplane.api.staging import SOURCES, Staging
from groundplane.domain.provenance.certificate import DataFact, Facts
from groundplane.errors import InvalidInput, NotFound, Refusal, TooLarge, Unavailable
from groundplane.identity import Role

FACTS = Facts(
    owner="ana",
    license="Apache-2.0",
    framework="jax",
    data=(DataFact(name="corpus", sha256="a" * 64),),
    code_commit="0" * 40,
    training_run="elsewhere-1",
    metrics={"loss": 1.5},
)


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_an_upload_becomes_a_signed_version_that_verifies(served: Any, model: Path) -> None:
    upload = served.client.create_upload()
    for name in ("model.safetensors", "config.json"):
        told = served.client.upload_file(upload.id, name, model / name)
        assert told.sha256 == hashlib.sha256((model / name).read_bytes()).hexdigest()
    version = served.client.register_model("by-hand", upload_id=upload.id, project="default", facts=FACTS)
    assert version.id == "by-hand@1"
    assert [file.path for file in version.files] == ["config.json", "model.safetensors"]
    checked = served.client.verify_model("by-hand", 1)
    assert (checked.ok, checked.checked_files) == (True, 2)
    certificate = served.client.certificate("by-hand", 1)
    assert certificate.key_id == checked.key_id
    assert "signatures" in certificate.envelope
    assert not list((served.home / "uploads").glob(upload.id)), "what is registered leaves the landing place"
    pulled = model / "pulled"
    assert served.client.pull_model("by-hand@latest", pulled).id == "by-hand@1"
    assert (pulled / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert (pulled / "config.json").read_text() == "{}"
    with pytest.raises(InvalidInput, match="names no model version"):
        served.client.pull_model("by-hand", pulled)
    with pytest.raises(NotFound, match="by-hand@7"):
        served.client.pull_model("by-hand@7", pulled)


def test_a_loose_pickle_is_refused_with_all_that_is_missing(served: Any) -> None:
    upload = served.client.create_upload()
    body = pickle.dumps({"weights": [0.0]})
    assert served.raw("PUT", f"/v1/uploads/{upload.id}/model_final_v2_FIXED.pt", content=body).status_code == 200
    with pytest.raises(Refusal) as refusal:
        served.client.register_model("final", upload_id=upload.id, project="default", facts=Facts())
    rules = {refused.rule for refused in refusal.value.refusals}
    assert rules == {"no-pickles", "birth-certificate"}
    assert len(refusal.value.refusals) == 7


OUTSIDE = [
    "..%2Fescape",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2Fetc%2Fpasswd",
    "a%2F..%2F..%2Fescape",
    "%2e%2e/escape",
    "a%5C..%5Cescape",
    "nul%00l",
    "a//b",
    "%E2%80%AEexe.txt",
    "x" * 300,
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_path_leads_out_of_the_upload(served: Any, path: str) -> None:
    upload = served.client.create_upload()
    before = {file for file in served.home.rglob("*") if file.is_file()}
    answer = served.raw("PUT", f"/v1/uploads/{upload.id}/{path}", content=b"gotcha")
    assert answer.status_code in {404, 405, 422}, answer.text
    left = {file for file in served.home.rglob("*") if file.is_file()} - before
    assert not [file for file in left if file.read_bytes() == b"gotcha"]


@pytest.mark.parametrize("upload_id", ["..", "upl-0", "upl-" + "0" * 32, "%2e%2e", "upl-" + "A" * 32])
def test_an_upload_that_was_never_begun_takes_nothing(served: Any, upload_id: str) -> None:
    answer = served.raw("PUT", f"/v1/uploads/{upload_id}/file", content=b"gotcha")
    assert answer.status_code in {404, 405}


def test_somebody_elses_upload_does_not_exist(served: Any) -> None:
    upload = served.client.create_upload()
    answer = served.raw("PUT", f"/v1/uploads/{upload.id}/file", key=served.key(Role.MEMBER), content=b"mine now")
    assert answer.status_code == 404


def test_an_upload_stays_under_its_limit_over_all_its_files(served: Any) -> None:
    upload = served.client.create_upload()
    first = served.raw("PUT", f"/v1/uploads/{upload.id}/one", content=b"x" * 2 * 2**20)
    assert first.status_code == 200
    second = served.raw("PUT", f"/v1/uploads/{upload.id}/two", content=b"x" * 2 * 2**20)
    assert second.status_code == 413
    assert "GROUND_UPLOAD_LIMIT" in second.json()["error"]["hint"]
    again = served.raw("PUT", f"/v1/uploads/{upload.id}/three", content=b"x")
    assert again.status_code == 200, "what was refused does not count"


def test_a_file_and_a_folder_of_one_name_are_the_callers_fault(served: Any) -> None:
    upload = served.client.create_upload()
    assert served.raw("PUT", f"/v1/uploads/{upload.id}/a", content=b"x").status_code == 200
    assert served.raw("PUT", f"/v1/uploads/{upload.id}/a/b", content=b"x").status_code == 422


# ---------------------------------------------------------------- the landing place itself


async def pieces(*parts: bytes) -> Any:
    for part in parts:
        yield part


async def test_a_broken_off_file_leaves_nothing(tmp_path: Path) -> None:
    staging = Staging(tmp_path, 10**6)
    upload = await staging.begin("key-1")

    async def breaks() -> Any:
        yield b"half"
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await staging.receive(upload, "key-1", "file", breaks(), 0)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "owner"]


async def test_a_limit_counts_what_comes_not_what_was_declared(tmp_path: Path) -> None:
    staging = Staging(tmp_path, 1000)
    upload = await staging.begin("key-1")
    with pytest.raises(TooLarge):
        await staging.receive(upload, "key-1", "file", pieces(b"x" * 600, b"x" * 600), 10)


async def test_uploads_untouched_for_a_day_are_swept(tmp_path: Path) -> None:
    import os

    staging = Staging(tmp_path, 1000)
    old, fresh = await staging.begin("key-1"), await staging.begin("key-1")
    for path in [tmp_path / old, *(tmp_path / old).rglob("*")]:
        os.utime(path, (0, 0))
    assert await staging.sweep() == 1
    assert (await staging.folder(fresh, "key-1")).is_dir()
    with pytest.raises(NotFound):
        await staging.folder(old, "key-1")


async def test_a_named_file_of_another_disk_is_copied_whole_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = Staging(tmp_path, 1000)
    upload = await staging.begin("key-1")
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as source:
        source.write(b"weights")
        source.flush()
        (tmp_path / upload / SOURCES).write_text(json.dumps({"model.safetensors": source.name}))
        with monkeypatch.context() as full:
            full.setattr(api_staging, "_DISK_RESERVE_BYTES", 2**70)
            with pytest.raises(Unavailable, match=r"the file has 7 B; the disk can spare 0 B"):
                await staging.folder(upload, "key-1")
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in {"owner", SOURCES}]
        assert ((await staging.folder(upload, "key-1")) / "model.safetensors").read_bytes() == b"weights"
    assert (await staging.files(upload, "key-1"))[0].size_bytes == 7


def test_a_version_is_scanned_where_it_is_and_what_is_found_is_kept(served: Any, model: Path) -> None:
    upload = served.client.create_upload()
    for name in ("model.safetensors", "config.json"):
        served.client.upload_file(upload.id, name, model / name)
    served.client.register_model("looked-at", upload_id=upload.id, project="default", facts=FACTS)
    assert served.client.scan_model("looked-at", 1, base_licenses={}).ok
    report = served.client.scan_model("looked-at", 1, base_licenses={"base": "cc-by-nc-4.0"}, memory_bytes=10)
    assert {finding.rule for finding in report.findings} == {"licence-conflict", "memory"}
    kept = served.client.evidence("looked-at@1")
    assert [(row.kind, row.source, row.facts["refused"]) for row in kept] == [
        ("scan", "measured", "2"),
        ("scan", "measured", "0"),
        ("scan", "measured", "0"),  # the one at registration
    ]
    assert not list((served.home / "scratch").iterdir()), "the copy that was looked at goes away"
