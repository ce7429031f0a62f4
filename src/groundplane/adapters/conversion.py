"""Weights in a pickle, converted to safetensors by a confined process, and compared with what it read."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from groundplane.adapters.confined.launch import demand_walls, launch
from groundplane.domain.scanning.byte_view import ByteView
from groundplane.domain.scanning.tensor_header import tensor_entries
from groundplane.errors import IntegrityFailure, Refusal, Refused

_CPU_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A conversion: tensor → SHA-256 of its bytes, the same in both files; what was left out; what held the process."""

    source_sha256: str
    tensors: dict[str, str]
    left_out: tuple[str, ...]
    walls: str


def convert(source: Path, target: Path) -> Converted:
    """Writes `target` (safetensors) from `source` (a PyTorch zip or old file, or a pickle of arrays), atomically.

    Raises Refusal when the file is more than weights, IntegrityFailure when a tensor is not in the new file as it was
    in the old one. Nothing is left at `target` then.
    """
    draft = target.parent / f".{target.name}.{secrets.token_hex(6)}.part"
    try:
        with source.open("rb") as opened, draft.open("xb") as writing:
            source_sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            opened.seek(0)
            ended = launch("convert_weights", [str(_CPU_S)], source=opened, target=writing, timeout_s=2 * _CPU_S)
            os.fsync(writing.fileno())
        told = _told(source, ended.status, ended.errors)
        demand_walls(told.get("left"))
        stated = told["tensors"]
        assert isinstance(stated, dict)
        written = _digests(draft)
        wrong = sorted(name for name in {*stated, *written} if stated.get(name) != written.get(name))
        if wrong:
            raise IntegrityFailure(f"{source}: tensor {wrong[0]!r} was not written as it was read", "convert it again")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    left_out = told.get("left_out")
    return Converted(
        source_sha256=source_sha256,
        tensors=written,
        left_out=tuple(str(name) for name in left_out) if isinstance(left_out, list) else (),
        walls=ended.walls,
    )


def _told(source: Path, status: int, errors: str) -> dict[str, object]:
    last = errors.strip().rpartition("\n")[2]
    try:
        told = json.loads(last)
    except ValueError:
        told = {"refused": f"what ends the process that reads it (status {status})"}
    if status != 0 or "refused" in told:
        what = told.get("refused", f"what ends the process that reads it (status {status})")
        hint = "save the state dict alone where the file comes from: torch.save(model.state_dict(), FILE)"
        refused = Refused(
            rule="weights-only", need="tensors under names", have=f"{source.name} holds {what}", hint=hint
        )
        raise Refusal([refused])
    return dict(told)


def _digests(path: Path) -> dict[str, str]:
    """name → SHA-256 of each tensor, read anew from the written file, whose header is checked as any other."""
    with path.open("rb") as opened:

        def read(offset: int, count: int) -> bytes:
            opened.seek(offset)
            return opened.read(count)

        found = {}
        for name, begin, end in tensor_entries(ByteView(read, path.stat().st_size)):
            digest = hashlib.sha256()
            for offset in range(begin, end, 1 << 20):
                digest.update(read(offset, min(1 << 20, end - offset)))
            found[name] = digest.hexdigest()
    return found
