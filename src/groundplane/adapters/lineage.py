"""Where our lineage is told: an OpenLineage receiver over HTTP, a file of JSON lines, or a list in memory."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from groundplane.errors import GroundError, InvalidInput, Unavailable

_REFUSED = {400, 413, 422}
_TIMEOUT_S = 10.0


class HttpLineage:
    """POSTs each event to one address, such as `http://marquez:5000/api/v1/lineage`. No redirect is followed.

    `key` is asked for before each event, so that a key that was changed is used at once; empty sends none.
    """

    def __init__(self, url: str, key: Callable[[], Awaitable[str]]) -> None:
        self._url, self._key = url, key
        self._http: httpx.AsyncClient | None = None

    @property
    def name(self) -> str:
        parts = urlsplit(self._url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()

    async def tell(self, event: dict[str, object]) -> None:
        try:
            key = (await self._key()).strip()
        except GroundError as error:
            raise Unavailable(f"the key for {self.name} can't be read: {error.message}", error.hint) from error
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if self._http is None:
            self._http = httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False)
        try:
            answer = await self._http.post(self._url, json=event, headers=headers)
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise Unavailable(f"{self.name} does not answer: {said}", "check GROUND_LINEAGE_URL") from error
        if answer.status_code in _REFUSED:
            raise InvalidInput(f"{self.name} answered {answer.status_code}: {_line(answer.text)}")
        if not answer.is_success:
            hint = "check GROUND_LINEAGE_URL and the secret that GROUND_LINEAGE_SECRET names"
            raise Unavailable(f"{self.name} answered {answer.status_code}: {_line(answer.text)}", hint)


class FileLineage:
    """Appends each event as a line, on disk when `tell` returns. A line that a crash cut short is ended first."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        return str(self._path)

    async def tell(self, event: dict[str, object]) -> None:
        await asyncio.to_thread(self._append, json.dumps(event, separators=(",", ":")).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                    line = b"\n" + line
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
        except OSError as error:
            raise Unavailable(f"{self._path} can't be written: {error.strerror}", "check GROUND_LINEAGE_URL") from error


class MemoryLineage:
    """Keeps what it was told; `failing` makes it refuse to answer. For tests and trials."""

    name = "memory"

    def __init__(self) -> None:
        self.told: list[dict[str, object]] = []
        self.failing: GroundError | None = None

    async def tell(self, event: dict[str, object]) -> None:
        if self.failing is not None:
            raise self.failing
        self.told.append(event)


def _line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:200] if lines else "nothing"
