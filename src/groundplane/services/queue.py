"""The queue of each pool: passes over it, what they decide made durable, and what people ask of it.

A pass reads everything, lets `domain.scheduling` decide, and writes starts and preemptions down in one transaction and
under a lock on one row: two passes never see the same free accelerator. A placement is a row before it is an attempt;
what a run holds is given back in the transaction that says that it ended.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from groundplane.audit import EventDraft
from groundplane.domain.node import Cordon, Node
from groundplane.domain.queue import ProjectQuota, QueueEntry, QueueState, Reservation, ReservedPart, Stage
from groundplane.domain.run import Checkpoint, EndReason, Run, RunStatus
from groundplane.domain.scheduling.scheduler import schedule
from groundplane.domain.scheduling.shares import decayed, dominant
from groundplane.domain.scheduling.state import Amount, Decision, PoolState, Preempt, Reserved, Rules, Start, class_name
from groundplane.errors import Unavailable
from groundplane.identity import SYSTEM
from groundplane.ports import Clock, Executor, Store, Tx

log = logging.getLogger(__name__)
USAGE_PERIOD_S = 60.0
LOOK_AGAIN_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One pool's queue as one pass sees it. `held_back` says why a run does not stand in line yet."""

    pool: str
    nodes: tuple[Node, ...]
    entries: tuple[QueueEntry, ...]
    state: PoolState
    held_back: dict[str, str]
    failed_needs: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The queues in numbers. `waiting` is (pool, project, class) → how many, and how many seconds the oldest."""

    waiting: dict[tuple[str, str, str], tuple[int, float]]
    started: dict[str, int]
    waited_s: dict[str, float]
    preemptions: int
    passes: int


class Queue:
    """Passes over the queues of all pools. `half_life_s` is how fast what a project held is forgotten."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        executors: Mapping[str, Executor],
        half_life_s: float = 86_400.0,
        rules: Rules | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._executors = executors
        self._half_life_s = half_life_s
        self._rules = rules or Rules()
        self._wake = wake
        self._seen: dict[str, tuple[object, datetime]] = {}

    async def step(self) -> int:
        """One pass over each pool; how many runs were told to start or to give way."""
        decided = 0
        for pool in sorted(self._executors):
            try:
                nodes = tuple(await self._executors[pool].nodes())
            except Unavailable as error:
                log.warning("the queue of pool %s waits: %s", pool, error)
                continue
            decided += await self._pass(pool, nodes)
        if decided:
            self._wake()
        return decided

    async def view(self, tx: Tx, pool: str, nodes: Sequence[Node]) -> View:
        """What a pass over this pool would look at now."""
        now = self._clock.now()
        cordons = {each.node: each for each in await tx.find(Cordon, {"pool": pool})}
        nodes = [
            replace(node, cordoned=node.cordoned or cordons[node.name].reason) if node.name in cordons else node
            for node in nodes
        ]
        state = await tx.get(QueueState, "queue")
        entries = tuple(await tx.find(QueueEntry))
        quotas = await tx.find(ProjectQuota)
        reservations = await tx.find(Reservation, {"pool": pool})
        here = tuple(entry for entry in entries if entry.pool == pool)
        here, failed = await _with_needs(tx, here)
        held_back = _held_back(here, failed, now)
        waiting = tuple(e.waiting() for e in here if not e.holds and e.id not in held_back)
        kept = await _kept_at(tx, here)
        elsewhere: dict[str, Amount] = {}
        for entry in entries:
            if entry.pool != pool and entry.holds:
                elsewhere[entry.project] = elsewhere.get(entry.project, Amount()).plus(entry.ask.total)
        return View(
            pool=pool,
            nodes=tuple(nodes),
            entries=here,
            state=PoolState(
                nodes=tuple(nodes),
                waiting=waiting,
                holding=tuple(entry.holding(kept.get(entry.id)) for entry in here if entry.holds),
                quotas=tuple(quota.quota() for quota in quotas),
                reserved=tuple(_reserved(each, part) for each in reservations for part in each.parts),
                usage=dict(state.usage.get(pool, {})) if state is not None else {},
                elsewhere=elsewhere,
                rules=self._rules,
            ),
            held_back=held_back,
            failed_needs=failed,
        )

    async def tally(self) -> Tally:
        """For metrics: of every project, so the caller filters."""
        now = self._clock.now()
        async with self._store.transaction() as tx:
            state = await tx.get(QueueState, "queue") or QueueState(usage_at=now)
            entries = await tx.find(QueueEntry, {"stage": Stage.WAITING})
        waiting: dict[tuple[str, str, str], tuple[int, float]] = {}
        for entry in entries:
            line = (entry.pool, entry.project, class_name(entry.priority))
            count, oldest_s = waiting.get(line, (0, 0.0))
            waiting[line] = (count + 1, max(oldest_s, (now - entry.queued_at).total_seconds()))
        return Tally(
            waiting=waiting,
            started=state.started,
            waited_s=state.waited_s,
            preemptions=state.preemptions,
            passes=state.passes,
        )

    # ------------------------------------------------------------ a pass

    async def _pass(self, pool: str, nodes: tuple[Node, ...]) -> int:
        now = self._clock.now()
        async with self._store.transaction() as tx:
            stamp = await self._stamp(tx, pool, nodes)
            last = self._seen.get(pool)
            if last is not None and last[0] == stamp and now < last[1]:
                return 0  # nothing came, ended or changed: the last pass would decide the same again
            await tx.insert_once(QueueState(usage_at=now))
            state = await tx.get(QueueState, "queue", lock=True)
            if state is None:
                raise ValueError("the row every pass locks is gone")
            seen = await self.view(tx, pool, nodes)
            if not seen.entries:
                self._seen[pool] = (stamp, _look_again_at(seen, now))
                return 0
            decisions = schedule(seen.state, now.timestamp())
            begun = [each for each in decisions if isinstance(each, Start)]
            leaving = [each for each in decisions if isinstance(each, Preempt)]
            entries = {entry.id: entry for entry in seen.entries}
            waited: Counter[str] = Counter()
            started: Counter[str] = Counter()
            for start in begun:
                entry = entries[start.id]
                if await self._place(tx, entry, start, now):
                    started[class_name(entry.priority)] += 1
                    waited[class_name(entry.priority)] += round((now - entry.queued_at).total_seconds())
            for preempt in leaving:
                await self._make_leave(tx, entries[preempt.id], preempt, now)
            for run_id, why in seen.failed_needs.items():
                await _fail(tx, run_id, why, now)
            await self._write_state(tx, state, seen, decisions, waited, started)
        if not begun and not leaving:
            self._seen[pool] = (stamp, _look_again_at(seen, now))
        return len(begun) + len(leaving) + len(seen.failed_needs)

    async def _stamp(self, tx: Tx, pool: str, nodes: tuple[Node, ...]) -> object:
        """Equal as long as nothing changed that a decision depends on, time apart."""
        kinds: tuple[type, ...] = (QueueEntry, ProjectQuota, Reservation, Cordon)
        versions = [(await tx.total(kind, "version")).get((), 0) for kind in kinds]
        counts = [(await tx.total(kind, "*")).get((), 0) for kind in kinds]
        shapes = tuple((n.name, n.takes_work, n.cpus, n.memory_bytes, len(n.accelerators)) for n in nodes)
        return tuple(versions), tuple(counts), shapes

    async def _place(self, tx: Tx, entry: QueueEntry, start: Start, now: datetime) -> bool:
        """The placement is durable before anything starts there; then the run is due, to begin its attempt."""
        run = await tx.get(Run, entry.id, lock=True)
        if run is None or run.status.is_over or run.stop_requested is not None:
            return False
        await tx.update(
            replace(
                entry,
                stage=Stage.PLACED,
                placements=start.places,
                placed_at=now,
                ends_at=now + timedelta(seconds=entry.expected_s),
                not_before=None,
            )
        )
        await _make_due(tx, run, now)
        places = [f"{place.node}:{','.join(map(str, place.accelerators))}".rstrip(":") for place in start.places]
        waited_s = round((now - entry.queued_at).total_seconds())
        after = {"places": places, "waited_s": waited_s, "backfilled": start.backfilled}
        await tx.append_event(_event(run, now, "run.place", after))
        return True

    async def _make_leave(self, tx: Tx, entry: QueueEntry, preempt: Preempt, now: datetime) -> None:
        run = await tx.get(Run, entry.id, lock=True)
        if run is None or run.status.is_over:
            return
        ends_at = now + timedelta(seconds=entry.grace_s)
        await tx.update(replace(entry, stage=Stage.LEAVING, ends_at=ends_at, gives_way_to=preempt.for_id))
        await _make_due(tx, run, now)
        after = {"for": preempt.for_id, "why": preempt.why, "lost_s": round(preempt.lost_s)}
        await tx.append_event(_event(run, now, "run.preempt", after))

    async def _write_state(
        self,
        tx: Tx,
        state: QueueState,
        seen: View,
        decisions: Sequence[Decision],
        waited: Counter[str],
        started: Counter[str],
    ) -> None:
        """What projects held since the last time, and how often what was decided."""
        now = self._clock.now()
        elapsed_s = (now - state.usage_at).total_seconds()
        preempted = sum(isinstance(each, Preempt) for each in decisions)
        if elapsed_s < USAGE_PERIOD_S and not started and not preempted:
            return
        usage = state.usage if seen.pool in state.usage else {**state.usage, seen.pool: {}}
        whole = Amount(
            sum(len(node.accelerators) for node in seen.nodes),
            sum(round(node.cpus * 1000) for node in seen.nodes),
            sum(node.memory_bytes for node in seen.nodes),
        )
        held: dict[str, Amount] = {}
        for entry in seen.entries:
            if entry.holds:
                held[entry.project] = held.get(entry.project, Amount()).plus(entry.ask.total)
        shares = {project: dominant(amount, whole) for project, amount in held.items()}
        fresh = {
            pool: decayed(
                of_pool, shares if pool == seen.pool else {}, elapsed_s=elapsed_s, half_life_s=self._half_life_s
            )
            for pool, of_pool in usage.items()
        }
        await tx.update(
            replace(
                state,
                usage=fresh,
                usage_at=now,
                passes=state.passes + 1,
                starts=state.starts + sum(started.values()),
                preemptions=state.preemptions + preempted,
                waited_s={name: state.waited_s.get(name, 0) + waited[name] for name in {*state.waited_s, *waited}},
                started={name: state.started.get(name, 0) + started[name] for name in {*state.started, *started}},
            )
        )


