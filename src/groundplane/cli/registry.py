"""`ground models alias | rollback | search | diff | card | …`: what moves around versions, which never change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.options import connect, output_option
from groundplane.cli.render import Table, View
from groundplane.cli.words import moment
from groundplane.domain.model import check_name, parse_ref
from groundplane.units import format_bytes

if TYPE_CHECKING:
    from groundplane.client import Client
    from groundplane.domain.registry import AliasMove, RegistryEntry, VersionDiff, VersionView

_SHOWN = 100
"""So many differences are shown to people: a full fine-tune changes every tensor."""


@click.command()
@click.argument("ref", metavar="NAME@ALIAS")
@click.argument("to", metavar="VERSION")
@click.option("--reason", required=True, help="Why: kept with the move.")
@output_option
def alias(ref: str, to: str, reason: str, output: str) -> None:
    """Let an alias stand for a version: `ground models alias churn@production 4`. Its gates are asked first."""
    name, alias_name = _alias(ref)
    with connect() as client:
        before = {row.alias: row for row in client.aliases(name)}.get(alias_name)
        moved = client.move_alias(name, alias_name, to=to.removeprefix(f"{name}@"), reason=reason)
        behind = _behind(client, moved)
    already = f"{moved.alias_id} stands for {moved.to_number} already, since {moment(moved.at)}: {moved.reason}"
    stood = before is not None and before.number == moved.to_number
    render.show(moved, output, lambda: [already if stood else _moved(moved), *behind])


@click.command()
@click.argument("name")
@output_option
def aliases(name: str, output: str) -> None:
    """List a model's aliases."""
    with connect() as client:
        found = client.aliases(name)
    rows = [(row.id, f"{row.name}@{row.number}", row.moved_by, moment(row.moved_at), row.reason) for row in found]
    columns = ("ALIAS", "VERSION", "BY", "SINCE", "WHY")
    render.show(found, output, lambda: [Table(columns, rows, empty=f"{name} has no aliases")])


@click.command()
@click.argument("ref", metavar="NAME@ALIAS")
@output_option
def history(ref: str, output: str) -> None:
    """Show every move of an alias, newest first: who, when, why."""
    name, alias_name = _alias(ref)
    with connect() as client:
        found = client.alias_history(name, alias_name)
    rows = [
        (
            str(move.sequence),
            str(move.kind),
            "-" if move.from_number is None else str(move.from_number),
            "-" if move.to_number is None else str(move.to_number),
            move.by,
            moment(move.at),
            move.reason,
        )
        for move in found
    ]
    table = Table(
        ("#", "MOVE", "FROM", "TO", "BY", "AT", "WHY"),
        rows,
        right=frozenset({"#", "FROM", "TO"}),
        empty="it was never moved",
    )
    render.show(found, output, lambda: [table])


@click.command()
@click.argument("ref", metavar="NAME@ALIAS")
@click.option("--reason", required=True, help="Why: kept with the move.")
@output_option
def rollback(ref: str, reason: str, output: str) -> None:
    """Bring an alias back to what it stood for before. Gates are asked and do not stop it."""
    name, alias_name = _alias(ref)
    with connect() as client:
        moved = client.roll_back_alias(name, alias_name, reason)
        behind = _behind(client, moved)
    render.show(moved, output, lambda: [_moved(moved), *behind])


@click.command()
@click.argument("ref", metavar="NAME@ALIAS")
@click.option("--reason", required=True, help="Why: kept in its history.")
@output_option
def unalias(ref: str, reason: str, output: str) -> None:
    """Take an alias away. Its history stays."""
    name, alias_name = _alias(ref)
    with connect() as client:
        moved = client.remove_alias(name, alias_name, reason)
    render.show(moved, output, lambda: [_moved(moved)])


