"""A program of its own for the command line: looks at a stray model's files, and makes a folder that may be registered.

`python -m groundplane.adapters.model_tools` with `scan PATH`, `adopt PATH FOLDER [PATTERN…]`, `fetch ADDRESS
FOLDER` or `verify FOLDER CERTIFICATE ADDENDA KEY…` (ADDENDA may be ""); the answer is one JSON object on standard
output. What is looked at was written by strangers: if looking ends the process, the command only says so.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from groundplane.adapters.conversion import convert
from groundplane.adapters.model_files import FolderModelFiles
from groundplane.adapters.model_sources import fetch
from groundplane.adapters.signing import verified_by
from groundplane.domain.canonical import canonical_json, parse_json, part_of
from groundplane.domain.provenance.addendum import check_chain, said
from groundplane.domain.provenance.certificate import PAYLOAD_TYPE, check_files, open_envelope, pae
from groundplane.domain.scanning.model_files import misleads
from groundplane.domain.scanning.model_formats import Format
from groundplane.errors import GroundError, Problem, Refusal, Refused
from groundplane.ports import FoundFile

_INDEX, _INDEX_BYTES_MAX = ".index.json", 64 << 20
_CONVERTED = {Format.PICKLE, Format.TORCH_ZIP, Format.TORCH_LEGACY}


def look(source: Path) -> list[dict[str, object]]:
    """Every file as it is: path, size, format, details, and why it may not enter."""
    return [_told(file) for file in FolderModelFiles.look(source)]


def adopt(source: Path, folder: Path, leave_out: list[str]) -> dict[str, object]:
    """Fills `folder` with what may enter: weights in pickles converted, everything else as it is.

    An index that says which of several files holds which tensor follows the files that were converted.
    Returns {"files": as `look` of the folder, "converted": …, "left_out": paths}. Raises Refusal with what can't be.
    """
    refusals: list[Refused] = []
    converted: list[dict[str, object]] = []
    left: list[str] = []
    for file in FolderModelFiles.look(source):
        if any(fnmatch.fnmatchcase(file.path, pattern) for pattern in leave_out):
            left.append(file.path)
        elif file.refused is not None and file.format in _CONVERTED and not misleads(file.path):
            try:
                converted.append(_convert(file, folder))
            except Refusal as error:
                refusals.extend(error.refusals)
        elif file.refused is not None:
            refusals.append(file.refused)
        else:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _lay(file.source, target)
            except Refusal as error:
                refusals.extend(error.refusals)
    if refusals:
        raise Refusal(refusals)
    converted += _indexes(folder, {str(each["source_path"]): str(each["path"]) for each in converted})
    return {"files": look(folder), "converted": converted, "left_out": left}


def verify(folder: Path, certificate: Path, keys: list[Path], addenda: Path | None = None) -> dict[str, object]:
    """Checks files, a certificate and its addenda with public keys alone: no server, no database.

    Returns {"key_id" ("" when none of the keys signed it), "subject", "files", "addenda": [what each says],
    "problems": [text]}. The certificate, the addenda, the keys and a model.sig among the files are none of them.
    `addenda` is a list of envelopes, or a folder with one in each file, as OCI clients pull them.
    """
    text = canonical_json(parse_json(certificate.read_bytes())).decode()
    opened = open_envelope(text)
    signed = pae(PAYLOAD_TYPE, opened.payload)
    key_id = next((found for key in keys if (found := verified_by(key.read_bytes(), signed, opened.signature))), "")
    beside = {path.resolve() for path in (certificate, *keys, folder / "model.sig", folder / "addenda.json")}
    beside |= {path.resolve() for path in (addenda, *addenda.rglob("*"))} if addenda else set()
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or (path.is_file() and path.resolve() not in beside):
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    problems = list(check_files(opened.statement, digests))
    if not key_id:
        message = f"none of these keys signed it; it names key {opened.key_id[:16]}"
        problems.insert(0, Problem(field="certificate signature", message=message))
    told, lost = _later(text, addenda, keys)
    problems += lost
    subject = str(part_of(opened.predicate, "version").get("id", ""))
    return {
        "key_id": key_id,
        "subject": subject,
        "files": len(digests),
        "addenda": told,
        "problems": [str(found) for found in problems],
    }


def _later(certificate: str, addenda: Path | None, keys: list[Path]) -> tuple[list[str], tuple[Problem, ...]]:
    """What a file of addenda says, and what is wrong with it; a key's id counts only with that very key."""
    if addenda is None:
        return [], ()
    if addenda.is_dir():
        found = sorted((parse_json(path.read_bytes()) for path in addenda.glob("*.json")), key=_sequence)
    else:
        found = parse_json(addenda.read_bytes())
    if not isinstance(found, list):
        return [], (Problem(field="addenda", message=f"{addenda.name} is no list of envelopes"),)
    envelopes = [canonical_json(each).decode() for each in found]

    def signed(payload: bytes, signature: bytes, key_id: str) -> bool:
        return any(verified_by(key.read_bytes(), payload, signature) == key_id for key in keys)

    problems = check_chain(hashlib.sha256(certificate.encode()).hexdigest(), envelopes, signed)
    return ([] if problems else [said(each) for each in envelopes]), problems


