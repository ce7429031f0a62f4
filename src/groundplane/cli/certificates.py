"""`ground models addenda | add | require | missing | scans`: later facts of versions, and facts projects ask for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from groundplane.cli import render
from groundplane.cli.options import connect, output_option
from groundplane.cli.render import Table
from groundplane.cli.words import moment
from groundplane.domain.provenance.addendum import Addendum, AddendumKind, summary
from groundplane.domain.provenance.required_facts import FACT_NAMES, LATER, Missing, RequiredFacts, Stage, read_required

if TYPE_CHECKING:
    from groundplane.domain.gate import Evidence


@click.command()
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--envelopes", is_flag=True, help="The signed envelopes, to be kept as addenda.json beside the files.")
@output_option
def addenda(ref: str, envelopes: bool, output: str) -> None:
    """Show what became known of a version after its certificate: evaluations, waivers, rollback targets, levels."""
    with connect() as client:
        found = client.addenda(ref)
    if envelopes:
        render.show([json.loads(each.envelope) for each in found], "json", list)
        return
    rows = [(str(each.sequence), str(each.kind), summary(each), each.by, moment(each.at)) for each in found]
    table = Table(("#", "KIND", "SAYS", "BY", "AT"), rows, right=frozenset({"#"}), empty=f"{ref} has no addenda")
    render.show(found, output, lambda: [table])


@click.command()
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--evaluation", metavar="NAME", help="An evaluation; with --metric.")
@click.option("--metric", multiple=True, metavar="NAME=VALUE", help="What it measured; may be given again.")
@click.option("--dataset", default="", metavar="NAME@VERSION", help="On which data.")
@click.option("--note", default="", help="One line about it.")
@click.option("--rollback-target", metavar="NAME@NUMBER", help="The version that is gone back to from this one.")
@click.option("--sla", metavar="TEXT", help="The level of service that is promised for it.")
@click.option("--reason", default="", help="For the audit trail.")
@output_option
def add(ref: str, output: str, reason: str, **stated: Any) -> None:
    """State a later fact of a version: it is signed, and chained to the certificate, which stays as it is."""
    kinds = [
        (AddendumKind.EVALUATION, stated["evaluation"]),
        (AddendumKind.ROLLBACK_TARGET, stated["rollback_target"]),
        (AddendumKind.SLA, stated["sla"]),
    ]
    given = [(kind, text) for kind, text in kinds if text]
    if len(given) != 1:
        raise click.UsageError("Give one of --evaluation, --rollback-target, --sla.")
    kind, text = given[0]
    facts: dict[str, Any] = {"sla": text}
    if kind is AddendumKind.ROLLBACK_TARGET:
        facts = {"target": text}
    if kind is AddendumKind.EVALUATION:
        facts = {"name": text, "metrics": _metrics(stated["metric"])}
        facts |= {name: stated[name] for name in ("dataset", "note") if stated[name]}
    with connect() as client:
        made = client.add_addendum(ref, kind, facts, reason)
    render.show(made, output, lambda: [_added(made)])


@click.command()
@click.argument("project", default="")
@click.argument("facts", nargs=-1, metavar="[FACT…]")
@click.option("--none", "nothing", is_flag=True, help="Require nothing any more.")
@click.option("--reason", default="", help="Why: kept with the rule and on the trail.")
@output_option
def require(project: str, facts: Sequence[str], nothing: bool, reason: str, output: str) -> None:
    """Show or set the facts that a project requires of its models, such as: vision licence data 'not dirty'.

    They are asked when a version is registered, deployed and loaded. Counts take >=N: 'evaluations>=2'.
    """
    if nothing and facts:
        raise click.UsageError("Give facts, or --none.")
    with connect() as client:
        if nothing:
            client.release_facts(project, reason)
        elif facts:
            client.require_facts(project, read_required(facts), reason)
        found = [each for each in client.required_facts() if project in ("", each.id)]
    render.show(found, output, lambda: [_rules(found, project)])


@click.command()
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--stage", type=click.Choice([str(each) for each in Stage]), default="deploy", show_default=True)
@output_option
def missing(ref: str, stage: str, output: str) -> None:
    """List the facts that a version's project requires and nobody knows, and how each is supplied."""
    with connect() as client:
        found = client.missing_facts(ref, stage)
    render.show(found, output, lambda: [_missing(found, ref, stage)])


@click.command()
@click.argument("ref", metavar="NAME@VERSION", default="")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True)
@output_option
def scans(ref: str, limit: int, output: str) -> None:
    """List what scans found, newest first: at registration, and by `ground models scan NAME@VERSION`."""
    with connect() as client:
        found = client.scans(ref, limit)
    rows = [
        (each.version_id, each.name, each.facts.get("findings", "?"), _first(each), each.by, moment(each.at))
        for each in found
    ]
    columns = ("VERSION", "OUTCOME", "FINDINGS", "FIRST", "BY", "AT")
    render.show(found, output, lambda: [Table(columns, rows, right=frozenset({"FINDINGS"}), empty="nothing scanned")])


COMMANDS = (addenda, add, require, missing, scans)


def _metrics(words: Sequence[str]) -> dict[str, float]:
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise click.UsageError(f"--metric takes NAME=VALUE with a number, not {word!r}.")
    return found


def _added(made: Addendum) -> str:
    return f"{made.version_id}: addendum {made.sequence}, {summary(made)}; sha256:{made.sha256}"


def _rules(found: Sequence[RequiredFacts], project: str) -> Table:
    rows = [(each.id, ", ".join(each.required), each.set_by, moment(each.set_at), each.reason) for each in found]
    later = ", ".join(sorted(LATER))
    nothing = f"{project} requires nothing" if project else "no project requires anything"
    empty = (
        f"{nothing} more than every registration does; known facts are "
        f"{', '.join(FACT_NAMES)}, metrics.NAME ({later} from the deployment on)"
    )
    return Table(("PROJECT", "REQUIRED", "BY", "SINCE", "WHY"), rows, empty=empty)


def _missing(found: Sequence[Missing], ref: str, stage: str) -> Table:
    rows = [(each.fact, each.have, each.supply) for each in found]
    return Table(("FACT", "THERE IS", "SUPPLY IT"), rows, empty=f"nothing that is required to {stage} {ref} is missing")


def _first(scan: Evidence) -> str:
    return next((text for name, text in sorted(scan.facts.items()) if name.startswith("finding ")), "-")
