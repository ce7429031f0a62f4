"""What a node's desk does about staged data: takes files that the control plane brings, shows and clears the cache."""

from __future__ import annotations

import base64
import os
import re

from groundplane.runner.files import is_held, read_document
from groundplane.runner.refusal import No

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from groundplane.runner.data_cache import DataCache
    from groundplane.runner.files import Document

# Hashing and its library come with the first question: most desks stage nothing.


class DataDesk:
    """The part of a desk at `root`; `folder_of` finds an attempt's folder."""

    def __init__(self, root: Path, folder_of: Callable[[str], Path]) -> None:
        self._root, self._folder_of = root, folder_of
        self.operations: tuple[Callable[..., Document], ...] = (self.missing, self.put, self.data_cache)

    def missing(self, attempt_id: str) -> Document:
        """Files that the control plane is to bring for an attempt at work: {sha256: bytes that are here}."""
        folder = self._folder_of(attempt_id)
        order = read_document(folder / "order.json")
        if order is None or not order.get("staging") or not is_held(folder / "lock"):
            return {"missing": {}}
        cache = self._cache(order).open()
        wanted = {file["sha256"] for source in order["staging"]["sources"] for file in source.get("files") or ()}
        found = {}
        for sha256 in sorted(wanted):
            if not cache.find(sha256):
                draft = cache.partial(f"{sha256}.pushed")
                found[sha256] = draft.stat().st_size if draft.exists() else 0
        return {"missing": found}

    def put(self, attempt_id: str, sha256: str, size_bytes: int, offset: int, data: str) -> Document:
        """Takes a piece of such a file at `offset`; after the last one the whole is verified. Twice is once."""
        from groundplane.runner.data_cache import NoRoom  # noqa: PLC0415

        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise No("invalid-input", f"{sha256!r} is no SHA-256", "64 lowercase hex digits")
        cache = self._cache(read_document(self._folder_of(attempt_id) / "order.json") or {}).open()
        draft = cache.partial(f"{sha256}.pushed")
        with cache.lock(draft.name):
            if cache.find(sha256):
                return {"have": size_bytes}
            try:
                have = _append(cache, draft, offset, base64.b64decode(data))
            except NoRoom as no:
                raise No("conflict", str(no), no.hint) from None
            if have >= size_bytes:
                self._finish(cache, draft, sha256)
            return {"have": have}

    def data_cache(self, scratch: str, limit_bytes: int, clear: bool = False) -> Document:
        """What the node's data cache holds; with `clear`, after removing what no run uses."""
        cache = self._cache({"staging": {"scratch": scratch, "cache_bytes": limit_bytes}}).open()
        cleared = cache.clear() if clear else {"files": 0, "bytes": 0}
        return {**cache.listing(), "cleared_files": cleared["files"], "cleared_bytes": cleared["bytes"]}

    def _finish(self, cache: DataCache, draft: Path, sha256: str) -> None:
        from groundplane.runner.data_cache import digest  # noqa: PLC0415

        if digest(draft) != sha256:
            cache.forget(draft.name)
            raise No("unavailable", f"{sha256} was damaged on its way to the node", "it is sent again")
        cache.commit(draft, sha256, "")

    def _cache(self, order: Document) -> DataCache:
        from groundplane.runner.staging import cache_of  # noqa: PLC0415

        return cache_of(order, self._root)


def _append(cache: DataCache, draft: Path, offset: int, piece: bytes) -> int:
    """How much of the file is here afterwards; a piece for another place changes nothing. NoRoom."""
    file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        have = os.fstat(file).st_size
        if offset == have:
            cache.room(len(piece))
            while piece:
                written = os.pwrite(file, piece, have)
                piece, have = piece[written:], have + written
        return have
    finally:
        os.close(file)
