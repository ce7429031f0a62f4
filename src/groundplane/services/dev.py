"""Dev environments: people attached to runs, what such a run holds, and the way in over SSH."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from groundplane.domain import dev
from groundplane.domain.dev import DevInfo, DevUse, SshConfig, SshPlace, Wish
from groundplane.domain.run import Attempt, Observation, Run, RunStatus
from groundplane.domain.spec import DEV_KINDS
from groundplane.errors import Conflict, InvalidInput, NotFound, Unavailable
from groundplane.identity import Actor
from groundplane.ports import Clock, Executor, Ids, Store
from groundplane.services.audit_trail import Teller

CHUNK = 2**16
PATIENCE_S = 15.0
MOST_ATTACHED = 200


class Stream(Protocol):
    """Bytes both ways to a program on a node."""

    async def read(self, limit_bytes: int) -> bytes:
        """Some bytes; none when it is over."""
        ...

    async def write(self, data: bytes) -> None:
        """Hands bytes over. Unavailable when nobody takes them any more."""
        ...

    async def close(self) -> None:
        """Lets go; what runs there goes on. Twice is the same as once."""
        ...


class DevExecutor(Executor, Protocol):
    """An executor whose attempts can be attached to."""

    async def open_stream(self, attempt_id: str, rank: int = 0) -> Stream:
        """A connection to a dev environment's host. NotFound, Unavailable."""
        ...

    async def ssh_place(self, attempt_id: str, rank: int = 0) -> SshPlace | None:
        """How the attempt's node is reached over SSH; None on this machine. NotFound."""
        ...


@dataclass(slots=True)
class _Attached:
    run_id: str
    actor: str
    stream: Stream


