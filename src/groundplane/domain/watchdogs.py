"""What watchdogs conclude: is it our network that fell silent, who hangs, what idling and crashing cost.

Nothing here acts. A conclusion that would end work needs the opposite of silence: somebody who was heard and says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from groundplane.domain.run import ENDINGS, Attempt, Checkpoint, EndReason, MemberHang, Observation, Run
from groundplane.units import cost_microusd, format_duration, format_usd

STORM_LEAST = 2
WEEKEND_S = 60 * 3600.0
"""Friday 19:00 to Monday 07:00: how long nobody looks."""

CRASHES = frozenset(reason for reason, ending in ENDINGS.items() if ending.retry) - {
    EndReason.PREEMPTED,
    EndReason.NOT_PLACED,
    EndReason.TEST_KILL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """How many machines a control plane watches over a network, and how many of them don't answer."""

    nodes: int
    silent: int

    def storm(self, percent_max: float) -> str:
        """Why silence proves nothing now: so many at once that it is more likely us; "" when it is not so."""
        if self.silent < STORM_LEAST or self.silent * 100 <= percent_max * self.nodes:
            return ""
        return f"{self.silent} of {self.nodes} nodes fell silent together: that is our own network, until they answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """The member that a hang is due to, as far as others bear witness: `votes` of them can't reach it."""

    node: str
    rank: int
    votes: int
    others: int

    @property
    def sentence(self) -> str:
        return f"{self.node} (rank {self.rank}) can't be reached by {self.votes} of the {self.others} others"


def is_hung(seen: Observation) -> bool:
    """Whether every member of the attempt is stuck. One that still gets somewhere means that the gang does."""
    return seen.state == "running" and 0 < seen.members == len(seen.hangs)


def suspect(hangs: Sequence[MemberHang]) -> Suspect | None:
    """The one member that most of the others can't reach; None where witnesses disagree, or there is only one."""
    votes = Counter(rank for each in hangs for rank in set(each.unreachable) if rank != each.rank)
    by_rank = {each.rank: each for each in hangs}
    if len(hangs) < 3 or not votes:  # of two that don't reach each other, neither is more to blame
        return None
    (rank, most), *rest = votes.most_common()
    others = len(hangs) - 1
    if rank not in by_rank or 2 * most <= others or (rest and rest[0][1] == most):
        return None
    return Suspect(node=by_rank[rank].node, rank=rank, votes=most, others=others)


def hang_sentence(seen: Observation) -> str:
    """What was seen of a hang, and whom it points to."""
    if not seen.hangs:
        return ""
    first = max(seen.hangs, key=lambda each: each.quiet_s)
    named = suspect(seen.hangs)
    where = f"; {named.sentence}" if named is not None else ""
    members = f"all {len(seen.hangs)} members hang: " if len(seen.hangs) > 1 else ""
    return f"{members}{first.why} on {first.node}{where}; ground stacks shows what it did"


def fewer_nodes(wanted: int, least: int, fit: int) -> int:
    """How many nodes a run asks for next, when `fit` of its pool's take work and its spec does with `least`."""
    return wanted if not least or fit >= wanted or fit < least else fit


# ---------------------------------------------------------------- what it costs


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashCost:
    """What one ending cost: work that had to be done again, and time until it ran again, which nobody is billed for."""

    attempt: int
    again_s: float
    down_s: float
    microusd: int
    weekend_microusd: int

    @property
    def sentence(self) -> str:
        down = f" and {format_duration(self.down_s)} until it ran again" if self.down_s >= 1 else ""
        return (
            f"the crash of attempt {self.attempt} cost {format_duration(self.again_s + self.down_s)} ="
            f" {format_usd(self.microusd)}: {format_duration(self.again_s)} of work to do again{down};"
            f" an unattended weekend of 60 h would have cost {format_usd(self.weekend_microusd)}"
        )


def crash_costs(run: Run, attempts: Sequence[Attempt], checkpoints: Sequence[Checkpoint]) -> tuple[CrashCost, ...]:
    """One per attempt that ended in a way that another may mend. What was lost is what came after its last checkpoint.

    The weekend is what its nodes would have cost, held by a dead job from Friday 19:00 to Monday 07:00.
    """
    found: list[CrashCost] = []
    for index, each in enumerate(attempts):
        if each.end_reason not in CRASHES or each.started_at is None or each.ended_at is None:
            continue
        saved = [c.found_at for c in checkpoints if c.attempt_id == each.id and c.found_at <= each.ended_at]
        again_s = max(0.0, (each.ended_at - max([each.started_at, *saved])).total_seconds())
        after = attempts[index + 1] if index + 1 < len(attempts) else None
        down_s = (after.started_at - each.ended_at).total_seconds() if after and after.started_at else 0.0
        nodes = each.nodes or run.spec.resources.nodes
        price = run.price_microusd_per_hour
        found.append(
            CrashCost(
                attempt=each.number,
                again_s=again_s,
                down_s=max(0.0, down_s),
                microusd=cost_microusd(price, again_s, nodes),
                weekend_microusd=cost_microusd(price, WEEKEND_S, nodes),
            )
        )
    return tuple(found)


def idle_sentence(run: Run, attempt: Attempt, now: datetime) -> str:
    """The idle clock in dollars; "" while it works."""
    if attempt.idle_since is None or attempt.end_reason is not None:
        return ""
    nodes = attempt.nodes or run.spec.resources.nodes
    idle_s = max(0.0, (now - attempt.idle_since).total_seconds())
    cost = format_usd(cost_microusd(run.price_microusd_per_hour, idle_s, nodes))
    hourly = format_usd(run.price_microusd_per_hour * nodes)
    limit_s = run.spec.idle_limit_s
    ends = f"it is stopped after {format_duration(limit_s)}" if limit_s else "nothing stops it: set spec.idle_limit"
    return (
        f"idle since {attempt.idle_since:%Y-%m-%d %H:%M} UTC ({format_duration(idle_s)}): {cost} so far at {hourly} an"
        f" hour; {ends}"
    )


def lines(run: Run, attempts: Sequence[Attempt], checkpoints: Sequence[Checkpoint], now: datetime) -> tuple[str, ...]:
    """What the watchdogs have to say of a run, for explain and its page."""
    idle = [idle_sentence(run, attempts[-1], now)] if attempts else []
    return tuple(line for line in [*idle, *(each.sentence for each in crash_costs(run, attempts, checkpoints))] if line)
