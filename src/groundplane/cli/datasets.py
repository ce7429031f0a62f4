"""`ground datasets`: what models are made from: register, compare, verify, follow, erase with proof."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import click

from groundplane.cli import render
from groundplane.cli.options import Duration, Listing, Moment, agreed, connect, output_option
from groundplane.cli.render import Table, View
from groundplane.cli.words import counted, moment
from groundplane.domain.dataset import (
    DatasetCheck,
    DatasetFacts,
    DatasetVersion,
    Erasure,
    Profile,
    digest_of,
    missing_facts,
    pointer_of,
)
from groundplane.domain.dataset_profile import TABLES, Profiler, suffix_of
from groundplane.domain.model import ManifestFile, check_name, manifest
from groundplane.domain.spec import CLASSIFICATIONS
from groundplane.errors import GroundError, IntegrityFailure, InvalidInput, NotFound, Problem, Refusal
from groundplane.units import format_bytes, format_duration

PARALLEL = 4


@click.group(cls=Listing)
def datasets() -> None:
    """Register, compare, verify, follow and erase datasets."""


@datasets.command("list")
@click.argument("name", required=False, default="")
@output_option
def list_(name: str, output: str) -> None:
    """List versions, by name, newest first."""
    with connect() as client:
        found = client.datasets(name=name)
    render.show(found, output, lambda: [_versions_table(found)])


@datasets.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", required=True)
@click.option("--project", default="default", show_default=True)
@click.option("--owner", default="", help="Who answers for it.")
@click.option("--license", "license_", default="", metavar="SPDX-ID", help="Under which terms it may be used.")
@click.option("--classification", default="", metavar="LEVEL", help=f"{', '.join(CLASSIFICATIONS)}.")
@click.option("--description", default="")
@click.option("--as-of", type=Moment(ahead=False), help="How old the data is: 2026-11-01, 3d. Default: now.")
@click.option("--fresh-for", type=Duration(), metavar="DURATION", help="How long from then on it counts as fresh.")
@click.option("--retain-until", type=Moment(ahead=True), help="When it must be gone.")
@click.option("--location", default="", help="Where nodes and others find it, if not at PATH: s3://bucket/prefix.")
@click.option("--managed", is_flag=True, help="Keep a copy in the artifact store, and hash it there.")
@output_option
def register(path: Path, name: str, project: str, location: str, managed: bool, output: str, **stated: object) -> None:
    """Register a file or folder as a new version: every byte hashed, tables looked into, facts stated.

    Without --managed only the digests travel; the data stays where it is.
    """
    check_name(name, "dataset")
    facts = _facts(stated)
    if refused := missing_facts(facts):
        raise Refusal(refused)
    if managed and location:
        raise click.UsageError("--managed keeps the bytes here; --location says that they lie elsewhere.")
    files = _files(path)
    where = location or str(path.absolute())
    pointer_of(where)
    profile = _profile(files)
    with connect() as client:
        if managed:
            size_bytes = sum(file.stat().st_size for file in files.values())
            with render.progress(f"pushing {name}", size_bytes) as advance:
                artifact = client.push(path, name=name, project=project, progress=advance)
            try:
                made = client.register_dataset(
                    name, project=project, facts=facts, artifact_id=artifact.id, profile=profile
                )
            except GroundError:
                client.delete_artifact(artifact.id, reason=f"no version of {name} was made of it")
                raise
            if made.location != f"artifact:{artifact.id}":
                client.delete_artifact(artifact.id, reason=f"{made.id} has these files already")
        else:
            made = client.register_dataset(
                name, project=project, facts=facts, location=where, files=_hashed(files), profile=profile
            )
    undated = "  to be known: no --as-of says how old the data is, so it counts as of now"
    lines = [f"registered {made.id}", *_lines(made), *([] if facts.as_of else [undated])]
    render.show(made, output, lambda: lines)


@datasets.command()
@click.argument("ref", metavar="NAME[@VERSION]")
@output_option
def show(ref: str, output: str) -> None:
    """Show a dataset's versions, or one version: where it lies, its facts, what is in its tables."""
    with connect() as client:
        if "@" not in ref:
            versions = client.datasets(name=ref)
            render.show(versions, output, lambda: [_versions_table(versions)])
            return
        found = client.dataset(ref)
    render.show(found, output, lambda: [*_lines(found), _columns(found.profile)])


@datasets.command()
@click.argument("before", metavar="NAME@VERSION")
@click.argument("after", metavar="NAME@VERSION")
@output_option
def diff(before: str, after: str, output: str) -> None:
    """Show which files, columns and facts differ."""
    with connect() as client:
        found = client.diff_datasets(before, after)
    rows = [("added", path, "-", "new") for path in found.added]
    rows += [("removed", path, "was there", "-") for path in found.removed]
    rows += [("changed", path, "other bytes", "other bytes") for path in found.changed]
    rows += [("fact", name, old or "-", new or "-") for name, (old, new) in found.facts.items()]
    table = Table(("WHAT", "NAME", found.before, found.after), rows, empty="no difference")
    render.show(found, output, lambda: [f"{format_bytes(found.same_bytes)} are the same", table])


