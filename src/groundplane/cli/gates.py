"""`ground gates`: what an alias must show before it moves, what was shown, and who lifted what."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import click

from groundplane.cli import render
from groundplane.cli.options import Listing, Moment, connect, output_option
from groundplane.cli.render import Table, View
from groundplane.cli.words import moment
from groundplane.domain.gate import Evidence, Gate, GateCheck, Kind
from groundplane.domain.statistics import quantile
from groundplane.errors import InvalidInput, Refusal
from groundplane.units import format_usd


@click.group(cls=Listing)
def gates() -> None:
    """Requirements on evidence before an alias moves: define, check, measure, approve, waive."""


@gates.command("list")
@click.option("--model", default="", help="Those before any alias of this model.")
@output_option
def list_(model: str, output: str) -> None:
    """List gates with their requirements."""
    with connect() as client:
        found = client.gates(model=model)
    render.show(found, output, lambda: [_gates_table(found)])


@gates.command()
@click.option("-f", "--file", "path", required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@output_option
def define(path: Path, output: str) -> None:
    """Take every gate of a YAML file, in place of those of the same name."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 at byte {error.start:,}", "save it as UTF-8") from None
    with connect() as client:
        made = client.define_gates(text)
    render.show(made, output, lambda: [_gates_table(made)])


@gates.command()
@click.argument("gate", metavar="PROJECT/NAME")
@click.option("--reason", default="", help="For the audit trail.")
@output_option
def remove(gate: str, reason: str, output: str) -> None:
    """Take a gate away."""
    with connect() as client:
        removed = client.remove_gate(gate, reason)
    render.show(removed, output, lambda: [f"removed {removed.id}"])


@gates.command()
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--alias", required=True, help="The alias that it would stand at.")
@output_option
def check(ref: str, alias: str, output: str) -> None:
    """Ask the gates about a version under an alias; nothing moves. Exits with 3 when one is not met."""
    with connect() as client:
        made = client.check_gates(ref, alias)
    render.show(made, output, lambda: check_views(made))
    if not made.passed:
        raise Refusal([verdict.refused() for verdict in made.verdicts if verdict.open])


@gates.command()
@click.argument("ref", metavar="NAME@VERSION")
@output_option
def checks(ref: str, output: str) -> None:
    """List what gates said of a version, newest first."""
    with connect() as client:
        found = client.gate_checks(ref)
    rows = [
        (
            made.id,
            made.alias,
            "passed" if made.passed else "refused",
            ", ".join(each.requirement for each in made.verdicts if each.open) or "-",
            made.by,
            moment(made.at),
        )
        for made in found
    ]
    table = Table(("CHECK", "ALIAS", "VERDICT", "NOT MET", "BY", "AT"), rows, empty="no gate was asked about it")
    render.show(found, output, lambda: [table])


@gates.command()
@click.argument("endpoint")
@click.option("--requests", type=click.IntRange(1, 2000), default=100, show_default=True)
@click.option("--at-once", type=click.IntRange(1, 32), default=1, show_default=True)
@output_option
def measure(endpoint: str, requests: int, at_once: int, output: str) -> None:
    """Send real prompts to an endpoint; latency and cost become evidence of the version it serves."""
    with connect() as client:
        made = client.measure(endpoint, requests=requests, at_once=at_once)
    render.show(made, output, lambda: [f"{made.version_id}: {evidence_text(made)}", f"  kept as {made.id}"])


