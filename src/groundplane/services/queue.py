"""The queue of each pool: passes over it, what they decide made durable, and what people ask of it.

A pass reads what changed, lets `domain.scheduling` decide beside the event loop and outside of any transaction, and
writes starts and preemptions down in short transactions under a lock on one row. It throws its decisions away when
another pass wrote there meanwhile: two passes never give away the same accelerator. A placement is a row before it is
an attempt; what a run holds is given back in the transaction that says that it ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import cast

from groundplane.domain.node import Cordon, Node
from groundplane.domain.queue import ProjectQuota, QueueEntry, QueueState, Reservation, ReservedPart, Stage
from groundplane.domain.run import Checkpoint, EndReason, Run
from groundplane.domain.scheduling.scheduler import Scheduler
from groundplane.domain.scheduling.shares import decayed, dominant
from groundplane.domain.scheduling.state import (
    Amount,
    PoolState,
    Preempt,
    Reserved,
    Rules,
    Start,
    Waiting,
    class_name,
)
from groundplane.errors import Conflict, Unavailable
from groundplane.identity import SYSTEM
from groundplane.ports import Clock, Executor, Store, Tx
from groundplane.services.audit_trail import Teller
from groundplane.services.needs import find_needed

log = logging.getLogger(__name__)
USAGE_PERIOD_S = 60.0
LOOK_AGAIN_S = 15.0
_WRITES_AT_ONCE = 16
_READ_ALL_FROM = 0.3
_IDS_AT_ONCE = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One pool's queue as one pass sees it. `held_back` says why a run does not stand in line yet: layer, reason.

    `fresh` are entries for which a run that they need was found just now. `fence` changes when another pass decided,
    or a rule that this one relied on was changed. `noted_at` is when it was last written down what projects hold.
    """

    pool: str
    nodes: tuple[Node, ...]
    entries: tuple[QueueEntry, ...]
    state: PoolState
    held_back: dict[str, tuple[str, str]]
    failed_needs: dict[str, str]
    fresh: tuple[QueueEntry, ...]
    fence: object
    noted_at: datetime | None


