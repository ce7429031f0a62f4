"""`ground who | queue | quotas | reserve | schedules`: who holds and who waits, and what decides it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.options import Listing, Moment, connect, output_option
from groundplane.cli.render import Table
from groundplane.cli.specs import spec_text
from groundplane.cli.words import age, counted, moment
from groundplane.domain.queue_view import InLine, NodeUse, PoolUse, QuotaUse, clock
from groundplane.errors import InvalidInput
from groundplane.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from groundplane.domain.queue import Reservation, Schedule

NONE = "none"
pool_option = click.option("--pool", help="Of one pool.")
reason_option = click.option("--reason", default="", help="Why: written to the audit trail.")


@click.command()
@pool_option
@output_option
def who(pool: str | None, output: str) -> None:
    """Say who holds every accelerator and node, and who waits for them."""
    with connect() as client:
        pools = client.queue(pool)
    render.show(pools, output, lambda: [part for each in pools for part in _pool_parts(each)])


@click.command()
@pool_option
@output_option
def queue(pool: str | None, output: str) -> None:
    """List what waits, in the order in which it starts, with why and until when."""
    with connect() as client:
        pools = client.queue(pool)
    render.show(pools, output, lambda: [_queue_table(pools)])


def _pool_parts(pool: PoolUse) -> list[Table | str]:
    now = datetime.now(UTC)
    if pool.silent:
        return [f"pool {pool.pool} does not answer: {pool.silent}"]
    cards = sum(node.accelerators for node in pool.nodes)
    free = sum(len(node.free) for node in pool.nodes)
    cpus, idle = sum(node.cpus for node in pool.nodes), sum(node.cpus_free for node in pool.nodes)
    what = f"{free} of {cards} accelerators free, " if cards else ""
    head = f"pool {pool.pool}: {what}{idle:g} of {counted(cpus, 'CPU')} free, {len(pool.waiting)} waiting"
    rows = [row for node in pool.nodes for row in _node_rows(node, now)]
    columns = ("NODE", "HOLDS", "PROJECT", "OWNER", "CLASS", "RUN", "FOR", "UNTIL AT THE LATEST")
    return [head, Table(columns, rows, empty="no nodes"), *([_queue_table([pool])] if pool.waiting else [])]


def _node_rows(node: NodeUse, now: datetime) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for held in node.held:
        cpus = counted(held.cpus, "CPU")
        what = f"{node.accelerator} {','.join(map(str, held.accelerators))}" if held.accelerators else ""
        what = f"{what} + {cpus}" if what else f"{cpus}, {format_bytes(held.memory_bytes)}"
        until = clock(held.ends_at, now) if held.ends_at else "-"
        until = f"{until}, gives way to {held.gives_way_to}" if held.gives_way_to else until
        run = f"{held.run} {held.name}".strip() or "-"
        rows.append((node.name, what, held.project, held.owner, held.priority, run, age(held.since, now), until))
    free = f"free: {len(node.free)} {node.accelerator} + " if node.accelerators else "free: "
    free += f"{counted(node.cpus_free, 'CPU')}, {format_bytes(max(0, node.memory_free_bytes))}"
    rows.append((node.name, f"closed: {node.closed}" if node.closed else free, "", "", "", "", "", ""))
    return rows


def _queue_table(pools: list[PoolUse]) -> Table:
    now = datetime.now(UTC)
    several = len(pools) > 1
    rows = [_line_row(line, pool.pool if several else "", now) for pool in pools for line in pool.waiting]
    columns: tuple[str, ...] = ("#", "RUN", "NAME", "PROJECT", "CLASS", "WAITED", "STARTS", "LAYER", "WHY")
    if several:
        columns = ("POOL", *columns)
    return Table(columns, rows, right=frozenset({"#"}), empty="nothing waits")


def _line_row(line: InLine, pool: str, now: datetime) -> tuple[str, ...]:
    starts = "-"
    if line.starts_at is not None:
        starts = f"about {clock(line.starts_at, now)}"
    elif line.starts_after is not None:
        starts = f"after {clock(line.starts_after, now)}"
    row = (
        str(line.position or "-"),
        line.run or "-",
        line.name or "-",
        line.project,
        line.priority,
        age(line.queued_at, now),
        starts,
        line.layer,
        line.reason or line.needs,
    )
    return (pool, *row) if pool else row


# ---------------------------------------------------------------- quotas


@click.group(cls=Listing)
def quotas() -> None:
    """Show and set what projects may hold at once."""


@quotas.command("list")
@output_option
def list_quotas(output: str) -> None:
    """List every project's quota with what it holds and how many of its runs wait."""
    with connect() as client:
        found = client.quotas()
    render.show(found, output, lambda: [_quotas_table(found)])


