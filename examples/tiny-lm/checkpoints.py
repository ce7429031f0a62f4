"""Checkpoints that are either complete or invisible.

A checkpoint is a folder `step-000120/` holding `state.safetensors`, `tokenizer.json` and, written last,
`manifest.json` with the size and SHA-256 of each file. The folder is filled under a temporary name, flushed to disk
and then renamed, so a crash at any point leaves the earlier checkpoints and nothing that could be mistaken for one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


class Damaged(Exception):
    """The checkpoint is not what its manifest says; the message names the file."""


def folder_name(step: int) -> str:
    return f"step-{step:06d}"


def save(root: Path, step: int, files: dict[str, bytes], about: dict[str, Any], keep: int = 3) -> Path:
    """Writes checkpoint `step` and drops all but the newest `keep`. `about` goes into the manifest as it is."""
    root.mkdir(parents=True, exist_ok=True)
    final, partial = root / folder_name(step), root / f".{folder_name(step)}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    entries = {}
    for name, data in files.items():
        _write_durably(partial / name, data)
        entries[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest = {"step": step, "files": entries, **about}
    _write_durably(partial / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
    _flush_folder(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _flush_folder(root)
    for old in _folders(root)[keep:]:
        shutil.rmtree(old)
    return final


def load(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the files of one checkpoint, verified. Raises Damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = {name: (folder / name).read_bytes() for name in manifest["files"]}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder.name}: {error}") from error
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != manifest["files"][name]["sha256"]:
            raise Damaged(f"{folder.name}/{name}: its SHA-256 is not the one in {MANIFEST}")
    return manifest, files


def newest(root: Path, preferred: Path | None = None) -> tuple[dict[str, Any], dict[str, bytes]] | None:
    """The newest complete checkpoint under `root`, or `preferred` when that is complete; says which ones it skips."""
    candidates = _folders(root)
    if preferred is not None:
        candidates = [preferred, *(folder for folder in candidates if folder != preferred)]
    for folder in candidates:
        try:
            return load(folder)
        except Damaged as problem:
            print(f"ignored checkpoint {problem}", flush=True)
    return None


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file whole: a reader sees the old bytes or the new ones."""
    partial = path.with_name(f".{path.name}.partial")
    _write_durably(partial, data)
    partial.replace(path)


def _folders(root: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [path for path in root.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
