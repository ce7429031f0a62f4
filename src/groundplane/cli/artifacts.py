"""`ground artifacts`: files pushed and pulled under a name, and the store that keeps them small and honest."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.options import Listing, Moment, connect, output_option
from groundplane.cli.pulling import pull_into, pull_options, size_of
from groundplane.cli.render import Table
from groundplane.cli.words import counted, moment
from groundplane.errors import IntegrityFailure, InvalidInput, Unavailable
from groundplane.units import format_bytes, parse_duration_s

if TYPE_CHECKING:
    from groundplane.domain.artifact import Arrival, Artifact, ScrubReport


@click.group(cls=Listing)
def artifacts() -> None:
    """Push, pull and list files; see what the store holds, collect and scrub it."""


@artifacts.command("list")
@click.option("--project", help="Only this project's.")
@output_option
def list_(project: str | None, output: str) -> None:
    """List artifacts, newest first."""
    with connect() as client:
        found = client.artifacts(project=project, limit=1000)
        arriving = client.arrivals(project=project)
    rows = [
        (
            artifact.id,
            artifact.name,
            artifact.project,
            str(len(artifact.files)),
            format_bytes(artifact.size_bytes),
            "pinned" if artifact.pinned else moment(artifact.keep_until) if artifact.keep_until else "-",
            moment(artifact.created_at),
        )
        for artifact in found
    ]
    columns = ("ID", "NAME", "PROJECT", "FILES", "SIZE", "KEPT UNTIL", "PUSHED")
    table = Table(columns, rows, right=frozenset({"FILES", "SIZE"}), empty="no artifacts pushed yet")
    render.show(found, output, lambda: [table, *map(_arriving, arriving)])


@artifacts.command()
@click.option("--project", help="Only this project's.")
@output_option
def arriving(project: str | None, output: str) -> None:
    """List pushes that are stored and still lack their files' SHA-256, oldest first."""
    with connect() as client:
        found = client.arrivals(project=project)
    render.show(found, output, lambda: [*map(_arriving, found)] or ["nothing is arriving"])


@artifacts.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", help="The artifact's name; the file's or folder's own unless given.")
@click.option("--project", default="default", show_default=True)
@click.option("--keep-until", type=Moment(ahead=True), metavar="TIME", help="Its retention: 30d, or a date.")
@click.option("--pin", is_flag=True, help="Keep it whatever happens: no retention, no delete.")
@click.option("--resume", default="", metavar="UPLOAD", help="Go on with an upload that broke off.")
@click.option("--no-wait", is_flag=True, help="Return when every byte is stored; the files' SHA-256 follows.")
@output_option
def push(
    path: Path,
    name: str | None,
    project: str,
    keep_until: datetime | None,
    pin: bool,
    resume: str,
    no_wait: bool,
    output: str,
) -> None:
    """Push a file or a folder. Only what the store does not hold yet is sent and stored."""
    begun: list[str] = []
    total = sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
    with connect() as client, render.progress(f"pushing {path.name}", total) as advance:
        try:
            pushed = (client.arrive if no_wait else client.push)(
                path,
                name=name or _name_of(path),
                project=project,
                keep_until=keep_until,
                pinned=pin,
                resume=resume,
                progress=advance,
                began=begun.append,
            )
        except (KeyboardInterrupt, Unavailable):
            if begun:
                known_as = f"--name {name or _name_of(path)} --project {project}"
                render.say(f"go on with: ground artifacts push {path} {known_as} --resume {begun[0]}")
            raise
    render.show(pushed, output, lambda: [f"pushed {pushed.id}", *_lines(pushed)])


@artifacts.command()
@click.argument("ref", metavar="NAME|ID")
@pull_options
@output_option
def pull(ref: str, target: Path | None, output: str, **options: object) -> None:
    """Pull an artifact's files into TARGET, each piece verified. Broken off, it goes on where it was."""
    with connect() as client:
        artifact = client.artifact(ref)
        place = pull_into(client.pull, artifact.id, artifact.name, artifact.size_bytes, target, **options)
    files = counted(len(artifact.files), "file")
    text = f"pulled {artifact.id} into {place}: {files}, {format_bytes(artifact.size_bytes)}"
    render.show(artifact, output, lambda: [text])


@artifacts.command()
@click.argument("ref", metavar="NAME|ID")
@output_option
def show(ref: str, output: str) -> None:
    """Show an artifact and its files."""
    with connect() as client:
        artifact = client.artifact(ref)
    rows = [(file.path, format_bytes(file.size_bytes), file.sha256) for file in artifact.files]
    table = Table(("FILE", "SIZE", "SHA-256"), rows, right=frozenset({"SIZE"}))
    render.show(artifact, output, lambda: [*_lines(artifact), table])


@artifacts.command()
@click.argument("ref", metavar="NAME|ID")
@output_option
def verify(ref: str, output: str) -> None:
    """Read every piece of an artifact again. Exits with 8 when anything changed."""
    with connect() as client:
        checked = client.verify_artifact(ref)
    size = format_bytes(checked.checked_bytes)
    text = f"{checked.id}: {checked.checked_files} files ({size}) are what was pushed"
    render.show(checked, output, lambda: [text] if checked.ok else [str(problem) for problem in checked.problems])
    if not checked.ok:
        raise IntegrityFailure(
            f"{checked.id} is not what was pushed: {checked.problems[0]}", "push the same content again: that heals it"
        )


