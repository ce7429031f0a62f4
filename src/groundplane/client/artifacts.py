"""The part of the SDK that moves files: uploads, artifacts pushed and pulled, and the store beneath them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import msgspec

from groundplane.client.node_cache import NodeCache
from groundplane.client.pulling import part_of, pull_file
from groundplane.client.sending import BY_PIECES_FROM_BYTES, bundles, pieces_of, put_at
from groundplane.client.transport import Transport, part
from groundplane.domain.artifact import Arrival, Artifact, ArtifactCheck, Collected, ProjectStorage, ScrubReport
from groundplane.domain.model import ManifestFile, ModelVersion, parse_ref, path_refusals
from groundplane.domain.packs import pack_pieces
from groundplane.errors import IntegrityFailure, InvalidInput, NotFound, Refusal
from groundplane.wire.artifacts import (
    Bundle,
    CollectRequest,
    FilePieces,
    Known,
    KnownRequest,
    MissingPieces,
    PushRequest,
    QuotaRequest,
    ScrubRequest,
    StorageView,
    Upload,
    UploadedFile,
)

Progress = Callable[[int], object]
PARALLEL = 4
_UPLOAD_PIECE_BYTES = 1 << 20
_PATIENCE_S = 24 * 3600.0
_SOURCES = "sources.json"


class ArtifactCalls(Transport):
    # ------------------------------------------------------------ push

    def push(
        self,
        path: Path,
        *,
        name: str,
        project: str,
        keep_until: datetime | None = None,
        pinned: bool = False,
        resume: str = "",
        progress: Progress = lambda count: None,
        began: Callable[[str], object] = lambda upload_id: None,
    ) -> Artifact:
        """A file, or everything below a folder, under a name.

        On the control plane's own machine and as its user, files are named and not sent. Elsewhere only files that
        nothing the caller sees has are sent, several at once. `began` is told the upload's id: a push that broke off
        goes on with it as `resume`. Links are not followed. Raises Refusal, NotFound, Conflict, Unavailable.
        """
        upload_id, known = self._land(path, resume, progress, began, ask=True)
        body = PushRequest(
            upload_id=upload_id, name=name, project=project, known=known, keep_until=keep_until, pinned=pinned
        )
        return self._call("POST", "/v1/artifacts", Artifact, body=body, timeout_s=_PATIENCE_S)

    def arrive(
        self,
        path: Path,
        *,
        name: str,
        project: str,
        keep_until: datetime | None = None,
        pinned: bool = False,
        resume: str = "",
        progress: Progress = lambda count: None,
        began: Callable[[str], object] = lambda upload_id: None,
    ) -> Arrival:
        """`push` that returns when every byte is stored and does not wait for the files' SHA-256.

        The artifact of that id follows by itself; asking for it waits for it.
        """
        upload_id, _ = self._land(path, resume, progress, began, ask=False)
        body = PushRequest(upload_id=upload_id, name=name, project=project, keep_until=keep_until, pinned=pinned)
        return self._call("POST", "/v1/arrivals", Arrival, body=body, timeout_s=_PATIENCE_S)

    def _land(
        self, path: Path, resume: str, progress: Progress, began: Callable[[str], object], *, ask: bool
    ) -> tuple[str, tuple[ManifestFile, ...]]:
        """(the upload that has the files, those left out because they are known: `ask` finds out which)."""
        files = local_files(path)
        upload = self._upload(resume) if resume else self.create_upload()
        began(upload.id)
        known: tuple[ManifestFile, ...] = ()
        if not self._name_files(upload, files, progress):
            known = self._known(files) if ask else ()
            skip = {file.path for file in known}
            arrived = {file.path: file.size_bytes for file in upload.files}
            skip |= {relative for relative, file in files.items() if arrived.get(relative) == file.stat().st_size}
            progress(sum(files[relative].stat().st_size for relative in skip))
            self._send_all(upload.id, {rel: file for rel, file in files.items() if rel not in skip}, progress)
        return upload.id, known

    def upload_files(self, upload: Upload, files: Mapping[str, Path], progress: Progress = lambda count: None) -> None:
        """Brings files into an upload: named on the control plane's own machine, sent from elsewhere, four at once."""
        if not self._name_files(upload, files, progress):
            self._send_all(upload.id, files, progress)

    def _name_files(self, upload: Upload, files: Mapping[str, Path], progress: Progress) -> bool:
        named = _name_sources(upload.folder, files)
        if named:
            progress(sum(file.stat().st_size for file in files.values()))
        return named

    def _known(self, files: Mapping[str, Path]) -> tuple[ManifestFile, ...]:
        with ThreadPoolExecutor(PARALLEL) as pool:
            hashed = list(pool.map(_hashed, files.items()))
        found = self._call(
            "POST", "/v1/artifacts/known", Known, body=KnownRequest(sha256s=tuple({file.sha256 for file in hashed}))
        )
        return tuple(file for file in hashed if file.sha256 in set(found.sha256s))

    def _send_all(self, upload_id: str, files: Mapping[str, Path], progress: Progress) -> None:
        def send(item: tuple[str, Path]) -> None:
            if item[1].stat().st_size >= BY_PIECES_FROM_BYTES:
                self._send_pieces(upload_id, item[0], item[1], progress)
            else:
                progress(self.upload_file(upload_id, item[0], item[1]).size_bytes)

        with ThreadPoolExecutor(PARALLEL) as pool:
            for _ in pool.map(send, files.items()):
                pass

    def _send_pieces(self, upload_id: str, path: str, source: Path, progress: Progress) -> None:
        """A large file: only the pieces that neither arrived before nor lie in something the caller sees."""
        sha256, pieces = pieces_of(source)
        listed, size_bytes = pack_pieces(pieces), sum(piece.length for piece in pieces)
        base = f"/v1/piece-uploads/{part(upload_id)}"
        answer = self._call("POST", f"{base}/missing", MissingPieces, content=iter([listed]), timeout_s=600)
        progress(size_bytes - sum(pieces[number].length for number in answer.missing))
        for bundle, sent_bytes in bundles(source, pieces, answer.missing):
            begun = self._call("POST", f"{base}/bundles", Bundle)
            put = begun.address.startswith("http") and put_at(begun.address, bundle)
            sent = iter([b"" if put else bundle])
            self._send("PUT", f"{base}/bundles/{begun.name}", content=sent, timeout_s=600)
            progress(sent_bytes)
        params = {"path": path, "sha256": sha256, "size_bytes": size_bytes}
        self._call("POST", f"{base}/files", UploadedFile, content=iter([listed]), params=params, timeout_s=_PATIENCE_S)

    def create_upload(self) -> Upload:
        return self._call("POST", "/v1/uploads", Upload)

    def _upload(self, upload_id: str) -> Upload:
        return self._call("GET", f"/v1/uploads/{part(upload_id)}", Upload)

    def upload_file(self, upload_id: str, path: str, source: Path) -> UploadedFile:
        """Streams one file; `path` is where it lies in the model's folder."""
        size_bytes = source.stat().st_size
        return self._call(
            "PUT",
            f"/v1/uploads/{part(upload_id)}/{quote(path)}",
            UploadedFile,
            content=_pieces(source),
            headers={"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"},
            timeout_s=600,
        )

    def delete_upload(self, upload_id: str) -> None:
        self._send("DELETE", f"/v1/uploads/{part(upload_id)}")

    # ------------------------------------------------------------ pull

    def pull(
        self,
        ref: str,
        target: Path,
        *,
        progress: Progress = lambda count: None,
        cache: NodeCache | None = None,
        pin: bool = False,
    ) -> Artifact:
        """Every file of an artifact below `target`, each verified piece by piece and put in place whole.

        Pieces are read where they lie when that can be reached (a local pack, a signed URL), else through the control
        plane. Broken off, it goes on where it was: what is already there is verified and kept. `cache` is the node's
        own store of files, `pin` keeps these in it. Raises NotFound, IntegrityFailure naming the piece, Unavailable on
        a full disk.
        """
        artifact = self.artifact(ref)
        self._bring(artifact.files, f"/v1/artifacts/{part(artifact.id)}", target, progress, cache, pin)
        return artifact

    def pull_model(
        self,
        ref: str,
        target: Path,
        *,
        progress: Progress = lambda count: None,
        cache: NodeCache | None = None,
        pin: bool = False,
    ) -> ModelVersion:
        """Every file of a model version (`name`, `name@3`, `name@production`), as `pull` does for an artifact.

        Raises IntegrityFailure unless row, certificate and signature of the version are what was signed, too.
        """
        name, _, number = str(parse_ref(ref)).partition("@")
        version = self._get(f"/v1/models/{part(name)}/versions/{part(number)}", ModelVersion)
        where = f"/v1/models/{part(version.name)}/versions/{version.number}"
        self._bring(version.files, where, target, progress, cache, pin)
        return version

    def _bring(
        self,
        files: Sequence[ManifestFile],
        where: str,
        target: Path,
        progress: Progress,
        cache: NodeCache | None,
        pin: bool,
    ) -> None:
        refusals = path_refusals([file.path for file in files])
        if refusals:
            raise Refusal(refusals)
        for file, pieces in zip(files, self._layout(where, len(files)), strict=True):
            place = target / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            if pieces.sha256 != file.sha256:
                raise IntegrityFailure(f"{file.path} is another file by now", "pull again")
            if cache is not None and not part_of(pieces, place).exists():
                cache.give(file.sha256, part_of(pieces, place))
            pull_file(pieces, place, self._range_of(where, file.path), progress)
            if cache is not None:
                cache.take(file.sha256, place, pin=pin)

    def _layout(self, where: str, count: int) -> Iterator[FilePieces]:
        """How each of `count` files is put together: many small ones in one answer."""
        told = 0
        while told < count:
            some = self._get(f"{where}/layout", list[FilePieces], params={"offset": told})
            if not some:
                raise IntegrityFailure(f"{count - told} of {count} files are not told of", "pull again")
            yield from some
            told += len(some)

    def _range_of(self, where: str, path: str) -> Callable[[int, int], bytes]:
        def read(offset: int, count: int) -> bytes:
            params = {"path": path, "offset": offset, "limit": count}
            content: bytes = self._send("GET", f"{where}/content", params=params, timeout_s=600).content
            return content

        return read

    def pieces(self, ref: str, path: str) -> FilePieces:
        """How a file is put together, and where its pieces can be read."""
        return self._call("GET", f"/v1/artifacts/{part(ref)}/pieces", FilePieces, params={"path": path})

    # ------------------------------------------------------------ artifacts and storage

    def artifacts(self, *, project: str | None = None, limit: int = 100) -> list[Artifact]:
        """Newest first."""
        return self._call("GET", "/v1/artifacts", list[Artifact], params={"project": project, "limit": limit})

    def arrivals(self, *, project: str | None = None) -> list[Arrival]:
        """Pushes that are stored and not artifacts yet, oldest first."""
        return self._call("GET", "/v1/arrivals", list[Arrival], params={"project": project})

    def artifact(self, ref: str) -> Artifact:
        """By id, or the newest of a name. One that is arriving is waited for."""
        return self._call("GET", f"/v1/artifacts/{part(ref)}", Artifact, timeout_s=_PATIENCE_S)

    def verify_artifact(self, ref: str) -> ArtifactCheck:
        """Reads every piece again."""
        return self._call("POST", f"/v1/artifacts/{part(ref)}/verify", ArtifactCheck, timeout_s=_PATIENCE_S)

    def delete_artifact(self, ref: str, reason: str = "") -> Artifact | Arrival:
        """Takes the name away; the bytes go with the next collection."""
        gone = self._call("DELETE", f"/v1/artifacts/{part(ref)}", dict[str, object], params={"reason": reason})
        return msgspec.convert(gone, Artifact) if "manifest_sha256" in gone else msgspec.convert(gone, Arrival)

    def storage(self) -> StorageView:
        return self._call("GET", "/v1/storage", StorageView)

    def collect(self, *, grace_s: float = 3600.0, thorough: bool = False) -> Collected:
        """Removes from the store what nothing refers to. Raises Forbidden, Unavailable."""
        body = CollectRequest(grace_s=grace_s, thorough=thorough)
        return self._call("POST", "/v1/storage/collect", Collected, body=body, timeout_s=_PATIENCE_S)

    def scrub(self, limit_bytes: int | None = None, after: str = "") -> ScrubReport:
        """Reads the store and names what is damaged."""
        body = ScrubRequest(limit_bytes=limit_bytes, after=after)
        return self._call("POST", "/v1/storage/scrub", ScrubReport, body=body, timeout_s=_PATIENCE_S)

    def set_storage_quota(self, project: str, limit_bytes: int | None) -> ProjectStorage:
        """The most bytes a project may keep; None lifts it."""
        body = QuotaRequest(limit_bytes=limit_bytes)
        return self._call("PUT", f"/v1/storage/quotas/{part(project)}", ProjectStorage, body=body)


