"""Lineage across the door: our runs and versions told to an OpenLineage receiver, and what others say of them kept.

What is told follows from the audit trail, event by event, and the cursor moves when the receiver has it: nothing is
lost, and at most the event that was on its way in a crash is told twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Protocol

from groundplane.audit import Event, EventDraft
from groundplane.domain.batch import Batch
from groundplane.domain.conditions import AtLeast
from groundplane.domain.dataset import DatasetVersion, LineageEdge
from groundplane.domain.evaluation import Evaluation
from groundplane.domain.lineage import (
    LineageCursor,
    LineageStanding,
    LineageView,
    OutsideEdge,
    OutsideEvent,
    Received,
)
from groundplane.domain.model import ModelVersion
from groundplane.domain.provenance import openlineage as ol
from groundplane.domain.run import Run
from groundplane.errors import InvalidInput, NotFound, Unavailable
from groundplane.identity import Actor
from groundplane.ports import Clock, Store, Tx

log = logging.getLogger(__name__)
OUT = "out"
BATCH = 200
MAX_LISTED = 1_000
_WAIT_MAX_S = 300
_STEPS_MAX = 20
_RUN_ACTIONS = {"run.attempt", "run.end"}
_VERSION_ACTIONS = {"dataset.register", "dataset.erase", "model.register"}


class LineageSink(Protocol):
    """Who is told."""

    @property
    def name(self) -> str:
        """Where that is, without any key."""
        ...

    async def tell(self, event: dict[str, object]) -> None:
        """Returns when it was received. Twice is taken for once by receivers, as OpenLineage demands of them.

        Raises Unavailable when it should be tried again, InvalidInput when the receiver will never take this event.
        """
        ...


class OpenLineage:
    """Tells, listens, shows."""

    def __init__(self, *, store: Store, clock: Clock, sink: LineageSink | None, namespace: str) -> None:
        self._store = store
        self._clock = clock
        self._sink = sink
        self._namespace = namespace
        self.refused = 0

    # ------------------------------------------------------------ out

    async def step(self) -> bool:
        """Tells what happened since the last step; whether there may be more at once."""
        if self._sink is None:
            return False
        now = self._clock.now()
        async with self._store.transaction() as tx:
            cursor = await tx.get(LineageCursor, OUT)
            if cursor is None:
                cursor = LineageCursor(id=OUT, event_id=0, told=0, failures=0, error="", at=now)
                await tx.insert(cursor)
            if cursor.retry_at is not None and cursor.retry_at > now:
                return False
            events = await tx.find(Event, {"id": AtLeast(cursor.event_id + 1)}, order="id", limit=BATCH)
        for event in events:
            moved = await self._tell(cursor, event)
            if moved is None:
                return False
            cursor = moved
        if events and cursor.event_id < events[-1].id:
            # What needs not be told moves the cursor once, not event by event.
            await self._move(replace(cursor, event_id=events[-1].id))
        return len(events) == BATCH

    async def _tell(self, cursor: LineageCursor, event: Event) -> LineageCursor | None:
        """The cursor after this event, or None when the receiver has to be asked again later."""
        assert self._sink is not None
        document = await self._document(event)
        if document is None:
            return cursor
        now, error = self._clock.now(), ""
        try:
            await self._sink.tell(document)
        except InvalidInput as refusal:
            # It would stand in the way of all that follow, and be refused each time: it is passed over and counted.
            log.error("lineage: the receiver does not take event %d: %s", event.id, refusal.message)
            self.refused += 1
            error = f"event {event.id} was refused: {refusal.message}"
        except Unavailable as failure:
            wait_s = min(_WAIT_MAX_S, 2 ** min(cursor.failures, 10))
            late = replace(
                cursor, failures=cursor.failures + 1, error=failure.message, retry_at=now + timedelta(seconds=wait_s)
            )
            await self._move(late)
            return None
        told = cursor.told + (0 if error else 1)
        return await self._move(
            replace(cursor, event_id=event.id, told=told, failures=0, error=error, at=now, retry_at=None)
        )

    async def _move(self, after: LineageCursor) -> LineageCursor:
        async with self._store.transaction() as tx:
            return await tx.update(after)

    async def _document(self, event: Event) -> ol.Document | None:
        async with self._store.transaction() as tx:
            if event.action in _RUN_ACTIONS:
                return await self._run(tx, event)
            if event.action not in _VERSION_ACTIONS:
                return None
            if event.action == "model.register":
                model = await tx.get(ModelVersion, event.object_id)
                # A run's own output is told with the run.
                own = model is not None and not model.run_id
                return ol.dataset_event(ol.model_of(model, self._namespace), event.at) if model and own else None
            dataset = await tx.get(DatasetVersion, event.object_id)
            if dataset is None:
                return None
            dropped = event.action == "dataset.erase"
            return ol.dataset_event(ol.dataset_of(dataset, self._namespace, dropped=dropped), event.at)

    async def _run(self, tx: Tx, event: Event) -> ol.Document | None:
        run = await tx.get(Run, event.object_id)
        if run is None or run.endpoint:
            return None
        state = "START" if event.after.get("attempt") == 1 else "RUNNING"
        outputs: list[ol.Document] = []
        if event.action == "run.end":
            state = ol.end_state(run.status)
            for edge in await tx.find(LineageEdge, {"parent": f"run:{run.id}"}, order="id"):
                made = await self._made(tx, edge.child)
                outputs += [made] if made is not None else []
        inputs = []
        for source in run.spec.data:
            known = await tx.get(DatasetVersion, source.dataset) if source.dataset else None
            named = ol.dataset_of(known, self._namespace) if known else ol.source_of(source)
            inputs += [named] if named is not None else []
        asked = await tx.get(ModelVersion, await _asked(tx, run))
        inputs += [ol.model_of(asked, self._namespace)] if asked is not None else []
        told = ol.Told(run=run, state=state, at=event.at, inputs=inputs, outputs=outputs)
        return ol.run_event(told, self._namespace)

    async def _made(self, tx: Tx, node: str) -> ol.Document | None:
        kind, _, ref = node.partition(":")
        if kind == "model":
            model = await tx.get(ModelVersion, ref)
            return ol.model_of(model, self._namespace) if model else None
        dataset = await tx.get(DatasetVersion, ref) if kind == "dataset" else None
        return ol.dataset_of(dataset, self._namespace) if dataset else None

    async def standing(self) -> LineageStanding:
        """How far the receiver was told, and what it says when it does not answer."""
        async with self._store.transaction() as tx:
            cursor = await tx.get(LineageCursor, OUT)
            head = await tx.chain_head()
        reached = cursor.event_id if cursor else 0
        return LineageStanding(
            receiver=self._sink.name if self._sink else "",
            event_id=reached,
            behind=(head.id if head else 0) - reached if self._sink else 0,
            told=cursor.told if cursor else 0,
            refused=self.refused,
            failures=cursor.failures if cursor else 0,
            error=cursor.error if cursor else "",
        )

    # ------------------------------------------------------------ in

    async def receive(self, actor: Actor, document: object) -> Received:
        """Keeps what somebody says of a job outside, as edges on what is ours. Twice is the same as once.

        Only what the actor sees is matched. InvalidInput with everything that is wrong with the event.
        """
        event = ol.heard(document)
        async with self._store.transaction() as tx:
            ours = {named: await self._matched(tx, actor, named) for named in (*event.inputs, *event.outputs)}
            project = next((found[1] for found in ours.values() if found), actor.project or "")
            row = OutsideEvent(
                id=event.id,
                project=project,
                job=event.job,
                run=event.run,
                state=event.state,
                occurred_at=event.at,
                producer=event.producer,
                inputs=tuple(_node(named, ours) for named in event.inputs),
                outputs=tuple(_node(named, ours) for named in event.outputs),
                reported_by=actor.name,
                at=self._clock.now(),
            )
            edges = self._edges(row, event, ours)
            new = await tx.insert_once(row)
            if new:
                added = await tx.insert_many_once(edges)
                if added:
                    await tx.append_event(self._told(actor, row, edges))
        return Received(
            id=event.id,
            new=new,
            matched=tuple(sorted({found[0] for found in ours.values() if found})),
            unmatched=tuple(sorted({str(named) for named, found in ours.items() if not found})),
            edges=len(edges),
        )

    def _edges(
        self, row: OutsideEvent, event: ol.Heard, ours: dict[ol.Named, tuple[str, str] | None]
    ) -> list[OutsideEdge]:
        """From each input to each output, where one of the two is ours; from or to the job where the event has one

        side only.
        """
        job = f"outside:{row.job}"
        parents = [(_node(named, ours), ours[named]) for named in event.inputs] or [(job, None)]
        children = [(_node(named, ours), ours[named]) for named in event.outputs] or [(job, None)]
        edges = {}
        for parent, mine in parents:
            for child, its in children:
                known = mine or its
                if known is None or parent == child:
                    continue
                edge_id = f"{parent}>{child}@{row.run or row.id}"
                edges[edge_id] = OutsideEdge(
                    id=edge_id,
                    parent=parent,
                    child=child,
                    project=known[1],
                    job=row.job,
                    run=row.run,
                    event_id=row.id,
                    reported_by=row.reported_by,
                    at=row.at,
                )
        return list(edges.values())

    async def _matched(self, tx: Tx, actor: Actor, named: ol.Named) -> tuple[str, str] | None:
        """(node, project) of ours: by name and number, by digest, or by the one version that lies at that place."""
        found: Sequence[DatasetVersion | ModelVersion] = []
        own = named.own(self._namespace)
        if own is not None:
            kind, project, name, number = own
            row_kind: type[DatasetVersion] | type[ModelVersion] = DatasetVersion if kind == "datasets" else ModelVersion
            row = await tx.get(row_kind, f"{name}@{number}")
            found = [row] if row is not None and row.project == project else []
        elif named.sha256:
            found = [
                *await tx.find(DatasetVersion, {"digest": named.sha256}),
                *await tx.find(ModelVersion, {"manifest_sha256": named.sha256}),
            ]
        else:
            places = tuple(form for place in named.places for form in (place, f"{place}/"))
            found = await tx.find(DatasetVersion, {"location": places})
            if named.version:
                found = [each for each in found if str(each.number) == named.version]
        seen = [each for each in found if actor.sees(each.project)]
        if len(seen) != 1:
            # Of several that lie in one place nobody says which it was: a guess would be worse than nothing.
            return None
        kind = "model" if isinstance(seen[0], ModelVersion) else "dataset"
        return f"{kind}:{seen[0].id}", seen[0].project

    def _told(self, actor: Actor, row: OutsideEvent, edges: Sequence[OutsideEdge]) -> EventDraft:
        after: dict[str, object] = {"job": row.job, "run": row.run, "state": row.state, "edges": len(edges)}
        return EventDraft(
            at=row.at,
            actor=actor.name,
            action="lineage.receive",
            object_kind="lineage",
            object_id=row.id,
            project=row.project,
            after=after,
        )

    # ------------------------------------------------------------ reading

    async def heard(self, actor: Actor, *, limit: int = 100) -> list[OutsideEvent]:
        """Events from outside that the actor sees, newest first."""
        where: dict[str, object] = {} if actor.sees("") else {"project": actor.project or ""}
        async with self._store.transaction() as tx:
            return await tx.find(OutsideEvent, where, order="-at", limit=min(limit, MAX_LISTED))

    async def view(self, actor: Actor, node: str) -> LineageView:
        """All that a version was made from and all that was made from it. NotFound, InvalidInput."""
        kind, _, ref = node.partition(":")
        kinds: dict[str, type[DatasetVersion] | type[ModelVersion]] = {"dataset": DatasetVersion, "model": ModelVersion}
        if kind not in kinds or "@" not in ref:
            named = node[:80] if "@" in node and ":" not in node else "NAME@VERSION"
            raise InvalidInput(f"{node[:80]!r} names no version", f"write model:{named} or dataset:{named}")
        async with self._store.transaction() as tx:
            row = await tx.get(kinds[kind], ref)
            if row is None or not actor.sees(row.project):
                raise NotFound(f"there is no {kind} {ref}", f"ground {kind}s list shows the ones you see")
            roots = {node}
            if isinstance(row, DatasetVersion):
                roots |= {f"sha256:{row.digest}", *(f"sha256:{file.sha256}" for file in row.files[:BATCH])}
            edges: dict[str, LineageEdge] = {}
            for near, far in (("parent", "child"), ("child", "parent")):
                front = tuple(sorted(roots))
                for _ in range(_STEPS_MAX):
                    new = [each for each in await tx.find(LineageEdge, {near: front}) if each.id not in edges]
                    if not new:
                        break
                    edges |= {each.id: each for each in new}
                    front = tuple({str(getattr(each, far)) for each in new})
            nodes = tuple({node, *(each.parent for each in edges.values()), *(each.child for each in edges.values())})
            outside = {each.id: each for each in await tx.find(OutsideEdge, {"parent": nodes})}
            outside |= {each.id: each for each in await tx.find(OutsideEdge, {"child": nodes})}
            visible = sorted((each for each in edges.values() if actor.sees(each.project)), key=lambda each: each.at)
            known = await _registered(tx, visible)
            pairs = tuple(dict.fromkeys((known.get(each.parent, each.parent), each.child) for each in visible))
            names = await _names(tx, {each for pair in pairs for each in pair if each.startswith("run:")})
        return LineageView(
            node=node,
            edges=pairs,
            names=names,
            outside=tuple(
                sorted((e for e in outside.values() if actor.sees(e.project)), key=lambda each: (each.at, each.id))
            ),
        )

    async def counts(self) -> dict[str, int]:
        """Project → events that came from outside."""
        async with self._store.transaction() as tx:
            found = await tx.total(OutsideEvent, "*", by=("project",))
        return {str(project): number for (project,), number in found.items()}


async def _asked(tx: Tx, run: Run) -> str:
    """The version that an evaluation or a batch asks; of an endpoint's only its result knows. "" for other runs."""
    need = run.spec.inference
    if need is None or need.asking.model:
        return need.asking.model if need is not None else ""
    row: type[Evaluation] | type[Batch] = Evaluation if run.spec.evaluation is not None else Batch
    found = await tx.get(row, run.id)
    return found.model_version if found is not None else ""


