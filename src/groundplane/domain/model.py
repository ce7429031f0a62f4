"""Models and their immutable versions: files by digest, one manifest, one signed certificate."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from groundplane.domain.canonical import canonical_json
from groundplane.errors import InvalidInput, Refused

LATEST = "latest"
PATH_BYTES_MAX = 1024
PART_BYTES_MAX = 255
RESERVED = frozenset({LATEST, "main", "head", "none"})
ALIAS = r"[a-z][a-z0-9-]{0,30}[a-z0-9]"
_ALIAS = re.compile(ALIAS)
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_NUMBER = re.compile(r"v[0-9]+")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    """One file of a version: relative POSIX path, SHA-256 hex, size."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """An immutable version. id = `<name>@<number>`. `certificate` is the signed envelope as JSON text."""

    id: str
    name: str
    number: int
    project: str
    owner: str
    files: tuple[ManifestFile, ...]
    manifest_sha256: str
    size_bytes: int
    certificate: str
    certificate_sha256: str
    run_id: str = ""
    license: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    created_by: str
    created_at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """`name@3`; `name@production` with `number` None and an `alias`; `name@latest` with neither."""

    name: str
    number: int | None
    alias: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.alias or (LATEST if self.number is None else self.number)}"


def parse_ref(text: str) -> ModelRef:
    """`tiny-lm@3`, `tiny-lm@production` or `tiny-lm@latest`. InvalidInput on anything else.

    A bare name is refused because it would drift.
    """
    name, at, number = text.partition("@")
    check_name(name)
    if at and number == LATEST:
        return ModelRef(name=name, number=None)
    if at and re.fullmatch(r"[1-9][0-9]{0,8}", number):
        return ModelRef(name=name, number=int(number))
    if at and is_alias(number):
        return ModelRef(name=name, number=None, alias=number)
    raise InvalidInput(
        f"{text!r} names no model version", f"write {name}@1 for a fixed version or {name}@latest for the newest"
    )


def check_alias(alias: str) -> str:
    """A name that can't be taken for a number, a commit or a branch. InvalidInput otherwise."""
    if not is_alias(alias):
        raise InvalidInput(
            f"{alias[:80]!r} is no alias",
            "use 2 to 32 of a-z, 0-9 and '-', beginning with a letter; not latest, main, v3, or what reads as a commit",
        )
    return alias


def is_alias(text: str) -> bool:
    """Whether it can be one: see `check_alias`."""
    other = text in RESERVED or _COMMIT.fullmatch(text) or _NUMBER.fullmatch(text)
    return bool(_ALIAS.fullmatch(text)) and not other


def check_name(name: str, of: str = "model") -> str:
    """The name `of` a model, or of what is named by the same rule: usable in paths, URLs and host names.

    InvalidInput otherwise.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidInput(
            f"{name!r} is no {of} name",
            "use 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit",
        )
    return name


def check_sha256(digest: str) -> str:
    """64 lower-case hex digits, or InvalidInput: a digest becomes a path, so nothing else may pass."""
    if not _SHA256.fullmatch(digest):
        raise InvalidInput(f"{digest!r} is no SHA-256 digest", "write 64 lower-case hex digits")
    return digest


def path_fault(path: str) -> str | None:
    """What is wrong with a file's name inside a version, or None. Only plain relative POSIX paths pass."""
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    if not path or path.startswith("/"):
        return "is not relative" if path else "is empty"
    if len(encoded) > PATH_BYTES_MAX:
        return f"is {len(encoded)} bytes long, over {PATH_BYTES_MAX}"
    if "\\" in path:
        return "holds a backslash"
    for part in path.split("/"):
        if part in {"", ".", ".."}:
            return f"has the part {part!r}"
        if part.lower().partition("::$")[0] in _REPOSITORIES:
            return f"lies in {part}, whose settings run programs"
        if part[-1] in ". " or _DEVICES.fullmatch(part):
            return f"has the part {part!r}, which some systems take for another file"
        if len(part.encode()) > PART_BYTES_MAX:
            return f"has a part over {PART_BYTES_MAX} bytes"
    if _COMMANDS.search(path):
        return "holds what shells and systems read as more than a name"
    if any(_hides(character) for character in path):
        return "holds a letter that reads as a dot, a slash or a space and is none"
    # Cc: control characters. Cf: invisible ones, among them the overrides that make a name read backwards.
    if any(unicodedata.category(character) in {"Cc", "Cf"} for character in path):
        return "holds an invisible or control character"
    if any(_mixes_scripts(word) for word in re.split(r"[\W\d_]+", path)):
        return "mixes letters of scripts that look alike"
    return None


# git~1 is what old Windows names call .git, and ::$ begins a stream of a folder's own.
_REPOSITORIES = frozenset({".git", "git~1", ".hg", ".svn"})
_DEVICES = re.compile(r"(?:con|conin\$|conout\$|prn|aux|nul|com[\d¹²³]|lpt[\d¹²³])(?:\..*)?", re.IGNORECASE)
_COMMANDS = re.compile(r"(?:^|/)-|[<>|\"*?`]|\$[({]|::\$")


def _hides(character: str) -> bool:
    return not character.isascii() and bool(set(unicodedata.normalize("NFKC", character)) & set("./\\: "))


_LOOK_ALIKE = frozenset({"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE"})


def _mixes_scripts(word: str) -> bool:
    if word.isascii():
        return False
    return len({unicodedata.name(letter, "").partition(" ")[0] for letter in word} & _LOOK_ALIKE) > 1


def path_refusals(paths: Sequence[str]) -> tuple[Refused, ...]:
    """One refusal per bad name, and per pair that is both file and folder or reads alike.

    Names are compared after Unicode NFKC and whatever their case: file systems differ on both.
    """
    refused = []
    seen: dict[str, str] = {}
    for path in paths:
        fault = path_fault(path)
        if fault is not None:
            refused.append(
                Refused(
                    rule="file-path",
                    need="plain relative paths",
                    have=f"{path!r} {fault}",
                    hint="rename the file inside the model's folder",
                )
            )
            continue
        alike = unicodedata.normalize("NFKC", path).casefold()
        if alike in seen:
            refused.append(_clash(path, seen[alike], "reads the same as"))
        seen[alike] = path
    for alike, path in seen.items():
        parts = alike.split("/")
        folder = next((p for n in range(1, len(parts)) if (p := "/".join(parts[:n])) in seen), None)
        if folder is not None:
            refused.append(_clash(path, seen[folder], "lies below the file"))
    return tuple(refused)


def _clash(path: str, other: str, how: str) -> Refused:
    return Refused(
        rule="file-path",
        need="names that differ",
        have=f"{path!r} {how} {other!r}",
        hint="rename one of the two",
    )


def manifest(files: Sequence[ManifestFile]) -> tuple[ManifestFile, ...]:
    """The files in manifest order: by the UTF-8 bytes of their paths."""
    return tuple(sorted(files, key=lambda file: file.path.encode()))


def manifest_bytes(files: Sequence[ManifestFile]) -> bytes:
    """The manifest's canonical JSON: `[{"path", "sha256", "size_bytes"}, …]` in manifest order."""
    rows: list[object] = [
        {"path": file.path, "sha256": file.sha256, "size_bytes": file.size_bytes} for file in manifest(files)
    ]
    return canonical_json(rows)


def manifest_sha256(files: Sequence[ManifestFile]) -> str:
    """SHA-256 hex of the manifest's canonical JSON. Two versions with equal files have equal manifests."""
    return hashlib.sha256(manifest_bytes(files)).hexdigest()
