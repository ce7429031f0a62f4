"""Weights in a pickle, converted to safetensors by a confined process, and compared with what it read."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from groundplane.adapters.confined.launch import demand_walls, launch
from groundplane.domain.scanning.byte_view import ByteView
from groundplane.domain.scanning.tensor_header import HeaderFault, tensor_entries
from groundplane.errors import Conflict, IntegrityFailure, Refusal, Refused, Unavailable
from groundplane.units import format_bytes

_CPU_S_MAX = 3600
_WALL_FACTOR = 10


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
        with _open(source) as opened, draft.open("xb") as writing:
            before = os.fstat(opened.fileno())
            _demand_room(source, before.st_size, target.parent)
            source_sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            opened.seek(0)
            cpu_s = _cpu_s(before.st_size)
            ended = launch(
                "convert_weights", [str(cpu_s)], source=opened, target=writing, timeout_s=_WALL_FACTOR * cpu_s
            )
            os.fsync(writing.fileno())
            if _stamp(before) != _stamp(os.fstat(opened.fileno())):
                raise Conflict(f"{source} changed while it was being converted", "stop what writes it, then try again")
        told = _told(source, ended.status, ended.errors)
        written = _digests(source, draft)
        stated = told["tensors"]
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
        walls=f"{ended.walls}, system calls" if told.get("filtered") is True else ended.walls,
    )


def _demand_room(source: Path, size_bytes: int, folder: Path) -> None:
    """Weights are as large in either form; Unavailable where the disk has no room for them once more."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < size_bytes:
        raise Unavailable(
            f"converting {source.name} needs {format_bytes(size_bytes)} in {folder}, "
            f"which has {format_bytes(free_bytes)}",
            "free some, or name a folder with room: TMPDIR=FOLDER ground models adopt …",
        )


def _open(source: Path) -> BufferedReader:
    """The file itself: never through a link, never waiting for the other end of a pipe."""
    return os.fdopen(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def _cpu_s(size_bytes: int) -> int:
    """A minute, and a second for each MiB: few bytes must not keep a core busy for long."""
    return min(_CPU_S_MAX, 60 + size_bytes // 2**20)


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _told(source: Path, status: int, errors: str) -> dict[str, Any]:
    """What the program says of itself, with a dictionary of tensors. It read what nobody vouches for: nor is it."""
    try:
        said = json.loads(errors.strip().rpartition("\n")[2])
    except (ValueError, RecursionError):
        said = None
    told: dict[str, Any] = said if isinstance(said, dict) else {}
    demand_walls(told.get("left"))
    if status == 0 and "refused" not in told and isinstance(told.get("tensors"), dict):
        return told
    what = f"what ends the process that reads it (status {status})"
    if status == 0 and isinstance(told.get("refused"), str):
        what = told["refused"]
    hint = "where it was made, save the weights alone: torch.save(model.state_dict(), FILE)"
    raise Refusal(
        [Refused(rule="weights-only", need="tensors under names", have=f"{source.name} holds {what}", hint=hint)]
    )


def _digests(source: Path, path: Path) -> dict[str, str]:
    """name → SHA-256 of each tensor, read anew from the written file, whose header is checked as any other."""
    with path.open("rb") as opened:

        def read(offset: int, count: int) -> bytes:
            opened.seek(offset)
            return opened.read(count)

        found = {}
        try:
            entries = tensor_entries(ByteView(read, path.stat().st_size))
        except HeaderFault as fault:
            raise IntegrityFailure(f"{source}: what was written of it is no safetensors file: {fault}") from None
        for name, begin, end in entries:
            digest = hashlib.sha256()
            for offset in range(begin, end, 1 << 20):
                digest.update(read(offset, min(1 << 20, end - offset)))
            found[name] = digest.hexdigest()
    return found
