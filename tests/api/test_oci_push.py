"""Pushes by OCI clients: unmodified `oras` and `skopeo` make versions, or learn what stands against one."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import oras.client
import oras.oci
import pytest

from groundplane.api.oci_uploads import BlobUploads, UploadUnknown
from groundplane.api.staging import KEEP_S, Staging
from groundplane.domain import oci
from groundplane.errors import TooLarge
from groundplane.identity import Actor, Role

ANNOTATIONS = {
    "org.opencontainers.image.licenses": "Apache-2.0",
    "org.opencontainers.image.revision": "0" * 40,
    "dev.groundplane.owner": "ana",
    "dev.groundplane.data": f"corpus={'a' * 64}",
    "dev.groundplane.training-run": "elsewhere-1",
    "dev.groundplane.metrics": "loss=1.5, f1=0.93",
}


def safetensors(fill: bytes) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + fill * 16


GATE = """
apiVersion: groundplane/v1
kind: Gate
metadata: {name: before, project: default}
spec: {model: gated, aliases: [production], requirements: [{approvals: 1}]}
"""


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def push(served: Any, tmp_path: Path) -> Any:
    """Pushes files with the oras client: push(name, tag, {path: content}, annotations)."""
    host = served.url.removeprefix("http://")

    def pushing(name: str, tag: str, files: dict[str, bytes], said: dict[str, str], **options: Any) -> Any:
        client = oras.client.OrasClient(hostname=host, insecure=True, auth_backend="basic")
        client.login(hostname=host, username="ground", password=served.admin_key, config_path=str(tmp_path / "auth"))
        folder = tmp_path / hashlib.sha256(repr((name, tag, files)).encode()).hexdigest()[:8]
        folder.mkdir(exist_ok=True)
        for path, content in files.items():
            (folder / path).write_bytes(content)
        return client.push(
            target=f"{host}/default/{name}:{tag}",
            files=[str(folder / path) for path in files],
            manifest_annotations=said,
            disable_path_validation=True,
            **options,
        )

    return pushing


def send(served: Any, name: str, content: bytes) -> str:
    """One blob as any client sends it; its digest."""
    begun = served.raw("POST", f"/v2/default/{name}/blobs/uploads/")
    assert begun.status_code == 202
    digest = digest_of(content)
    done = served.raw("PUT", begun.headers["location"], params={"digest": digest}, content=content)
    assert (done.status_code, done.headers["docker-content-digest"]) == (201, digest)
    return digest


def numbers(served: Any, name: str) -> list[int]:
    return [version.number for version in served.client.model(name)]


def manifest_of(files: dict[str, bytes], **more: Any) -> bytes:
    layers = [
        {
            "mediaType": "application/octet-stream",
            "digest": digest_of(content),
            "size": len(content),
            "annotations": {"org.opencontainers.image.title": path},
        }
        for path, content in files.items()
    ]
    config = {"mediaType": oci.EMPTY, "digest": digest_of(b"{}"), "size": 2}
    document = {"schemaVersion": 2, "mediaType": oci.MANIFEST, "config": config, "layers": layers, **more}
    return json.dumps(document).encode()


def put(served: Any, name: str, reference: str, content: bytes, **options: Any) -> Any:
    headers = {"Content-Type": oci.MANIFEST}
    return served.raw("PUT", f"/v2/default/{name}/manifests/{reference}", content=content, headers=headers, **options)


@pytest.mark.parametrize("chunked", [False, True])
def test_oras_pushes_a_version_that_is_registered_signed_and_pulled_again(
    served: Any, push: Any, tmp_path: Path, chunked: bool
) -> None:
    name = f"by-oras-{chunked}".lower()
    files = {"model.safetensors": safetensors(b"\0"), "config.json": b'{"a": 1}'}
    answer = push(name, "1.0.0", files, ANNOTATIONS, do_chunked=chunked, chunk_size=20)
    version = served.client.model_version(name, 1)
    assert (version.owner, version.license, version.metrics) == ("ana", "Apache-2.0", {"loss": 1.5, "f1": 0.93})
    statement = served.client.certificate(name, 1).statement
    assert f"pushed over OCI by {version.created_by} as default/{name}@sha256:" in statement["predicate"]["observed"]
    assert served.client.verify_model(name, 1).ok
    digest = answer.headers["Docker-Content-Digest"]
    for reference in ("1.0.0", "v1", "latest", digest):
        got = served.raw("GET", f"/v2/default/{name}/manifests/{reference}")
        assert got.headers["docker-content-digest"] == digest == digest_of(got.content)
    host = served.url.removeprefix("http://")
    client = oras.client.OrasClient(hostname=host, insecure=True, auth_backend="basic")
    client.login(hostname=host, username="ground", password=served.admin_key, config_path=str(tmp_path / "auth"))
    client.pull(target=f"{host}/default/{name}:1.0.0", outdir=str(tmp_path / "out"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
    (certificate,) = served.raw("GET", f"/v2/default/{name}/referrers/{digest}").json()["manifests"]
    assert certificate["artifactType"] == oci.CERTIFICATE
    assert served.raw("GET", f"/v2/default/{name}/tags/list").json()["tags"] == ["1.0.0", "latest", "v1"]


def test_the_same_push_again_is_the_same_version_and_other_content_under_its_tag_is_told(
    served: Any, push: Any, caplog: pytest.LogCaptureFixture
) -> None:
    files = {"model.safetensors": safetensors(b"\1")}
    push("again", "one", files, ANNOTATIONS)
    push("again", "one", files, ANNOTATIONS)
    timed = {**ANNOTATIONS, "org.opencontainers.image.created": "2026-01-01T00:00:00Z"}
    push("again", "also-one", files, timed)
    assert numbers(served, "again") == [1]
    with pytest.raises(ValueError, match="Conflict"):
        push("again", "one", {"model.safetensors": safetensors(b"\2")}, ANNOTATIONS)
    assert "again:one stands for other content" in caplog.text
    with pytest.raises(ValueError, match="Conflict"):
        push("again", "v9", {"model.safetensors": safetensors(b"\2")}, ANNOTATIONS)
    assert "push it as v2 or latest" in caplog.text
    push("again", "v2", {"model.safetensors": safetensors(b"\2")}, ANNOTATIONS)
    assert numbers(served, "again") == [2, 1]


def test_a_tag_is_no_way_round_a_gate_and_hides_no_alias(served: Any) -> None:
    def pushed(tag: str, fill: bytes) -> Any:
        files = {"model.safetensors": safetensors(fill)}
        for content in (b"{}", *files.values()):
            send(served, "gated", content)
        return put(served, "gated", tag, manifest_of(files, annotations=ANNOTATIONS))

    assert [pushed("beta", b"\5").status_code, pushed("2.0", b"\6").status_code] == [201, 201]
    served.client.define_gates(GATE)
    served.client.move_alias("gated", "canary", to="1", reason="an alias, and no gate before it")
    for tag in ("production", "canary"):
        for fill in (b"\6", b"\7"):  # a version that is there already, and one that would be new
            answer = pushed(tag, fill)
            assert answer.status_code == 409
            assert f"the alias {tag}" in answer.text or "stands for other content" in answer.text
    own = served.raw("GET", "/v2/default/gated/manifests/v1").content
    assert [put(served, "gated", tag, own).status_code for tag in ("v1", "1.0", "v9", "production")] == [
        201,
        201,
        409,
        409,
    ]
    assert served.raw("GET", "/v2/default/gated/manifests/1.0").content == own
    assert numbers(served, "gated") == [2, 1]
    served.client.move_alias("gated", "beta", to="2", reason="on")
    beta, second = (served.raw("GET", f"/v2/default/gated/manifests/{tag}").content for tag in ("beta", "2.0"))
    assert beta == second, "an alias was moved through the gates: it counts before a tag of its name"


def test_missing_facts_are_all_named_with_the_annotation_that_states_them(served: Any, push: Any) -> None:
    files = {"model.safetensors": safetensors(b"\3")}
    send(served, "silent", files["model.safetensors"])
    answer = put(served, "silent", "latest", manifest_of(files))
    assert answer.status_code == 409
    said = [error["message"] for error in answer.json()["errors"]]
    assert {error["code"] for error in answer.json()["errors"]} == {"MANIFEST_INVALID"}
    for key in ("dev.groundplane.owner=", "org.opencontainers.image.licenses=", "dev.groundplane.data=NAME=SHA256"):
        assert any(key in each for each in said), said
    assert served.raw("GET", "/v2/default/silent/tags/list").status_code == 404
    card = "---\nlicense: mit\ngroundplane:\n  owner: bo\n  data: [{name: c, sha256: " + "b" * 64 + "}]\n"
    card += "  code_commit: '" + "1" * 40 + "'\n  training_run: r-1\n  metrics: {loss: 2}\n---\n"
    push("silent", "latest", {**files, "README.md": card.encode()}, {})
    assert served.client.model_version("silent", 1).owner == "bo"


def test_pickles_are_refused_as_on_every_other_door(served: Any, push: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="Conflict"):
        push("pickled", "latest", {"model.pkl": pickle.dumps({"w": [1.0]})}, ANNOTATIONS)
    assert "no-pickles" in caplog.text
    assert served.raw("GET", "/v2/default/pickled/tags/list").status_code == 404


@pytest.mark.needs("skopeo")
def test_skopeo_copies_an_oci_layout_in_and_out_byte_for_byte(served: Any, tmp_path: Path) -> None:
    host, layout = served.url.removeprefix("http://"), tmp_path / "layout"
    files = {"model.safetensors": safetensors(b"\4"), "vocab.txt": b"a\n"}
    content = manifest_of(files, annotations=ANNOTATIONS, artifactType="application/vnd.cncf.model.manifest.v1+json")
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for each in (*files.values(), b"{}", content):
        (blobs / hashlib.sha256(each).hexdigest()).write_bytes(each)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    named = {"org.opencontainers.image.ref.name": "m"}
    entry = {"mediaType": oci.MANIFEST, "digest": digest_of(content), "size": len(content), "annotations": named}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def skopeo(*words: str) -> str:
        command = [shutil.which("skopeo") or "skopeo", "--policy", str(tmp_path / "policy.json"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    there = f"docker://{host}/default/by-skopeo:2026-11"
    skopeo("copy", "--dest-tls-verify=false", f"--dest-creds=g:{served.admin_key}", f"oci:{layout}:m", there)
    assert served.client.model_version("by-skopeo", 1).license == "Apache-2.0"
    skopeo("copy", "--src-tls-verify=false", f"--src-creds=g:{served.admin_key}", there, f"dir:{tmp_path / 'out'}")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == content
    listed = skopeo("list-tags", "--tls-verify=false", f"--creds=g:{served.admin_key}", there.rpartition(":")[0])
    assert json.loads(listed)["Tags"] == ["2026-11", "latest", "v1"]


def test_a_broken_upload_goes_on_where_it_was_and_half_of_a_blob_is_seen_by_nobody(served: Any) -> None:
    content = bytes(range(256)) * 8
    begun = served.raw("POST", "/v2/default/half/blobs/uploads/")
    place = begun.headers["location"]
    first = served.raw("PATCH", place, content=content[:700], headers={"Content-Range": "0-699"})
    assert (first.status_code, first.headers["range"]) == (202, "0-699")
    gap = served.raw("PATCH", place, content=content[900:], headers={"Content-Range": f"900-{len(content) - 1}"})
    assert (gap.status_code, gap.headers["range"]) == (416, "0-699")
    assert gap.json()["errors"][0]["code"] == "BLOB_UPLOAD_INVALID"
    # The connection breaks in the middle of a chunk: what arrived counts.
    host, _, port = served.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as wire:
        head = f"PATCH {place} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {served.admin_key}\r\n"
        wire.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode() + content[700:800])
        for _ in range(600):
            asked = served.raw("GET", place)
            if asked.headers["range"] == "0-799":
                break
            threading.Event().wait(0.05)
    assert (asked.status_code, asked.headers["range"]) == (204, "0-799")
    assert served.raw("HEAD", f"/v2/default/half/blobs/{digest_of(content)}").status_code == 404
    for _ in range(600):
        rest = served.raw("PUT", place, content=content[800:], params={"digest": digest_of(content)})
        if rest.status_code != 409:
            break
        threading.Event().wait(0.05)
    assert rest.status_code == 201, rest.text
    assert served.raw("HEAD", f"/v2/default/half/blobs/{digest_of(content)}").status_code == 200
    assert served.raw("GET", f"/v2/default/half/blobs/{digest_of(content)}").status_code == 404
    assert served.raw("GET", place).json()["errors"][0]["code"] == "BLOB_UPLOAD_UNKNOWN"
    member = served.key(Role.MEMBER)
    assert served.raw("HEAD", f"/v2/default/half/blobs/{digest_of(content)}", key=member).status_code == 404


def test_a_blob_that_is_not_its_digest_is_thrown_away(served: Any) -> None:
    whole = served.raw("POST", "/v2/default/wrong/blobs/uploads/", params={"digest": digest_of(b"a")}, content=b"b")
    assert (whole.status_code, whole.json()["errors"][0]["code"]) == (400, "DIGEST_INVALID")
    place = served.raw("POST", "/v2/default/wrong/blobs/uploads/").headers["location"]
    wrong = served.raw("PUT", place, content=b"b", params={"digest": digest_of(b"a")})
    assert wrong.json()["errors"][0]["code"] == "DIGEST_INVALID"
    assert served.raw("GET", place).status_code == 404
    place = served.raw("POST", "/v2/default/wrong/blobs/uploads/").headers["location"]
    assert served.raw("PUT", place, content=b"b", params={"digest": "md5:0"}).status_code == 400
    assert served.raw("DELETE", place).status_code == 204
    other = put(served, "wrong", digest_of(b"x"), manifest_of({"a": b"a"}))
    assert other.json()["errors"][0]["code"] == "DIGEST_INVALID"
    unknown = put(served, "wrong", "latest", manifest_of({"a": b"a"}))
    assert (unknown.status_code, unknown.json()["errors"][0]["code"]) == (400, "MANIFEST_BLOB_UNKNOWN")
    for bad in (b"{", b"[]", b'{"schemaVersion": 2}', manifest_of({"../a": b"a"}), manifest_of({})):
        send(served, "wrong", b"a")
        answer = put(served, "wrong", "latest", bad)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) in {
            (400, "MANIFEST_INVALID"),
            (409, "MANIFEST_INVALID"),
        }


def test_a_blob_of_another_repository_is_mounted_and_need_not_be_sent(served: Any, push: Any) -> None:
    files = {"model.safetensors": safetensors(b"\5")}
    push("lender", "latest", files, ANNOTATIONS)
    digest = digest_of(files["model.safetensors"])
    # What a HEAD says is there can be used, also where it is no file of a version.
    assert served.raw("HEAD", f"/v2/default/lender/blobs/{digest_of(b'{}')}").status_code == 200
    again = manifest_of({**files, "config.json": b"{}"}, annotations=ANNOTATIONS)
    assert put(served, "lender", "latest", again).status_code == 201
    assert len(served.client.model_version("lender", 2).files) == 2
    query = {"mount": digest, "from": "default/lender"}
    assert served.raw("POST", "/v2/default/borrower/blobs/uploads/", params=query).status_code == 201
    assert put(served, "borrower", "latest", manifest_of(files, annotations=ANNOTATIONS)).status_code == 201
    assert served.client.model_version("borrower", 1).files[0].sha256 == digest.removeprefix("sha256:")
    served.client.create_project(name="lenders", owner="bo", cost_center="cc-4")
    stranger = served.key(Role.MEMBER, "lenders")
    begun = served.raw("POST", "/v2/lenders/borrower-2/blobs/uploads/", params=query, key=stranger)
    assert begun.status_code == 202


def test_what_refers_to_a_version_is_kept_and_listed_beside_its_certificate(served: Any, push: Any) -> None:
    answer = push("referred", "latest", {"model.safetensors": safetensors(b"\6")}, ANNOTATIONS)
    digest = answer.headers["Docker-Content-Digest"]
    bill = b'{"spdxVersion": "SPDX-2.3"}'
    send(served, "referred", bill)
    subject = {"mediaType": oci.MANIFEST, "digest": digest, "size": 1}
    content = manifest_of({"bill.json": bill}, artifactType="application/spdx+json", subject=subject)
    kept = put(served, "referred", digest_of(content), content)
    assert (kept.status_code, kept.headers["oci-subject"]) == (201, digest)
    assert put(served, "referred", digest_of(content), content).status_code == 201
    found = served.raw("GET", f"/v2/default/referred/referrers/{digest}").json()["manifests"]
    assert [each["artifactType"] for each in found] == [oci.CERTIFICATE, "application/spdx+json"]
    only = served.raw("GET", f"/v2/default/referred/referrers/{digest}?artifactType=application/spdx%2Bjson")
    assert [each["digest"] for each in only.json()["manifests"]] == [digest_of(content)]
    assert served.raw("GET", f"/v2/default/referred/manifests/{digest_of(content)}").content == content
    assert served.raw("GET", f"/v2/default/referred/blobs/{digest_of(bill)}").content == bill
    assert numbers(served, "referred") == [1]
    rows = served.client.packages("default", "referred")
    (pushed,) = [row for row in rows if row.tags]
    assert (pushed.digest, pushed.tags, pushed.version_id) == (digest, ("latest", "v1"), "referred@1")
    kinds = [row.artifact_type for row in rows if row.subject == digest]
    assert sorted(kinds) == sorted([oci.CERTIFICATE, "application/spdx+json"])
    served.client.collect(grace_s=60)
    assert served.raw("GET", f"/v2/default/referred/blobs/{digest_of(bill)}").content == bill


def test_of_two_pushes_of_one_tag_at_once_one_wins_and_the_other_is_told(served: Any) -> None:
    contents = [{"model.safetensors": safetensors(bytes([fill]))} for fill in (7, 8, 9)]
    for files in contents:
        send(served, "raced", files["model.safetensors"])
    manifests = [manifest_of(files, annotations=ANNOTATIONS) for files in contents]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda content: put(served, "raced", "rc", content), manifests))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409]
    assert numbers(served, "raced") == [1]
    told = next(answer for answer in answers if answer.status_code == 409).json()["errors"][0]
    assert (told["code"], "stands for other content" in told["message"]) == ("DENIED", True)


def test_nothing_is_deleted_and_who_may_not_write_pushes_nothing(served: Any, push: Any) -> None:
    push("kept", "latest", {"model.safetensors": safetensors(b"\x0a")}, ANNOTATIONS)
    for path in ("manifests/latest", f"blobs/{digest_of(b'a')}"):
        answer = served.raw("DELETE", f"/v2/default/kept/{path}")
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (405, "UNSUPPORTED")
    viewer = served.key(Role.VIEWER)
    for method, path in (("POST", "blobs/uploads/"), ("PUT", "manifests/latest"), ("DELETE", "manifests/latest")):
        answer = served.raw(method, f"/v2/default/kept/{path}", key=viewer)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (403, "DENIED")
    assert served.raw("POST", "/v2/nowhere/kept/blobs/uploads/").status_code == 404


async def test_half_uploads_and_blobs_that_no_manifest_took_are_swept_after_a_day(tmp_path: Path) -> None:
    landing = Staging(tmp_path, 10**6)
    uploads = BlobUploads(landing, Actor(name="ana", role=Role.MEMBER, key_id="k"), "default", "m")

    async def pieces() -> AsyncIterator[bytes]:
        yield b"half"

    half, whole = await uploads.begin(), await uploads.begin()
    await uploads.append(half, pieces(), None, 4)
    await uploads.append(whole, pieces(), 0, 4)
    await uploads.finish(whole, digest_of(b"half"))
    assert await landing.sweep() == 0
    assert (await uploads.size(half), await uploads.landed(digest_of(b"half")) is not None) == (4, True)
    old = time.time() - KEEP_S - 1
    for path in (*tmp_path.rglob("*"), *tmp_path.glob("upl-*")):
        os.utime(path, (old, old))
    assert await landing.sweep() == 1
    assert await uploads.landed(digest_of(b"half")) is None
    with pytest.raises(UploadUnknown):
        await uploads.size(half)
    with pytest.raises(TooLarge):
        await uploads.append(await uploads.begin(), pieces(), 0, 10**7)
