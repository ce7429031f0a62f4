"""Work on a stray model's files, done by a program of its own: what strangers wrote is not read in the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from groundplane import errors
from groundplane.errors import InvalidInput, Refusal, Refused

_PROGRAM = "groundplane.adapters.model_tools"


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """A file as it is: domain.scanning.report.Seen."""

    path: str
    size_bytes: int
    format: str
    details: Mapping[str, object] = field(default_factory=dict)
    refused: Refused | None = None


def look(source: str) -> list[Looked]:
    """Every file of a file or folder. NotFound, InvalidInput."""
    return _files(_ask("scan", source)["files"])


def adopt(source: str, folder: str, leave_out: Sequence[str]) -> tuple[list[Looked], list[dict[str, Any]], list[str]]:
    """What now lies in `folder`, what was converted, and what was left out. Raises Refusal with all that can't be."""
    told = _ask("adopt", source, folder, *leave_out)
    return _files(told["files"]), told["converted"], told["left_out"]


def fetch(source: str, folder: str) -> dict[str, Any]:
    """{"source" (exact), "files", "size_bytes", "facts"} of a model from elsewhere, whose files are now in `folder`."""
    return _ask("fetch", source, folder)


def verify(folder: str, certificate: str, keys: Sequence[str], addenda: str = "") -> dict[str, Any]:
    """{"key_id", "subject", "files", "addenda", "problems"} of files checked against a certificate, without a server.

    `addenda` is a file of their envelopes or a folder of files of one each; "" for none.
    """
    return _ask("verify", folder, certificate, addenda, *keys)


def _ask(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", _PROGRAM, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().rpartition("\n")[2]
        raise InvalidInput(f"{words[1]} can't be looked at: {last or done.returncode}", "is the disk full?") from None
    if "refusals" in told:
        raise Refusal([Refused(**refused) for refused in told["refusals"]])
    if "error" in told:
        raise getattr(errors, told["error"], InvalidInput)(told["message"], told["hint"])
    return told


def _files(told: Sequence[dict[str, Any]]) -> list[Looked]:
    return [
        Looked(**{**file, "refused": Refused(**file["refused"]) if file["refused"] is not None else None})
        for file in told
    ]
