"""Why a run does not start: the layer that refuses, in words a person can act on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from groundplane.domain.scheduling.capacity import Capacity
from groundplane.domain.scheduling.quotas import Quotas, Standing
from groundplane.domain.scheduling.state import Ask, Waiting
from groundplane.units import format_bytes, format_count


@dataclass(frozen=True, slots=True)
class Reason:
    """The layer, and what it says."""

    layer: str
    text: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Nodes that could take a member of an ask: when empty, when empty with cordoned ones, with what is free now."""

    able: int
    whole: int
    free: int


class Pool(Protocol):
    """What is asked of the scheduler."""

    capacity: Capacity
    quotas: Quotas

    def planned(self) -> list[str]: ...


def count_nodes(capacity: Capacity, ask: Ask) -> Counts:
    return Counts(
        able=capacity.free_nodes(ask, empty=True),
        whole=capacity.free_nodes(ask, empty=True, cordoned=True),
        free=capacity.free_nodes(ask, empty=False),
    )


def reason_of(pool: Pool, run: Waiting, counts: Counts) -> Reason:
    """The first layer that refuses, in this order: quota, what the pool has at all, what is free, who is before."""
    standing = pool.quotas.judge(run.project, run.ask.total)
    if standing.blocked:
        return Reason("project-quota", _quota_words(pool, run, standing))
    capacity, ask = pool.capacity, run.ask
    layer = "gang" if ask.nodes > 1 else "pool-capacity"
    able = counts.able
    if able < ask.nodes:
        if counts.whole >= ask.nodes:
            names = [f"{node.name} ({node.cordoned or node.reason or node.health})" for node in capacity.nodes
                     if not node.takes_work]  # fmt: skip
            return Reason("cordon", f"it needs {each(ask)}; {able} take work, cordoned: {', '.join(names[:4])}")
        return Reason(layer, f"it needs {each(ask)}; the pool has {format_count(able, 'such node')} in all")
    free = counts.free
    if free < ask.nodes:
        return Reason(layer, f"it needs {each(ask)}; {free} of {able} {'has' if able == 1 else 'have'} that free")
    before = [other for other in pool.planned() if other != run.id]
    if before:
        return Reason("queue", f"there is room, but {before[0]} is before it and would start later")
    return Reason("reservation", "there is room, but a reservation begins before it would end")


def each(ask: Ask) -> str:
    """`4 nodes with 8 accelerators, 16 CPUs and 64.0 GiB each`."""
    what = [format_count(ask.cpus_milli / 1000, "CPU"), format_bytes(ask.memory_bytes)]
    if ask.accelerators:
        name = f"{ask.accelerator} " if ask.accelerator else ""
        what.insert(0, format_count(ask.accelerators, f"{name}accelerator"))
    words = f"{format_count(ask.nodes, 'node')} with {', '.join(what[:-1])} and {what[-1]}"
    return f"{words} each" if ask.nodes > 1 else words


def _quota_words(pool: Pool, run: Waiting, standing: Standing) -> str:
    held, asked, short = pool.quotas.held(run.project), run.ask.total, standing.short
    quota = pool.quotas.quota(run.project)
    whose = f"project {run.project}" if standing.whose == run.project else f"cohort {standing.whose}"
    if short.runs:
        return f"{whose} runs {held.runs} of the {quota.runs if quota else 0} it may at once"
    if short.accelerators:
        limit = f" of {quota.accelerators}" if quota and quota.accelerators is not None else ""
        return (f"it needs {format_count(asked.accelerators, 'accelerator')}; {whose} lacks {short.accelerators}: "
                f"{run.project} holds {held.accelerators}{limit}")  # fmt: skip
    if short.cpus_milli:
        limit = f" of {quota.cpus_milli / 1000:g}" if quota and quota.cpus_milli is not None else ""
        return (f"it needs {format_count(asked.cpus_milli / 1000, 'CPU')}; {whose} lacks {short.cpus_milli / 1000:g}: "
                f"{run.project} holds {held.cpus_milli / 1000:g}{limit}")  # fmt: skip
    limit = f" of {format_bytes(quota.memory_bytes)}" if quota and quota.memory_bytes is not None else ""
    return (f"it needs {format_bytes(asked.memory_bytes)} of memory; {whose} lacks {format_bytes(short.memory_bytes)}: "
            f"{run.project} holds {format_bytes(held.memory_bytes)}{limit}")  # fmt: skip
