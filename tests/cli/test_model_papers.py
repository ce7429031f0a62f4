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
from groundplane.domain.certificate import pae

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


def test_a_foreign_key_vouches_for_nothing(up: Any, say: Any, folder: Path, tmp_path: Path) -> None:

    certificate, key = tmp_path / "c.json", tmp_path / "key.pem"
    certificate.write_text(say(up, "models", "certificate", "papers@1", "--envelope").out)
    key.write_text(FileSigner(tmp_path / "other").export_public_key())
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