@artifacts.command("rm")
@click.argument("ref", metavar="NAME|ID")
@click.option("--reason", default="", help="For the audit trail.")
@output_option
def remove(ref: str, reason: str, output: str) -> None:
    """Delete an artifact. Its bytes go with the next collection unless something else needs them."""
    with connect() as client:
        artifact = client.delete_artifact(ref, reason)
    render.show(artifact, output, lambda: [f"deleted {artifact.id} ({artifact.name})"])


@artifacts.command()
@output_option
def du(output: str) -> None:
    """Show what the store holds, what it saves by sharing, and what each project keeps."""
    with connect() as client:
        view = client.storage()
    store = view.store
    lines = [
        f"{store.files} files of {format_bytes(store.file_bytes)} in {format_bytes(store.stored_bytes)} "
        f"({view.sharing:.2f} × shared), {store.pieces} pieces in {store.packs} packs",
        f"free {format_bytes(store.free_bytes)}" if store.free_bytes is not None else "free: as the bucket allows",
    ]
    if store.legacy_bytes:
        lines.append(f"{format_bytes(store.legacy_bytes)} as an older release stored it; a push moves a file")
    lines += [f"damaged: pack {name}; ground artifacts scrub says what uses it" for name in store.damaged_packs]
    rows = [
        (
            each.project,
            format_bytes(each.used_bytes),
            "-" if each.limit_bytes is None else format_bytes(each.limit_bytes),
        )
        for each in view.projects
    ]
    table = Table(("PROJECT", "KEPT", "QUOTA"), rows, right=frozenset({"KEPT", "QUOTA"}))
    render.show(view, output, lambda: [*lines, table])


@artifacts.command()
@click.option("--grace", default="1h", show_default=True, help="Spare what was pushed within it; a minute at least.")
@click.option("--thorough", is_flag=True, help="Rewrite every pack that holds a dead byte.")
@output_option
def gc(grace: str, thorough: bool, output: str) -> None:
    """Remove from the store what nothing refers to. Spares every push under way."""
    with connect() as client:
        done = client.collect(grace_s=_duration_s(grace), thorough=thorough)
    lines = [
        f"freed {format_bytes(done.freed_bytes)}: {done.files} files, {done.packs_deleted} packs deleted, "
        f"{done.packs_rewritten} rewritten",
        f"{format_bytes(done.waiting_bytes)} are too young, or share a pack with what is needed",
    ]
    render.show(done, output, lambda: lines)


@artifacts.command()
@output_option
def scrub(output: str) -> None:
    """Read the whole store and name each damaged piece and what uses it. Exits with 8 when there is one."""
    with connect() as client:
        report = client.scrub()
    render.show(report, output, lambda: _scrub_lines(report))
    if not report.ok:
        raise IntegrityFailure(
            f"{len(report.damage)} damaged places and {len(report.lost)} lost files in the store",
            "push the same content again: that heals it; or restore the store from a backup",
        )


@artifacts.command()
@click.argument("project")
@click.argument("size", metavar="SIZE|none")
@output_option
def quota(project: str, size: str, output: str) -> None:
    """Set the most bytes a project may keep, like 500GiB; `none` lifts it."""
    limit_bytes = None if size == "none" else size_of(size)
    with connect() as client:
        kept = client.set_storage_quota(project, limit_bytes)
    limit = "no quota" if kept.limit_bytes is None else f"a quota of {format_bytes(kept.limit_bytes)}"
    render.show(kept, output, lambda: [f"{project} keeps {format_bytes(kept.used_bytes)} and has {limit}"])


def _arriving(arrival: Arrival) -> str:
    told = arrival.problem or "their SHA-256 follows"
    return f"arriving: {arrival.id} ({arrival.name}), {format_bytes(arrival.size_bytes)} are stored, {told}"


def _lines(artifact: Artifact | Arrival) -> list[str]:
    digest = getattr(artifact, "manifest_sha256", "")
    follows = f"its SHA-256 follows; ground artifacts show {artifact.id} waits for it"
    kept = "pinned" if artifact.pinned else moment(artifact.keep_until) if artifact.keep_until else "until deleted"
    return [
        f"{artifact.name} of project {artifact.project}, by {artifact.created_by}, {moment(artifact.created_at)}",
        f"  size      {format_bytes(artifact.size_bytes)} in {counted(len(artifact.files), 'file')}",
        f"  kept      {kept}",
        f"  manifest  {f'sha256:{digest}' if digest else follows}",
    ]


def _scrub_lines(report: ScrubReport) -> list[str]:
    lines = [f"read {format_bytes(report.checked_bytes)} in {report.checked_pieces} pieces"]
    for found in report.damage:
        spot = found.spot
        what = f"piece {spot.piece}" if spot.piece else "directory"
        healed = "; another copy is good, ground artifacts gc --thorough takes this one away" if spot.other_copy else ""
        lines.append(f"damaged: {what} in pack {spot.pack or '-'} at byte {spot.offset}: {spot.why}{healed}")
        lines += [f"  used by {name}" for name in found.used_by] or ["  used by nothing"]
    lines += [f"lost: {name}" for name in report.lost]
    return [*lines, "nothing is missing" if report.damage else "no damage"] if report.ok else lines


def _duration_s(text: str) -> float:
    try:
        return float(parse_duration_s(text))
    except ValueError as error:
        raise InvalidInput(f"{text!r} is no duration: {error}", "write 1h or 30m") from None


def _name_of(path: Path) -> str:
    """A file's or folder's own name, as far as artifacts may be called so."""
    text = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in path.absolute().name.lower())
    return text.strip("._-")[:63] or "artifact"
