"""`ground budget | cost | report`: money, from the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.access import percents
from groundplane.cli.options import Listing, Moment, Money, connect, output_option
from groundplane.cli.render import Cell, Table, Usd, View
from groundplane.cli.words import endpoints_table, moment, runs_table
from groundplane.domain.budget import Budget, Hold, HoldStatus
from groundplane.errors import NotFound
from groundplane.units import format_usd

if TYPE_CHECKING:
    from groundplane.client import Client
    from groundplane.domain.ledger import CostRow
    from groundplane.wire.money import Report

GROUPS = ("project", "model", "run", "key", "owner", "cost-center")


class Grouping(click.Choice[str]):
    """A word of GROUPS, also as specs and the API spell it: `cost_center`."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(value.replace("_", "-"), param, ctx)


# ---------------------------------------------------------------- budgets


@click.group(cls=Listing, bare="show")
def budget() -> None:
    """Show and set budgets."""


@budget.command("set")
@click.argument("project")
@click.argument("limit", type=Money(), metavar="USD")
@click.option("--thresholds", default="50,80,100", show_default=True, metavar="P,P", help="Percent that notify.")
@click.option("--reason", default="", help="Why: written to the audit trail.")
@output_option
def set_budget(project: str, limit: int, thresholds: str, reason: str, output: str) -> None:
    """Set a project's monthly limit, from this month on."""
    with connect() as client:
        now = client.set_budget(
            project, monthly_limit_microusd=limit, thresholds_percent=percents(thresholds), reason=reason
        )
    render.show(now, output, lambda: [_budgets_table([now])])


@budget.command("show")
@click.argument("project", required=False)
@output_option
def show_budget(project: str | None, output: str) -> None:
    """Show this month's budget of one project, or of every one that has a budget."""
    with connect() as client:
        found = [client.budget(project)] if project else _every_budget(client)
    render.show(found[0] if project else found, output, lambda: [_budgets_table(found)])


@budget.command("holds")
@click.option("--project", help="Of one project.")
@click.option("--all", "closed_too", is_flag=True, help="Posted and voided ones too.")
@output_option
def holds(project: str | None, closed_too: bool, output: str) -> None:
    """Show the money that is reserved, and for what."""
    with connect() as client:
        found = [hold for hold in client.holds(project) if closed_too or hold.status is HoldStatus.PENDING]
    render.show(found, output, lambda: [_holds_table(found)])


def _every_budget(client: Client) -> list[Budget]:
    found = []
    for project in client.projects():
        try:
            found.append(client.budget(project.id))
        except NotFound:
            continue  # A project without a budget is listed by `ground projects list`, which says so.
    return found


def _budgets_table(found: Sequence[Budget]) -> Table:
    rows = [
        (
            b.project,
            b.period,
            Usd(b.limit_microusd),
            Usd(b.posted_microusd),
            Usd(b.held_microusd),
            Usd(b.limit_microusd - b.posted_microusd - b.held_microusd),
            f"{100 * b.posted_microusd / b.limit_microusd:.0f}%" if b.limit_microusd else "-",
        )
        for b in found
    ]
    columns = ("PROJECT", "MONTH", "LIMIT", "SPENT", "HELD", "LEFT", "USED")
    right = frozenset({"LIMIT", "SPENT", "HELD", "LEFT", "USED"})
    return Table(columns, rows, right=right, empty="no budgets; ground budget set PROJECT 100")


def _holds_table(found: Sequence[Hold]) -> Table:
    rows = [
        (
            hold.subject,
            hold.project,
            hold.status.value,
            Usd(hold.amount_microusd),
            Usd(hold.posted_microusd),
            moment(hold.created_at),
            hold.id,
        )
        for hold in found
    ]
    columns = ("FOR", "PROJECT", "STATUS", "HELD", "SPENT", "SINCE", "HOLD")
    return Table(columns, rows, right=frozenset({"HELD", "SPENT"}), empty="no money is reserved")


# ---------------------------------------------------------------- costs


@click.command()
@click.option("--by", type=Grouping(GROUPS), default="project", show_default=True)
@click.option("--since", type=Moment(ahead=False), metavar="TIME", help="A date, or a duration back such as 7d [30d].")
@click.option("--until", type=Moment(ahead=False), metavar="TIME", help="A date or a time [now].")
@output_option
def cost(by: str, since: datetime | None, until: datetime | None, output: str) -> None:
    """Show what was spent, by project, model, run, key, owner or cost centre."""
    with connect() as client:
        lines = client.costs(by=by.replace("-", "_"), since=since, until=until)
    render.show(lines, output, lambda: [_costs_table(by, lines)])


@click.command()
@click.option("--since", type=Moment(ahead=False), metavar="TIME", help="A date, or a duration back such as 7d [7d].")
@click.option("--until", type=Moment(ahead=False), metavar="TIME", help="A date or a time [now].")
@output_option
def report(since: datetime | None, until: datetime | None, output: str) -> None:
    """The Monday report: what was spent and by whom, what is reserved, what is running."""
    with connect() as client:
        made = client.report(since=since, until=until)
    render.show(made, output, lambda: _report_views(made))


def _report_views(made: Report) -> list[View]:
    now = datetime.now(UTC)
    return [
        f"{moment(made.since)} to {moment(made.until)}: {format_usd(made.total_microusd)} spent, "
        f"{format_usd(made.held_microusd)} reserved right now",
        _costs_table("project", made.by_project, title="By project"),
        _costs_table("owner", made.by_owner, title="By owner"),
        _costs_table("model", made.by_model, title="By model"),
        _costs_table("run", made.by_run, title="By run"),
        Table(*_parts(_budgets_table(made.budgets)), title="Budgets of this month"),
        Table(*_parts(runs_table(made.runs_active, now)), title="Running"),
        Table(*_parts(endpoints_table(made.endpoints_active, now)), title="Serving"),
    ]


def _parts(table: Table) -> tuple[tuple[str, ...], Sequence[Sequence[Cell]], frozenset[str], str]:
    return table.columns, table.rows, table.right, "nothing"


def _costs_table(by: str, lines: Sequence[CostRow], title: str = "") -> Table:
    rows = [
        (
            line.group or "(none)",
            Usd(line.compute_microusd),
            Usd(line.tokens_microusd),
            Usd(line.total_microusd),
            f"{line.requests:,}",
            f"{line.prompt_tokens:,}",
            f"{line.completion_tokens:,}",
            Usd(per_1000, exact=True) if (per_1000 := line.microusd_per_1000_requests) is not None else "-",
            Usd(line.saved_microusd),
        )
        for line in lines
    ]
    name = by.replace("-", " ").upper()
    columns = (name, "COMPUTE", "TOKENS", "TOTAL", "REQUESTS", "PROMPT", "COMPLETION", "PER 1000 REQ", "SAVED")
    return Table(columns, rows, right=frozenset(columns[1:]), empty="nothing was spent", title=title)