@quotas.command("set")
@click.argument("project")
@click.option("--accelerators", metavar="N|none", help="Most accelerators held at once, over all pools.")
@click.option("--cpus", metavar="N|none", help="Most CPUs held at once.")
@click.option("--memory", metavar="SIZE|none", help="Most memory held at once.")
@click.option("--runs", metavar="N|none", help="Most runs at once; never borrowed.")
@click.option("--cohort", metavar="NAME|none", help="Projects of a cohort lend each other what they leave unused.")
@click.option("--weight", type=click.FloatRange(0.01, 100), help="Of its fair share; 1 when never set.")
@reason_option
@output_option
def set_quota(
    project: str,
    accelerators: str | None,
    cpus: str | None,
    memory: str | None,
    runs: str | None,
    cohort: str | None,
    weight: float | None,
    reason: str,
    output: str,
) -> None:
    """Set a project's quota, at once. What is not given stays; `none` lifts a limit."""
    limits: dict[str, int | None] = {}
    for name, text in (("accelerators", accelerators), ("cpus_milli", cpus), ("memory_bytes", memory), ("runs", runs)):
        if text is not None:
            limits[name] = _limit(name, text)
    if not limits and cohort is None and weight is None:
        raise click.UsageError("Give at least one of --accelerators, --cpus, --memory, --runs, --cohort, --weight.")
    with connect() as client:
        in_cohort = "" if cohort == NONE else cohort
        client.set_quota(project, limits, cohort=in_cohort, weight=weight, reason=reason)
        found = [each for each in client.quotas() if each.quota.id == project]
    render.show(found[0] if found else None, output, lambda: [_quotas_table(found)])


