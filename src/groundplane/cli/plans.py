"""`ground plan` and `ground apply`: what would happen and cost, then making it happen."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.approvals import await_approvals, require_approvals, say_next
from groundplane.cli.following import follow_applied
from groundplane.cli.options import INTERRUPTED_CODE, Duration, agreed, connect, output_option
from groundplane.cli.outlook_views import outlook_views
from groundplane.cli.render import Table, Usd, View
from groundplane.cli.specs import spec_text
from groundplane.cli.words import moment
from groundplane.domain.planning.plan import Plan, PlanStatus, Verdict
from groundplane.domain.planning.report import markdown
from groundplane.errors import GroundError, Refusal, Refused
from groundplane.units import exact_usd, format_bytes, format_count, format_duration, format_usd

if TYPE_CHECKING:
    from groundplane.client import Client
    from groundplane.wire.plans import Applied


@click.command()
@click.argument("plan_id", required=False, metavar="[PLAN]")
@click.option("-f", "--file", "path", metavar="FILE", help="A spec in YAML; - reads standard input.")
@click.option("--rules", is_flag=True, help="Every rule's word, not only those that warn or refuse.")
@click.option("--choices", is_flag=True, help="Every way to buy it, for small work too.")
@click.option("--rejected", is_flag=True, help="Every offer that does not fit, with its reasons.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml", "markdown"]),
    default="table",
    show_default=True,
    help="table is for people, markdown for a ticket or a pull request; json and yaml are exact.",
)
def plan(plan_id: str | None, path: str | None, rules: bool, choices: bool, rejected: bool, output: str) -> None:
    """Show what a spec would do and cost, and what forbids it.

    Give a spec (-f), or the id of a plan made before. Every way to buy the work stands side by side, cheapest fitting
    first. Nothing starts and no money is held. Exits with 3 when the plan is refused.
    """
    if (plan_id is None) == (path is None):
        raise click.UsageError("Give either a plan id or -f FILE.")
    with connect() as client:
        plans = (client.get_plan(plan_id),) if plan_id else _planned(client, str(path))
        if output == "markdown":
            render.text("\n".join(map(markdown, plans)))
        else:
            shown = partial(plan_views, rules=rules, choices=choices, rejected=rejected)
            render.show(plans, output, lambda: [view for made in plans for view in shown(made)])
        if refused := _refusals(plans):
            raise Refusal(refused)
        if output == "table":
            for made in plans:
                say_next(client, made)


@click.command()
@click.argument("plan_id", required=False, metavar="[PLAN]")
@click.option("-f", "--file", "path", metavar="FILE", help="A spec in YAML; - reads standard input.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@click.option("--wait", is_flag=True, help="Follow to the end; exit by the outcome.")
@click.option(
    "--wait-approval",
    type=Duration(),
    metavar="TIME",
    help="When it needs approval, wait that long for it (such as 2h), then apply.",
)
@click.option("--idempotency-key", default="", metavar="KEY", help="Sending the same key again starts nothing twice.")
@output_option
def apply(
    plan_id: str | None,
    path: str | None,
    yes: bool,
    wait: bool,
    wait_approval: int | None,
    idempotency_key: str,
    output: str,
) -> int:
    """Carry out a spec (-f) or a plan made before (its id), after showing it and asking.

    Exits with 10 when somebody must approve it first; nothing begins then, and the plan goes on waiting. With --wait
    the exit status is 0 when everything succeeded or became ready, 9 otherwise.
    """
    if (plan_id is None) == (path is None):
        raise click.UsageError("Give either a plan id or -f FILE.")
    with connect() as client:
        plans = (client.get_plan(plan_id),) if plan_id else _planned(client, str(path))
        refused = _refusals(plans)
        waits = any(made.status is PlanStatus.NEEDS_APPROVAL for made in plans)
        if refused or waits or not yes:
            render.views(*(view for made in plans for view in plan_views(made)))
        if refused:
            raise Refusal(refused)
        if waits:
            if wait_approval is None:
                require_approvals(client, plans)
            plans = await_approvals(client, plans, wait_approval or 0)
        if not yes and not _confirmed(plans):
            render.say("nothing was applied")
            return INTERRUPTED_CODE
        applied = _apply_each(client, plans, idempotency_key or str(uuid.uuid4()))
        if wait:
            return follow_applied(client, plans, applied, output)
    begun = {
        "plans": plans,
        "runs": [item.run for item in applied if item.run],
        "endpoints": [item.endpoint for item in applied if item.endpoint],
    }
    render.show(begun, output, lambda: [_said(item) for item in applied])
    return 0


def plan_views(made: Plan, *, rules: bool = False, choices: bool = False, rejected: bool = False) -> list[View]:
    """A plan for people: what, where, how long, how much and by which sum, the choices, and what the rules say."""
    spec = made.job or made.endpoint
    assert spec is not None
    offer = made.offer
    where = "nowhere: no offer fits"
    price = "-"
    if offer is not None:
        kind = f"{format_count(offer.cpus, 'CPU')}, {format_bytes(offer.memory_bytes)}"
        if offer.accelerators:
            kind += f", {offer.accelerators} x {offer.accelerator}"
        where = f"{offer.pool} / {offer.node_type} ({kind}){', SIMULATED' if offer.simulated else ''}"
        price = f"{exact_usd(offer.price_microusd_per_hour)} an hour, as of {offer.price_as_of} ({offer.price_source})"
    lines: list[View] = [
        f"{made.id}: {made.kind.lower()} {spec.metadata.name} of project {made.project} {_stands(made)}",
        f"  runs on     {where}",
        f"  price       {price}",
        f"  duration    at most {format_duration(made.max_duration_s)}, until {moment(spec.end_date)} at the latest",
        f"  worst case  {made.arithmetic or format_usd(made.worst_case_microusd)}",
        f"  policy      {_policy(made.verdicts)}",
        f"  hash        {made.hash[:16]}",
    ]
    if made.outlook is not None:
        lines += outlook_views(made, choices=choices, rejected=rejected)
    elif made.alternatives:
        costlier = [
            (q.offer.pool, q.offer.node_type, Usd(q.worst_case_microusd), q.arithmetic) for q in made.alternatives
        ]
        lines.append(Table(("POOL", "NODE TYPE", "WORST CASE", "SUM"), costlier, title="also fits, for more:"))
    if made.rejected and made.outlook is None:
        misfits = [(r.pool, r.node_type, "; ".join(str(reason) for reason in r.reasons)) for r in made.rejected]
        lines.append(Table(("POOL", "NODE TYPE", "REASON"), misfits, title="does not fit:"))
    rows = [_verdict_row(verdict) for verdict in made.verdicts]
    if spoken := [row for row in rows if rules or row[1] != "ok"]:
        lines.append(Table(("RULE", "SAYS", "WHY"), spoken))
    return lines


def _stands(made: Plan) -> str:
    return "needs approval" if made.status is PlanStatus.NEEDS_APPROVAL else f"is {made.status}"


def _policy(verdicts: Sequence[Verdict]) -> str:
    refused = sum(verdict.refused is not None for verdict in verdicts)
    asking = sum(verdict.refused is None and bool(verdict.approval) for verdict in verdicts)
    warned = sum(v.refused is None and not v.approval and bool(v.warning) for v in verdicts)
    parts = [f"{len(verdicts) - refused - asking - warned} of {len(verdicts)} rules and checks ok"]
    parts += [f"{number} {word}" for number, word in ((warned, "warn"), (asking, "ask"), (refused, "refuse")) if number]
    return ", ".join(parts)


def _verdict_row(verdict: Verdict) -> tuple[str, str, str]:
    if verdict.refused is not None:
        return verdict.rule, "refuses", f"needs {verdict.refused.need}, has {verdict.refused.have}"
    if verdict.approval:
        return verdict.rule, "asks", verdict.approval
    if verdict.warning:
        return verdict.rule, "warns", verdict.warning
    if verdict.exception:
        return verdict.rule, "excepted", verdict.exception
    return verdict.rule, "ok", verdict.why


def _planned(client: Client, path: str) -> tuple[Plan, ...]:
    with spec_text(path) as text:
        return client.plan(text)


def _refusals(plans: tuple[Plan, ...]) -> list[Refused]:
    return [verdict.refused for made in plans for verdict in made.verdicts if verdict.refused is not None]


def _confirmed(plans: tuple[Plan, ...]) -> bool:
    total = sum(made.worst_case_microusd for made in plans)
    what = plans[0].id if len(plans) == 1 else f"{len(plans)} plans"
    return agreed("apply", "spends", f"Apply {what}, holding up to {format_usd(total)}?")


def _apply_each(client: Client, plans: tuple[Plan, ...], key: str) -> list[Applied]:
    """Each document gets a key of its own, so that a file applied again with the same key starts nothing twice."""
    applied: list[Applied] = []
    try:
        for number, made in enumerate(plans):
            applied.append(client.apply_plan(made.id, idempotency_key=f"{key}/{number}" if number else key))
    except GroundError:
        for item in applied:
            render.say(f"begun before that: {_said(item)}")
        raise
    return applied


def _said(item: Applied) -> str:
    if item.endpoint is not None:
        revision, run_id = item.endpoint.revision, item.endpoint.run_id
        return f"endpoint {item.endpoint.id} is {item.endpoint.status} (revision {revision}, run {run_id})"
    return f"run {item.run.id} is {item.run.status}" if item.run else "nothing to do"