@datasets.command()
@click.argument("ref", metavar="NAME@VERSION")
@output_option
def lineage(ref: str, output: str) -> None:
    """Show the runs that read a version, the models made from it, and those made from these."""
    with connect() as client:
        found = client.lineage(ref)
    table = Table(("FROM", "MADE"), found.edges, empty="nothing was made from it here")
    said = f"{found.id}: {counted(len(found.runs), 'run')}, {counted(len(found.models), 'model version')}"
    rows = [(each.parent, each.child, each.job, each.reported_by) for each in found.outside]
    outside = Table(("FROM", "MADE", "JOB", "SAID BY"), rows, title="from outside, unverified")
    render.show(found, output, lambda: [said, table, *([outside] if rows else [])])


@datasets.command()
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--path", type=click.Path(path_type=Path), help="Where its bytes can be read, if not where it says.")
@output_option
def verify(ref: str, path: Path | None, output: str) -> None:
    """Hash every byte again: a managed copy in the store, else the folder. Exits with 8 when anything changed."""
    with connect() as client:
        found = client.dataset(ref)
        if (found.kept or found.erased_at) and path is None:
            checked = client.verify_dataset(found.id)
        else:
            checked = _checked(found, path or Path(found.location))
    size = format_bytes(checked.checked_bytes)
    good = [f"{checked.id}: {counted(checked.checked_files, 'file')} ({size}) as registered"]
    render.show(checked, output, lambda: good if checked.ok else [str(each) for each in checked.problems])
    if not checked.ok:
        raise IntegrityFailure(
            f"{checked.id} is not what was registered: {checked.problems[0]}",
            "register what it is now as a new version",
        )


