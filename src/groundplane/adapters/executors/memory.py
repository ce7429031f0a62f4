"""A pool that runs nothing: attempts play a script against the clock. For tests and demonstrations; it says so.

Its offers are `simulated`, and everything it reports follows from the script, the clock and what was asked of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from groundplane.adapters.executors.keeping import NoFiles
from groundplane.adapters.executors.staging import NoData
from groundplane.adapters.executors.terminals import NoTerminals
from groundplane.adapters.executors.ways import NoWays
from groundplane.domain.node import Node, NodeAccelerator, NodeHealth
from groundplane.domain.order import LogChunk, Order, Sample
from groundplane.domain.planning.plan import Offer
from groundplane.domain.preflight import CheckResult, CheckStatus
from groundplane.domain.run import EndReason, FoundCheckpoint, MemberHang, Observation
from groundplane.errors import Conflict, Unavailable
from groundplane.ports import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What an attempt does. Times are seconds after its start, ascending; `ends_after_s` None runs until stopped.

    From `hangs_after_s` on every member hangs, and nobody reaches the rank `cut_off`. From `idle_after_s` on it idles.
    `seen` are its circumstances by rank.
    """

    log: tuple[tuple[float, bytes], ...] = ()
    checkpoints: tuple[tuple[float, FoundCheckpoint], ...] = ()
    ends_after_s: float | None = 0.0
    end_reason: EndReason = EndReason.SUCCEEDED
    exit_code: int | None = 0
    message: str = ""
    cpu_percent: float = 100.0
    memory_bytes: int = 2**30
    hangs_after_s: float | None = None
    cut_off: int | None = None
    idle_after_s: float | None = None
    seen: tuple[dict[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class _Ending:
    at_s: float
    reason: EndReason
    exit_code: int | None
    message: str


@dataclass(slots=True)
class _Playing:
    order: Order
    script: Script
    started_at: datetime
    stop: _Ending | None = None
    elapsed_s: float = 0.0
    released: bool = False

    def ending(self) -> _Ending | None:
        """The earliest of what can end it, once its time has come."""
        script, order = self.script, self.order
        last_date_s = (order.not_after - self.started_at).total_seconds()
        possible = [
            _Ending(
                order.max_duration_s, EndReason.MAX_DURATION, None, f"it ran for the {order.max_duration_s:g} s it may"
            ),
            _Ending(max(0.0, last_date_s), EndReason.END_DATE, None, "its end date is reached"),
        ]
        if script.ends_after_s is not None:
            possible.append(_Ending(script.ends_after_s, script.end_reason, script.exit_code, script.message))
        if self.stop is not None:
            possible.append(self.stop)
        first = min(possible, key=lambda ending: ending.at_s)
        return first if first.at_s <= self.elapsed_s else None


class MemoryExecutor(NoFiles, NoData, NoTerminals, NoWays):
    """ports.Executor in memory. `play` gives each order its script; the default succeeds at once. `check` answers for
    a node's preflight.

    `reachable = False` makes it a pool behind a cut cable: orders raise Unavailable, observations are unknown. Nodes in
    `silent` are behind one by themselves; those in `spot_trouble` would not see a cloud take them back.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        play: Callable[[Order], Script] = lambda _: Script(),
        offers: Sequence[Offer] = (),
        pool: str = "memory",
        check: Callable[[Order, str], Sequence[CheckResult]] | None = None,
    ) -> None:
        self._clock = clock
        self._play = play
        self._pool = pool
        self._offers = tuple(replace(offer, simulated=True) for offer in offers) or (self._default_offer(),)
        self._check = check or _nothing_to_check
        self._playing: dict[str, _Playing] = {}
        self._called_off: dict[str, EndReason] = {}
        self.reachable = True
        self.silent: dict[str, datetime] = {}
        self.spot_trouble: dict[str, str] = {}
        self.beats = 0

    # ---- Executor

    async def offers(self) -> Sequence[Offer]:
        return self._offers

    async def spot_blind(self) -> Mapping[str, str]:
        self._reach()
        return self.spot_trouble

    async def nodes(self) -> Sequence[Node]:
        """As many as the first offer has: memory-0 and on."""
        offer = self._offers[0]
        silent = set(self.silent) if self.reachable else {f"{self._pool}-{index}" for index in range(offer.nodes)}
        return [
            Node(
                name=name,
                pool=self._pool,
                cpus=offer.cpus,
                memory_bytes=offer.memory_bytes,
                disk_free_bytes=offer.disk_free_bytes,
                accelerators=tuple(
                    NodeAccelerator(index=card, model=offer.accelerator, memory_bytes=0)
                    for card in range(offer.accelerators)
                ),
                health=NodeHealth.SILENT if name in silent else NodeHealth.READY,
                reason=f"{name} does not answer" if name in silent else "",
            )
            for name in (f"{self._pool}-{index}" for index in range(offer.nodes))
        ]

    async def preflight(self, order: Order, node: str) -> Sequence[CheckResult]:
        self._reach()
        return self._check(order, node)

    async def start(self, order: Order) -> None:
        self._reach()
        if order.attempt_id in self._playing:
            return
        playing = _Playing(order, self._play(order), self._clock.now())
        if order.attempt_id in self._called_off:
            reason = self._called_off.pop(order.attempt_id)
            playing.stop = _Ending(-1.0, reason, None, "stopped before it started")
        self._playing[order.attempt_id] = playing

    async def observe(self, attempt_ids: Sequence[str]) -> dict[str, Observation]:
        return {attempt_id: self._observation(attempt_id) for attempt_id in attempt_ids}

    async def stop(self, attempt_id: str, reason: EndReason) -> None:
        self._reach()
        playing = self._playing.get(attempt_id)
        if playing is None:
            self._called_off.setdefault(attempt_id, reason)
        elif playing.stop is None and self._over(playing) is None:
            playing.stop = _Ending(playing.elapsed_s, reason, 143, "")

    async def log(self, attempt_id: str, offset: int, limit_bytes: int, rank: int = 0) -> LogChunk:
        """Every rank says the same."""
        self._reach()
        playing = self._playing.get(attempt_id)
        if playing is None:
            return LogChunk(data=b"", offset=offset, next_offset=offset, complete=False)
        over = self._over(playing)
        until_s = playing.elapsed_s if over is None else over.at_s
        whole = b"".join(text for at_s, text in playing.script.log if at_s <= until_s)
        data = whole[offset : offset + limit_bytes]
        end = offset + len(data)
        return LogChunk(data=data, offset=offset, next_offset=end, complete=over is not None and end >= len(whole))

    async def samples(self, attempt_id: str, limit: int) -> list[Sample]:
        """One every 2 simulated seconds, like a runner's."""
        self._reach()
        playing = self._playing.get(attempt_id)
        if playing is None:
            return []
        over = self._over(playing)
        count = int((playing.elapsed_s if over is None else max(0.0, over.at_s)) // 2) + 1
        return [
            Sample(
                at=playing.started_at + timedelta(seconds=2 * index),
                cpu_percent=playing.script.cpu_percent,
                memory_bytes=playing.script.memory_bytes,
                disk_free_bytes=self._offers[0].disk_free_bytes,
            )
            for index in range(max(0, count - limit), count)
        ]

    async def circumstances(self, attempt_id: str) -> list[dict[str, object]]:
        self._reach()
        playing = self._playing.get(attempt_id)
        return [] if playing is None or not playing.order.observe else [dict(each) for each in playing.script.seen]

    async def attempts(self) -> list[str]:
        self._reach()
        open_ids = {attempt_id for attempt_id, playing in self._playing.items() if not playing.released}
        return sorted(open_ids | set(self._called_off))

    async def release(self, attempt_id: str) -> None:
        self._reach()
        self._called_off.pop(attempt_id, None)
        playing = self._playing.get(attempt_id)
        if playing is None:
            return
        if self._over(playing) is None:
            raise Conflict(f"{attempt_id} is running; it can't be released", "stop it first")
        playing.released = True

    async def beat(self) -> None:
        self.beats += 1

    async def bring_outputs(self, attempt_id: str, run_id: str, target: Path) -> None:
        """Scripts write no files."""

    async def close(self) -> None:
        """Nothing is held."""

    # ---- inside

    def _reach(self) -> None:
        if not self.reachable:
            raise Unavailable(f"pool {self._pool} does not answer", "wait: what runs there goes on")

    def _over(self, playing: _Playing) -> _Ending | None:
        # A clock set back does not undo what has happened.
        elapsed_s = (self._clock.now() - playing.started_at).total_seconds()
        playing.elapsed_s = max(playing.elapsed_s, elapsed_s)
        return playing.ending()

    def _observation(self, attempt_id: str) -> Observation:
        if not self.reachable:
            return Observation(attempt_id=attempt_id, state="unknown", message=f"pool {self._pool} does not answer")
        playing = self._playing.get(attempt_id)
        if playing is None or playing.released:
            return Observation(attempt_id=attempt_id, state="absent")
        cut = [self.silent[node] for node in self._members(playing.order) if node in self.silent]
        if cut:
            message = "a node does not answer"
            return Observation(attempt_id=attempt_id, state="unknown", message=message, silent_since=min(cut))
        over, script = self._over(playing), playing.script
        until_s = playing.elapsed_s if over is None else over.at_s
        heard_s = max((at_s for at_s, _ in script.log if at_s <= until_s), default=None)
        seen = Observation(
            attempt_id=attempt_id,
            state="running",
            node=",".join(self._members(playing.order)),
            started_at=playing.started_at,
            last_log_at=None if heard_s is None else playing.started_at + timedelta(seconds=heard_s),
            checkpoints=tuple(found for at_s, found in script.checkpoints if at_s <= until_s),
        )
        seen = replace(seen, members=len(self._members(playing.order)), hangs=self._hangs(playing, until_s))
        idle_s = until_s if script.idle_after_s is None else min(until_s, script.idle_after_s)
        seen = replace(seen, active_at=playing.started_at + timedelta(seconds=max(0.0, idle_s)))
        if over is None:
            return replace(seen, cpu_percent=script.cpu_percent, memory_bytes=script.memory_bytes)
        return replace(
            seen,
            state="ended",
            started_at=playing.started_at if over.at_s >= 0 else None,
            ended_at=playing.started_at + timedelta(seconds=max(0.0, over.at_s)),
            end_reason=over.reason,
            exit_code=over.exit_code,
            message=over.message,
        )

    def _hangs(self, playing: _Playing, until_s: float) -> tuple[MemberHang, ...]:
        after_s, cut = playing.script.hangs_after_s, playing.script.cut_off
        if after_s is None or until_s < after_s:
            return ()
        nodes = self._members(playing.order)
        others = {rank: tuple(each for each in range(len(nodes)) if each != rank) for rank in range(len(nodes))}
        return tuple(
            MemberHang(
                node=node,
                rank=rank,
                why="simulated",
                quiet_s=until_s,
                unreachable=() if cut is None else others[rank] if rank == cut else (cut,),
            )
            for rank, node in enumerate(nodes)
        )

    def _members(self, order: Order) -> list[str]:
        """The named nodes, or the first ones: a pool that runs nothing is never full."""
        if order.placements:
            return [place.node for place in order.placements]
        return [f"{self._pool}-{index}" for index in range(order.nodes)]

    def _default_offer(self) -> Offer:
        return Offer(
            pool=self._pool,
            node_type="simulated",
            cpus=8.0,
            memory_bytes=32 * 2**30,
            disk_free_bytes=100 * 2**30,
            accelerators=0,
            accelerator="",
            price_microusd_per_hour=0,
            price_as_of=self._clock.now().date(),
            price_source="",
            simulated=True,
        )


def _nothing_to_check(_: Order, node: str) -> Sequence[CheckResult]:
    return [CheckResult(name="node", status=CheckStatus.SKIPPED, have=f"{node} is simulated: nothing to check")]
