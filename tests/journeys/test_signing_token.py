"""Certificates signed by a PKCS#11 token, from a refused start to a check by a stranger: real token, real servers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.tokens import Token

FACTS = (
    *("--project", "research", "--owner", "ana", "--license", "Apache-2.0", "--data", f"corpus={'1' * 64}"),
    *("--code-commit", "2" * 40, "--training-run", "friday-1", "--metric", "f1=0.9", "--framework", "jax"),
)
STRANGER = (Path(__file__).parents[2] / "docs" / "guides" / "models.md").read_text().split("```python\n")[1]


@pytest.mark.needs("softhsm2")
def test_a_token_signs_certificates_that_strangers_check_and_rotates(
    new_installation: Callable[..., Any], tmp_path: Path
) -> None:
    token, model = Token(tmp_path / "token"), tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    ground = new_installation(GROUND_SIGNING_KEY=token.uri(), **token.environment)

    refused = ground.ground("up", "--detach", expect=6)
    assert "error: the token groundplane has 0 private keys of edwards25519 labelled signing" in refused.stderr
    assert "hint: pkcs11-tool --module" in refused.stderr and "Traceback" not in refused.stderr
    token.make_pairs("signing")
    ground.ground("up", "--detach")
    assert not (ground.home / "keys" / "signing.pem").exists()
    ground.ground("projects", "create", "research", "--owner", "ana", "--cost-center", "r1")
    ground.ground("models", "register", str(model), "--name", "tiny", *FACTS)
    rotated = ground.data("models", "rotate-signing-key", "--reason", "a year has passed")
    ground.ground("models", "register", str(model), "--name", "tiny", *FACTS)
    for number, key_id in ((1, rotated["before"]), (2, rotated["key_id"])):
        papers = [tmp_path / "certificate.json", tmp_path / "public.pem"]
        papers[0].write_text(ground.ground("models", "certificate", f"tiny@{number}", "--envelope").stdout)
        papers[1].write_text(ground.data("models", "public-key", key_id)[key_id])
        command = [sys.executable, "-I", "-c", STRANGER.split("```")[0], *map(str, papers), str(model)]
        assert "every file is the one that was signed" in subprocess.check_output(command, text=True)
        offline = ("models", "verify", "--offline", str(model), "--certificate", str(papers[0]))
        ground.ground(*offline, "--key", str(papers[1]))

    token.tokens.rename(token.folder / "gone")
    lost = ground.ground("models", "register", str(model), "--name", "tiny", *FACTS, expect=6)
    assert lost.stderr.startswith("error: ") and "hint: " in lost.stderr
    ground.ground("models", "verify", "tiny@2")
    (token.folder / "gone").rename(token.tokens)
    ground.ground("models", "register", str(model), "--name", "tiny", *FACTS)

    ground.ground("down")
    ground.ground("up", "--detach")
    for number, key_id in ((1, rotated["before"]), (2, rotated["key_id"]), (3, rotated["key_id"])):
        assert ground.data("models", "verify", f"tiny@{number}")["key_id"] == key_id
    assert "4711" not in json.dumps(ground.data("settings"))