@datasets.command()
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--records", required=True, help="Which records must go: a person's, a source's, all.")
@click.option("--reason", required=True, help="Why: signed, and kept in the trail.")
@click.option("--replacement", default="", metavar="NAME@VERSION", help="The version without them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
def erase(ref: str, records: str, reason: str, replacement: str, yes: bool, output: str) -> None:
    """Take a version's bytes away, and sign what was done, who used it, and what is left to do."""
    with connect() as client:
        found = client.lineage(ref)
        if not yes:
            used = f"{counted(len(found.runs), 'run')} and {counted(len(found.models), 'model version')}"
            if not agreed("erase", "takes bytes away", f"Erase {found.id}, used by {used}?"):
                raise click.Abort
        erased = client.erase_dataset(found.id, records=records, reason=reason, replacement=replacement)
    render.show(erased, output, lambda: _erased(erased))


@datasets.command()
@click.argument("ref", required=False, default="", metavar="[NAME[@VERSION]]")
@click.option("--proof", default="", metavar="ERASURE", help="Print this erasure's signed statement.")
@output_option
def erasures(ref: str, proof: str, output: str) -> None:
    """List what was erased; with --proof the signed evidence of one."""
    with connect() as client:
        if proof:
            certificate = client.erasure_proof(proof)
            render.show(certificate.envelope, "json" if output == "table" else output, list)
            return
        found = client.erasures(ref)
    rows = [
        (each.id, each.dataset_id, each.records, each.requested_by, moment(each.at), str(len(each.left)), each.reason)
        for each in found
    ]
    columns = ("ERASURE", "DATASET", "RECORDS", "BY", "AT", "LEFT", "WHY")
    render.show(found, output, lambda: [Table(columns, rows, right=frozenset({"LEFT"}), empty="nothing was erased")])


def _versions_table(found: Sequence[DatasetVersion]) -> Table:
    now = datetime.now(UTC)
    rows = [
        (
            row.id,
            row.project,
            row.owner,
            row.classification,
            row.license,
            str(len(row.files)),
            format_bytes(row.size_bytes),
            str(row.pointer),
            _state(row, now),
            moment(row.created_at),
        )
        for row in found
    ]
    columns = ("DATASET", "PROJECT", "OWNER", "CLASS", "LICENSE", "FILES", "SIZE", "WHERE", "STATE", "REGISTERED")
    empty = "no datasets registered yet; ground datasets register PATH --name NAME"
    return Table(columns, rows, right=frozenset({"FILES", "SIZE"}), empty=empty)


def _state(row: DatasetVersion, now: datetime) -> str:
    if row.erased_at is not None:
        return "erased"
    if row.retain_until is not None and row.retain_until <= now:
        return "past its retention"
    return "stale" if row.fresh_at(now) is False else "ok"


def _facts(stated: dict[str, object]) -> DatasetFacts:
    given = {name: value for name, value in stated.items() if name not in {"license_", "fresh_for"}}
    return DatasetFacts(license=str(stated["license_"]), fresh_for_s=stated["fresh_for"], **given)  # type: ignore[arg-type]


def _files(path: Path) -> dict[str, Path]:
    """Relative POSIX path → file; links to folders are not followed."""
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        raise NotFound(f"no file or folder {path}", "give the file, or the folder that holds the files")
    found = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    if not found:
        raise InvalidInput(f"{path} holds no files", "give the file, or the folder that holds the files")
    return found


def _hashed(files: dict[str, Path]) -> tuple[ManifestFile, ...]:
    def one(item: tuple[str, Path]) -> ManifestFile:
        with item[1].open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
            return ManifestFile(path=item[0], sha256=digest, size_bytes=opened.tell())

    total = sum(file.stat().st_size for file in files.values())
    with render.progress("hashing", total) as advance, ThreadPoolExecutor(PARALLEL) as pool:
        found = []
        for file in pool.map(one, files.items()):
            advance(file.size_bytes)
            found.append(file)
    return manifest(found)


def _profile(files: dict[str, Path]) -> Profile:
    profiler = Profiler()
    for relative, path in files.items():
        if suffix_of(relative) in TABLES:
            profiler.table(relative, _lines_of(path))
        else:
            profiler.skip(relative)
    return profiler.profile


def _lines_of(path: Path) -> Iterator[str]:
    # A byte that is no UTF-8 ends the table with a note (it is a ValueError), not the registration.
    with path.open(encoding="utf-8-sig", newline="") as opened:
        yield from opened


def _checked(found: DatasetVersion, path: Path) -> DatasetCheck:
    if not path.exists():
        raise NotFound(f"{found.id} lies at {found.location}, which can't be read here", "give --path FOLDER")
    now = {file.path: file for file in _hashed(_files(path))}
    then = {file.path: file for file in found.files}
    problems = [Problem(field=f"file {name}", message="is gone") for name in sorted(then.keys() - now.keys())]
    problems += [Problem(field=f"file {name}", message="was not there") for name in sorted(now.keys() - then.keys())]
    problems += [
        Problem(field=f"file {name}", message="has other bytes")
        for name in sorted(then.keys() & now.keys())
        if then[name].sha256 != now[name].sha256
    ]
    files = tuple(now.values())
    if not problems and digest_of(files) != found.digest:
        problems.append(Problem(field="digest", message="is not the one of these files"))
    return DatasetCheck(
        id=found.id,
        ok=not problems,
        how=str(path),
        checked_files=len(files),
        checked_bytes=sum(file.size_bytes for file in files),
        problems=tuple(problems),
    )


def _lines(row: DatasetVersion) -> list[View]:
    fresh = f", fresh for {format_duration(row.fresh_for_s)}" if row.fresh_for_s else ""
    until = moment(row.retain_until) if row.retain_until else "no limit"
    return [
        f"{row.id} of project {row.project}, owner {row.owner}, {_state(row, datetime.now(UTC))}",
        f"  where           {row.location} ({row.pointer})",
        f"  digest          sha256:{row.digest} ({row.how} by {row.created_by})",
        f"  size            {format_bytes(row.size_bytes)} in {counted(len(row.files), 'file')}",
        f"  classification  {row.classification}",
        f"  license         {row.license}",
        f"  as of           {moment(row.as_of)}{fresh}",
        f"  retained until  {until}",
        *([f"  erased          {moment(row.erased_at)}: ground datasets erasures {row.id}"] if row.erased_at else []),
    ]


def _columns(profile: Profile) -> Table:
    rows = [
        (
            each.name,
            each.kind,
            str(each.nulls),
            f"{each.distinct:,}" + ("+" if each.distinct >= 10_000 else ""),
            each.low,
            each.high,
            "" if each.mean is None else f"{each.mean:.6g}",
        )
        for each in profile.columns
    ]
    title = f"{counted(profile.rows, 'row')} in {counted(profile.tables, 'table')}"
    if profile.unread:
        title += f"; not looked into: {'; '.join(profile.unread[:3])}"
    columns = ("COLUMN", "KIND", "EMPTY", "DISTINCT", "LOW", "HIGH", "MEAN")
    return Table(columns, rows, right=frozenset({"EMPTY", "DISTINCT"}), empty="no tables were read", title=title)


def _erased(erased: Erasure) -> Sequence[View]:
    lines: list[View] = [f"{erased.id}: {erased.records} of {erased.dataset_id} ({erased.reason})"]
    lines += [f"  done  {each}" for each in erased.done]
    lines += [f"  left  {each}" for each in erased.left]
    lines.append(f"  signed by key {erased.key_id}: ground datasets erasures --proof {erased.id}")
    return lines
