"""The installation's signing key: made once, kept private, rotated without losing what it signed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from groundplane.adapters.signing import FileSigner
from groundplane.domain.provenance.certificate import seal
from groundplane.errors import IntegrityFailure, Unavailable


def test_the_first_use_makes_a_private_key_only_its_owner_reads(tmp_path: Path) -> None:
    signer = FileSigner(tmp_path / "keys")
    assert signer.verify(b"payload", signer.sign(b"payload"), signer.key_id)
    assert stat.S_IMODE((tmp_path / "keys" / "signing.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_the_key_stays_the_same_after_a_restart(tmp_path: Path) -> None:
    first = FileSigner(tmp_path)
    signature = first.sign(b"x")
    second = FileSigner(tmp_path)
    assert second.key_id == first.key_id
    assert second.verify(b"x", signature, first.key_id)


def test_processes_that_start_together_make_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        ids = set(pool.map(lambda _: FileSigner(tmp_path).key_id, range(64)))
    assert len(ids) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["signing.pem", "trusted"]


def test_the_key_id_is_the_digest_of_the_public_key(tmp_path: Path) -> None:
    signer = FileSigner(tmp_path)
    public = load_pem_public_key(signer.public_keys()[signer.key_id].encode())
    assert (
        hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
        == signer.key_id
    )


def test_nothing_else_verifies(tmp_path: Path) -> None:
    signer, stranger = FileSigner(tmp_path / "a"), FileSigner(tmp_path / "b")
    signature = signer.sign(b"x")
    assert not signer.verify(b"y", signature, signer.key_id)
    assert not signer.verify(b"x", signature[:-1] + bytes([signature[-1] ^ 1]), signer.key_id)
    assert not signer.verify(b"x", b"", signer.key_id)
    assert not signer.verify(b"x", stranger.sign(b"x"), stranger.key_id)
    assert not signer.verify(b"x", stranger.sign(b"x"), signer.key_id)


def test_what_an_earlier_key_signed_stays_true_after_rotation_until_the_trust_is_taken_away(tmp_path: Path) -> None:
    signer = FileSigner(tmp_path)
    old, signature = signer.key_id, signer.sign(b"x")
    new = signer.rotate()
    assert new != old
    assert FileSigner(tmp_path).key_id == new
    assert FileSigner(tmp_path).verify(b"x", signature, old)
    assert list(signer.public_keys()) == sorted([old, new])
    (tmp_path / "trusted" / f"{old}.pub").unlink()
    assert not signer.verify(b"x", signature, old)
    assert signer.verify(b"x", signer.sign(b"x"), new)


def test_another_installation_is_trusted_by_its_public_key_whatever_the_file_is_called(tmp_path: Path) -> None:
    here, there = FileSigner(tmp_path / "here"), FileSigner(tmp_path / "there")
    assert here.key_id
    (tmp_path / "here" / "trusted" / "partner.pub").write_text(there.public_keys()[there.key_id])
    assert here.verify(b"x", there.sign(b"x"), there.key_id)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_private_key_that_others_can_read_is_not_used(tmp_path: Path, mode: int) -> None:
    assert FileSigner(tmp_path).key_id
    (tmp_path / "signing.pem").chmod(mode)
    with pytest.raises(Unavailable, match=f"{mode:04o}") as refusal:
        FileSigner(tmp_path).sign(b"x")
    assert "chmod 600" in refusal.value.hint


def test_a_link_in_the_keys_place_is_not_followed(tmp_path: Path) -> None:
    assert FileSigner(tmp_path / "other").key_id
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "signing.pem").symlink_to(tmp_path / "other" / "signing.pem")
    with pytest.raises(Unavailable, match="symbolic links"):
        FileSigner(tmp_path / "keys").sign(b"x")


def test_a_damaged_or_foreign_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(descriptor, b"-----BEGIN PRIVATE KEY-----\nbroken\n-----END PRIVATE KEY-----\n")
    os.close(descriptor)
    with pytest.raises(IntegrityFailure, match=r"signing\.pem can't be read"):
        FileSigner(tmp_path).sign(b"x")
    other = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(IntegrityFailure, match="no Ed25519 key"):
        FileSigner(tmp_path).sign(b"x")


def test_a_damaged_trusted_key_is_named(tmp_path: Path) -> None:
    signer = FileSigner(tmp_path)
    assert signer.key_id
    (tmp_path / "trusted" / "x.pub").write_text("nonsense")
    with pytest.raises(IntegrityFailure, match=r"x\.pub"):
        signer.verify(b"x", signer.sign(b"x"), signer.key_id)


def test_a_certificate_is_checked_offline_with_the_public_key_alone(tmp_path: Path) -> None:
    """The program of docs/guides/models.md, run here as it stands there."""
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "models.md").read_text()
    program = guide.split("```python\n")[1].split("```")[0]
    signer = FileSigner(tmp_path / "keys")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes(b"{}")
    body = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "config.json", "digest": {"sha256": hashlib.sha256(b"{}").hexdigest()}}],
    }
    (tmp_path / "certificate.json").write_text(seal(body, signer.key_id, signer.sign))
    (tmp_path / "public.pem").write_text(signer.public_keys()[signer.key_id])
    arguments = [str(tmp_path / name) for name in ("certificate.json", "public.pem", "model")]
    assert len(program.strip().splitlines()) <= 15

    def checked() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-c", program, *arguments], capture_output=True, text=True, check=False
        )

    good = checked()
    assert good.returncode == 0, good.stderr
    (model / "config.json").write_bytes(b"[]")
    assert "config.json" in checked().stderr
    (model / "config.json").write_bytes(b"{}")
    envelope = json.loads((tmp_path / "certificate.json").read_text())
    envelope["payload"] = base64.b64encode(base64.b64decode(envelope["payload"]).replace(b"config", b"konfig")).decode()
    (tmp_path / "certificate.json").write_text(json.dumps(envelope))
    assert "InvalidSignature" in checked().stderr
