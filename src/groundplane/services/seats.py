"""A run's place in its pool's queue: taken at admission, kept through retries, given up at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from groundplane.domain import lifecycle
from groundplane.domain.node import Placement
from groundplane.domain.planning.plan import Plan
from groundplane.domain.queue import QueueEntry, Stage
from groundplane.domain.run import Attempt, Run
from groundplane.domain.scheduling.state import CLASSES
from groundplane.domain.spec import JobSpec
from groundplane.ports import Tx


async def take_seat(tx: Tx, run: Run, attempts: Sequence[Attempt]) -> bool:
    """Gives the run its place, once; whether it had none before."""
    plan = await tx.get(Plan, run.plan_id)
    offer = plan.offer if plan is not None else None
    return await tx.insert_once(_entry(run, attempts, offer.accelerator if offer is not None else ""))


async def adopt_seat(tx: Tx, run: Run, attempt: Attempt, attempts: Sequence[Attempt]) -> None:
    """A run that was started before it had a place holds what it runs on."""
    entry = _entry(run, attempts, "")
    since = attempt.started_at or attempt.created_at
    await tx.insert_once(
        replace(
            entry,
            stage=Stage.PLACED,
            placements=(Placement(node=attempt.node),),
            placed_at=since,
            ends_at=since + timedelta(seconds=entry.expected_s),
        )
    )


async def requeue(
    tx: Tx, run: Run, attempts: Sequence[Attempt], now: datetime, again: lifecycle.TryAgain, nodes: int = 0
) -> None:
    """Gives back what the run holds and puts it where it stood: its time in the queue counts from its admission.

    `nodes` is how many it asks for from now on; 0 leaves that.
    """
    entry = await tx.get(QueueEntry, run.id, lock=True)
    if entry is None:
        return
    await tx.update(
        replace(
            entry,
            stage=Stage.WAITING,
            nodes=nodes or entry.nodes,
            expected_s=_expected_s(run, attempts),
            not_before=now + timedelta(seconds=again.after_s) if again.after_s else None,
            placements=(),
            placed_at=None,
            ends_at=None,
            gives_way_to="",
            preemptions=entry.preemptions + (1 if again.preempted else 0),
        )
    )


def entry_of_plan(plan: Plan, job: JobSpec, now: datetime) -> QueueEntry:
    """The place that a plan of a job would take if it were applied now. Its id is the plan's."""
    need = job.resources
    return QueueEntry(
        id=plan.id,
        name=job.metadata.name,
        project=plan.project,
        pool=job.pool,
        owner=plan.owner,
        priority=CLASSES[job.priority],
        queued_at=now,
        nodes=need.nodes,
        accelerators=need.accelerators,
        accelerator=plan.offer.accelerator if plan.offer is not None and need.accelerators else "",
        cpus_milli=round(need.cpus * 1000),
        memory_bytes=need.memory_bytes,
        expected_s=float(job.max_duration_s + job.stop_grace_s),
        needs=dict.fromkeys(job.needs, ""),
        array=f"{plan.project}.{job.array.name}" if job.array is not None else "",
        array_limit=job.array.at_once if job.array is not None else 0,
    )


def _entry(run: Run, attempts: Sequence[Attempt], accelerator: str) -> QueueEntry:
    spec, need = run.spec, run.spec.resources
    array = spec.array
    return QueueEntry(
        id=run.id,
        name=run.name,
        project=run.project,
        pool=run.pool,
        owner=run.owner,
        # A replica answers people: what they wait for goes before what can wait.
        priority=CLASSES["serving" if run.endpoint else spec.priority],
        queued_at=run.created_at,
        nodes=need.nodes,
        accelerators=need.accelerators,
        accelerator=accelerator if need.accelerators else "",
        cpus_milli=round(need.cpus * 1000),
        memory_bytes=need.memory_bytes,
        expected_s=_expected_s(run, attempts),
        grace_s=float(spec.stop_grace_s),
        needs=dict.fromkeys(spec.needs, ""),
        array=f"{run.project}.{array.name}" if array is not None else "",
        array_limit=array.at_once if array is not None else 0,
    )


def _expected_s(run: Run, attempts: Sequence[Attempt]) -> float:
    """The longest it may still hold its place: its runner ends it then, after the grace it has to stop."""
    return lifecycle.remaining_duration_s(run, tuple(attempts)) + run.spec.stop_grace_s