class Dev:
    """Attachments live in this process: after a restart one attaches again, and the shell is still there."""

    def __init__(self, *, store: Store, clock: Clock, ids: Ids, executors: Mapping[str, DevExecutor]) -> None:
        self._store, self._clock, self._ids, self._executors = store, clock, ids, executors
        self._tell = Teller(clock, "run")
        self._attached: dict[str, _Attached] = {}

    @property
    def attached(self) -> int:
        """How many are attached now."""
        return len(self._attached)

    async def attach(self, actor: Actor, run_id: str, wish: Wish) -> str:
        """Opens a connection; its id is for this actor alone. NotFound, InvalidInput, Conflict, Unavailable."""
        run = await self._dev_run(actor, run_id)
        if len(self._attached) >= MOST_ATTACHED:
            raise Unavailable(f"{MOST_ATTACHED} connections are open", "detach where nobody is")
        stream = await self._open(run, wish)
        name = self._ids.new("attached")
        self._attached[name] = _Attached(run_id, actor.name, stream)
        async with self._store.transaction() as tx:
            after = {"kind": wish.kind, "session": wish.session, "port": wish.port}
            await self._tell(tx, actor, "run.attach", run_id, run.project, after)
        return name

    async def output(self, actor: Actor, run_id: str, name: str) -> AsyncIterator[bytes]:
        """Frames as they come, until it is over or whoever reads goes away: then it is detached."""
        found = self._mine(actor, run_id, name)
        try:
            while data := await found.stream.read(CHUNK):
                yield data
        finally:
            await self._let_go(name)

    async def send(self, actor: Actor, run_id: str, name: str, frames: bytes) -> None:
        """Hands frames over. NotFound once it is over."""
        await self._mine(actor, run_id, name).stream.write(frames)

    async def detach(self, actor: Actor, run_id: str, name: str) -> None:
        """Lets go of a connection; what runs there goes on. Twice is the same as once."""
        if name in self._attached:
            self._mine(actor, run_id, name)
            await self._let_go(name)

    async def info(self, actor: Actor, run_id: str) -> DevInfo:
        """What a dev environment holds now: its sessions, its folder, and where Jupyter listens in there."""
        run = await self._dev_run(actor, run_id)
        stream, frames, said = await self._open(run, Wish(kind="info")), dev.Frames(), b""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while data := await stream.read(CHUNK):
                    said += b"".join(payload for kind, payload in frames.feed(data) if kind == dev.DATA)
        except TimeoutError:
            raise Unavailable(f"{run_id} does not answer", "has its program ended? ground logs shows") from None
        finally:
            await stream.close()
        found = json.loads(said or b"{}")
        jupyter = found.get("jupyter") or {}
        return DevInfo(
            run_id=run_id,
            sessions=tuple(str(each["name"]) for each in found.get("sessions", ())),
            folder=str(found.get("folder", "")),
            jupyter_port=int(jupyter.get("port", 0)),
            jupyter_token=str(jupyter.get("token", "")),
        )

    async def environments(self, actor: Actor) -> list[DevUse]:
        """Every dev environment that is not over, of the projects that the actor sees; the newest first."""
        async with self._store.transaction() as tx:
            alive = tuple(each for each in RunStatus if not each.is_over)
            found = await tx.find(Run, {"dev": DEV_KINDS, "status": alive}, order="-created_at")
            runs = [run for run in found if actor.sees(run.project)]
            attempts = await tx.find(Attempt, {"run_id": tuple(run.id for run in runs)}) if runs else []
        newest = {each.run_id: each for each in sorted(attempts, key=lambda each: each.number)}
        seen: dict[str, Observation] = {}
        for pool in {run.pool for run in runs}:
            ids = [newest[run.id].id for run in runs if run.pool == pool and run.id in newest]
            with suppress(Unavailable):  # how long it idles is not known then, and is shown so
                seen |= await self._executors[pool].observe(ids) if pool in self._executors else {}
        return [self._use(run, newest.get(run.id), seen) for run in runs]

    def _use(self, run: Run, attempt: Attempt | None, seen: Mapping[str, Observation]) -> DevUse:
        active_at = seen[attempt.id].active_at if attempt is not None and attempt.id in seen else None
        idle_s = (self._clock.now() - active_at).total_seconds() if active_at is not None else None
        return DevUse(
            run_id=run.id,
            name=run.name,
            project=run.project,
            owner=run.owner,
            pool=run.pool,
            node=attempt.node if attempt is not None else "",
            status=run.status,
            kind=run.dev,
            started_at=run.started_at,
            end_date=run.end_date,
            idle_s=max(0.0, idle_s) if idle_s is not None else None,
            idle_limit_s=run.spec.idle_limit_s,
            attached=tuple(sorted({each.actor for each in self._attached.values() if each.run_id == run.id})),
        )

    async def ssh_config(self, actor: Actor, run_id: str) -> SshConfig:
        """A block for an ssh client's configuration; it says why where there is none."""
        run = await self._dev_run(actor, run_id)
        return dev.ssh_config(run_id, await self._executor(run).ssh_place(f"{run.id}-{run.attempt}"))

    async def close(self) -> None:
        """Lets go of everybody."""
        for name in list(self._attached):
            await self._let_go(name)

    # ---- inside

    async def _open(self, run: Run, wish: Wish) -> Stream:
        stream = await self._executor(run).open_stream(f"{run.id}-{run.attempt}")
        await stream.write(dev.opening(wish))
        return stream

    def _executor(self, run: Run) -> DevExecutor:
        try:
            return self._executors[run.pool]
        except KeyError:
            raise NotFound(f"pool {run.pool} is not registered any more", "ground pools lists them") from None

    async def _dev_run(self, actor: Actor, run_id: str) -> Run:
        async with self._store.transaction() as tx:
            run = await tx.get(Run, run_id)
        if run is None or not actor.sees(run.project):
            raise NotFound(f"no run {run_id}", "ground ps lists the runs you can see")
        if not run.dev:
            raise InvalidInput(f"{run_id} is a job, not a dev environment", "kind: Dev, or ground dev start, makes one")
        if run.status is not RunStatus.RUNNING:
            raise Conflict(f"{run_id} is {run.status}: there is nothing to attach to", f"ground explain {run_id}")
        return run

    def _mine(self, actor: Actor, run_id: str, name: str) -> _Attached:
        found = self._attached.get(name)
        if found is None or (found.run_id, found.actor) != (run_id, actor.name):
            raise NotFound("that connection is over", f"ground attach {run_id}")
        return found

    async def _let_go(self, name: str) -> None:
        found = self._attached.pop(name, None)
        if found is not None:
            await found.stream.close()