def local_files(path: Path) -> dict[str, Path]:
    """Relative POSIX path → file. Links and special files are refused, by name: they could lead anywhere."""
    if path.is_symlink() or not path.exists():
        raise NotFound(f"there is no file or folder {path}", "links are not followed: give what they lead to")
    if path.is_file():
        return {path.name: path.absolute()}
    found: dict[str, Path] = {}
    for folder, names, files in os.walk(path.absolute()):
        for name in sorted([*files, *(each for each in names if Path(folder, each).is_symlink())]):
            file = Path(folder, name)
            if file.is_symlink() or not file.is_file():
                raise InvalidInput(f"{file} is no regular file", "leave it out, or copy the folder: cp -rL")
            found[file.relative_to(path.absolute()).as_posix()] = file
    if not found:
        raise InvalidInput(f"{path} holds no files", "give a file, or a folder that holds some")
    return found


def _name_sources(folder: str, files: Mapping[str, Path]) -> bool:
    """Names the files to a control plane on this machine. Only its own user can: it could read them anyway."""
    if not folder or not os.access(folder, os.W_OK):
        return False
    draft = Path(folder) / f".{_SOURCES}"
    try:
        draft.write_text(json.dumps({relative: str(file.resolve()) for relative, file in files.items()}))
        draft.replace(Path(folder) / _SOURCES)
    except OSError:
        return False
    return True


def _hashed(item: tuple[str, Path]) -> ManifestFile:
    relative, file = item
    with file.open("rb", buffering=0) as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return ManifestFile(path=relative, sha256=digest, size_bytes=opened.tell())


def _pieces(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while piece := file.read(_UPLOAD_PIECE_BYTES):
            yield piece