@gates.command()
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--metric", default="", help="State scores of this metric; without it, list what is known.")
@click.option("--values", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A score a line.")
@click.option("--successes", type=click.IntRange(0), help="How many examples were right…")
@click.option("--trials", type=click.IntRange(1), help="…of how many.")
@click.option("--note", default="", help="On which examples, by what.")
@output_option
def evidence(
    ref: str, metric: str, values: Path | None, successes: int | None, trials: int | None, note: str, output: str
) -> None:
    """List what is known about a version, or state scores of it under your name."""
    with connect() as client:
        if not metric:
            found = client.evidence(ref)
            render.show(found, output, lambda: [_evidence_table(found)])
            return
        scores = _scores(values) if values else []
        made = client.state_evidence(ref, metric, values=scores, successes=successes, trials=trials, note=note)
    render.show(made, output, lambda: [f"{made.version_id}: {evidence_text(made)}"])


@gates.command()
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--alias", required=True, help="The alias that it may stand at.")
@click.option("--comment", default="")
@output_option
def approve(ref: str, alias: str, comment: str, output: str) -> None:
    """Agree to a version under an alias. Not for whoever registered it."""
    with connect() as client:
        given = client.approve_version(ref, alias, comment)
    render.show(given, output, lambda: [f"{given.by} agrees to {given.version_id} at {given.alias}"])


@gates.command()
@click.argument("gate", metavar="PROJECT/NAME")
@click.argument("requirement")
@click.option("--version", "version_id", default="", metavar="NAME@VERSION", help="For one version; else for all.")
@click.option("--owner", required=True, help="Who answers for it.")
@click.option("--reason", required=True)
@click.option("--until", required=True, type=Moment(ahead=True), help="When it ends by itself: 14d, 2026-12-01.")
@output_option
def waive(gate: str, requirement: str, version_id: str, owner: str, reason: str, until: datetime, output: str) -> None:
    """Lift one requirement for a while."""
    with connect() as client:
        made = client.waive(gate, requirement, owner=owner, reason=reason, expires_at=until, version_id=version_id)
    render.show(
        made, output, lambda: [f"{made.id}: {gate} does not ask for {requirement} until {moment(made.expires_at)}"]
    )


@gates.command()
@click.option("--all", "over_too", is_flag=True, help="Those that have ended as well.")
@click.option("--end", "ended", default="", metavar="WAIVER", help="End this one now.")
@output_option
def waivers(over_too: bool, ended: str, output: str) -> None:
    """List waivers, soonest to end first; or end one."""
    with connect() as client:
        if ended:
            over = client.end_waiver(ended)
            render.show(over, output, lambda: [f"ended {over.id}"])
            return
        found = client.waivers(over_too=over_too)
    rows = [
        (
            each.id,
            each.gate_id,
            each.requirement,
            each.version_id or "all",
            each.owner,
            moment(each.expires_at),
            each.reason,
        )
        for each in found
    ]
    table = Table(("WAIVER", "GATE", "REQUIREMENT", "FOR", "OWNER", "UNTIL", "WHY"), rows, empty="nothing is waived")
    render.show(found, output, lambda: [table])


def check_views(made: GateCheck) -> list[View]:
    """The verdicts as a table under one line."""
    if not made.gates:
        return [f"no gate stands before {made.version_id} at {made.alias}"]
    said = "may stand" if made.passed else "may not stand"
    rows = [
        (each.gate_id, each.requirement, str(each.status), each.need, each.waiver or each.have)
        for each in made.verdicts
    ]
    table = Table(("GATE", "REQUIREMENT", "VERDICT", "NEEDS", "HAS"), rows)
    return [f"{made.version_id} {said} at {made.alias} (now: {made.baseline or 'nothing'}); kept as {made.id}", table]


def evidence_text(made: Evidence) -> str:
    """One line of what evidence says."""
    cost = made.cost_microusd_per_1000
    told = f", {format_usd(cost)} for 1,000" if cost is not None else ""
    if made.kind is Kind.LATENCY:
        p50, p95, p99 = (quantile(made.values, q) * 1000 for q in (0.5, 0.95, 0.99))
        failed = made.facts.get("failed", "0")
        many = f"over {len(made.values)} requests, {failed} failed"
        return f"P50 {p50:.1f} ms, P95 {p95:.1f} ms, P99 {p99:.1f} ms {many}{told}"
    sample = made.sample
    shown = f"{made.successes} of {made.trials}" if sample.counted else f"{len(made.values)} examples"
    return f"{made.name} {sample.mean or 0.0:.4g} ({shown}), {made.source} by {made.by}"


def _gates_table(found: Sequence[Gate]) -> Table:
    rows = [
        (gate.id, gate.model, ", ".join(gate.aliases), requirement.id, requirement.asked)
        for gate in found
        for requirement in gate.requirements
    ]
    empty = "no gates: aliases move freely; ground gates define -f FILE"
    return Table(("GATE", "MODEL", "ALIASES", "REQUIREMENT", "NEEDS"), rows, empty=empty)


def _evidence_table(found: Sequence[Evidence]) -> Table:
    rows = [(made.id, str(made.kind), evidence_text(made), made.source, made.by, moment(made.at)) for made in found]
    columns = ("EVIDENCE", "KIND", "SAYS", "SOURCE", "BY", "AT")
    return Table(columns, rows, empty="nothing beside its certificate")


def _scores(path: Path) -> list[float]:
    scores = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            try:
                scores.append(float(line))
            except ValueError:
                raise InvalidInput(
                    f"{path} line {number}: {line[:40]!r} is no number", "write a score a line"
                ) from None
    return scores
