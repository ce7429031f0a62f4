"""Which checkpoints of a run are complete."""

from __future__ import annotations

from pathlib import Path

from groundplane.runner.files import read_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from groundplane.runner.files import Document


class Checkpoints:
    """Finds complete checkpoints: subfolders whose manifest.json lists files that are all there, each hashed once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
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
            good = all(sha256(path / file["path"]) == file["sha256"] for file in manifest["files"])
            size = sum(file["bytes"] for file in manifest["files"])
            found = {"step": manifest["step"], "path": str(path), "size_bytes": size, "metrics": manifest["metrics"]}
            found["written_at_s"] = (path / "manifest.json").stat().st_mtime
            self._judged[path.name] = (signature, found if good else None)
        return self._judged[path.name][1]

    def _read(self, path: Path) -> tuple[Document, object] | None:
        """The manifest and a signature of what it lists; None while anything is missing, short or malformed."""
        try:
            manifest = read_document(path / "manifest.json")
            if manifest is None or type(manifest["step"]) is not int or not manifest["files"]:
                return None
            if isinstance(manifest["files"], dict):  # {path: {sha256, bytes}} says the same
                manifest["files"] = [{"path": path, **about} for path, about in manifest["files"].items()]
            signature: list[object] = [(path / "manifest.json").stat().st_mtime_ns]
            for file in manifest["files"]:
                inside = Path(file["path"])
                about = (path / inside).stat()
                if inside.is_absolute() or ".." in inside.parts or about.st_size != file["bytes"]:
                    return None
                signature.append((file["path"], file["sha256"], about.st_size, about.st_mtime_ns))
            numbers = (manifest.get("metrics") or {}).items()
            manifest["metrics"] = {str(k): float(v) for k, v in numbers if isinstance(v, (int, float)) and v - v == 0}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # half-written or not a manifest of ours
            return None
        return manifest, signature


def sha256(path: Path) -> str:
    import hashlib  # noqa: PLC0415 (it brings OpenSSL along: 4 MiB that a job without checkpoints need not pay)

    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:  # removed while we read it: not complete
        return ""
    return digest.hexdigest()