# ---------------------------------------------------------------- what holds a run back before its turn


async def _with_needs(tx: Tx, entries: tuple[QueueEntry, ...]) -> tuple[tuple[QueueEntry, ...], dict[str, str]]:
    """The entries with their needs found by name, and what failed for whom. A need once found stays the same run."""
    found: list[QueueEntry] = []
    failed: dict[str, str] = {}
    for entry in entries:
        if entry.holds or not entry.needs:
            found.append(entry)
            continue
        needs: dict[str, str] = {}
        for name, known in entry.needs.items():
            run = await _needed(tx, entry, name, known)
            needs[name] = run.id if run is not None else ""
            if run is not None and run.status.is_over and run.status is not RunStatus.SUCCEEDED:
                failed[entry.id] = f"it needs {name} ({run.id}), which {run.status}"
        found.append(entry if needs == entry.needs else await tx.update(replace(entry, needs=needs)))
    return tuple(found), failed


async def _needed(tx: Tx, entry: QueueEntry, name: str, known: str) -> Run | None:
    if known or name.startswith("run-"):
        run = await tx.get(Run, known or name)
        return run if run is not None and run.project == entry.project else None
    same = await tx.find(Run, {"project": entry.project, "name": name}, order="-created_at", limit=2)
    return next((run for run in same if run.id != entry.id), None)


