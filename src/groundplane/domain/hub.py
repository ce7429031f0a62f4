"""Versions of models and datasets as a Hugging Face hub names them: repositories, revisions, commits, trees.

A repository is `project/name`. A model version's commit is the first 40 hex digits of its certificate's SHA-256: it
names these bytes with these facts for ever, which is what a client's cache relies on. A dataset has no certificate: its
commit is over its id and its digest. `main` is the newest version.
Source: huggingface_hub 2.4 (`hf_api.py`, `file_download.py`), the routes and fields that it reads.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from groundplane.domain.canonical import canonical_json
from groundplane.domain.dataset import DatasetVersion
from groundplane.domain.model import LATEST, ManifestFile, ModelVersion, is_alias

MAIN = "main"
COMMIT_HEX = 40
_POINTER_BYTES = 134
"""What git-lfs writes in a file's place; clients want a number, nothing depends on it."""
_NUMBER = re.compile(r"v([1-9][0-9]{0,8})|([1-9][0-9]{0,5})")
"""Seven digits alone are the beginning of a commit, as one in 27 is spelt without letters."""
_COMMIT = re.compile(r"[0-9a-f]{7,40}")

Document = dict[str, object]


class Kind(StrEnum):
    """What a repository holds, as the hub's addresses spell it."""

    MODELS = "models"
    DATASETS = "datasets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A version as a repository's state; `id` is `name@number`."""

    kind: Kind
    id: str
    project: str
    name: str
    number: int
    commit: str
    files: tuple[ManifestFile, ...]
    license: str
    made_by: str
    made_at: datetime

    @property
    def repository(self) -> str:
        return f"{self.project}/{self.name}"

    def file(self, path: str) -> ManifestFile | None:
        return next((file for file in self.files if file.path == path), None)


def of_model(version: ModelVersion) -> Revision:
    return _revision(Kind.MODELS, version, version.certificate_sha256[:COMMIT_HEX])


def of_dataset(version: DatasetVersion) -> Revision:
    return _revision(Kind.DATASETS, version, version.commit)


def dataset_commit(id: str, digest: str) -> str:
    """Over what names a dataset's version for ever: its id and its bytes."""
    named: list[object] = [id, digest]
    return hashlib.sha256(canonical_json(named)).hexdigest()[:COMMIT_HEX]


