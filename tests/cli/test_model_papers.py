"""What a version's papers are worth to strangers: a bill of materials, a signature for other tools, a check offline."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from groundplane.adapters.signing import FileSigner
from groundplane.domain.provenance.certificate import pae

FACTS = ("--owner", "ana", "--license", "Apache-2.0", "--framework", "jax", "--code-commit", "0" * 40,
         "--training-run", "elsewhere-7", "--data", f"corpus={'a' * 64}", "--metric", "loss=1.5")  # fmt: skip


@pytest.fixture(scope="module")
def folder(up: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("papers")
    (made / "deep").mkdir()
    (made / "config.json").write_text("{}")
    (made / "deep" / "notes.txt").write_text("plain\n")
    up.ground("models", "register", str(made), "--name", "papers", "--project", "research", *FACTS)
    return made


def test_a_bill_of_materials_is_valid_and_says_what_is_unknown(up: Any, say: Any, folder: Path) -> None:
    said = say(up, "models", "bom", "papers@1")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(said.out) is None
    model = said.data["metadata"]["component"]
    assert (model["type"], model["name"], model["licenses"]) == (
        "machine-learning-model", "papers", [{"license": {"id": "Apache-2.0"}}],
    )  # fmt: skip
    assert model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] == [{"type": "loss", "value": "1.5"}]
    assert any(row["name"] == "groundplane:unknown:hardware" for row in model["properties"])
    assert say(up, "models", "bom", "papers@1").out == said.out


def test_a_stranger_checks_a_folder_offline_and_a_changed_byte_is_named(
    up: Any, say: Any, folder: Path, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "c.json", tmp_path / "key.pem"
    certificate.write_text(say(up, "models", "certificate", "papers@1", "--envelope").out)
    key.write_text(say(up, "models", "public-key").out)
    words = ("models", "verify", "--offline", str(folder), "--key", str(key), "--certificate", str(certificate))
    good = say(up, *words)
    assert good.code == 0, good.err
    assert good.out.startswith("papers@1: 2 files are as key ")
    (folder / "deep" / "notes.txt").write_text("plaim\n")
    bad = say(up, *words)
    (folder / "deep" / "notes.txt").write_text("plain\n")
    assert (bad.code, "file deep/notes.txt: is not what was signed" in bad.err) == (8, True)
    (folder / "more.txt").write_text("x")
    more = say(up, *words)
    (folder / "more.txt").unlink()
    assert (more.code, "more.txt: is not in the certificate" in more.err) == (8, True)


def test_later_facts_are_papers_too_and_checked_along(up: Any, say: Any, folder: Path, tmp_path: Path) -> None:
    certificate, addenda, key = tmp_path / "c.json", tmp_path / "addenda.json", tmp_path / "key.pem"
    say(up, "models", "register", str(folder), "--name", "later", "--project", "research", *FACTS,
        "--param", "lr=1e-4", "--sla", "p95 below 200 ms", "--code-clean")  # fmt: skip
    given = say(up, "models", "add", "later@1", "--evaluation", "nightly", "--metric", "f1=0.93", "--dataset", "eval@3")
    assert given.code == 0, given.err
    assert say(up, "models", "add", "later@1", "--sla", "best effort").code == 0
    assert "nightly: f1 0.93 on eval@3 (stated by admin)" in say(up, "models", "addenda", "later@1").out
    assert say(up, "models", "add", "later@1", "--sla", "a", "--rollback-target", "later@1").code == 2
    assert say(up, "models", "add", "later@1", "--evaluation", "x", "--metric", "f1=high").code == 2
    assert say(up, "models", "add", "later@9", "--sla", "x").code == 4

    bom = say(up, "models", "bom", "later@1")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom.out) is None
    model = bom.data["metadata"]["component"]
    assert {"type": "f1", "value": "0.93", "slice": "eval@3"} in model["modelCard"]["quantitativeAnalysis"][
        "performanceMetrics"
    ]
    named = {row["name"]: row["value"] for row in model["properties"]}
    assert named["groundplane:hyperparameter:lr"] == "1e-4" and named["groundplane:sla"] == "p95 below 200 ms"
    assert bom.data["version"] == 3

    certificate.write_text(say(up, "models", "certificate", "later@1", "--envelope").out)
    addenda.write_text(say(up, "models", "addenda", "later@1", "--envelopes").out)
    key.write_text(say(up, "models", "public-key").out)
    words = ("models", "verify", "--offline", str(folder), "--key", str(key), "--certificate", str(certificate),
             "--addenda", str(addenda))  # fmt: skip
    good = say(up, *words)
    assert good.code == 0, good.err
    assert "2 addenda are chained to it" in good.out and "2 sla: best effort" in good.out
    first, second = json.loads(addenda.read_text())
    for wrong in ([second], [second, first], [first, {**second, "payload": first["payload"]}]):
        addenda.write_text(json.dumps(wrong))
        assert say(up, *words).code == 8
    addenda.write_text("{}")
    assert "is no list of envelopes" in say(up, *words).err


def test_a_project_requires_facts_and_says_which_are_missing(up: Any, say: Any, folder: Path) -> None:
    if say(up, "projects", "list", "-o", "json").out.find('"strict"') < 0:
        up.ground("projects", "create", "strict", "--owner", "ana", "--cost-center", "r1")
    ruled = say(
        up, "models", "require", "strict", "licence, hyperparameters", "not dirty", "evaluations", "--reason", "x"
    )
    assert ruled.code == 0, ruled.err
    assert "licence, hyperparameters, not dirty, evaluations>=1" in ruled.out
    words = ("models", "register", str(folder), "--name", "strict", "--project", "strict", *FACTS)
    refused = say(up, *words)
    assert refused.code == 3
    assert "hyperparameters" in refused.err and "--param NAME=VALUE" in refused.err and "not dirty" in refused.err
    assert say(up, *words, "--param", "lr=1", "--code-clean").code == 0
    (missing,) = say(up, "models", "missing", "strict@1", "-o", "json").data
    assert (missing["fact"], missing["have"]) == ("evaluations>=1", "0 evaluations")
    assert say(up, "models", "missing", "strict@1", "--stage", "register", "-o", "json").data == []
    assert say(up, "models", "require", "strict", "colour", "--reason", "x").code == 2
    assert say(up, "models", "require", "strict", "licence").code == 2  # without a reason
    assert say(up, "models", "require", "strict", "--none", "--reason", "x").code == 0
    assert say(up, "models", "require", "strict", "-o", "json").data == []
    (scan,) = say(up, "models", "scans", "strict@1", "-o", "json").data
    assert scan["name"] == "clean"


def test_a_foreign_key_vouches_for_nothing(up: Any, say: Any, folder: Path, tmp_path: Path) -> None:

    certificate, key = tmp_path / "c.json", tmp_path / "key.pem"
    certificate.write_text(say(up, "models", "certificate", "papers@1", "--envelope").out)
    (other,) = FileSigner(tmp_path / "other").public_keys().values()
    key.write_text(other)
    said = say(up, "models", "verify", "--offline", str(folder), "--key", str(key), "--certificate", str(certificate))
    assert (said.code, "none of these keys signed it" in said.err) == (8, True)


def test_the_signature_for_other_tools_is_over_the_files(up: Any, say: Any, folder: Path) -> None:
    bundle = json.loads(say(up, "models", "signature", "papers@1").out)
    public = load_pem_public_key(say(up, "models", "signature", "papers@1", "--public-key").out.encode())
    assert isinstance(public, EllipticCurvePublicKey)
    envelope = bundle["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    public.verify(
        base64.b64decode(envelope["signatures"][0]["sig"]), pae(envelope["payloadType"], payload), ECDSA(SHA256())
    )
    resources = json.loads(payload)["predicate"]["resources"]
    assert {row["name"]: row["digest"] for row in resources} == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("config.json", "deep/notes.txt")
    }
