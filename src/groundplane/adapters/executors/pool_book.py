"""The pool file in force: its pools' executors, opened as the process begins and changed when the file is read anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from groundplane.adapters.executors.ssh import SshExecutor, read_pool_file
from groundplane.domain.isolation import Isolation
from groundplane.domain.pool_file import PoolChanges, PoolDefinition, compare, moved
from groundplane.errors import Conflict
from groundplane.units import format_count


class PoolBook:
    """`take` and `drop` put an executor among those in use, by its pool's name, and take it from there."""

    def __init__(
        self,
        path: Path,
        open_pool: Callable[[PoolDefinition], SshExecutor],
        take: Callable[[str, SshExecutor], object],
        drop: Callable[[str], object],
    ) -> None:
        self._path, self._open_pool, self._take, self._drop = path, open_pool, take, drop
        self._pools: dict[str, PoolDefinition] = {}
        self._executors: dict[str, SshExecutor] = {}
        self.isolation: dict[str, Isolation] = {}
        """What pools ask for by themselves, as of the file in force."""

    def open(self) -> None:
        """Raises InvalidInput with every fault of the file."""
        for pool in read_pool_file(self._path):
            self._add(pool)

    async def reload(self) -> PoolChanges:
        """Takes all of the file, or nothing: InvalidInput tells its faults, Conflict what still runs on what it lacks.

        Twice changes nothing the second time.
        """
        wanted = {pool.name: pool for pool in await asyncio.to_thread(read_pool_file, self._path)}
        for name, pool in self._pools.items():
            holding = self._executors[name].holding()
            for node in moved(pool, wanted.get(name)):
                if holding[node]:
                    attempts = format_count(holding[node], "attempt")
                    raise Conflict(
                        f"node {node} of pool {name} has {attempts}; the pool file no longer leads there",
                        "keep host, port, user, root and shared_dir as they were; cordon it, and wait or stop them",
                    )
        names = sorted({*self._pools, *wanted})
        found = [compare(self._pools.get(name), wanted.get(name)) for name in names]
        for name in names:
            if name not in wanted:
                self._drop(name)
                del self._pools[name]
                self.isolation.pop(name, None)
                await self._executors.pop(name).close()
            elif name not in self._pools:
                self._add(wanted[name])
            else:
                self._pools[name] = wanted[name]
                self._note_isolation(wanted[name])
                await self._executors[name].redefine(wanted[name])
        return PoolChanges(
            added=tuple(each for changes in found for each in changes.added),
            removed=tuple(each for changes in found for each in changes.removed),
            changed=tuple(each for changes in found for each in changes.changed),
        )

    def _add(self, pool: PoolDefinition) -> None:
        self._pools[pool.name], self._executors[pool.name] = pool, self._open_pool(pool)
        self._take(pool.name, self._executors[pool.name])
        self._note_isolation(pool)

    def _note_isolation(self, pool: PoolDefinition) -> None:
        self.isolation.pop(pool.name, None)
        if pool.isolation is not None:
            self.isolation[pool.name] = pool.isolation
