"""`ground approve | reject | approvals`: who agrees to what a project may not begin alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.options import connect, output_option
from groundplane.cli.render import Table, Usd, View
from groundplane.cli.words import age, moment
from groundplane.domain.approval import Approval, ApprovalStatus, blocked, counted, refusal
from groundplane.domain.planning.plan import Plan, PlanStatus
from groundplane.units import format_count, format_duration, format_usd

if TYPE_CHECKING:
    from groundplane.client import Client
    from groundplane.errors import Refused
    from groundplane.wire.plans import ApprovalView


@click.command()
@click.argument("plan_id", metavar="PLAN")
@click.option("--comment", default="", help="What the others should know: kept with the approval.")
@click.option("--hash", "seen_hash", default="", metavar="HASH", help="Agree only if the plan has this hash.")
@output_option
def approve(plan_id: str, comment: str, seen_hash: str, output: str) -> None:
    """Agree to a plan that is beyond what its project may begin alone.

    The yes is to exactly this plan: when prices or rules change, applying it is refused and a new plan asks anew.
    """
    with connect() as client:
        given = client.approve_plan(plan_id, comment, hash=seen_hash)
    render.show(given, output, lambda: [_said(given)])


@click.command()
@click.argument("plan_id", metavar="PLAN")
@click.option("--reason", required=True, help="Why: told to whoever planned it, and written to the audit trail.")
@output_option
def reject(plan_id: str, reason: str, output: str) -> None:
    """Say no to a plan, for good. What was approved and not applied yet can be rejected, too."""
    with connect() as client:
        rejected = client.reject_plan(plan_id, reason)
    render.show(rejected, output, lambda: [_said(rejected)])


@click.command()
@click.argument("plan_id", required=False, metavar="[PLAN]")
@click.option("--project", help="Of one project.")
@click.option(
    "--status",
    type=click.Choice(["open", *(each.value for each in ApprovalStatus), "all"]),
    default="open",
    show_default=True,
    help="open is waiting and approved.",
)
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@output_option
def approvals(plan_id: str | None, project: str | None, status: str, limit: int, output: str) -> None:
    """Show which plans wait for somebody's yes, and what became of others.

    With PLAN, everything about one.
    """
    with connect() as client:
        if plan_id:
            view = client.approval(plan_id)
            render.show(view, output, lambda: approval_views(view))
            return
        found = client.approvals(project=project, status=None if status == "all" else status, limit=limit)
    render.show(found, output, lambda: [_table(found)])


def approval_views(view: ApprovalView) -> list[View]:
    """One question with everything about it."""
    asked = view.approval
    lines: list[View] = [
        f"{asked.id}: {asked.kind} {asked.name} of project {asked.project} is {asked.status}",
        f"  worst case  {format_usd(asked.worst_case_microusd)}",
        *(f"  {'because' if not n else '':<10}  {reason}" for n, reason in enumerate(asked.reasons)),
        f"  planned by  {asked.created_by}, for {asked.owner}, {moment(asked.requested_at)}",
        f"  approvals   {len(counted(asked, asked.plan_hash))} of {asked.needed}, {_eyes(asked)}",
        f"  until       {moment(asked.expires_at)}",
        f"  hash        {asked.plan_hash[:16]}",
    ]
    if asked.votes:
        rows = [(vote.by, vote.role.value, moment(vote.at), vote.comment or "-") for vote in asked.votes]
        lines.append(Table(("APPROVED BY", "ROLE", "AT", "COMMENT"), rows))
    if asked.status is ApprovalStatus.REJECTED:
        lines.append(f"  rejected by {asked.rejected_by}: {asked.rejection}")
    if asked.status is ApprovalStatus.WAITING:
        lines.append(f"  may agree   {', '.join(view.approvers) or 'nobody yet'}")
    return lines


def say_next(client: Client, made: Plan) -> None:
    """What to type after planning; for a plan that waits also how many must agree, who may, and until when."""
    if made.status is not PlanStatus.NEEDS_APPROVAL:
        render.say(f"apply it: ground apply {made.id}")
        return
    view = client.approval(made.id)
    asked, names = view.approval, ", ".join(view.approvers) or "nobody yet (ground keys create --role lead)"
    missing = asked.needed - len(counted(asked, made.hash))
    render.say(f"{made.id} needs {format_count(missing, 'approval')} until {moment(asked.expires_at)}; {_eyes(asked)}")
    render.say(f"  may agree: {names}")
    render.say(f"  ground approve {made.id}, then ground apply {made.id}")


def require_approvals(client: Client, plans: Sequence[Plan]) -> None:
    """Raises what the control plane would for every plan that waits, before any other is applied."""
    found: list[Refused] = []
    for made in plans:
        if made.status is PlanStatus.NEEDS_APPROVAL:
            view = client.approval(made.id)
            refused = blocked(made, view.approval, view.approvers, datetime.now(UTC))
            found += [refused] if refused else []
            _say_earlier(client, view.approval)
    if found:
        raise refusal(found)


def _say_earlier(client: Client, asked: Approval) -> None:
    """An approval is for one plan. Who plans the same work anew is told of the plan that was approved already."""
    for other in client.approvals(project=asked.project, status=ApprovalStatus.APPROVED):
        if (other.kind, other.name, other.created_by) == (asked.kind, asked.name, asked.created_by):
            render.say(f"{other.id}, of the same name, is approved already: ground apply {other.id}")


def await_approvals(client: Client, plans: Sequence[Plan], limit_s: float) -> tuple[Plan, ...]:
    """The plans again, once each that waits was decided. Raises ApprovalNeeded when that takes longer than `limit_s`.

    A plan that was rejected or expired comes back as such: applying it says so.
    """
    end = time.monotonic() + limit_s
    for made in plans:
        if made.status is PlanStatus.NEEDS_APPROVAL:
            render.say(f"waiting up to {format_duration(limit_s)} for the approval of {made.id}")
            render.say(_said(client.wait_for_approval(made.id, max(0.0, end - time.monotonic()))))
    again = tuple(client.get_plan(made.id) for made in plans)
    require_approvals(client, again)
    return again


def _said(asked: Approval) -> str:
    given = len(counted(asked, asked.plan_hash))
    if asked.status is ApprovalStatus.WAITING:
        return f"{asked.id} has {given} of {asked.needed} approvals and waits until {moment(asked.expires_at)}"
    if asked.status is ApprovalStatus.APPROVED:
        by = ", ".join(vote.by for vote in asked.votes)
        return f"{asked.id} is approved by {by} until {moment(asked.expires_at)}: ground apply {asked.id}"
    if asked.status is ApprovalStatus.REJECTED:
        return f"{asked.id} is rejected by {asked.rejected_by}: {asked.rejection}"
    return f"{asked.id} is {asked.status}"


def _eyes(asked: Approval) -> str:
    if asked.four_eyes:
        return "four eyes"
    return f"four eyes are off here: {asked.created_by} may approve it, too"


def _table(found: Sequence[Approval]) -> Table:
    now = datetime.now(UTC)
    rows = [
        (
            asked.id,
            asked.project,
            f"{asked.kind} {asked.name}",
            asked.status.value,
            f"{len(counted(asked, asked.plan_hash))}/{asked.needed}",
            Usd(asked.worst_case_microusd),
            asked.created_by,
            age(asked.requested_at, now),
            format_duration(max(0.0, (asked.expires_at - now).total_seconds())) if asked.status.is_open else "-",
            "; ".join(asked.reasons),
        )
        for asked in found
    ]
    columns = ("PLAN", "PROJECT", "WHAT", "STATUS", "YES", "WORST CASE", "BY", "AGE", "LEFT", "BECAUSE")
    return Table(columns, rows, right=frozenset({"WORST CASE"}), empty="no plan waits for approval")
