"""The registry for OCI clients: unmodified `oras` and `skopeo` pull versions and their certificates."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import oras.client
import pytest

from groundplane.domain import oci
from groundplane.domain.provenance.certificate import DataFact, Facts
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


def safetensors(fill: bytes) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + fill * 16


@pytest.fixture(scope="module")
def files(served: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """Two versions of a model; the content of each."""
    versions = []
    for fill in (b"\0", b"\1"):
        content = {"model.safetensors": safetensors(fill), "config.json": b"{}", "tokenizer/vocab.txt": b"a\n"}
        folder = tmp_path_factory.mktemp("model")
        upload = served.client.create_upload()
        for name, data in content.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
            served.client.upload_file(upload.id, name, folder / name)
        served.client.register_model("packed", upload_id=upload.id, project="default", facts=FACTS)
        versions.append(content)
    return versions


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("tag", "number"), [("latest", 2), ("v1", 1), ("2", 2)])
def test_oras_pulls_a_version_with_its_folders(served: Any, files: Any, tmp_path: Path, tag: str, number: int) -> None:
    host = served.url.removeprefix("http://")
    client = oras.client.OrasClient(hostname=host, insecure=True, auth_backend="basic")
    client.login(hostname=host, username="ground", password=served.admin_key, config_path=str(tmp_path / "auth.json"))
    client.pull(target=f"{host}/default/packed:{tag}", outdir=str(tmp_path / "out"))
    assert content_of(tmp_path / "out") == files[number - 1]


@pytest.mark.needs("skopeo")
def test_skopeo_copies_a_version_by_digest(served: Any, files: Any, tmp_path: Path) -> None:
    host = served.url.removeprefix("http://")
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    digest = oci.manifest(served.client.model_version("packed", 1)).digest
    subprocess.run(
        [
            shutil.which("skopeo") or "skopeo",
            "--policy",
            str(tmp_path / "policy.json"),
            "copy",
            "--src-tls-verify=false",
            f"--src-creds=ground:{served.admin_key}",
            f"docker://{host}/default/packed@{digest}",
            f"dir:{tmp_path / 'out'}",
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    copied = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()}
    assert {hashlib.sha256(content).hexdigest() for content in files[0].values()} <= copied
    assert digest.removeprefix("sha256:") in copied


def test_the_certificate_refers_to_its_version(served: Any, files: Any) -> None:
    version = served.client.model_version("packed", 2)
    head = served.raw("HEAD", "/v2/default/packed/manifests/v2")
    digest = head.headers["docker-content-digest"]
    index = served.raw("GET", f"/v2/default/packed/referrers/{digest}").json()
    (found,) = index["manifests"]
    assert found["artifactType"] == oci.CERTIFICATE
    answer = served.raw("GET", f"/v2/default/packed/manifests/{found['digest']}")
    assert oci.digest_of(answer.content) == found["digest"]
    assert answer.json()["subject"]["digest"] == digest
    (layer,) = answer.json()["layers"]
    envelope = served.raw("GET", f"/v2/default/packed/blobs/{layer['digest']}").content
    assert hashlib.sha256(envelope).hexdigest() == version.certificate_sha256
    other = f"/v2/default/packed/referrers/{digest}?artifactType=application/spdx"
    assert served.raw("GET", other).json()["manifests"] == []


def test_a_manifest_is_the_same_bytes_by_tag_and_digest(served: Any, files: Any) -> None:
    by_tag = served.raw("GET", "/v2/default/packed/manifests/latest")
    digest = by_tag.headers["docker-content-digest"]
    assert digest == oci.digest_of(by_tag.content)
    assert served.raw("GET", f"/v2/default/packed/manifests/{digest}").content == by_tag.content
    head = served.raw("HEAD", f"/v2/default/packed/manifests/{digest}")
    assert (head.content, head.headers["content-length"]) == (b"", str(len(by_tag.content)))
    for part in [by_tag.json()["config"], *by_tag.json()["layers"]]:
        blob = served.raw("GET", f"/v2/default/packed/blobs/{part['digest']}")
        assert (oci.digest_of(blob.content), len(blob.content)) == (part["digest"], part["size"])
    last = served.raw("GET", f"/v2/default/packed/blobs/{part['digest']}", headers={"Range": "bytes=-1"})
    assert (last.status_code, last.content) == (206, b"\n")


def test_tags_are_listed_and_paged(served: Any, files: Any) -> None:
    path = "/v2/default/packed/tags/list"
    assert served.raw("GET", path).json() == {"name": "default/packed", "tags": ["latest", "v1", "v2"]}
    first = served.raw("GET", f"{path}?n=2")
    assert first.json()["tags"] == ["latest", "v1"]
    following = first.headers["link"].split(";")[0].strip("<>")
    assert served.raw("GET", following).json()["tags"] == ["v2"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v2/default/absent/tags/list", "NAME_UNKNOWN"),
        ("/v2/default/packed/manifests/v9", "MANIFEST_UNKNOWN"),
        (f"/v2/default/packed/manifests/sha256:{'0' * 64}", "MANIFEST_UNKNOWN"),
        (f"/v2/default/packed/blobs/sha256:{'0' * 64}", "BLOB_UNKNOWN"),
        ("/v2/default/packed/blobs/sha256:short", "BLOB_UNKNOWN"),
    ],
)
def test_what_is_not_there_is_told_as_the_specification_says(served: Any, files: Any, path: str, code: str) -> None:
    answer = served.raw("GET", path)
    assert answer.status_code == 404
    assert answer.json()["errors"][0]["code"] == code


def test_without_a_key_a_password_is_asked_for_and_a_strangers_sees_nothing(served: Any, files: Any) -> None:
    answer = served.raw("GET", "/v2/", key="")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert answer.json()["errors"][0]["code"] == "UNAUTHORIZED"
    assert served.raw("GET", "/v2/", key="", headers={"Authorization": "Basic %%%"}).status_code == 401
    assert served.raw("GET", "/v2/").status_code == 200
    served.client.create_project(name="packers", owner="bo", cost_center="cc-4")
    stranger = served.key(Role.MEMBER, "packers")
    assert served.raw("GET", "/v2/default/packed/tags/list", key=stranger).status_code == 404
    caller = served.raw("GET", "/v2/default/packed/tags/list", key=served.key(Role.CALLER))
    assert (caller.status_code, caller.json()["errors"][0]["code"]) == (403, "DENIED")