@click.command()
@click.argument("text", required=False, default="")
@click.option("--project", default="", help="Of one project.")
@click.option("--license", "license_", default="", metavar="SPDX-ID")
@click.option("--tag", "tags", multiple=True, metavar="NAME[=TEXT]", help="May be given again.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME>=X", help="Or NAME<=X; may be given again.")
@click.option("--archived", is_flag=True, help="Archived versions instead.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@output_option
def search(text: str, license_: str, output: str, **wanted: object) -> None:
    """Find versions by part of a name, project, licence, tags and metrics; newest first."""
    with connect() as client:
        found = client.search_versions(text, license=license_, **wanted)  # type: ignore[arg-type]
    render.show(found, output, lambda: [_entries(found)])


@click.command()
@click.argument("before", metavar="NAME@VERSION")
@click.argument("after", metavar="NAME@VERSION")
@output_option
def diff(before: str, after: str, output: str) -> None:
    """Show what differs between two versions: data, code, environment, metrics, cost, files, tensors."""
    with connect() as client:
        found = client.diff_versions(before, after)
    render.show(found, output, lambda: _diff_views(found))


@click.command()
@click.argument("ref", metavar="NAME@VERSION")
@output_option
def card(ref: str, output: str) -> None:
    """Print a version's model card, written from its certificate, its aliases and what gates said."""
    with connect() as client:
        text = client.model_card(ref)
    if output == "table":
        render.text(text)
    else:
        render.show({"card": text}, output, list)


@click.command()
@click.argument("ref", metavar="NAME@VERSION")
@click.argument("tags", nargs=-1, required=True, metavar="NAME=TEXT…")
@output_option
def tag(ref: str, tags: tuple[str, ...], output: str) -> None:
    """Set tags of a version; `NAME-` takes one away."""
    wanted: dict[str, str | None] = {}
    for word in tags:
        name, equals, text = word.partition("=")
        if not equals and word.endswith("-"):
            wanted[word[:-1]] = None
        else:
            wanted[name] = text
    with connect() as client:
        view = client.tag_version(ref, wanted)
    render.show(view, output, lambda: _view_lines(view))


@click.command()
@click.argument("ref", metavar="NAME@VERSION")
@click.argument("name", metavar="NEWNAME")
@click.option("--project", default="", help="Of a new name; the source's when left out.")
@click.option("--reason", default="", help="For the audit trail.")
@output_option
def copy(ref: str, name: str, project: str, reason: str, output: str) -> None:
    """Copy a version to the next one of NEWNAME: same files and facts, a certificate of its own, judged anew."""
    check_name(name)
    with connect() as client:
        made = client.copy_version(ref, name, project=project, reason=reason)
    told = f"copied {ref} as {made.id} of project {made.project}: certificate sha256:{made.certificate_sha256}"
    render.show(made, output, lambda: [told])


@click.command()
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--reason", required=True, help="Why: kept with it.")
@output_option
def archive(ref: str, reason: str, output: str) -> None:
    """Hide a version from searches and keep aliases off it. Nothing is deleted."""
    with connect() as client:
        view = client.archive_version(ref, reason)
    render.show(view, output, lambda: _view_lines(view))


@click.command()
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--reason", default="", help="For the audit trail.")
@output_option
def unarchive(ref: str, reason: str, output: str) -> None:
    """Bring an archived version back."""
    with connect() as client:
        view = client.unarchive_version(ref, reason)
    render.show(view, output, lambda: _view_lines(view))


COMMANDS = (alias, aliases, history, rollback, unalias, search, diff, card, tag, copy, archive, unarchive)


def _alias(ref: str) -> tuple[str, str]:
    wanted = parse_ref(ref)
    if not wanted.alias:
        raise click.UsageError(f"{ref!r} names no alias; write {wanted.name}@production.")
    return wanted.name, wanted.alias


def _moved(move: AliasMove) -> str:
    before = "nothing" if move.from_number is None else str(move.from_number)
    after = "nothing" if move.to_number is None else str(move.to_number)
    return f"{move.alias_id}: {before} → {after} ({move.kind} by {move.by}, {moment(move.at)}: {move.reason})"


def _behind(client: Client, move: AliasMove) -> list[str]:
    """Endpoints that serve what the alias stood for: a plan took it for a number, and they go on with that."""
    left = f"{move.alias_id.partition('@')[0]}@{move.from_number}"
    serving = [
        each.id for each in client.endpoints() if each.model_version == left and each.status in {"deploying", "ready"}
    ]
    again = "ground stop it, then ground apply its spec again"
    return [f"  endpoint {name} goes on serving {left}: {again}" for name in serving]


def _entries(found: Sequence[RegistryEntry]) -> Table:
    rows = [
        (
            entry.id,
            entry.project,
            entry.owner,
            entry.license,
            entry.run_id or "by hand",
            format_bytes(entry.size_bytes),
            moment(entry.created_at),
        )
        for entry in found
    ]
    columns = ("VERSION", "PROJECT", "OWNER", "LICENSE", "FROM", "SIZE", "CREATED")
    return Table(
        columns,
        rows,
        right=frozenset({"SIZE"}),
        empty="no version is like that; --archived looks among the hidden ones",
    )


def _diff_views(found: VersionDiff) -> list[View]:
    same, new = format_bytes(found.same_bytes), format_bytes(found.new_bytes)
    rows = [(each.part, each.name, each.before or "-", each.after or "-") for each in found.differences]
    table = Table(("PART", "WHAT", found.before, found.after), rows[:_SHOWN], empty="no difference")
    more = [f"and {len(rows) - _SHOWN:,} more: -o json"] if len(rows) > _SHOWN else []
    return [f"{found.after} has {same} of {found.before}'s files and {new} of its own", table, *more]


def _view_lines(view: VersionView) -> list[View]:
    return [f"{view.version.id} of project {view.version.project}", *standing_lines(view)]


def standing_lines(view: VersionView) -> list[View]:
    """What moves around a version: where it stands, its tags, and that it is archived."""
    tags = ", ".join(f"{name}={text}" if text else name for name, text in view.tags.items())
    lines: list[View] = [f"  aliases      {', '.join(view.aliases) or 'none'}", f"  tags         {tags or 'none'}"]
    return [*lines, f"  archived     {view.archived_reason}"] if view.archived else lines
