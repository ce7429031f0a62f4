"""Data on its way to nodes: what the control plane brings for an attempt, and every node's data cache."""

from __future__ import annotations

import asyncio
import base64
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from groundplane.adapters.executors.channels import Document
from groundplane.adapters.executors.placements import Placed
from groundplane.domain.staging import NodeCache
from groundplane.errors import Unavailable

PIECE_PATIENCE_S = 120.0


class StagingCalls(ABC):
    """Mixed into the executor over nodes, which asks their desks."""

    async def missing_files(self, attempt_id: str) -> list[dict[str, int]]:
        placed = self._find(attempt_id)
        found = []
        for rank in range(len(placed.members) if placed is not None else 0):
            where = self._member(attempt_id, rank)
            if where is not None:
                said = await self._ask(where[0], "missing", attempt_id=where[1])
                found.append({str(sha256): int(have) for sha256, have in said["missing"].items()})
        return found

    async def put_file(self, attempt_id: str, rank: int, sha256: str, size_bytes: int, offset: int, data: bytes) -> int:
        where = self._member(attempt_id, rank)
        if where is None:
            raise Unavailable(f"nobody knows where {attempt_id} runs", "it is looked for again")
        text = base64.b64encode(data).decode()
        said = await self._ask(
            where[0],
            "put",
            PIECE_PATIENCE_S,
            attempt_id=where[1],
            sha256=sha256,
            size_bytes=size_bytes,
            offset=offset,
            data=text,
        )
        return int(said["have"])

    async def data_caches(self, scratch: str, limit_bytes: int, *, node: str, clear: bool) -> list[NodeCache]:
        async def ask(name: str, link: Any) -> NodeCache:
            try:
                said = await self._ask(
                    link, "data_cache", PIECE_PATIENCE_S, scratch=scratch, limit_bytes=limit_bytes, clear=clear
                )
            except Unavailable as error:
                return NodeCache(pool=self._pool, node=name, problem=error.message)
            return NodeCache(pool=self._pool, node=name, **said)

        asked = [ask(name, link) for name, link in self._links.items() if node in ("", name)]
        return list(await asyncio.gather(*asked))

    _pool: str
    _links: Mapping[str, Any]

    @abstractmethod
    async def _ask(self, link: Any, operation: str, patience_s: float = 0.0, **arguments: Any) -> Document: ...

    @abstractmethod
    def _find(self, attempt_id: str) -> Placed | None: ...

    @abstractmethod
    def _member(self, attempt_id: str, rank: int) -> tuple[Any, str] | None: ...


class NoData:
    """The same for a pool that runs nothing: nothing is missing, and there is no cache."""

    async def missing_files(self, attempt_id: str) -> list[dict[str, int]]:
        return []

    async def put_file(self, attempt_id: str, rank: int, sha256: str, size_bytes: int, offset: int, data: bytes) -> int:
        raise Unavailable(f"{attempt_id} stages nothing", "a simulated pool has no disk")

    async def data_caches(self, scratch: str, limit_bytes: int, *, node: str, clear: bool) -> Sequence[NodeCache]:
        return []
