"""Checkpoints: copied to the artifact store behind the job's back, kept as its spec says, laid where an attempt starts.

Nothing here holds up a job or a reconcile: copies and restores are tasks of this process, and each can be broken off
anywhere. What was brought lies in a folder per checkpoint and is gone on with; a row says `copied` only once every file
is in the store with the digest that the checkpoint's own manifest names.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import stat
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from groundplane.domain import checkpoints as rules
from groundplane.domain.model import ManifestFile
from groundplane.domain.order import Order
from groundplane.domain.run import Attempt, Checkpoint, CopyState, Run
from groundplane.domain.spec import JobSpec
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, NotFound, Refusal, Unavailable
from groundplane.identity import SYSTEM, Actor
from groundplane.ports import BlobStore, Clock, Executor, Store, Tx
from groundplane.services.artifacts import demand_quota
from groundplane.services.audit_trail import Teller
from groundplane.units import format_bytes

COPIES_AT_ONCE = 2
RETRY = timedelta(seconds=30)
RESTORE_PATIENCE_S = 2.0
WAITING_SEEN = 500
MANIFEST, MANIFEST_MAX_BYTES = "manifest.json", 16 * 2**20
log = logging.getLogger(__name__)


class CheckpointExecutor(Executor, Protocol):
    """An executor that carries checkpoints and knows what a hung job was doing."""

    async def bring_checkpoint(self, attempt_id: str, path: str, target: Path, bytes_per_s: int) -> Path:
        """A folder on this machine with that checkpoint: the very one where it is seen here, else a copy at `target`.

        Twice goes on where the first broke off. What came is not verified. NotFound when it is gone, Unavailable.
        """
        ...

    async def step_on(self, order: Order, node: str) -> int | None:
        """The newest step that the order's run has in its checkpoint folder on that node. Raises Unavailable."""
        ...

    async def restore_checkpoint(
        self,
        order: Order,
        node: str,
        checkpoint: Checkpoint,
        read: Callable[[str, int, int], Awaitable[bytes]],
        bytes_per_s: int,
    ) -> None:
        """Lays a copy into the run's folder there, verified: all of it or nothing. `read(sha256, offset, limit)`.

        Twice is the same as once; after a break it goes on. IntegrityFailure when it did not arrive whole.
        """
        ...

    async def remove_checkpoints(self, attempt_id: str, run_id: str, paths: Sequence[str]) -> None:
        """Takes them off the node, each at once out of sight. Twice is the same as once. Raises Unavailable."""
        ...

    async def stacks(self, attempt_id: str, rank: int = 0) -> str:
        """What a member's processes were doing when it was taken for hung; "" when it never was."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCounts:
    """Since this process started: copies and their bytes, restores, checkpoints taken off nodes, failed tries."""

    copied: int = 0
    copied_bytes: int = 0
    restored: int = 0
    removed: int = 0
    failed: int = 0


class Checkpoints:
    """Copies, keeps and restores checkpoints; lists them and hands them out."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        executors: Mapping[str, CheckpointExecutor],
        blobs: BlobStore,
        folder: Path,
        bytes_per_s: int,
        home_of: Callable[[str], str],
        copying: bool = True,
    ) -> None:
        self._store, self._clock, self._executors, self._blobs = store, clock, executors, blobs
        self._tell = Teller(clock, "run")
        self._folder, self._bytes_per_s, self._copying = folder, bytes_per_s, copying
        self._home_of = home_of
        self._copies: dict[str, asyncio.Task[None]] = {}
        self._restores: dict[str, asyncio.Task[None]] = {}
        self._not_before: dict[str, datetime] = {}
        self._touched: set[str] = set()
        self.counts = CheckpointCounts()

    # ------------------------------------------------------------ when one is found

    def wanting(self, run: Run, found: Checkpoint) -> Checkpoint:
        """As it is written down: it waits for its copy unless nobody wants one."""
        wanted = self._copying and run.spec.checkpoints.copy and not run.endpoint
        self._touched.add(run.id)
        return replace(found, copy=CopyState.WAITING if wanted else CopyState.OFF)

    # ------------------------------------------------------------ by itself

    async def step(self) -> bool:
        """Begins copies, newest first, and takes away what need not be kept. Returns at once."""
        now = self._clock.now()
        async with self._store.transaction() as tx:
            waiting = await tx.find(Checkpoint, {"copy": CopyState.WAITING}, order="-found_at", limit=WAITING_SEEN)
        while self._touched:
            await self.retain(self._touched.pop())
        for each in waiting:
            free = len(self._copies) < COPIES_AT_ONCE and each.id not in self._copies
            if free and self._not_before.get(each.id, now) <= now:
                self._copies[each.id] = asyncio.get_running_loop().create_task(self._try_copy(each.id))
        return False

    async def settle(self) -> None:
        """Waits for the copies under way."""
        await asyncio.gather(*self._copies.values())

    async def close(self) -> None:
        """Breaks off what is under way; the next process goes on with it."""
        tasks = [*self._copies.values(), *self._restores.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _try_copy(self, checkpoint_id: str) -> None:
        try:
            await self._copy(checkpoint_id)
            self._not_before.pop(checkpoint_id, None)
        except (Unavailable, Conflict, IntegrityFailure) as error:
            self._not_before[checkpoint_id] = self._clock.now() + RETRY
            self.counts = replace(self.counts, failed=self.counts.failed + 1)
            log.warning("checkpoint %s is not copied yet: %s", checkpoint_id, error.message)
            await self._note(checkpoint_id, error.message)
        except (NotFound, Refusal, InvalidInput) as error:
            log.warning("checkpoint %s gets no copy: %s", checkpoint_id, error.message)
            await self._note(checkpoint_id, error.message, over=True)
        finally:
            del self._copies[checkpoint_id]

    async def _copy(self, checkpoint_id: str) -> None:
        async with self._store.transaction() as tx:
            checkpoint, run = await self._load(tx, checkpoint_id)
            attempt = await tx.get(Attempt, checkpoint.attempt_id)
        if checkpoint.copy is not CopyState.WAITING or attempt is None:
            return
        executor = self._executors.get(attempt.pool)
        if executor is None:
            raise Unavailable(f"pool {attempt.pool} is not registered", "ground pools list shows them")
        began = self._clock.now()
        target = self._folder / checkpoint.run_id / str(checkpoint.step)
        folder = await executor.bring_checkpoint(attempt.id, checkpoint.path, target, self._limit_of(run.spec))
        wanted = await asyncio.to_thread(_manifest, folder)
        names = list(wanted)
        stored = await self._blobs.put_files([folder / name for name in names])
        changed = [
            name for name, (sha256, _) in zip(names, stored, strict=True) if wanted[name] and sha256 != wanted[name]
        ]
        if changed:
            shutil.rmtree(target, ignore_errors=True)
            raise IntegrityFailure(f"{changed[0]} is not what the manifest of step {checkpoint.step} says")
        files = tuple(
            ManifestFile(path=name, sha256=sha256, size_bytes=size_bytes)
            for name, (sha256, size_bytes) in zip(names, stored, strict=True)
        )
        await self._keep_copy(checkpoint_id, files, began)
        shutil.rmtree(target, ignore_errors=True)
        await self.retain(checkpoint.run_id)

    async def _keep_copy(self, checkpoint_id: str, files: tuple[ManifestFile, ...], began: datetime) -> None:
        now = self._clock.now()
        async with self._store.transaction() as tx:
            current, run = await self._load(tx, checkpoint_id)
            await demand_quota(tx, run.project, files)
            digest = next(file.sha256 for file in files if file.path == MANIFEST)
            copied = replace(
                current, copy=CopyState.COPIED, files=files, manifest_sha256=digest, copied_at=now, note=""
            )
            await tx.update(copied)
            size_bytes = sum(file.size_bytes for file in files)
            took_s = round((now - began).total_seconds(), 1)
            after = {"step": current.step, "size_bytes": size_bytes, "manifest": digest, "took_s": took_s}
            await self._tell(tx, SYSTEM, "checkpoint.copy", run.id, run.project, after)
        counts = self.counts
        self.counts = replace(counts, copied=counts.copied + 1, copied_bytes=counts.copied_bytes + size_bytes)

    async def _note(self, checkpoint_id: str, words: str, *, over: bool = False) -> None:
        async with self._store.transaction() as tx:
            current = await tx.get(Checkpoint, checkpoint_id)
            if current is not None and current.copy is CopyState.WAITING and (over or current.note != words):
                state = CopyState.OFF if over else CopyState.WAITING
                await tx.update(replace(current, copy=state, note=words))

    # ------------------------------------------------------------ retention

    async def retain(self, run_id: str) -> None:
        """Takes away what the run's policy doesn't keep, on its node and in the store. Twice is the same as once."""
        now = self._clock.now()
        async with self._store.transaction() as tx:
            run = await tx.get(Run, run_id)
            rows = await tx.find(Checkpoint, {"run_id": run_id}, order="step")
            attempts = await tx.find(Attempt, {"run_id": run_id}, order="number")
            if run is None:
                return
            policy = run.spec.checkpoints
            for each in rules.not_worth_copying(rows, policy):
                if each.id not in self._copies:
                    await tx.update(replace(each, copy=CopyState.OFF, note="newer ones came before its turn"))
            dropped = rules.leaving_store(rows, policy)
            for each in dropped:
                words = "its copy was not kept: the spec's checkpoints say which are"
                await tx.update(replace(each, copy=CopyState.OFF, files=(), note=words))
            if dropped:
                steps: dict[str, object] = {"steps": [each.step for each in dropped]}
                await self._tell(tx, SYSTEM, "checkpoint.drop-copy", run.id, run.project, steps)
            rows = await tx.find(Checkpoint, {"run_id": run_id}, order="step")
        in_use = {a.resumed_from_step for a in attempts if a.resumed_from_step is not None and a.end_reason is None}
        leaving = rules.leaving_node(rows, policy, in_use)
        if leaving:
            await self._take_off_nodes(run, leaving, {attempt.id: attempt for attempt in attempts}, now)

    async def _take_off_nodes(
        self, run: Run, leaving: Sequence[Checkpoint], attempts: Mapping[str, Attempt], now: datetime
    ) -> None:
        by_attempt: dict[str, list[Checkpoint]] = defaultdict(list)
        for each in leaving:
            by_attempt[each.attempt_id].append(each)
        for attempt_id, gone in by_attempt.items():
            executor = self._executors.get(attempts[attempt_id].pool)
            if executor is None:
                continue
            try:
                await executor.remove_checkpoints(attempt_id, gone[0].run_id, [each.path for each in gone])
            except (Unavailable, InvalidInput) as error:
                log.info("checkpoints of %s stay on their node for now: %s", attempt_id, error.message)
                continue
            async with self._store.transaction() as tx:
                for each in gone:
                    current = await tx.get(Checkpoint, each.id)
                    if current is not None:
                        await tx.update(replace(current, removed_at=now))
                after: dict[str, object] = {"steps": [each.step for each in gone], "node": gone[0].node}
                await self._tell(tx, SYSTEM, "checkpoint.remove", run.id, run.project, after)
            self.counts = replace(self.counts, removed=self.counts.removed + len(gone))

    # ------------------------------------------------------------ restore

    async def ready(self, run: Run, order: Order) -> None:
        """Returns when every node of the order has the newest checkpoint; else raises Unavailable with how far it is.

        Called again, it looks at the same restore. A pool whose nodes aren't named yet chooses one with what it has.
        """
        async with self._store.transaction() as tx:
            rows = await tx.find(Checkpoint, {"run_id": run.id, "copy": CopyState.COPIED}, order="-step")
        if not rows or not order.placements:
            return
        task = self._restores.get(order.attempt_id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._restore(run, order, rows))
            self._restores[order.attempt_id] = task
        await asyncio.wait([task], timeout=RESTORE_PATIENCE_S)
        if not task.done():
            newest = rows[0]
            raise Unavailable(
                f"step {newest.step} ({format_bytes(newest.size_bytes)}) is restored before attempt {order.number}",
                "it starts when the checkpoint has arrived",
            )
        del self._restores[order.attempt_id]
        task.result()

    async def _restore(self, run: Run, order: Order, rows: Sequence[Checkpoint]) -> None:
        """A copy that turns out to be damaged is one no more; the next older one is taken then."""
        executor = self._executors[run.pool]
        left = list(rows)
        for node in dict.fromkeys(place.node for place in order.placements):
            there = await executor.step_on(order, node)
            while (wanted := rules.to_restore(left, there)) is not None:
                try:
                    await self.lay(SYSTEM, run, order, node, wanted)
                    break
                except (IntegrityFailure, NotFound) as error:
                    log.error("the copy of %s can't be used: %s", wanted.id, error.message)
                    left.remove(wanted)
                    await self._lost(wanted, error.message)

    async def lay(
        self, actor: Actor, run: Run, order: Order, node: str, checkpoint: Checkpoint, *, pool: str = ""
    ) -> None:
        """Restores one checkpoint to one node, and says so on the trail."""
        executor, began = self._executors[pool or run.pool], self._clock.now()
        await executor.restore_checkpoint(order, node, checkpoint, self._blobs.read, self._limit_of(run.spec))
        self.counts = replace(self.counts, restored=self.counts.restored + 1)
        took_s = round((self._clock.now() - began).total_seconds(), 1)
        async with self._store.transaction() as tx:
            after = {"step": checkpoint.step, "node": node, "attempt": order.number, "took_s": took_s}
            await self._tell(tx, actor, "checkpoint.restore", run.id, run.project, after)

    async def _lost(self, checkpoint: Checkpoint, words: str) -> None:
        async with self._store.transaction() as tx:
            current = await tx.get(Checkpoint, checkpoint.id)
            if current is not None:
                await tx.update(replace(current, copy=CopyState.OFF, files=(), note=f"its copy is damaged: {words}"))

    # ------------------------------------------------------------ asked for

    async def list(self, actor: Actor, run_id: str) -> list[Checkpoint]:
        """The run's checkpoints by step. NotFound."""
        async with self._store.transaction() as tx:
            await self._visible(tx, actor, run_id)
            return await tx.find(Checkpoint, {"run_id": run_id}, order="step")

    async def get(self, actor: Actor, run_id: str, step: int | None = None) -> Checkpoint:
        """A copy in the store: of one step, or the newest. NotFound says what there is."""
        rows = await self.list(actor, run_id)
        copies = [each for each in rows if each.copy is CopyState.COPIED and step in (None, each.step)]
        if not copies:
            there = ", ".join(str(each.step) for each in rows if each.copy is CopyState.COPIED) or "none"
            what = f"step {step} of {run_id}" if step is not None else f"any step of {run_id}"
            raise NotFound(f"there is no copy of {what}", f"copied are: {there}; ground checkpoints list {run_id}")
        return copies[-1]

    async def content(self, actor: Actor, run_id: str, step: int, path: str, offset: int, limit_bytes: int) -> bytes:
        """A range of a file of a copy, verified."""
        checkpoint = await self.get(actor, run_id, step)
        file = next((each for each in checkpoint.files if each.path == path), None)
        if file is None:
            raise NotFound(f"step {step} of {run_id} has no file {path}", "ground checkpoints list -o json names them")
        return await self._blobs.read(file.sha256, offset, limit_bytes)

    async def stacks(self, actor: Actor, run_id: str, *, attempt: int | None = None, rank: int = 0) -> str:
        """What a member's processes were doing when it was taken for hung; "" when it never was."""
        async with self._store.transaction() as tx:
            run = await self._visible(tx, actor, run_id)
            found = await tx.get(Attempt, f"{run_id}-{attempt or run.attempt}")
        executor = self._executors.get(found.pool) if found is not None else None
        if found is None or executor is None:
            return ""
        return await executor.stacks(found.id, rank)

    async def restore(self, actor: Actor, run_id: str, *, pool: str, node: str, step: int | None = None) -> Checkpoint:
        """Lays a copy into the run's folder on any node of any pool, now. NotFound, Unavailable, IntegrityFailure."""
        checkpoint = await self.get(actor, run_id, step)
        async with self._store.transaction() as tx:
            run = await self._visible(tx, actor, run_id)
        executor = self._executors.get(pool or run.pool)
        if executor is None:
            raise NotFound(f"no pool {pool}", "ground pools list shows them")
        names = [each.name for each in await executor.nodes()]
        if node not in names:
            raise NotFound(f"pool {pool or run.pool} has no node {node}", f"it has {', '.join(names)}")
        await self.lay(actor, run, self._order(run), node, checkpoint, pool=pool)
        return checkpoint

    def _order(self, run: Run) -> Order:
        """Enough of an order to say where the run's checkpoints lie on a node."""
        share = run.spec.checkpoint_dir.rstrip("/")
        return Order(
            attempt_id=run.id,
            run_id=run.id,
            number=run.attempt,
            command=run.spec.command,
            workdir="",
            env={},
            checkpoint_dir=f"{share}/{run.id}" if share else self._home_of(run.id),
            output_dir="",
            cpus=0.0,
            memory_bytes=0,
            accelerators=0,
            max_duration_s=0.0,
            idle_limit_s=None,
            control_plane_gone_limit_s=None,
            stop_grace_s=0.0,
            not_after=run.end_date,
            checkpoint_share=share,
        )

    # ------------------------------------------------------------ inside

    def _limit_of(self, spec: JobSpec) -> int:
        """Bytes a second; the stricter of the installation's and the spec's. 0 is none."""
        both = [each for each in (self._bytes_per_s, spec.checkpoints.bytes_per_s) if each]
        return min(both, default=0)

    async def _load(self, tx: Tx, checkpoint_id: str) -> tuple[Checkpoint, Run]:
        checkpoint = await tx.get(Checkpoint, checkpoint_id)
        run = await tx.get(Run, checkpoint.run_id) if checkpoint is not None else None
        if checkpoint is None or run is None:
            raise NotFound(f"checkpoint {checkpoint_id} is gone")
        return checkpoint, run

    async def _visible(self, tx: Tx, actor: Actor, run_id: str) -> Run:
        run = await tx.get(Run, run_id)
        if run is None or not actor.sees(run.project):
            raise NotFound(f"no run {run_id}", "ground ps lists the runs you can see")
        return run


def _read_manifest(path: Path) -> bytes:
    """A job may have put anything in its place since its runner looked: links, pipes and giants are refused."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(file, "rb") as opened:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode) or about.st_size > MANIFEST_MAX_BYTES:
            raise ValueError(f"it is no file of at most {MANIFEST_MAX_BYTES} bytes")
        return opened.read(MANIFEST_MAX_BYTES)


def _manifest(folder: Path) -> dict[str, str]:
    """Relative path → SHA-256, as the checkpoint's manifest lists them; "" for the manifest itself."""
    try:
        document = json.loads(_read_manifest(folder / MANIFEST))
        listed = document["files"]
        if isinstance(listed, dict):
            listed = [{"path": path, **about} for path, about in listed.items()]
        found = {str(file["path"]): str(file["sha256"]) for file in listed}
    except FileNotFoundError:
        raise NotFound("the checkpoint is gone from its node") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityFailure(f"the manifest can't be read: {error!r}") from error
    for path in found:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise InvalidInput(f"the manifest names {path!r}, outside the checkpoint")
    return {**found, MANIFEST: ""}
