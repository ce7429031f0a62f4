"""A plan becomes a run, or a reason why not. The hold that pays for it is decided by `domain.budget`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from groundplane.domain.planning.plan import Plan, PlanStatus
from groundplane.domain.run import Run
from groundplane.domain.spec import JobSpec
from groundplane.errors import Refused

NEEDS_CIRCLE = "needs-circle"


def refusals(plan: Plan, changes: tuple[Refused, ...]) -> tuple[Refused, ...]:
    """Why this plan can't be applied now: its own refusals, that it was applied before, or that the world changed.

    What was approved is this plan in the world it was made in: in another one, the approval is of no use.
    """
    refused = [verdict.refused for verdict in plan.verdicts if verdict.refused is not None]
    if plan.status is PlanStatus.APPLIED:
        refused.append(
            Refused(
                rule="plan-applied-once",
                need="a plan not applied yet",
                have=f"{plan.id}, applied to {plan.applied_to}",
                hint="make a new plan: ground plan -f SPEC",
            )
        )
    if changes and plan.status is PlanStatus.APPROVED:
        carried = Refused(
            rule="approval-carries-over",
            need=f"the world that was approved with {plan.id}",
            have="the changes above",
            hint="plan again: ground plan -f SPEC; the new plan needs approval anew",
        )
        return (*refused, *changes, carried)
    return (*refused, *changes)


def needs_itself(names: tuple[str, ...]) -> Refused:
    """`names` go round: each needs the next, the last is the first again or the array it is an element of."""
    return Refused(
        rule=NEEDS_CIRCLE,
        need="runs that can start one after another",
        have=f"a circle of needs: {' → '.join(names)}",
        hint=_waits_for_ever(names),
    )


def circle_in(jobs: Sequence[JobSpec]) -> tuple[str, ...]:
    """A circle of needs among jobs that are submitted together: `a, b, a`; () when there is none.

    A job that needs its own name means an earlier run of it.
    """
    needs: dict[tuple[str, str], dict[str, None]] = {}
    for job in jobs:
        for name in (job.metadata.name, *([job.array.name] if job.array is not None else [])):
            here = needs.setdefault((job.metadata.project, name), {})
            here |= {need: None for need in job.needs if need != name}
    done: set[tuple[str, str]] = set()
    for start in needs:
        way: list[tuple[str, str]] = []
        left = [iter([start[1]])]
        while left:
            name = next(left[-1], "")
            if not name:
                left.pop()
                done |= {way.pop()} if way else set()
                continue
            at = (start[0], name)
            if at in way:
                return *(each for _, each in way[way.index(at) :]), name
            if at in needs and at not in done:
                way.append(at)
                left.append(iter(needs[at]))
    return ()


def _waits_for_ever(names: tuple[str, ...]) -> str:
    if len(names) == 2:
        return f"{names[0]} may need an earlier run of that name, and there is none: submit that one first"
    return f"{names[-2]} would wait for {names[-1]} and {names[0]} for {names[1]}: take one of these needs away"


def admit(
    plan: Plan,
    job: JobSpec,
    *,
    run_id: str,
    hold_id: str,
    created_by: str,
    now: datetime,
    endpoint: str = "",
    idempotency_key: str = "",
) -> Run:
    """The run row of an accepted plan: due at once, its money held."""
    if plan.offer is None:
        raise ValueError(f"plan {plan.id} has no offer; refusals() must be checked first")
    return Run(
        id=run_id,
        name=job.metadata.name,
        project=plan.project,
        owner=plan.owner,
        cost_center=job.metadata.cost_center,
        spec=job,
        spec_digest=plan.spec_digest,
        plan_id=plan.id,
        hold_id=hold_id,
        pool=plan.offer.pool,
        price_microusd_per_hour=plan.offer.price_microusd_per_hour,
        endpoint=endpoint,
        dev=job.dev,
        idempotency_key=idempotency_key,
        created_by=created_by,
        created_at=now,
        end_date=job.end_date,
        due_at=now,
    )
