"""What a running job proves itself with: one token a run, made from a key that never leaves this machine."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from groundplane.errors import IntegrityFailure

PREFIX = "gpj-"
_KEY_BYTES = 32
_TOKEN = re.compile(r"gpj-(?P<run>[a-z0-9-]{1,80})\.(?P<proof>[0-9a-f]{64})")


class FileJobTokens:
    """access.JobTokens with a key in a folder. The same run has the same token, so a start can be repeated."""

    def __init__(self, folder: Path) -> None:
        self._key = _kept_key(folder)

    def issue(self, run_id: str) -> str:
        return f"{PREFIX}{run_id}.{self._proof(run_id)}"

    def run_of(self, token: str) -> str | None:
        found = _TOKEN.fullmatch(token)
        if found is None or not hmac.compare_digest(found["proof"], self._proof(found["run"])):
            return None
        return found["run"]

    def _proof(self, run_id: str) -> str:
        return hmac.new(self._key, f"groundplane job {run_id}".encode(), hashlib.sha256).hexdigest()


def _kept_key(folder: Path) -> bytes:
    """Made on the first call; two callers at once get one key."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path, draft = folder / "jobs.key", folder / f".jobs.key.{secrets.token_hex(8)}"
    if not path.exists():
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise IntegrityFailure(
            f"{path} has {len(key)} bytes, not {_KEY_BYTES}",
            "remove it: a new one is made, and jobs that run now lose their way to tracking",
        )
    return key
