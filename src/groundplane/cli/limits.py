"""`ground limits`: what a project, a model, an endpoint or a key may send through the gateway."""

from __future__ import annotations

import click

from groundplane.cli import render
from groundplane.cli.options import Listing, connect, output_option
from groundplane.cli.render import Table
from groundplane.domain.serving.limits import PURSES, LimitRule, Measure, WhenDown
from groundplane.errors import InvalidInput
from groundplane.units import format_usd, parse_usd


@click.group(cls=Listing)
def limits() -> None:
    """Limit what goes through the gateway."""


@limits.command("set")
@click.option("--project", required=True)
@click.option("--key", "key_id", help="Limit one key of the project.")
@click.option("--model", help="Limit one model name of the project.")
@click.option("--endpoint", help="Limit one endpoint of the project.")
@click.option("--rpm", type=click.IntRange(0), help="Most requests per minute.")
@click.option("--tpm", type=click.IntRange(0), help="Most tokens per minute.")
@click.option("--tpd", type=click.IntRange(0), help="Most tokens per day, from midnight UTC.")
@click.option("--concurrent", type=click.IntRange(0), help="Most requests at the same time.")
@click.option("--dollars-per-day", help="Most dollars per day, from midnight UTC.")
@click.option("--dollars-per-month", help="Most dollars per calendar month, UTC.")
@click.option(
    "--when-down",
    type=click.Choice([one.value for one in WhenDown]),
    help="What counts while the place where several machines keep limits does not answer; unless said otherwise "
    "fail-closed for dollars and local-share for the rest.",
)
@click.option("--reason", default="", help="Why: written to the audit trail.")
@output_option
def set_limits(
    project: str,
    key_id: str | None,
    model: str | None,
    endpoint: str | None,
    when_down: str | None,
    reason: str,
    output: str,
    **values: int | str | None,
) -> None:
    """Set limits of a project, or of one key, model or endpoint of it. 0 admits nothing."""
    named = [(scope, name) for scope, name in (("key", key_id), ("model", model), ("endpoint", endpoint)) if name]
    if len(named) > 1:
        raise InvalidInput("--key, --model and --endpoint exclude each other", "set one after the other")
    scope, name = named[0] if named else ("project", project)
    wanted = {_MEASURES[option]: _units(value) for option, value in values.items() if value is not None}
    if not wanted:
        raise InvalidInput(
            "no limit is given", "one of: --rpm, --tpm, --tpd, --concurrent, --dollars-per-day, --dollars-per-month"
        )
    with connect() as client:
        made = [
            client.set_limit(
                project=project,
                scope=scope,
                name=name,
                measure=measure,
                value=value,
                when_down=None if when_down is None else WhenDown(when_down),
                reason=reason,
            )
            for measure, value in wanted.items()
        ]
    render.show(made, output, lambda: [_table(made)])


_MEASURES = {
    "rpm": Measure.REQUESTS,
    "tpm": Measure.TOKENS,
    "tpd": Measure.TOKENS_DAY,
    "concurrent": Measure.CONCURRENT,
    "dollars_per_day": Measure.DOLLARS_DAY,
    "dollars_per_month": Measure.DOLLARS_MONTH,
}


def _units(value: int | str) -> int:
    """A number as it is; dollars, which come as text, as micro-dollars."""
    if isinstance(value, int):
        return value
    try:
        return parse_usd(value)
    except ValueError:
        raise InvalidInput(f"{value[:40]!r} is no sum of dollars", "like 5 or 0.50") from None


@limits.command("list")
@click.option("--project", help="Of one project.")
@output_option
def list_limits(project: str | None, output: str) -> None:
    """List limits; those that keys carry themselves are in `ground keys list`."""
    with connect() as client:
        found = client.limits(project)
    render.show(found, output, lambda: [_table(found)])


@limits.command("lift")
@click.argument("words", metavar="LIMIT", nargs=-1, required=True)
@click.option("--reason", default="", help="Why: written to the audit trail.")
@output_option
def lift_limit(words: tuple[str, ...], reason: str, output: str) -> None:
    """Take a limit away: its id as it is listed, with or without quotes."""
    with connect() as client:
        rule = client.lift_limit(" ".join(words), reason)
    render.show(rule, output, lambda: [f"limit {rule.id} is lifted"])


def _table(found: list[LimitRule]) -> Table:
    rows = [(rule.id, rule.project, *_figures(rule), rule.when_down.value, rule.set_by) for rule in found]
    head = ("LIMIT", "PROJECT", "VALUE", "SPENT", "WHEN DOWN", "SET BY")
    empty = "no limits; ground limits set --project PROJECT --rpm 60 sets one"
    return Table(head, rows, right=frozenset({"VALUE", "SPENT"}), empty=empty)


def _figures(rule: LimitRule) -> tuple[str, str]:
    """The limit, and of dollars what the ledger has of its newest day or month."""
    if rule.measure not in PURSES:
        return str(rule.value), ""
    return format_usd(rule.value), f"{format_usd(rule.spent_microusd)} in {rule.period}"
