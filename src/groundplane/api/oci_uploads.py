"""Blobs on their way in: begun, appended to, asked after, finished by their digest. Half of one is seen by nobody."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from starlette.requests import ClientDisconnect

from groundplane.api.staging import Staging
from groundplane.domain.oci_push import is_digest
from groundplane.errors import Conflict, InvalidInput, NotFound
from groundplane.identity import Actor

_SESSION = re.compile(r"[0-9a-f]{32}")
_READ_BYTES = 1 << 20


class UploadUnknown(NotFound):
    """No such upload, or it is somebody else's, or it has ended."""


class DigestInvalid(InvalidInput):
    """The bytes are not what their digest says, or the digest is none."""

    http_status = 400


class RangeInvalid(InvalidInput):
    """A chunk that does not begin where the blob ends so far."""

    http_status = 416

    def __init__(self, message: str, have_bytes: int) -> None:
        super().__init__(message, "ask where it is with a GET of the upload, and go on there")
        self.have_bytes = have_bytes


class BlobUploads:
    """The blobs that one key is sending to one repository: a folder of the landing place, swept after a day unused."""

    def __init__(self, landing: Staging, actor: Actor, project: str, name: str) -> None:
        self._landing = landing
        self.owner = f"oci/{actor.key_id}/{project}/{name}"

    async def place(self) -> tuple[str, Path]:
        """The upload's id and folder; begun when there is none."""
        upload_id = await self._landing.find(self.owner) or await self._landing.begin(self.owner)
        return upload_id, self._landing.place(upload_id, self.owner)

    async def begin(self) -> str:
        """A blob's fresh session; its id can't be guessed."""
        _, place = await self.place()
        session = secrets.token_hex(16)
        (place / "sessions").mkdir(exist_ok=True, mode=0o700)
        (place / "sessions" / session).touch(mode=0o600)
        return session

    async def size(self, session: str) -> int:
        """Bytes that have arrived. UploadUnknown."""
        return (await self._session(session)).stat().st_size

    async def append(self, session: str, pieces: AsyncIterator[bytes], start: int | None, declared_bytes: int) -> int:
        """The blob's size after these bytes, which begin at `start` where it is given.

        What arrives before a connection breaks stays. RangeInvalid, Conflict while another request appends.
        """
        path = await self._session(session)
        upload_id, _ = await self.place()
        await self._landing.room(upload_id, self.owner, declared_bytes)
        with _alone(path) as descriptor:
            size_bytes = os.fstat(descriptor).st_size
            if start is not None and start != size_bytes:
                raise RangeInvalid(f"the chunk begins at byte {start:,}; the blob has {size_bytes:,}", size_bytes)
            os.lseek(descriptor, size_bytes, os.SEEK_SET)
            unchecked_bytes = 0
            try:
                async for piece in pieces:
                    unchecked_bytes += len(piece)
                    if unchecked_bytes > max(declared_bytes, _READ_BYTES):
                        # A body without a length: asked again as it grows.
                        await self._landing.room(upload_id, self.owner, len(piece))
                        unchecked_bytes = 0
                    await asyncio.to_thread(_write, descriptor, piece)
                    size_bytes += len(piece)
            except ClientDisconnect:
                raise InvalidInput(f"the upload broke off at byte {size_bytes:,}", "go on from there") from None
            return size_bytes

    async def finish(self, session: str, digest: str) -> None:
        """The whole blob lands under its digest, or goes away with DigestInvalid when it is not that."""
        demand_digest(digest)
        path = await self._session(session)
        _, place = await self.place()
        with _alone(path):
            got = await asyncio.to_thread(_sha256, path)
            if f"sha256:{got}" != digest:
                path.unlink()
                raise DigestInvalid(f"the bytes have the digest sha256:{got}, not {digest}", "send the blob again")
            path.replace(place / "files" / got)

    async def cancel(self, session: str) -> None:
        """Lets go of a blob and what has come of it."""
        (await self._session(session)).unlink(missing_ok=True)

    async def landed(self, digest: str) -> Path | None:
        """A whole blob that this key has sent to this repository and that no manifest has taken up yet."""
        upload_id = await self._landing.find(self.owner)
        if upload_id is None or not is_digest(digest):
            return None
        path = self._landing.place(upload_id, self.owner) / "files" / digest.removeprefix("sha256:")
        return path if path.is_file() else None

    async def take(self, digest: str, content: bytes) -> None:
        """Lands a small document that the registry has itself: who asked was told that it need not be sent."""
        _, place = await self.place()
        await asyncio.to_thread((place / "files" / digest.removeprefix("sha256:")).write_bytes, content)

    async def mount(self, sha256: str, size_bytes: int) -> None:
        """Notes that a blob of another repository is to be had here too: it is in the store and need not be sent."""
        _, place = await self.place()
        (place / "mounts").mkdir(exist_ok=True, mode=0o700)
        (place / "mounts" / sha256).write_text(str(size_bytes))

    async def mounted(self, digest: str) -> bool:
        """Whether `mount` noted it."""
        upload_id = await self._landing.find(self.owner)
        if upload_id is None or not is_digest(digest):
            return False
        place = self._landing.place(upload_id, self.owner)
        return (place / "mounts" / digest.removeprefix("sha256:")).is_file()

    async def _session(self, session: str) -> Path:
        upload_id = await self._landing.find(self.owner) if _SESSION.fullmatch(session) else None
        path = self._landing.place(upload_id, self.owner) / "sessions" / session if upload_id else None
        if path is None or not path.is_file():
            raise UploadUnknown(f"there is no upload {session[:40]}", "begin it anew; a day unused ends one")
        return path


def demand_digest(digest: str) -> str:
    """DigestInvalid unless it is a SHA-256 as OCI writes it."""
    if not is_digest(digest):
        raise DigestInvalid(f"{digest[:100]!r} is no digest", "write sha256: and 64 lower-case hex digits")
    return digest


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError:
        raise Conflict("another request is sending this very blob", "wait for it, or begin an upload anew") from None
    finally:
        os.close(descriptor)


def _write(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


def _sha256(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