@dataclass(slots=True)
class _Taken:
    """What one transaction of a pass took: starts and waited seconds by class, and preemptions."""

    started: Counter[str] = field(default_factory=Counter)
    waited_s: Counter[str] = field(default_factory=Counter)
    preempted: int = 0

    @property
    def total(self) -> int:
        return self.started.total() + self.preempted


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The queues in numbers. `waiting` is (pool, project, class) → how many, and how many seconds the oldest."""

    waiting: dict[tuple[str, str, str], tuple[int, float]]
    started: dict[str, int]
    waited_s: dict[str, float]
    preemptions: int
    passes: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the last pass over a pool saw and decided nothing on: the next would decide the same until `until`.

    `at_all` is the same while nothing at all was written, `stamp` while nothing was that a decision depends on.
    """

    at_all: object
    stamp: object
    until: datetime


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
        self._tell = Teller(clock, "run")
        self._executors = executors
        self._half_life_s = half_life_s
        self._rules = rules or Rules()
        self._wake = wake
        self._seen: dict[str, _Seen] = {}
        self._entries: dict[str, QueueEntry] = {}
        self._waiting: dict[str, tuple[QueueEntry, Waiting]] = {}

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

    async def view(self, tx: Tx, pool: str, nodes: Sequence[Node], *, also: QueueEntry | None = None) -> View:
        """What a pass over this pool would look at now, `also` as if this entry were in the queue."""
        now = self._clock.now()
        cordons = {each.node: each for each in await tx.find(Cordon, {"pool": pool})}
        nodes = [
            replace(node, cordoned=node.cordoned or cordons[node.name].reason) if node.name in cordons else node
            for node in nodes
        ]
        state = await tx.get(QueueState, "queue")
        fence = await _fence(tx, state)
        entries = await self._current(tx)
        quotas = await tx.find(ProjectQuota)
        reservations = await tx.find(Reservation, {"pool": pool})
        inside = tuple(entry for entry in (*entries, *([also] if also else [])) if entry.pool == pool)
        found = await find_needed(tx, inside)
        here = found.entries
        held_back = _held_back(here, found.waits, found.failed, now)
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
                waiting=tuple(self._as_waiting(e) for e in here if not e.holds and e.id not in held_back),
                holding=tuple(entry.holding(kept.get(entry.id)) for entry in here if entry.holds),
                quotas=tuple(quota.quota() for quota in quotas),
                reserved=tuple(_reserved(each, part) for each in reservations for part in each.parts),
                usage=dict(state.usage.get(pool, {})) if state is not None else {},
                elsewhere=elsewhere,
                rules=self._rules,
            ),
            held_back=held_back,
            failed_needs=found.failed,
            fresh=found.fresh,
            fence=fence,
            noted_at=state.usage_at if state is not None else None,
        )

    async def _current(self, tx: Tx) -> tuple[QueueEntry, ...]:
        """Every entry as it is now, by id. Only what changed since the last time is read: a long queue hardly does."""
        known = self._entries
        versions = {
            str(key[0]): version for key, version in (await tx.total(QueueEntry, "version", by=("id",))).items()
        }
        stale = [id for id, version in versions.items() if id not in known or known[id].version != version]
        if len(stale) > _READ_ALL_FROM * len(versions):
            fresh = {entry.id: entry for entry in await tx.find(QueueEntry)}
        else:
            fresh = {id: known[id] for id in versions if id in known}
            for start in range(0, len(stale), _IDS_AT_ONCE):
                chunk = tuple(stale[start : start + _IDS_AT_ONCE])
                fresh.update((entry.id, entry) for entry in await tx.find(QueueEntry, {"id": chunk}))
        self._entries = fresh
        for gone in self._waiting.keys() - fresh.keys():
            del self._waiting[gone]
        return tuple(fresh[id] for id in sorted(fresh))

    def _as_waiting(self, entry: QueueEntry) -> Waiting:
        kept = self._waiting.get(entry.id)
        if kept is None or kept[0] is not entry:
            kept = self._waiting[entry.id] = (entry, entry.waiting())
        return kept[1]

    async def tally(self) -> Tally:
        """For metrics: of every project, so the caller filters."""
        now = self._clock.now()
        async with self._store.transaction() as tx:
            state = await tx.get(QueueState, "queue") or QueueState(usage_at=now)
            entries = await self._current(tx)
        waiting: dict[tuple[str, str, str], tuple[int, float]] = {}
        for entry in entries:
            if entry.holds:
                continue
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
        shapes = tuple((n.name, n.takes_work, n.cpus, n.memory_bytes, len(n.accelerators)) for n in nodes)
        at_all, last = (self._store.writes, shapes), self._seen.get(pool)
        if last is not None and last.at_all == at_all and now < last.until:
            return 0
        async with self._store.transaction() as tx:
            stamp = (*await _versions(tx), shapes)
            if last is not None and last.stamp == stamp and now < last.until:
                self._seen[pool] = replace(last, at_all=at_all)
                return 0  # nothing came, ended or changed: the last pass would decide the same again
            seen = await self.view(tx, pool, nodes)
        decisions = await asyncio.to_thread(_decide, seen.state, now) if seen.entries else []
        noted_at = seen.noted_at or now
        due = bool(seen.entries) and (now - noted_at).total_seconds() >= USAGE_PERIOD_S
        decided = 0
        if decisions or seen.fresh or seen.failed_needs or due:
            decided = await self._write(seen, decisions, now)
        if not decisions and not decided:
            self._seen[pool] = _Seen(at_all, stamp, _look_again_at(seen, now))
        return decided

    async def _write(self, seen: View, decisions: Sequence[Start | Preempt], now: datetime) -> int:
        """Makes decisions durable, some at a time, so that nobody waits long for the database; how many it took.

        The rest is left for the next pass as soon as anything else decided, or a rule changed.
        """
        entries = {entry.id: entry for entry in seen.entries}
        fence, done = seen.fence, 0
        for start in range(0, max(1, len(decisions)), _WRITES_AT_ONCE):
            async with self._store.transaction() as tx:
                await tx.insert_once(QueueState(usage_at=now))
                state = await tx.get(QueueState, "queue", lock=True)
                if state is None:
                    raise ValueError("the row every pass locks is gone")
                if await _fence(tx, state) != fence:
                    return done
                if not start:
                    done += await _write_needs(tx, seen, entries, now)
                tally = _Taken()
                for each in decisions[start : start + _WRITES_AT_ONCE]:
                    try:
                        if isinstance(each, Start):
                            await self._place(tx, entries[each.id], each, now, tally)
                        else:
                            await self._make_leave(tx, entries[each.id], each, now, tally)
                    except Conflict:
                        log.info("%s changed while it was decided on", each.id)
                state = await self._write_state(tx, state, seen, tally, now)
                fence = await _fence(tx, state)
            done += tally.total
        return done

    async def _place(self, tx: Tx, entry: QueueEntry, start: Start, now: datetime, taken: _Taken) -> None:
        """The placement is durable before anything starts there; then the run is due, to begin its attempt."""
        run = await tx.get(Run, entry.id, lock=True)
        if run is None or run.status.is_over or run.stop_requested is not None:
            return
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
        await self._tell(tx, SYSTEM, "run.place", run.id, run.project, after)
        taken.started[class_name(entry.priority)] += 1
        taken.waited_s[class_name(entry.priority)] += waited_s

    async def _make_leave(self, tx: Tx, entry: QueueEntry, preempt: Preempt, now: datetime, taken: _Taken) -> None:
        run = await tx.get(Run, entry.id, lock=True)
        if run is None or run.status.is_over:
            return
        ends_at = now + timedelta(seconds=entry.grace_s)
        await tx.update(replace(entry, stage=Stage.LEAVING, ends_at=ends_at, gives_way_to=preempt.for_id))
        await _make_due(tx, run, now)
        after = {"for": preempt.for_id, "why": preempt.why, "lost_s": round(preempt.lost_s)}
        await self._tell(tx, SYSTEM, "run.preempt", run.id, run.project, after)
        taken.preempted += 1

    async def _write_state(self, tx: Tx, state: QueueState, seen: View, taken: _Taken, now: datetime) -> QueueState:
        """What projects held since the last time, and how often what was decided."""
        elapsed_s = (now - state.usage_at).total_seconds()
        if elapsed_s < USAGE_PERIOD_S and not taken.total:
            return state
        usage = state.usage if seen.pool in state.usage else {**state.usage, seen.pool: {}}
        whole = Amount(
            sum(len(node.accelerators) for node in seen.nodes),
            sum(round(node.cpus * 1000) for node in seen.nodes),
            sum(node.memory_bytes for node in seen.nodes),
        )
        held: dict[str, Amount] = {}
        for run in seen.state.holding:
            held[run.project] = held.get(run.project, Amount()).plus(run.ask.total)
        shares = {project: dominant(amount, whole) for project, amount in held.items()}
        fresh = {
            pool: decayed(
                of_pool, shares if pool == seen.pool else {}, elapsed_s=elapsed_s, half_life_s=self._half_life_s
            )
            for pool, of_pool in usage.items()
        }
        started, waited_s = Counter(state.started), Counter(state.waited_s)
        return await tx.update(
            replace(
                state,
                usage=fresh,
                usage_at=now,
                passes=state.passes + 1,
                starts=state.starts + taken.started.total(),
                preemptions=state.preemptions + taken.preempted,
                waited_s=dict(waited_s + taken.waited_s),
                started=dict(started + taken.started),
            )
        )


