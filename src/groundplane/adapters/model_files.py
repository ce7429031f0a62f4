"""Folders of model files: walking one that comes in, laying one out that goes to an engine."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from groundplane.adapters.templates import render_templates
from groundplane.domain.model import ManifestFile, path_fault
from groundplane.domain.scanning import (
    archives,
    code_scan,
    coreml_scan,
    gguf,
    hdf5_scan,
    inspection,
    licences,
    loader_targets,
    model_files,
    msgpack_scan,
    name_scan,
    npy_header,
    pickle_scan,
    pickled_weights,
    protobuf_scan,
    secrets_scan,
    setup_scan,
    signatures,
    templates_scan,
    tensor_header,
    text_scan,
    tflite_scan,
    weight_files,
    yaml_scan,
)
from groundplane.domain.scanning import report as model_scan
from groundplane.domain.scanning.byte_view import ByteView
from groundplane.domain.scanning.model_files import inspect
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, NotFound, Problem, Refused
from groundplane.ports import BlobStore, FoundFile

FILES_MAX = 100_000
_RULES = (archives, code_scan, coreml_scan, gguf, hdf5_scan, inspection, licences, loader_targets, model_files,
          model_scan, msgpack_scan, name_scan, npy_header, pickle_scan, pickled_weights, protobuf_scan, secrets_scan,
          setup_scan, signatures, templates_scan, tensor_header, text_scan, tflite_scan, weight_files,
          yaml_scan)  # fmt: skip
_LOCK_PERIOD_S = 0.05


class FolderModelFiles:
    """ports.ModelFiles on local folders. Links are never followed, in either direction."""

    async def scan(self, source: Path) -> tuple[FoundFile, ...]:
        return await asyncio.to_thread(_scan, source)

    @staticmethod
    def look(source: Path) -> tuple[FoundFile, ...]:
        """`scan`, for a program that waits for nothing else."""
        return _scan(source)

    def rules_sha256(self) -> str:
        return _rules_sha256()

    async def unchanged(self, found: Sequence[FoundFile]) -> tuple[FoundFile, ...]:
        return await asyncio.to_thread(_unchanged, found)

    async def problems(self, folder: Path, files: Sequence[ManifestFile]) -> tuple[Problem, ...]:
        return await asyncio.to_thread(_problems, folder, files)

    async def place(self, folder: Path, files: Sequence[ManifestFile], blobs: BlobStore) -> None:
        parent, name = folder.absolute().parent, folder.name
        parent.mkdir(parents=True, exist_ok=True)
        lock = await _lock(parent / f".{name}.lock")
        try:
            if not await self.problems(folder, files):
                return
            # Under the lock nobody else is placing this folder: what carries its mark was left by a crash.
            await asyncio.to_thread(_sweep, parent, name)
            draft = parent / f".{name}.{secrets.token_hex(6)}.part"
            try:
                for file in files:
                    target = draft / _safe(file.path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    await blobs.fetch(file.sha256, target)
                    target.chmod(0o444)
                await asyncio.to_thread(_swap, draft, folder)
            finally:
                await asyncio.to_thread(_sweep, parent, name)
        finally:
            os.close(lock)


# ---------------------------------------------------------------- coming in


@functools.cache
def _rules_sha256() -> str:
    """Over the source of every module that says what may enter: whoever changes a rule changes this."""
    digest = hashlib.sha256()
    for module in _RULES:
        source = Path(module.__file__ or "").read_bytes()
        digest.update(f"{module.__name__} {len(source)}\n".encode() + source)
    return digest.hexdigest()


def _scan(source: Path) -> tuple[FoundFile, ...]:
    try:
        kind = source.lstat().st_mode
    except FileNotFoundError:
        raise NotFound(f"there is no file or folder {source}", "give the folder that holds the model's files") from None
    if not stat.S_ISDIR(kind):
        return (_look(source, source.name),)
    found = []
    for path in _walk(source):
        found.append(_look(path, path.relative_to(source).as_posix()))
        if len(found) > FILES_MAX:
            raise InvalidInput(f"{source} holds more than {FILES_MAX:,} files", "give the model's own folder")
    return tuple(found)


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below that is no folder, in a steady order. Not recursive: depth is the sender's choice, not ours."""
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name)):
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                else:
                    yield Path(entry.path)


