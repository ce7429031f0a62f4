"""Packs in a bucket: S3, Azure Blob Storage, Google Cloud Storage, and whatever speaks one of their protocols."""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from groundplane.adapters.artifacts.objects import UNLIMITED_BYTES, Found
from groundplane.errors import InvalidInput, TooLarge, Unavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_BLOCK_BYTES = 8 << 20
_ADDRESS_FOR = timedelta(minutes=15)
_LANDED_FOR_S = 24 * 3600.0


class BucketObjects:
    """Objects under `packs/` below a URL such as `s3://bucket/prefix`, `az://container/prefix` or `gs://bucket/prefix`.

    Credentials are those of the environment (AWS_…, AZURE_…, GOOGLE_…). A put is whole or not at all by the services'
    own promise. One control plane owns a prefix: nothing here keeps a second one from collecting what the first writes.
    Raises Unavailable when the service does not answer, naming it.
    """

    def __init__(self, url: str) -> None:
        if importlib.util.find_spec("obstore") is None:
            raise InvalidInput(f"{url} needs the buckets extra", "pip install 'groundplane[buckets]'")
        import obstore  # noqa: PLC0415 - an extra
        from obstore.store import from_url  # noqa: PLC0415

        self._url, self._api = url, obstore
        with self._answering():
            self._store: ObjectStore = from_url(url)

    def list(self) -> list[Found]:
        with self._answering():
            return [
                Found(item["path"].removeprefix("packs/"), item["size"], item["last_modified"].timestamp())
                for batch in self._api.list(self._store, prefix="packs/")
                for item in batch
            ]

    def draft(self) -> _BucketDraft:
        return _BucketDraft(self)

    def put(self, name: str, data: bytearray) -> None:
        """One object, whole."""
        try:
            with self._answering():
                self._api.put(self._store, f"packs/{name}", data)
        except FileNotFoundError as error:
            # The bucket itself is gone: an object needs no predecessor.
            raise self._unavailable(error) from error

    def reader(self, name: str) -> _BucketReader:
        with self._answering():
            size_bytes = self._api.head(self._store, f"packs/{name}")["size"]
        return _BucketReader(self, name, size_bytes)

    def part(self, name: str, offset: int, count: int) -> Any:
        """A range of an object, as a buffer."""
        with self._answering():
            return self._api.get_range(self._store, f"packs/{name}", start=offset, length=count)

    def delete(self, name: str) -> None:
        try:
            with self._answering():
                self._api.delete(self._store, f"packs/{name}")
        except FileNotFoundError:
            return

    def address(self, name: str) -> str:
        """A URL that reads one pack for 15 minutes; empty for a service that signs none."""
        return self._signed("GET", f"packs/{name}")

    def landing(self, name: str) -> str:
        """A URL that writes one object under `landing/` for 15 minutes; empty for a service that signs none."""
        return self._signed("PUT", f"landing/{name}")

    def take(self, name: str, limit_bytes: int) -> bytes:
        path = f"landing/{name}"
        with self._answering():
            size_bytes = self._api.head(self._store, path)["size"]
            try:
                if size_bytes > limit_bytes:
                    raise TooLarge(f"{path} has {size_bytes:,} bytes; {limit_bytes:,} is the most", "put less at once")
                return bytes(self._api.get(self._store, path).bytes())
            finally:
                self._api.delete(self._store, path)

    def sweep_landing(self, older_s: float) -> int:
        """Removes what was put and never taken for so long; how many."""
        with self._answering():
            now = datetime.now(UTC)
            old = [
                item["path"]
                for batch in self._api.list(self._store, prefix="landing/")
                for item in batch
                if (now - item["last_modified"]).total_seconds() > older_s
            ]
            for path in old:
                self._api.delete(self._store, path)
        return len(old)

    def _signed(self, method: str, path: str) -> str:
        try:
            return self._api.sign(self._store, method, path, _ADDRESS_FOR)  # type: ignore[call-overload,no-any-return]
        except (TypeError, ValueError, self._api.exceptions.BaseError):
            return ""

    def free_bytes(self) -> int:
        return UNLIMITED_BYTES

    def alone(self) -> bool:
        return True

    def cool(self, unread_s: float) -> int:
        """Buckets have lifecycle rules of their own for this; what nobody came to take is cleared away."""
        self.sweep_landing(_LANDED_FOR_S)
        return 0

    def close(self) -> None:
        pass

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (self._api.exceptions.BaseError, OSError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"{self._url} does not answer as it should: {_said(str(error))}",
            "check GROUND_STORE_URL, the bucket's credentials in the environment, and the network",
        )


def _said(error: str) -> str:
    """The service's own words, without the request's URL: that may hold a signature."""
    said = error.partition("\n")[0].rpartition(" - ")[2].removeprefix("Server returned non-2xx status code: ")
    code = re.search(r"<Code>(\w+)</Code>", error)
    return f"{said.partition(': ')[0]}, {code[1]}" if code else said[:200]


class _BucketDraft:
    """Held in memory until it is whole: a pack is at most a little over 64 MiB."""

    def __init__(self, objects: BucketObjects) -> None:
        self._objects, self._data = objects, bytearray()

    def write(self, data: memoryview) -> None:
        self._data += data

    def publish(self, name: str) -> None:
        self._objects.put(name, self._data)

    def discard(self) -> None:
        self._data = bytearray()


class _BucketReader:
    """Reads ahead: pieces that follow each other in a pack are asked for together."""

    def __init__(self, objects: BucketObjects, name: str, size_bytes: int) -> None:
        self._objects, self._name, self._size_bytes = objects, name, size_bytes
        self._lock = threading.Lock()
        self._at, self._block = 0, memoryview(b"")

    def into(self, buffer: memoryview, offset: int) -> int:
        count = max(0, min(len(buffer), self._size_bytes - offset))
        if count == 0:
            return 0
        with self._lock:
            if not self._at <= offset <= offset + count <= self._at + len(self._block):
                ahead = min(max(count, _BLOCK_BYTES), self._size_bytes - offset)
                self._block = memoryview(self._objects.part(self._name, offset, ahead)).cast("B")
                self._at = offset
            begin = offset - self._at
            buffer[:count] = self._block[begin : begin + count]
        return count

    def close(self) -> None:
        self._block = memoryview(b"")
