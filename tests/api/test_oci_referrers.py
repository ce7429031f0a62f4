"""What refers to a version: a stranger pulls it, its certificate and its addenda, and checks all with a public key."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import oras.client
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from tests.api.test_oci import FACTS, safetensors

from groundplane.domain import oci
from groundplane.domain.provenance.addendum import AddendumKind

FILES = {"model.safetensors": safetensors(b"\7"), "config.json": b"{}"}


@pytest.fixture(scope="module")
def version(served: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A version of which something became known later, twice."""
    folder, upload = tmp_path_factory.mktemp("model"), served.client.create_upload()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
        served.client.upload_file(upload.id, name, folder / name)
    made = served.client.register_model("attested", upload_id=upload.id, project="default", facts=FACTS)
    evaluation = {"name": "nightly", "metrics": {"f1": 0.93}}
    served.client.add_addendum(made.id, AddendumKind.EVALUATION, evaluation)
    served.client.add_addendum(made.id, AddendumKind.SLA, {"sla": "p95 below 200 ms"}, reason="agreed")
    return made


@pytest.fixture
def client(served: Any, tmp_path: Path) -> Any:
    """An unmodified oras client, logged in."""
    host = served.url.removeprefix("http://")
    made = oras.client.OrasClient(hostname=host, insecure=True, auth_backend="basic")
    made.login(hostname=host, username="ground", password=served.admin_key, config_path=str(tmp_path / "auth.json"))
    return made


def referrers(served: Any, digest: str, kind: str = "") -> Any:
    params = {"artifactType": kind} if kind else {}
    return served.raw("GET", f"/v2/default/attested/referrers/{digest}", params=params)


def digest_of(served: Any, tag: str) -> str:
    head = served.raw("HEAD", f"/v2/default/attested/manifests/{tag}")
    return str(head.headers["docker-content-digest"])


def test_each_addendum_refers_to_its_version_and_is_found_by_its_type(served: Any, version: Any) -> None:
    subject = digest_of(served, "v1")
    every = referrers(served, subject).json()["manifests"]
    assert [each["artifactType"] for each in every] == [oci.CERTIFICATE, oci.ADDENDUM, oci.ADDENDUM]
    chosen = referrers(served, subject, oci.ADDENDUM)
    assert chosen.headers["oci-filters-applied"] == "artifactType"
    assert chosen.headers["content-type"] == oci.INDEX
    first, second = chosen.json()["manifests"]
    assert (first["annotations"]["dev.groundplane.kind"], second["annotations"]["dev.groundplane.kind"]) == (
        "evaluation",
        "sla",
    )
    rows = served.client.addenda(version.id)
    for listed, row in zip((first, second), rows, strict=True):
        answer = served.raw("GET", f"/v2/default/attested/manifests/{listed['digest']}")
        assert (oci.digest_of(answer.content), len(answer.content)) == (listed["digest"], listed["size"])
        said = answer.json()
        assert (said["subject"]["digest"], said["annotations"]) == (subject, listed["annotations"])
        (layer,) = said["layers"]
        blob = served.raw("GET", f"/v2/default/attested/blobs/{layer['digest']}")
        assert (blob.text, layer["digest"]) == (row.envelope, f"sha256:{row.sha256}")
        assert served.raw("HEAD", f"/v2/default/attested/blobs/{layer['digest']}").status_code == 200
    shown = [each["artifact_type"] for each in served.raw("GET", "/v1/packages/default/attested").json()]
    assert shown.count(oci.ADDENDUM) == 2