def _held_back(entries: tuple[QueueEntry, ...], failed: Mapping[str, str], now: datetime) -> dict[str, str]:
    """Run → why it does not stand in line yet."""
    reasons = dict(failed)
    at_once = Counter(entry.array for entry in entries if entry.array and entry.holds)
    for entry in sorted(entries, key=lambda entry: (entry.queued_at, entry.id)):
        if entry.holds or entry.id in reasons:
            continue
        if open_needs := [name for name, run_id in entry.needs.items() if not run_id]:
            reasons[entry.id] = f"it needs {', '.join(open_needs)}, and no run of that name is there yet"
        elif entry.not_before is not None and entry.not_before > now:
            reasons[entry.id] = f"its last attempt failed; the next may begin at {entry.not_before:%H:%M:%S} UTC"
        elif entry.array and entry.array_limit and at_once[entry.array] >= entry.array_limit:
            reasons[entry.id] = f"{entry.array_limit} elements of its array run already, as many as may at once"
        elif entry.array:
            at_once[entry.array] += 1
    return reasons


def _look_again_at(seen: View, now: datetime) -> datetime:
    """When time alone may change a decision: a back-off over, a reservation begun or ended, or simply a while."""
    moments = [now + timedelta(seconds=LOOK_AGAIN_S)]
    moments += [entry.not_before for entry in seen.entries if entry.not_before is not None]
    for each in seen.state.reserved:
        moments += [datetime.fromtimestamp(at, UTC) for at in (each.start, each.end)]
    return min(moment for moment in moments if moment > now)


async def _kept_at(tx: Tx, entries: tuple[QueueEntry, ...]) -> dict[str, datetime]:
    """When the newest checkpoint of each run was found that could be asked to give way to somebody."""
    top = max((entry.priority for entry in entries if not entry.holds), default=0)
    ids = tuple(entry.id for entry in entries if entry.holds and entry.priority <= top)
    newest: dict[str, datetime] = {}
    for checkpoint in await tx.find(Checkpoint, {"run_id": ids}, order="found_at") if ids else ():
        newest[checkpoint.run_id] = checkpoint.found_at
    return newest


async def _fail(tx: Tx, run_id: str, why: str, now: datetime) -> None:
    run = await tx.get(Run, run_id, lock=True)
    if run is not None and not run.status.is_over and run.stop_requested is None:
        await _make_due(tx, replace(run, stop_requested=EndReason.NEED_FAILED, message=why), now)


async def _make_due(tx: Tx, run: Run, now: datetime) -> None:
    # Giving up the lease is safe: a reconcile under way fails its commit on the new version.
    await tx.update(replace(run, due_at=now, lease_owner="", lease_expires_at=None))


def _reserved(reservation: Reservation, part: ReservedPart) -> Reserved:
    return Reserved(
        id=reservation.id,
        project=reservation.project,
        node=part.node,
        start=reservation.starts_at.timestamp(),
        end=reservation.ends_at.timestamp(),
        accelerators=part.accelerators,
        cpus_milli=part.cpus_milli,
    )


def _event(run: Run, now: datetime, action: str, after: dict[str, object]) -> EventDraft:
    return EventDraft(
        at=now,
        actor=SYSTEM.name,
        action=action,
        object_kind="run",
        object_id=run.id,
        project=run.project,
        after=after,
    )
