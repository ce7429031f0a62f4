"""Points of metrics as they come: written together between commits, without reading again what was just written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from groundplane.domain.tracking import records as domain
from groundplane.domain.tracking.records import LoggedModel, Measured, MetricPart, RunMetrics, Stage, TrackedRun
from groundplane.errors import Conflict, Forbidden, GroundError, InvalidInput, NotFound, Unavailable
from groundplane.identity import Actor
from groundplane.ports import Store, Tx

HINT = "ground experiments list shows the ones you see"
_TOGETHER_MAX = 64
_KNOWN_RUNS_MAX = 256
_KNOWN_CHARACTERS_MAX = 65_536
_Known = Mapping[str, tuple[TrackedRun, RunMetrics]]


@dataclass(eq=False, slots=True)
class _Together:
    """Calls that are written in one transaction: (who, to which run, what). Open to more until it begins."""

    calls: list[tuple[Actor, str, Sequence[Measured]]] = field(default_factory=list)
    written: asyncio.Task[None] | None = None


class Measures:
    """Logs metrics that come alone, as most do.

    A script that logged logs again at its next step, so a run is kept as it was left. The version of its `RunMetrics`
    says whether it still is like that: whatever makes a run take no more metrics moves that version too (`stale`).
    """

    def __init__(self, store: Store, find: Callable[[Tx, Actor, str], Awaitable[TrackedRun]]) -> None:
        self._store, self._find = store, find
        self._known: dict[str, tuple[TrackedRun, RunMetrics]] = {}
        self._next: _Together | None = None
        self._writing = asyncio.Lock()

    async def log(self, actor: Actor, run_id: str, metrics: Sequence[Measured]) -> None:
        """Returns when they are durable. Calls that come while others are being written share one commit.

        What is wrong with one call is never told to another: they try again alone.
        """
        together = self._next
        if together is None or len(together.calls) >= _TOGETHER_MAX:
            together = self._next = _Together()
            together.written = asyncio.create_task(self._in_turn(together))
        together.calls.append((actor, run_id, metrics))
        assert together.written is not None
        try:
            # One caller that goes away takes nobody's points along.
            await asyncio.shield(together.written)
        except GroundError as error:
            if len(together.calls) == 1 or isinstance(error, Unavailable):
                raise
            await self._write([(actor, run_id, metrics)])

    async def _in_turn(self, together: _Together) -> None:
        async with self._writing:
            if self._next is together:
                self._next = None
            await self._write(together.calls)

    async def _write(self, calls: Sequence[tuple[Actor, str, Sequence[Measured]]]) -> None:
        """All of them or none."""
        measured: dict[str, list[Measured]] = {}
        for _, run_id, metrics in calls:
            measured.setdefault(run_id, []).extend(metrics)
        asked = dict.fromkeys((actor, run_id) for actor, run_id, _ in calls)
        # Taken out: who is cancelled halfway leaves nothing behind that may be from before its commit.
        known = {run_id: self._known.pop(run_id) for run_id in measured if run_id in self._known}
        try:
            written = await self._written(asked, measured, known)
        except Conflict:
            if not known:
                raise
            written = await self._written(asked, measured, {})
        for run, row in written:
            if len(row.latest) <= _KNOWN_CHARACTERS_MAX:
                self._known[run.id] = run, row
        while len(self._known) > _KNOWN_RUNS_MAX:
            del self._known[next(iter(self._known))]

    async def _written(
        self, asked: Iterable[tuple[Actor, str]], measured: Mapping[str, Sequence[Measured]], known: _Known
    ) -> list[tuple[TrackedRun, RunMetrics]]:
        """The runs as they are then. Raises Conflict when one that was known has changed meanwhile.

        Rows are locked in the order of their ids, so that two writers never wait in a ring.
        """
        runs: dict[str, TrackedRun] = {}
        written = []
        async with self._store.transaction() as tx:
            for actor, run_id in asked:
                runs[run_id] = told_by(
                    actor, known[run_id][0] if run_id in known else await self._find(tx, actor, run_id)
                )
            for run_id, run in sorted(runs.items()):
                row = known[run_id][1] if run_id in known else await metrics_of(tx, run_id)
                written.append((run, await measure(tx, run, row, measured[run_id])))
        return written


async def measure(tx: Tx, run: TrackedRun, row: RunMetrics, metrics: Sequence[Measured]) -> RunMetrics:
    """Keeps the points and the latest values; the row as it is then. Raises Conflict when it was another meanwhile."""
    latest = domain.merged(row.latest, metrics)
    # First, as this is what says whether the number of the parts is free.
    after = await tx.update(replace(row, latest=latest, batches=row.batches + 1, points=row.points + len(metrics)))
    parts = domain.parts_of(domain.grouped(metrics)).items()
    await tx.insert_many_once(
        [
            MetricPart(id=f"{run.id}#{row.batches:09}#{number:04}", run_id=run.id, key=key, points=points)
            for number, (key, points) in enumerate(parts)
        ]
    )
    by_model: dict[str, list[Measured]] = {}
    for each in metrics:
        if each.model_id:
            by_model.setdefault(each.model_id, []).append(each)
    for model_id, measured in sorted(by_model.items()):
        model = await tx.get(LoggedModel, model_id, lock=True)
        if model is None or model.project != run.project:
            raise NotFound(f"there is no logged model {model_id[:80]}")
        await tx.update(replace(model, metrics=domain.with_model_metrics(model.metrics, measured, run.id)))
    return after


async def metrics_of(tx: Tx, run_id: str) -> RunMetrics:
    """Locked, to be changed."""
    row = await tx.get(RunMetrics, run_id, lock=True)
    if row is None:
        raise NotFound(f"run {run_id} was not begun through tracking", HINT)
    return row


async def stale(tx: Tx, run_id: str) -> None:
    """The run may be told about no more, or again: whoever knows it as it was has to look."""
    await tx.update(await metrics_of(tx, run_id))


def told_by(actor: Actor, run: TrackedRun) -> TrackedRun:
    """The run, if the actor may tell about it. InvalidInput when it is deleted."""
    if not actor.sees(run.project):
        raise NotFound(f"there is no tracked run {run.id[:80]}", HINT)
    if actor.run_id and run.job != actor.run_id:
        raise Forbidden(f"the key of {actor.run_id}'s job tells of its own runs, not of {run.id}", "use your own key")
    if run.stage is not Stage.ACTIVE:
        raise InvalidInput(f"run {run.id} is deleted", "restore it first")
    return run