async def _registered(tx: Tx, edges: Sequence[LineageEdge]) -> dict[str, str]:
    """Digests that are a registered version's own, by the version: one thing is shown under one name."""
    digests = {each.parent.removeprefix("sha256:") for each in edges if each.parent.startswith("sha256:")}
    rows = await tx.find(DatasetVersion, {"digest": tuple(digests)}) if digests else []
    names = {each.parent for each in edges}
    found: dict[str, str] = {}
    for row in rows:
        node = f"dataset:{row.id}"
        if node in names or sum(other.digest == row.digest for other in rows) == 1:
            found[f"sha256:{row.digest}"] = node
    return found


async def _names(tx: Tx, nodes: set[str]) -> dict[str, str]:
    ids = tuple(sorted(each.removeprefix("run:") for each in nodes))
    runs = await tx.find(Run, {"id": ids}) if ids else []
    scores = {each.id: each.scores for each in await tx.find(Evaluation, {"id": ids})} if ids else {}
    found: dict[str, str] = {}
    for run in runs:
        kind = "evaluation" if run.spec.evaluation is not None else "batch" if run.spec.batch is not None else "job"
        told = ", ".join(f"{score.metric} {score.mean:.3g}" for score in scores.get(run.id, ())) or run.status.value
        found[f"run:{run.id}"] = f"{kind} {run.name}: {told}"
    return found


def _node(named: ol.Named, ours: dict[ol.Named, tuple[str, str] | None]) -> str:
    found = ours[named]
    return found[0] if found else str(named)