def _decide(state: PoolState, now: datetime) -> list[Start | Preempt]:
    return Scheduler(state).decide(now.timestamp())


async def _versions(tx: Tx) -> tuple[int, ...]:
    """Equal as long as no row changed that a decision depends on."""
    kinds: tuple[type, ...] = (QueueEntry, ProjectQuota, Reservation, Cordon)
    return tuple([(await tx.total(kind, what)).get((), 0) for kind in kinds for what in ("version", "*")])


async def _fence(tx: Tx, state: QueueState | None) -> object:
    """Equal as long as no other pass decided, and quotas, reservations and cordons stayed as they were."""
    rules: list[tuple[int, int]] = []
    for kind in (ProjectQuota, Reservation, Cordon):
        versions, count = await tx.total(kind, "version"), await tx.total(kind, "*")
        rules.append((versions.get((), 0), count.get((), 0)))
    return state.version if state is not None else 0, tuple(rules)


async def _write_needs(tx: Tx, seen: View, entries: dict[str, QueueEntry], now: datetime) -> int:
    """Keeps which runs are needed, and ends what needs one that failed; how many those are."""
    for entry in seen.fresh:
        try:
            entries[entry.id] = await tx.update(entry)
        except Conflict:
            log.info("%s changed while its needs were looked up", entry.id)
    failed = [await _fail(tx, run_id, why, now) for run_id, why in seen.failed_needs.items()]
    return sum(failed)


# ---------------------------------------------------------------- what holds a run back before its turn


def _held_back(
    entries: tuple[QueueEntry, ...], waits: Mapping[str, str], failed: Mapping[str, str], now: datetime
) -> dict[str, tuple[str, str]]:
    """Run → layer and reason why it does not stand in line yet."""
    reasons = {run_id: ("needs", why) for run_id, why in {**waits, **failed}.items()}
    at_once = Counter(entry.array for entry in entries if entry.array and entry.holds)
    may_wait = [e for e in entries if (e.not_before is not None or e.array) and not e.holds and e.id not in reasons]
    for entry in sorted(may_wait, key=lambda entry: (entry.queued_at, entry.id)):
        if entry.not_before is not None and entry.not_before > now:
            why = f"its last attempt failed; the next may begin at {entry.not_before:%H:%M:%S} UTC"
            reasons[entry.id] = "retry", why
        elif entry.array and entry.array_limit and at_once[entry.array] >= entry.array_limit:
            why = f"{entry.array_limit} elements of its array run already, as many as may at once"
            reasons[entry.id] = "array", why
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
    for start in range(0, len(ids), _IDS_AT_ONCE):
        chunk = ids[start : start + _IDS_AT_ONCE]
        for run_id, found_at in await tx.total(Checkpoint, "*", by=("run_id", "found_at"), where={"run_id": chunk}):
            at = cast(datetime, found_at)
            newest[str(run_id)] = max(at, newest.get(str(run_id), at))
    return newest


async def _fail(tx: Tx, run_id: str, why: str, now: datetime) -> bool:
    run = await tx.get(Run, run_id, lock=True)
    if run is None or run.status.is_over or run.stop_requested is not None:
        return False
    await _make_due(tx, replace(run, stop_requested=EndReason.NEED_FAILED, message=why), now)
    return True


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
