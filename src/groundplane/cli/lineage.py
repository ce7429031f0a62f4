"""`ground lineage`: what versions were made from and into, what others say of them, and who is told of ours."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.options import connect, output_option
from groundplane.cli.render import Table, View
from groundplane.cli.words import moment
from groundplane.errors import InvalidInput

if TYPE_CHECKING:
    from groundplane.domain.lineage import LineageStanding


@click.group()
def lineage() -> None:
    """Follow versions to what they were made from and into, here and outside."""


@lineage.command()
@click.argument("node", metavar="model:NAME@VERSION|dataset:NAME@VERSION")
@output_option
def show(node: str, output: str) -> None:
    """Show what a version was made from and what was made from it; what others say of it stands apart."""
    with connect() as client:
        found = client.lineage_of(node)
    named = [
        tuple(f"{each} ({found.names[each]})" if each in found.names else each for each in pair) for pair in found.edges
    ]
    seen = Table(
        ("FROM", "MADE"),
        named,
        empty="no data, run or model is known that it was made from, and none that was made from it",
    )
    rows = [(each.parent, each.child, each.job, each.reported_by, moment(each.at)) for each in found.outside]
    columns = ("FROM", "MADE", "JOB", "SAID BY", "AT")
    said = Table(columns, rows, empty="nobody outside says anything of it", title="from outside, unverified")
    render.show(found, output, lambda: [seen, said])


@lineage.command()
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@output_option
def events(limit: int, output: str) -> None:
    """List what jobs outside have told, newest first."""
    with connect() as client:
        found = client.lineage_events(limit)
    rows = [
        (
            moment(each.occurred_at),
            each.state,
            each.job or "-",
            ", ".join(each.inputs) or "-",
            ", ".join(each.outputs) or "-",
            each.reported_by,
        )
        for each in found
    ]
    columns = ("AT", "STATE", "JOB", "READ", "MADE", "SAID BY")
    render.show(found, output, lambda: [Table(columns, rows, empty="nothing came from outside yet")])


@lineage.command()
@click.argument("file", type=click.File("rb"))
@output_option
def send(file: IO[bytes], output: str) -> None:
    """Send an OpenLineage event of a job outside: a file, or - for the standard input."""
    try:
        event = json.loads(file.read())
    except ValueError as error:
        raise InvalidInput(f"{file.name} is no JSON: {error}", "give one OpenLineage event") from None
    with connect() as client:
        done = client.send_lineage(event)
    matched = ", ".join(done.matched) or "nothing of ours"
    lines: list[View] = [f"{'kept' if done.new else 'known already'}: {done.edges} edges; it speaks of {matched}"]
    lines += [f"not ours: {name}" for name in done.unmatched]
    render.show(done, output, lambda: lines)


@lineage.command()
@output_option
def status(output: str) -> None:
    """Show who is told of our lineage, how far, and why not further."""
    with connect() as client:
        found = client.lineage_standing()
    render.show(found, output, lambda: _standing(found))


def _standing(found: LineageStanding) -> list[View]:
    if not found.receiver:
        return ["nobody is told of our lineage: GROUND_LINEAGE_URL names a receiver or a file"]
    lines: list[View] = [
        f"{found.receiver} was told {found.told} events, up to number {found.event_id} of the audit trail;"
        f" {found.behind} behind"
    ]
    if found.failures:
        lines.append(f"it did not answer {found.failures} times: {found.error}")
    elif found.error:
        lines.append(found.error)
    return lines
