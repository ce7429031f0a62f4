"""Reading the pool file anew while everything runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol

from groundplane.domain.pool_file import PoolChanges
from groundplane.identity import Actor
from groundplane.ports import Clock, Store
from groundplane.services.audit_trail import Teller


class PoolSource(Protocol):
    async def reload(self) -> PoolChanges:
        """All of what is written now, or nothing. Raises InvalidInput with its faults, Conflict for what is in use."""
        ...


class Pools:
    """Which pools there are."""

    def __init__(self, *, store: Store, clock: Clock, source: PoolSource, wake: Callable[[], None]) -> None:
        self._store, self._source, self._wake = store, source, wake
        self._tell = Teller(clock, "pools")
        self._one_at_a_time = asyncio.Lock()

    async def reload(self, actor: Actor, reason: str = "") -> PoolChanges:
        """Puts the pool file in force as it is now. Dying halfway leaves a process that reads it when it begins."""
        async with self._one_at_a_time:
            changes = await self._source.reload()
            async with self._store.transaction() as tx:
                await self._tell(tx, actor, "pools.reload", "pool-file", "", asdict(changes), reason)
        self._wake()
        return changes
