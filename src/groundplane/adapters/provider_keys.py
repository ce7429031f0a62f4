"""Providers' keys as files, `<folder>/<project>/<provider>`: apart from the secrets that jobs can ask for by name."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from groundplane.adapters.atomic_file import replace_durably
from groundplane.errors import InvalidInput, NotFound, Unavailable

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class FolderProviderKeys:
    """ports.providers.ProviderKeys. Files have mode 0600, folders 0700; gateways of this machine read them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, project: str, name: str, key: str) -> None:
        path = self._path(project, name)
        try:
            await asyncio.to_thread(replace_durably, path, key.encode() + b"\n")
        except OSError as error:
            raise Unavailable(f"the key of provider {name} can't be kept: {error.strerror}", f"check {path}") from error

    async def read(self, project: str, name: str) -> str:
        path = self._path(project, name)
        try:
            return (await asyncio.to_thread(path.read_text, "utf-8")).strip()
        except FileNotFoundError:
            raise NotFound(f"the key of provider {name} is gone", "ground providers add again, with its key") from None
        except (OSError, ValueError) as error:
            raise Unavailable(f"the key of provider {name} can't be read", f"check the rights of {path}") from error

    async def remove(self, project: str, name: str) -> None:
        await asyncio.to_thread(self._path(project, name).unlink, missing_ok=True)

    def _path(self, project: str, name: str) -> Path:
        if not (_NAME.fullmatch(project) and _NAME.fullmatch(name)):
            raise InvalidInput(f"no provider {name!r} of project {project!r}", "letters, digits, dots and dashes")
        return self._folder / project / name
