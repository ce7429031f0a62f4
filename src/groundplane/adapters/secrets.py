"""Secrets as files: `<folder>/<project>/<name>`, put there by the operator or by whatever mounts a vault."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from groundplane.errors import NotFound, Unavailable

LIMIT_BYTES = 64 * 2**10
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class FolderSecrets:
    """ports.SecretStore over a folder. Read anew each time: who changes a file changes what the next attempt gets."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def read(self, project: str, name: str) -> str:
        return await asyncio.to_thread(self._read, project, name)

    async def names(self, project: str) -> frozenset[str]:
        return await asyncio.to_thread(self._names, project)

    def _read(self, project: str, name: str) -> str:
        if not (_NAME.fullmatch(project) and _NAME.fullmatch(name)):
            raise NotFound(f"no secret {name!r} of project {project!r}", "letters, digits, dots and dashes")
        path = self._folder / project / name
        try:
            data = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            raise NotFound(f"no secret {name} of project {project}", f"write it to {path}, mode 0600") from None
        except OSError as error:
            raise Unavailable(
                f"secret {name} can't be read: {error.strerror}", f"check the rights of {path}"
            ) from error
        if len(data) > LIMIT_BYTES:
            raise Unavailable(f"secret {name} has {len(data):,} bytes; the limit is {LIMIT_BYTES:,}", "make it smaller")
        return data.decode("utf-8", "surrogateescape")

    def _names(self, project: str) -> frozenset[str]:
        try:
            return frozenset(entry.name for entry in (self._folder / project).iterdir() if entry.is_file())
        except OSError:  # no folder, no secrets
            return frozenset()
