"""`ground ps | logs | explain | stop`: runs as people meet them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.following import follow_endpoint, print_log
from groundplane.cli.options import connect, output_option
from groundplane.cli.words import runs_table
from groundplane.errors import NotFound

if TYPE_CHECKING:
    from groundplane.domain.endpoint import Endpoint
    from groundplane.domain.run import Run

RUN_PREFIX = "run-"
PLAN_PREFIX = "plan-"


@click.command()
@click.option("--project", help="Of one project.")
@click.option("--status", metavar="STATUS", help="pending, starting, running, stopping, succeeded, failed or stopped.")
@click.option("--active", is_flag=True, help="Only runs that are not over.")
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@output_option
def ps(project: str | None, status: str | None, active: bool, limit: int, output: str) -> None:
    """List runs, newest first."""
    if active and status:
        raise click.UsageError("Give either --active or --status.")
    with connect() as client:
        runs = client.runs(project=project, status="active" if active else status, limit=limit)
    render.show(runs, output, lambda: [runs_table(runs, datetime.now(UTC))])


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is over, through every attempt.")
@click.option("--attempt", type=click.IntRange(1), help="The newest when left out.")
@click.option("--rank", type=click.IntRange(0), default=0, help="Which member of a run on several nodes.")
@click.option("--tail", type=click.IntRange(1), metavar="LINES", help="Only the last lines of what there is.")
def logs(run_id: str, follow: bool, attempt: int | None, rank: int, tail: int | None) -> None:
    """Print a run's log: the bytes that the job wrote, as they are."""
    if follow and tail:
        raise click.UsageError("Give either --follow or --tail.")
    if follow and rank:
        raise click.UsageError("Only rank 0 is followed; leave --follow out to read another's log.")
    with connect() as client:
        if follow:
            print_log(client, run_id, attempt=attempt)
            render.say(client.explain(run_id).sentence)
            return
        pieces = (piece.data for piece in client.read_log(run_id, attempt, rank=rank))
        for data in [_last_lines(pieces, tail)] if tail else pieces:
            render.raw(data)


def _last_lines(pieces: Iterator[bytes], count: int) -> bytes:
    kept = b""
    for data in pieces:
        kept = b"".join((kept + data).splitlines(keepends=True)[-count:])
    return kept


@click.command()
@click.argument("name", metavar="RUN|PLAN")
@output_option
def explain(name: str, output: str) -> None:
    """Say where a run is and why, or what becomes of a plan, in a sentence and the facts.

    With -o json also the run, its attempts and its checkpoints, or the plan, in full.
    """
    with connect() as client:
        value: dict[str, object]
        if name.startswith(PLAN_PREFIX):
            explanation, value = client.explain_plan(name), {"plan": client.get_plan(name)}
        else:
            explanation, detail = client.explain(name), client.run(name)
            value = {"run": detail.run, "attempts": detail.attempts, "checkpoints": detail.checkpoints}
    value = {"sentence": explanation.sentence, "lines": explanation.lines, **value}
    render.show(value, output, lambda: [explanation.sentence, *(f"  {line}" for line in explanation.lines)])


@click.command()
@click.argument("names", metavar="RUN|ENDPOINT...", nargs=-1, required=True)
@click.option("--reason", default="", help="Why: written to the audit trail.")
@click.option("--wait", is_flag=True, help="Return when it is over.")
@output_option
def stop(names: tuple[str, ...], reason: str, wait: bool, output: str) -> None:
    """Stop runs and endpoints. What they wrote is kept. Stopping twice is the same as once."""
    stopped: list[Run | Endpoint] = []
    with connect() as client:
        for name in names:
            if name.startswith(RUN_PREFIX):
                run = client.stop_run(name, reason)
                stopped.append(client.wait(name) if wait else run)
                continue
            try:
                endpoint = client.stop_endpoint(name, reason)
            except NotFound:
                hint = "ground ps lists runs, ground endpoints lists endpoints"
                raise NotFound(f"no run and no endpoint is called {name}", hint) from None
            stopped.append(follow_endpoint(client, name) if wait else endpoint)
    render.show(stopped, output, lambda: [f"{thing.id} is {thing.status}" for thing in stopped])
