"""Which checkpoints of a run are complete."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from groundplane.runner.files import open_inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from groundplane.runner.files import Document

MANIFEST_MAX_BYTES, NUMBER_MAX = 16 * 2**20, 2**63 - 1
METRICS_MAX, METRIC_NAME_MAX = 1000, 200


class Checkpoints:
    """Finds complete checkpoints: subfolders whose manifest.json lists files that are all there, each hashed once.

    The folder is the job's to write: links and pipes in it are followed and waited for by nobody. Once `give_up` says
    so, what is not hashed yet is no checkpoint.
    """

    def __init__(self, folder: Path, give_up: Callable[[], bool] = lambda: False) -> None:
        self._folder, self._give_up = folder, give_up
        self._judged: dict[str, tuple[object, Document | None]] = {}

    def newest(self) -> Document | None:
        """The complete checkpoint with the highest step; older ones are not hashed unless the newer are damaged."""
        candidates = ((self._read(path), path) for path in self._folders())
        by_step = sorted(((found[0]["step"], path) for found, path in candidates if found), reverse=True)
        return next((found for _, path in by_step if (found := self._judge(path))), None)

    def scan(self) -> list[Document]:
        """Every complete checkpoint in order of step."""
        found = [checkpoint for path in self._folders() if (checkpoint := self._judge(path))]
        return sorted(found, key=lambda checkpoint: (checkpoint["step"], checkpoint["path"]))

    def whole(self) -> list[Document]:
        """Manifests of those whose files are all there with their sizes: nothing is hashed."""
        return [read[0] for path in self._folders() if (read := self._read(path))]

    def verify(self, path: Path) -> Document | None:
        """One checkpoint, hashed; None when it is not complete."""
        return self._judge(path)

    def _folders(self) -> list[Path]:
        try:
            entries = list(self._folder.iterdir())
        except FileNotFoundError:
            return []
        return [path for path in entries if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")]

    def _judge(self, path: Path) -> Document | None:
        read = self._read(path)
        if read is None:
            return None
        manifest, signature = read
        if self._judged.get(path.name, (None,))[0] != signature:
            good = all(self._sha256(path, file["path"]) == file["sha256"] for file in manifest["files"])
            if self._give_up():
                return None
            found = {name: manifest[name] for name in ("step", "size_bytes", "metrics", "written_at_s")}
            self._judged[path.name] = (signature, {**found, "path": str(path)} if good else None)
        return self._judged[path.name][1]

    def _read(self, path: Path) -> tuple[Document, object] | None:
        """The manifest and a signature of what it lists; None while anything is missing, short or malformed."""
        try:
            str(path).encode()  # everybody who hears of it must be able to write it down
            with os.fdopen(open_inside(path, "manifest.json"), "rb") as file:
                about = os.fstat(file.fileno())
                manifest = json.loads(file.read(MANIFEST_MAX_BYTES)) if about.st_size <= MANIFEST_MAX_BYTES else None
            if manifest is None or type(manifest["step"]) is not int or not manifest["files"]:
                return None
            if isinstance(manifest["files"], dict):  # {path: {sha256, bytes}} says the same
                manifest["files"] = [{"path": path, **about} for path, about in manifest["files"].items()]
            manifest["written_at_s"], manifest["size_bytes"] = about.st_mtime, 0
            signature: list[object] = [about.st_mtime_ns]
            for listed in manifest["files"]:
                with os.fdopen(open_inside(path, listed["path"]), "rb") as file:
                    about = os.fstat(file.fileno())
                if about.st_size != listed["bytes"]:
                    return None
                manifest["size_bytes"] += about.st_size
                signature.append((listed["path"], listed["sha256"], about.st_size, about.st_mtime_ns))
            if not (0 <= manifest["step"] <= NUMBER_MAX and manifest["size_bytes"] <= NUMBER_MAX):
                return None
            manifest["metrics"] = _figures(manifest.get("metrics") or {})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None  # half-written or not a manifest of ours
        return manifest, signature

    def _sha256(self, folder: Path, path: str) -> str:
        import hashlib  # noqa: PLC0415 (it brings OpenSSL along: 4 MiB that a job without checkpoints need not pay)

        digest = hashlib.sha256()
        try:
            with os.fdopen(open_inside(folder, path), "rb") as file:
                while not self._give_up() and (block := file.read(2**20)):
                    digest.update(block)
        except OSError:  # removed while we read it: not complete
            return ""
        return digest.hexdigest()


def _figures(metrics: Document) -> dict[str, float]:
    """Finite numbers under names that can be shown; no more than somebody reads."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if len(found) < METRICS_MAX and len(name) <= METRIC_NAME_MAX and name.isprintable():
            with contextlib.suppress(OverflowError):  # an integer beyond any float
                if isinstance(value, (int, float)) and float(value) - float(value) == 0:
                    found[name] = float(value)
    return found
