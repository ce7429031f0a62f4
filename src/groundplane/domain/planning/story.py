"""Why a plan is refused, waits, or would wait: in the sentence form in which waiting runs are explained."""

from __future__ import annotations

from datetime import datetime

from groundplane.domain.planning.plan import Plan, PlanStatus
from groundplane.domain.queue_view import WaitStory, ordinal, when_it_starts
from groundplane.errors import Refused

LAYERS = {
    "budget": ("budget", "budget-left", "max-cost"),
    "needs": ("needs-circle", "needs-in-reach"),
    "pool-capacity": ("pool-known", "offer-fits", "offer-still-there", "offer-still-fits", "accelerator-known"),
}
"""The layer that a rule belongs to; every other one is `policy`."""


def layer_of(rule: str) -> str:
    """Which layer refuses by this rule."""
    return next((layer for layer, rules in LAYERS.items() if rule in rules), "policy")


def refusal_sentence(plan_id: str, refused: list[Refused]) -> str:
    """`PLAN is refused: LAYER: RULE: needs X, has Y. It would be admitted: HINT.`"""
    first = refused[0]
    more = f" ({len(refused) - 1} more below)" if len(refused) > 1 else ""
    way = f" What would change that: {first.hint}." if first.hint else ""
    return f"{plan_id} is refused: {layer_of(first.rule)}: {first}{more}.{way}"


def status_sentence(plan: Plan) -> str:
    """For plans that are over, and those that people must agree to; empty for one that could be applied."""
    match plan.status:
        case PlanStatus.APPLIED:
            return f"{plan.id} was applied: it became {plan.applied_to}."
        case PlanStatus.NEEDS_APPROVAL:
            why = "; ".join(f"{each.rule}: {each.approval}" for each in plan.verdicts if each.approval)
            return f"{plan.id} waits for approval: policy: {why}. It goes on once: ground approvals approve {plan.id}."
        case PlanStatus.REJECTED | PlanStatus.EXPIRED:
            return f"{plan.id} is {plan.status}: policy: nothing follows from it. Plan again: ground plan -f SPEC."
        case _:
            return ""


def prospect_sentence(plan_id: str, pool: str, story: WaitStory | None, now: datetime) -> str:
    """What would happen if it were applied now; no story is an immediate start."""
    if story is None:
        return f"{plan_id} is not applied yet; applied now, it would start at once on pool {pool}."
    line = story.line
    place = f"{ordinal(line.position)} of {story.of}, class {line.priority}" if line.position else line.priority
    instead = f"; {story.instead} it would start now" if story.instead else ""
    return (
        f"{plan_id} is not applied yet; applied now, it would wait ({place}): {line.layer}: {line.reason}. "
        f"{when_it_starts(line, now)}{instead}."
    )