def _limit(name: str, text: str) -> int | None:
    if text == NONE:
        return None
    try:
        if name == "memory_bytes":
            return parse_bytes(text)
        value = float(text) * 1000 if name == "cpus_milli" else int(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is no limit", "write a number, or none") from None
    if not 0 <= value < 2**53:
        raise InvalidInput(f"{text!r} is no limit", "write a number from 0, or none")
    return round(value)


def _quotas_table(found: list[QuotaUse]) -> Table:
    def of(held: float, limit: float | None) -> str:
        return f"{held:g} of {limit:g}" if limit is not None else f"{held:g}"

    rows = []
    for each in found:
        quota, held = each.quota, each.held
        most = format_bytes(quota.memory_bytes) if quota.memory_bytes is not None else ""
        rows.append(
            (
                quota.id,
                of(held.accelerators, quota.accelerators),
                of(held.cpus_milli / 1000, quota.cpus_milli / 1000 if quota.cpus_milli is not None else None),
                f"{format_bytes(held.memory_bytes)}{f' of {most}' if most else ''}",
                of(held.runs, quota.runs),
                str(each.waiting),
                quota.cohort or "-",
                f"{quota.weight:g}",
            )
        )
    columns = ("PROJECT", "ACCELERATORS", "CPUS", "MEMORY", "RUNS", "WAITING", "COHORT", "WEIGHT")
    return Table(columns, rows, right=frozenset({"WAITING", "WEIGHT"}), empty="no projects")


# ---------------------------------------------------------------- reservations


@click.group(cls=Listing)
def reserve() -> None:
    """Keep capacity for a project from a time to a time."""


@reserve.command("create")
@click.option("--project", required=True)
@click.option("--pool", default="local", show_default=True)
@click.option("--accelerators", type=click.IntRange(1), help="How many accelerators.")
@click.option("--cpus", type=click.FloatRange(0.1), help="How many CPUs, where a pool has no accelerators.")
@click.option("--from", "starts_at", type=Moment(ahead=True), metavar="TIME", required=True, help="When it begins.")
@click.option("--to", "ends_at", type=Moment(ahead=True), metavar="TIME", required=True, help="When it ends.")
@reason_option
@output_option
def create_reservation(
    project: str,
    pool: str,
    accelerators: int | None,
    cpus: float | None,
    starts_at: datetime,
    ends_at: datetime,
    reason: str,
    output: str,
) -> None:
    """Reserve accelerators or CPUs: `--accelerators 8 --from 2026-12-01T14:00:00Z --to 2026-12-01T18:00:00Z`.

    Nothing that runs is ended for it; what would run into it waits.
    """
    if (accelerators is None) == (cpus is None):
        raise click.UsageError("Give either --accelerators or --cpus.")
    with connect() as client:
        made = client.reserve(
            project=project,
            pool=pool,
            starts_at=starts_at,
            ends_at=ends_at,
            accelerators=accelerators or 0,
            cpus=cpus or 0.0,
            reason=reason,
        )
    render.show(made, output, lambda: [_reservations_table([made])])


@reserve.command("list")
@output_option
def list_reservations(output: str) -> None:
    """List reservations that are not over, the next first."""
    with connect() as client:
        found = client.reservations()
    render.show(found, output, lambda: [_reservations_table(found)])


@reserve.command("cancel")
@click.argument("reservation", metavar="RESERVATION")
@reason_option
@output_option
def cancel_reservation(reservation: str, reason: str, output: str) -> None:
    """Give a reservation back. What its project runs there goes on."""
    with connect() as client:
        found = client.cancel_reservation(reservation, reason)
    render.show(found, output, lambda: [f"reservation {found.id} is cancelled"])


def _reservations_table(found: list[Reservation]) -> Table:
    rows = [
        (
            each.id,
            each.project,
            each.pool,
            str(sum(part.accelerators for part in each.parts)),
            f"{sum(part.cpus_milli for part in each.parts) / 1000:g}",
            ",".join(part.node for part in each.parts),
            moment(each.starts_at),
            moment(each.ends_at),
            each.owner,
        )
        for each in found
    ]
    columns = ("RESERVATION", "PROJECT", "POOL", "ACCELERATORS", "CPUS", "NODES", "FROM", "TO", "BY")
    return Table(columns, rows, right=frozenset({"ACCELERATORS", "CPUS"}), empty="no reservations")


# ---------------------------------------------------------------- schedules


@click.group(cls=Listing)
def schedules() -> None:
    """Submit jobs at times."""


@schedules.command("create")
@click.option("-f", "--file", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--until", type=Moment(ahead=True), metavar="TIME", help="The last day it ticks; 90 days when left out.")
@reason_option
@output_option
def create_schedule(path: Path, until: datetime | None, reason: str, output: str) -> None:
    """Keep a job spec that has a `schedule`. One of the same name in the project is replaced."""
    with connect() as client, spec_text(path) as text:
        made = client.create_schedule(text, until=until, reason=reason)
    render.show(made, output, lambda: [_schedules_table([made])])


@schedules.command("list")
@output_option
def list_schedules(output: str) -> None:
    """List schedules with their next tick and what became of the last."""
    with connect() as client:
        found = client.schedules()
    render.show(found, output, lambda: [_schedules_table(found)])


@schedules.command("pause")
@click.argument("schedule", metavar="SCHEDULE")
@reason_option
@output_option
def pause_schedule(schedule: str, reason: str, output: str) -> None:
    """Stop a schedule's ticks until it is resumed; they are not made up for."""
    with connect() as client:
        found = client.pause_schedule(schedule, True, reason)
    render.show(found, output, lambda: [_schedules_table([found])])


@schedules.command("resume")
@click.argument("schedule", metavar="SCHEDULE")
@reason_option
@output_option
def resume_schedule(schedule: str, reason: str, output: str) -> None:
    """Let a schedule tick again, from its next tick on."""
    with connect() as client:
        found = client.pause_schedule(schedule, False, reason)
    render.show(found, output, lambda: [_schedules_table([found])])


@schedules.command("delete")
@click.argument("schedule", metavar="SCHEDULE")
@reason_option
def delete_schedule(schedule: str, reason: str) -> None:
    """Forget a schedule. Runs it submitted go on."""
    with connect() as client:
        client.delete_schedule(schedule, reason)
    render.say(f"schedule {schedule} is deleted")


def _schedules_table(found: list[Schedule]) -> Table:
    rows = [
        (
            each.id,
            each.cron,
            each.timezone,
            "paused" if each.paused else moment(each.due_at),
            moment(each.last_tick_at),
            each.last_message or each.last_run or "-",
            moment(each.until),
            each.owner,
        )
        for each in found
    ]
    columns = ("SCHEDULE", "CRON", "ZONE", "NEXT", "LAST", "BECAME", "UNTIL", "OWNER")
    return Table(columns, rows, empty="no schedules; ground schedules create -f SPEC keeps one")