def _revision(kind: Kind, version: ModelVersion | DatasetVersion, commit: str) -> Revision:
    return Revision(
        kind=kind,
        id=version.id,
        project=version.project,
        name=version.name,
        number=version.number,
        commit=commit,
        files=version.files,
        license=version.license,
        made_by=version.created_by,
        made_at=version.created_at,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a revision names; with none of the three, the newest version. `commit` may be its first digits alone."""

    number: int = 0
    commit: str = ""
    alias: str = ""


def wanted(revision: str) -> Wanted | None:
    """`main`, `3`, `v3`, a commit of seven hex digits or more, or an alias. None for what can name nothing."""
    if revision in (MAIN, f"refs/heads/{MAIN}", LATEST):
        return Wanted()
    if number := _NUMBER.fullmatch(revision):
        return Wanted(number=int(number[1] or number[2]))
    if _COMMIT.fullmatch(revision):
        return Wanted(commit=revision)
    return Wanted(alias=revision) if is_alias(revision) else None


def info(version: Revision, *, blobs: bool = False) -> Document:
    """What `GET /api/models/{repo}` says of a version; sizes and digests of files with `blobs`."""
    siblings: list[Document] = []
    for file in version.files:
        sibling: Document = {"rfilename": file.path}
        if blobs:
            sibling |= {"size": file.size_bytes, "blobId": _oid(file), "lfs": _lfs(file, "sha256")}
        siblings.append(sibling)
    told: Document = {
        "_id": hashlib.sha256(version.repository.encode()).hexdigest()[:24],
        "id": version.repository,
        "author": version.project,
        "sha": version.commit,
        "private": True,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags(version),
        "cardData": {"license": version.license.lower()} if version.license else {},
        "createdAt": _time(version),
        "lastModified": _time(version),
        "siblings": siblings,
        "usedStorage": sum(file.size_bytes for file in version.files),
    }
    if version.kind is Kind.MODELS:
        told["modelId"] = version.repository
    return told


def tags(version: Revision) -> list[str]:
    """What a listing is filtered by."""
    return [licence_tag(version.license)] if version.license else []


def licence_tag(license: str) -> str:
    """`license:apache-2.0`."""
    return f"license:{license.lower()}"


def commits(versions: Iterable[Revision]) -> list[Document]:
    """A repository's states as commits."""
    return [_commit(each) | {"message": "", "authors": [{"user": each.made_by}]} for each in versions]


def _commit(version: Revision) -> Document:
    return {"id": version.commit, "title": f"registered {version.id}", "date": _time(version)}


def tree(version: Revision, folder: str, *, recursive: bool) -> list[Document] | None:
    """Files and folders below `folder` ("" is all), as the tree route lists them. None where there is no such folder.

    A folder's oid is over what it holds: it changes when any of that does.
    """
    below = f"{folder}/" if folder else ""
    inside = [file for file in version.files if file.path.startswith(below)]
    if not inside and folder:
        return None
    folders: dict[str, list[ManifestFile]] = {}
    entries: list[Document] = []
    for file in inside:
        parts = file.path[len(below) :].split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            folders.setdefault(below + "/".join(parts[:depth]), []).append(file)
        if recursive or len(parts) == 1:
            entries.append(entry(file))
    entries += [_folder(path, files) for path, files in folders.items()]
    return sorted(entries, key=lambda item: str(item["path"]).encode())


def dated(entries: Iterable[Document], last: Mapping[str, Revision]) -> list[Document]:
    """The entries with the commit that last changed each, given by path."""
    return [item | {"lastCommit": _commit(last[str(item["path"])])} for item in entries]


def states(entries: Iterable[Document]) -> dict[str, str]:
    """path → oid."""
    return {str(entry["path"]): str(entry["oid"]) for entry in entries}


def paths(version: Revision, wanted: Iterable[str]) -> list[Document]:
    """Entries of the named files and folders; those that are not there are left out, as the hub does."""
    found: list[Document] = []
    files = {file.path: file for file in version.files}
    for path in dict.fromkeys(each.strip("/") for each in wanted):
        if path in files:
            found.append(entry(files[path]))
        elif inside := [file for file in version.files if file.path.startswith(f"{path}/")]:
            found.append(_folder(path, inside))
    return found


def entry(file: ManifestFile) -> Document:
    """One file of a tree. Every file is told as a large one: then clients check its SHA-256."""
    return {"type": "file", "path": file.path, "size": file.size_bytes, "oid": _oid(file), "lfs": _lfs(file, "oid")}


def refs(by_number: Mapping[int, str], aliases: Mapping[str, int]) -> Document:
    """`main` as the only branch; numbers and aliases as tags, which is what they are: names for a commit."""
    named = {f"v{number}": commit for number, commit in sorted(by_number.items())}
    named |= {alias: by_number[number] for alias, number in sorted(aliases.items()) if number in by_number}
    return {
        "branches": [_ref("heads", MAIN, by_number[max(by_number)])],
        "tags": [_ref("tags", name, commit) for name, commit in named.items()],
        "converts": [],
    }


def gguf_file(version: Revision, tag: str) -> ManifestFile | None:
    """The weights that a tag names by their quantisation, `Q8_0`; `latest` is `Q4_K_M`, or else the first there is.

    Of a model in parts the first part; what it sees pictures with (`mmproj`) is no answer.
    Source: node-llama-cpp 3.22 (`parseModelUri.js`), which finds the other parts by itself.
    """
    found = sorted(
        (file for file in version.files if file.path.lower().endswith(".gguf") and "mmproj" not in file.path.lower()),
        key=lambda file: file.path,
    )
    named = re.compile(rf"(?<![A-Z0-9]){re.escape('Q4_K_M' if tag == LATEST else tag)}[.-]", re.IGNORECASE)
    default = found[0] if found and tag == LATEST else None
    return next((file for file in found if named.search(file.path)), default)


def _ref(kind: str, name: str, commit: str) -> Document:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}


def _folder(path: str, files: Sequence[ManifestFile]) -> Document:
    rows: list[object] = [[file.path, file.sha256] for file in files]
    oid = hashlib.sha256(canonical_json(rows)).hexdigest()[:COMMIT_HEX]
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def _oid(file: ManifestFile) -> str:
    return file.sha256[:COMMIT_HEX]


def _lfs(file: ManifestFile, name: str) -> Document:
    return {name: file.sha256, "size": file.size_bytes, "pointerSize": _POINTER_BYTES}


def _time(version: Revision) -> str:
    return version.made_at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