def _look(path: Path, name: str) -> FoundFile:
    found = path.lstat()
    special = _special(found.st_mode)
    if special is not None or path_fault(name) is not None:
        return FoundFile(path=name, source=path, size_bytes=0, stamp=_stamp(found), refused=_not_plain(name, special))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        raise InvalidInput(f"{path} can't be read", "let the user that runs the control plane read it") from None
    try:
        opened = os.fstat(descriptor)
        view = ByteView(lambda offset, count: os.pread(descriptor, count, offset), opened.st_size)
        seen = inspect(name, view)
    finally:
        os.close(descriptor)
    refused = seen.refused or (render_templates(name, seen.templates) if seen.templates else None)
    return FoundFile(
        path=name,
        source=path,
        size_bytes=opened.st_size,
        stamp=_stamp(opened),
        format=seen.format.value,
        details=seen.details,
        refused=refused,
    )


def _special(mode: int) -> str | None:
    kinds = {
        "a symbolic link": stat.S_ISLNK,
        "a device": lambda found: stat.S_ISBLK(found) or stat.S_ISCHR(found),
        "a pipe": stat.S_ISFIFO,
        "a socket": stat.S_ISSOCK,
    }
    return next((name for name, holds in kinds.items() if holds(mode)), None)


def _not_plain(name: str, special: str | None) -> Refused | None:
    """None for a bad name: the names are judged together by the domain."""
    if special is None:
        return None
    hint = "copy the folder with its links resolved: cp -rL" if special == "a symbolic link" else "leave it out"
    return Refused(rule="plain-files", need="regular files", have=f"{name!r} is {special}", hint=hint)


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _unchanged(found: Sequence[FoundFile]) -> tuple[FoundFile, ...]:
    fresh = []
    for file in found:
        try:
            now = _stamp(file.source.lstat())
        except FileNotFoundError:
            now = ()
        seen = file
        if now != file.stamp and now[:-1] == file.stamp[:-1]:
            # Another name came or went, as when the same file is registered twice at once; or somebody hides a change.
            seen = _look(file.source, file.path)
        if now[:-1] != file.stamp[:-1] or replace(seen, stamp=file.stamp) != file:
            raise Conflict(
                f"{file.path} changed while it was being registered", "stop what writes it, then register again"
            )
        fresh.append(seen)
    return tuple(fresh)


# ---------------------------------------------------------------- going out


def _safe(path: str) -> str:
    fault = path_fault(path)
    if fault is not None:
        raise IntegrityFailure(f"the manifest names {path!r}, which {fault}", "register the files anew")
    return path


def _problems(folder: Path, files: Sequence[ManifestFile]) -> tuple[Problem, ...]:
    """Reads and hashes every file, because a folder survives what a process does not: other hands."""
    if not folder.is_dir() or folder.is_symlink():
        return (Problem(field=str(folder), message="is not there"),)
    present = {path.relative_to(folder).as_posix() for path in _walk(folder)}
    wanted = {file.path: file for file in files}
    foreign = sorted(present - set(wanted))
    problems = [Problem(field=f"file {path}", message="is not in the manifest") for path in foreign]
    for path, file in wanted.items():
        if path not in present:
            problems.append(Problem(field=f"file {path}", message="is missing"))
        elif (folder / path).is_symlink() or _digest(folder / path) != (file.sha256, file.size_bytes):
            problems.append(Problem(field=f"file {path}", message="is not what was signed"))
    return tuple(problems)


def _digest(path: Path) -> tuple[str, int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return "", 0
        return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()


async def _lock(path: Path) -> int:
    """Waits until nobody else places this folder, in this process or another; closing the descriptor lets go.

    Asks again and again: threads that wait for the lock would be missing to the one that holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    held = False
    try:
        while not held:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                await asyncio.sleep(_LOCK_PERIOD_S)
    finally:
        if not held:
            os.close(descriptor)
    return descriptor


def _swap(draft: Path, folder: Path) -> None:
    """Puts the draft in the folder's place; a damaged one is moved aside first and swept afterwards.

    Flushed before: an engine that is started again, after a power cut too, loads the folder without reading it twice.
    """
    for path in (*draft.rglob("*"), draft):
        _flush(path)
    if os.path.lexists(folder):
        folder.rename(folder.parent / f".{folder.name}.{secrets.token_hex(6)}.part")
    draft.rename(folder)
    _flush(folder.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(parent: Path, name: str) -> None:
    mark = re.compile(re.escape(f".{name}.") + r"[0-9a-f]{12}\.part")
    for path in [path for path in parent.iterdir() if mark.fullmatch(path.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