def test_clients_without_the_referrers_api_find_the_same_under_the_fallback_tag(served: Any, version: Any) -> None:
    subject = digest_of(served, "v1")
    tag = subject.replace(":", "-")
    answer = served.raw("GET", f"/v2/default/attested/manifests/{tag}")
    assert (answer.content, answer.headers["content-type"]) == (referrers(served, subject).content, oci.INDEX)
    assert tag not in served.raw("GET", "/v2/default/attested/tags/list").json()["tags"]
    nobody = served.raw("GET", f"/v2/default/attested/manifests/sha256-{'0' * 64}")
    assert (nobody.status_code, nobody.json()["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")


@pytest.mark.needs("skopeo")
def test_skopeo_copies_all_that_refers_to_a_version_at_once(served: Any, version: Any, tmp_path: Path) -> None:
    host, tag = served.url.removeprefix("http://"), digest_of(served, "v1").replace(":", "-")
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    words = ["--policy", str(tmp_path / "policy.json"), "copy", "--all", "--src-tls-verify=false"]
    words += [f"--src-creds=ground:{served.admin_key}", f"docker://{host}/default/attested:{tag}"]
    command = [shutil.which("skopeo") or "skopeo", *words, f"oci:{tmp_path / 'out'}:referrers"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    copied = {path.name for path in (tmp_path / "out" / "blobs" / "sha256").iterdir()}
    signed = {version.certificate_sha256, *(row.sha256 for row in served.client.addenda(version.id))}
    assert signed <= copied


@pytest.fixture
def pulled(served: Any, version: Any, client: Any, tmp_path: Path) -> Path:
    """What a stranger has: `files`, `papers` and `addenda` as oras pulls them, and a public key."""
    host = served.url.removeprefix("http://")
    where = f"{host}/default/attested"
    client.pull(target=f"{where}:v1", outdir=str(tmp_path / "files"))
    for kind, folder in ((oci.CERTIFICATE, "papers"), (oci.ADDENDUM, "addenda")):
        for each in referrers(served, digest_of(served, "v1"), kind).json()["manifests"]:
            client.pull(target=f"{where}@{each['digest']}", outdir=str(tmp_path / folder))
    (key,) = (served.home / "keys" / "trusted").glob("*.pub")
    shutil.copy(key, tmp_path / "key.pem")
    return tmp_path


def test_a_stranger_checks_what_was_pulled_offline_with_the_command(pulled: Path) -> None:
    def check() -> tuple[int, str]:
        command = [sys.executable, "-m", "groundplane.cli", "models", "verify", "--offline", str(pulled / "files")]
        command += ["--key", str(pulled / "key.pem"), "--addenda", str(pulled / "addenda")]
        command += ["--certificate", str(pulled / "papers" / "birth-certificate.json")]
        # No server, no home, no key: nothing but what was pulled.
        nowhere = {"GROUND_HOME": str(pulled / "none"), "GROUND_URL": "http://127.0.0.1:9"}
        done = subprocess.run(command, env=os.environ | nowhere, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    assert {path.name for path in (pulled / "addenda").iterdir()} == {"addendum-0001.json", "addendum-0002.json"}
    code, said = check()
    assert code == 0, said
    assert "attested@1: 2 files are as key" in said
    assert "2 addenda are chained to it" in said and "2 sla: p95 below 200 ms" in said
    first, second = (pulled / "addenda" / f"addendum-000{number}.json" for number in (1, 2))
    kept = first.read_text()
    first.unlink()
    assert check()[0] == 8, "one is missing from the chain"
    first.write_text(kept.replace('"payload":"', '"payload":"AAAA'))
    assert check()[0] != 0
    first.write_text(kept)
    second.write_text(kept)
    assert check()[0] == 8, "the same one twice"
    (pulled / "files" / "config.json").write_text("[]")
    code, said = check()
    assert code == 8 and "config.json: is not what was signed" in said


def test_a_stranger_checks_what_was_pulled_without_a_line_of_ours(pulled: Path) -> None:
    """The public formats alone: DSSE, in-toto statements, SHA-256, Ed25519."""
    key = load_pem_public_key((pulled / "key.pem").read_bytes())
    assert isinstance(key, Ed25519PublicKey)

    def statement(text: bytes) -> Any:
        envelope = json.loads(text)
        payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
        signed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
        key.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)
        return json.loads(payload)

    certificate = (pulled / "papers" / "birth-certificate.json").read_bytes()
    for subject in statement(certificate)["subject"]:
        content = (pulled / "files" / subject["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == subject["digest"]["sha256"]
    born = previous = hashlib.sha256(certificate).hexdigest()
    for number, path in enumerate(sorted((pulled / "addenda").iterdir()), 1):
        said = statement(path.read_bytes())
        assert said["subject"][0]["digest"]["sha256"] == born
        assert (said["predicate"]["sequence"], said["predicate"]["previous_sha256"]) == (number, previous)
        previous = hashlib.sha256(path.read_bytes()).hexdigest()
    envelope = json.loads(certificate)
    envelope["payload"] = base64.b64encode(base64.b64decode(envelope["payload"]).replace(b"ana", b"bob")).decode()
    with pytest.raises(InvalidSignature):
        statement(json.dumps(envelope).encode())