def _sequence(envelope: object) -> int:
    """The place in the chain that an envelope claims; whether it is the right one the chain decides."""
    claimed = open_envelope(canonical_json(envelope).decode()).predicate.get("sequence")
    return claimed if isinstance(claimed, int) else 0


def _convert(file: FoundFile, folder: Path) -> dict[str, object]:
    name = _as_safetensors(PurePosixPath(file.path))
    target = folder / name
    if target.exists():
        raise _taken(f"{file.path} would become {name}, which is there already")
    target.parent.mkdir(parents=True, exist_ok=True)
    made = convert(file.source, target)
    lines = "".join(f"{tensor} {sha256}\n" for tensor, sha256 in sorted(made.tensors.items()))
    return {
        "path": str(name),
        "source_path": file.path,
        "source_sha256": made.source_sha256,
        "source_format": file.format,
        "tensors": len(made.tensors),
        "tensors_sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "left_out": list(made.left_out),
        "walls": made.walls,
    }


def _as_safetensors(path: PurePosixPath) -> PurePosixPath:
    stem = path.stem.replace("pytorch_model", "model", 1) if path.name.startswith("pytorch_model") else path.stem
    return path.with_name(f"{stem}.safetensors")


def _indexes(folder: Path, became: Mapping[str, str]) -> list[dict[str, object]]:
    """Writes each index of converted files anew: loaders look for the files that it names, under a name of its own."""
    made: list[dict[str, object]] = []
    for old in sorted(folder.rglob(f"*{_INDEX}")) if became else ():
        path = PurePosixPath(old.relative_to(folder).as_posix())
        beside = {PurePosixPath(name).name: PurePosixPath(to).name for name, to in became.items()
                  if PurePosixPath(name).parent == path.parent}  # fmt: skip
        index = _index(old)
        if not beside.keys() & index.get("weight_map", {}).values():
            continue
        new = old.with_name(_as_safetensors(PurePosixPath(path.name.removesuffix(_INDEX))).name + _INDEX)
        source_sha256 = hashlib.sha256(old.read_bytes()).hexdigest()
        if new != old and new.exists():
            raise _taken(f"{path} would become {new.name}, which is there already")
        old.unlink()  # it may be a second name of the source
        index["weight_map"] = {tensor: beside.get(name, name) for tensor, name in index["weight_map"].items()}
        new.write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n")
        made.append(
            {
                "path": str(path.with_name(new.name)),
                "source_path": str(path),
                "source_sha256": source_sha256,
                "source_format": Format.TEXT,
                "tensors": 0,
                "tensors_sha256": "",
                "left_out": [],
                "walls": "",
            }
        )
    return made


def _index(file: Path) -> dict[str, Any]:
    """{"weight_map": {tensor: file}, …}; nothing where it is no such file."""
    if file.stat().st_size > _INDEX_BYTES_MAX:
        return {}
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return {}
    names = found.get("weight_map") if isinstance(found, dict) else None
    return found if isinstance(names, dict) and all(isinstance(name, str) for name in names.values()) else {}


def _taken(have: str) -> Refusal:
    hint = "keep one of them: --leave-out PATTERN"
    return Refusal([Refused(rule="weights-only", need="one file for the same weights", have=have, hint=hint)])


def _lay(source: Path, target: Path) -> None:
    """A second name where that is possible, else a copy: adopting 15 GB should not need 15 more.

    Refusal when something was made there of another file: it must not be taken for what that was.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise _taken(f"{source.name} has the name that another file's weights have now") from None
    except OSError:
        shutil.copyfile(source, target, follow_symlinks=False)


def _told(file: FoundFile) -> dict[str, object]:
    return {
        "path": file.path,
        "size_bytes": file.size_bytes,
        "format": file.format,
        "details": dict(file.details),
        "refused": None if file.refused is None else asdict(file.refused),
    }


def main() -> None:
    task, source, *rest = sys.argv[1:]
    try:
        path = Path(source)
        told: object
        if task == "scan":
            told = {"files": look(path)}
        elif task == "fetch":
            told = asdict(fetch(source, Path(rest[0])))
        elif task == "adopt":
            told = adopt(path, Path(rest[0]), rest[1:])
        else:
            told = verify(path, Path(rest[0]), [Path(word) for word in rest[2:]], Path(rest[1]) if rest[1] else None)
    except Refusal as error:
        told = {"refusals": [asdict(refused) for refused in error.refusals]}
    except GroundError as error:
        told = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
