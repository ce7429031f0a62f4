"""The operator's policy files in a folder, with a copy of what was last in force; and the same in memory."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from groundplane.adapters.atomic_file import replace_durably
from groundplane.domain.spec.yaml_nodes import MAX_BYTES
from groundplane.errors import IntegrityFailure, InvalidInput, Problem

SUFFIXES = (".yaml", ".yml")
MAX_FILES = 100


class FolderPolicyFiles:
    """`*.yaml` and `*.yml` directly in `folder`, but for those starting with a dot. `copy` is one JSON file."""

    def __init__(self, folder: Path, copy: Path) -> None:
        self._folder = folder
        self._copy = copy

    @property
    def folder(self) -> str:
        return str(self._folder)

    async def read(self) -> dict[str, str]:
        return await asyncio.to_thread(self._read)

    async def last_good(self) -> dict[str, str]:
        return await asyncio.to_thread(self._last_good)

    async def keep(self, texts: Mapping[str, str]) -> None:
        await asyncio.to_thread(self._keep, dict(texts))

    def _read(self) -> dict[str, str]:
        try:
            names = sorted(path for path in self._folder.iterdir() if _is_policy(path))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise InvalidInput(f"{self._folder} can't be read: {error.strerror}", "make it a folder") from None
        if len(names) > MAX_FILES:
            raise InvalidInput(f"{self._folder} has {len(names)} policy files; the limit is {MAX_FILES}")
        found: dict[str, str] = {}
        problems: list[Problem] = []
        for path in names:
            try:
                found[path.name] = read_policy_text(path)
            except InvalidInput as error:
                problems.append(Problem(field=path.name, message=error.message, hint=error.hint))
        if problems:
            raise InvalidInput(f"{problems[0].field}: {problems[0].message}", problems[0].hint, problems)
        return found

    def _last_good(self) -> dict[str, str]:
        try:
            kept = json.loads(self._copy.read_text(encoding="utf-8"))
            texts = {str(name): str(text) for name, text in kept["files"].items()}
            sound = kept["sha256"] == _digest(texts)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            texts, sound = {}, False
        if not sound:
            hint = "put the policy files in order, then remove it: they are read anew at the start"
            raise IntegrityFailure(f"{self._copy} is not what was written", hint)
        return texts

    def _keep(self, texts: dict[str, str]) -> None:
        body = json.dumps({"sha256": _digest(texts), "files": texts}, sort_keys=True)
        replace_durably(self._copy, body.encode())


class MemoryPolicyFiles:
    """A folder that is a dict: for tests and demonstrations."""

    def __init__(self, texts: Mapping[str, str] | None = None) -> None:
        self.texts = dict(texts or {})
        self._kept: dict[str, str] = {}

    @property
    def folder(self) -> str:
        return "memory"

    async def read(self) -> dict[str, str]:
        return dict(self.texts)

    async def last_good(self) -> dict[str, str]:
        return dict(self._kept)

    async def keep(self, texts: Mapping[str, str]) -> None:
        self._kept = dict(texts)


def read_policy_text(path: Path) -> str:
    """One file's text. InvalidInput when it is too big, no UTF-8 or can't be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"can't be read: {error.strerror}", "give it to the user that runs ground") from None
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"has more than {MAX_BYTES:,} bytes", "split it into several files")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None


def _is_policy(path: Path) -> bool:
    return path.suffix in SUFFIXES and not path.name.startswith(".")


def _digest(texts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
