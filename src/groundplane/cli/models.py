"""`ground models`: versions, where they come from, and whether they still are what was signed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from groundplane.cli import adopt, certificates, model_checks, packages, registry, render
from groundplane.cli.model_facts import DATA, facts_of, further_facts, remarks
from groundplane.cli.options import Listing, Money, connect, output_option
from groundplane.cli.pulling import pull_into, pull_options
from groundplane.cli.render import Table
from groundplane.cli.words import counted, moment
from groundplane.domain.model import ModelVersion, check_name, parse_ref, path_refusals
from groundplane.domain.provenance.certificate import missing_facts, misstated
from groundplane.domain.scanning.byte_view import ByteView
from groundplane.errors import IntegrityFailure, InvalidInput, NotFound, Refusal, Refused
from groundplane.units import format_bytes

if TYPE_CHECKING:
    from groundplane.client import Client


@click.group(cls=Listing)
def models() -> None:
    """List, show, search, register, verify and promote models."""


@models.command("list")
@output_option
def list_(output: str) -> None:
    """List every version, by name, newest first."""
    with connect() as client:
        versions = client.models()
    render.show(versions, output, lambda: [_versions_table(versions)])


@models.command()
@click.argument("ref", metavar="NAME[@VERSION]")
@output_option
def show(ref: str, output: str) -> None:
    """Show a model's versions, or one version with its files."""
    with connect() as client:
        if "@" not in ref:
            versions = client.model(ref)
            render.show(versions, output, lambda: [_versions_table(versions)])
            return
        version = _version(client, ref)
        view = client.version_view(version.id)
    lines = [*_version_lines(version, view.adopted_from), *registry.standing_lines(view)]
    render.show(version, output, lambda: [*lines, _files_table(version)])


@models.command()
@click.argument("ref", metavar="NAME@VERSION")
@pull_options
@output_option
def pull(ref: str, target: Path | None, output: str, **options: object) -> None:
    """Pull a version's files into TARGET, signature and pieces verified. Broken off, it goes on where it was."""
    with connect() as client:
        version = _version(client, ref)
        place = pull_into(client.pull_model, version.id, version.name, version.size_bytes, target, **options)
    files = counted(len(version.files), "file")
    text = f"pulled {version.id} into {place}: {files}, {format_bytes(version.size_bytes)}"
    render.show(version, output, lambda: [text])


@models.command()
@click.argument("ref", metavar="NAME@VERSION", default="")
@click.option("--offline", type=click.Path(exists=True, file_okay=False), help="Check this folder instead, alone.")
@click.option("--key", multiple=True, type=click.Path(exists=True), help="A public key (PEM), for --offline.")
@click.option("--certificate", "envelope", type=click.Path(exists=True), help="For --offline; else certificate.json.")
@click.option(
    "--addenda", "later", type=click.Path(exists=True), help="For --offline: a list, or a folder with one in each file."
)
@output_option
def verify(
    ref: str, offline: str | None, key: Sequence[str], envelope: str | None, later: str | None, output: str
) -> None:
    """Re-hash every file and check the certificate's signature. Exits with 8 when anything changed.

    With --offline a folder is checked against a certificate, its addenda and a public key: no server is asked.
    """
    if bool(offline) == bool(ref) or (offline and not key):
        raise click.UsageError("Give NAME@VERSION, or --offline FOLDER --key PEM.")
    if offline:
        beside = Path(offline) / "addenda.json"
        addenda = later or (str(beside) if beside.is_file() else "")
        model_checks.verify_offline(offline, envelope or str(Path(offline) / "certificate.json"), key, addenda, output)
        return
    with connect() as client:
        version = _version(client, ref)
        checked = client.verify_model(version.name, version.number)
    if not checked.ok:
        render.show(checked, output, lambda: [str(problem) for problem in checked.problems])
        raise IntegrityFailure(
            f"{checked.ref} is not what was signed: {checked.problems[0]}", "stop what serves it and register it anew"
        )
    size = format_bytes(checked.checked_bytes)
    papers = " and the certificate"
    if checked.addenda:
        papers = f", the certificate and {checked.addenda} {'addendum' if checked.addenda == 1 else 'addenda'}"
    files = counted(checked.checked_files, "file")
    text = f"{checked.ref}: {files} ({size}){papers} are as key {checked.key_id[:8]}… signed"
    render.show(checked, output, lambda: [text])


@models.command()
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--envelope", is_flag=True, help="The signed envelope, which a stranger can check, instead.")
@output_option
def certificate(ref: str, envelope: bool, output: str) -> None:
    """Show what a version's birth certificate states, who signed it, and its digest."""
    with connect() as client:
        version = _version(client, ref)
        found = client.certificate(version.name, version.number)
    if envelope:
        render.show(found.envelope, "json", list)
        return
    stated = json.dumps(found.statement, indent=2, ensure_ascii=False).splitlines()
    signed = f"{version.id}: signed by key {found.key_id}, sha256:{found.sha256}"
    if found.addenda:
        signed += f"; {len(found.addenda)} later facts: ground models addenda {version.id}"
    render.show(found, output, lambda: [signed, *stated])


@models.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="The model's name.")
@click.option("--project", default="default", show_default=True)
@click.option("--owner", default="", help="Who answers for it.")
@click.option("--license", "license_", default="", metavar="SPDX-ID", help="Under which terms it may be used.")
@click.option("--framework", default="", help="What made it and loads it.")
@click.option("--base-model", default="", metavar="NAME@VERSION", help="What it was fine-tuned from.")
@click.option("--data", multiple=True, metavar=DATA, help="What it was trained on; may be given again.")
@click.option("--code-commit", default="", metavar="COMMIT", help="Which code made it.")
@click.option("--training-run", default="", metavar="ID", help="Which run made it.")
@click.option("--metric", multiple=True, metavar="NAME=VALUE", help="How good it is; may be given again.")
@click.option("--hardware", default="", metavar="TEXT", help="On what it was made.")
@click.option("--cost", type=Money(), metavar="USD", help="What it cost.")
@click.option("--description", default="")
@further_facts
@output_option
def register(path: Path, name: str, project: str, output: str, **stated: object) -> None:
    """Register a file or a folder as a new, signed version.

    Loose files are asked for what a birth certificate needs; pickles are refused.
    """
    check_name(name)
    files = _files(path)
    facts = facts_of(stated)
    # Both are found out before the first byte travels: 15 GB are not sent to be refused.
    refused = [*_file_refusals(files), *(missing.refused() for missing in missing_facts(facts)), *misstated(facts)]
    if refused:
        raise Refusal(refused)
    with connect() as client:
        upload = client.create_upload()
        with render.progress(f"uploading {name}", sum(file.stat().st_size for file in files.values())) as advance:
            client.upload_files(upload, files, advance)
        version = client.register_model(name, upload_id=upload.id, project=project, facts=facts)
    render.show(version, output, lambda: [f"registered {version.id}", *_version_lines(version), *remarks(version)])


for command in (*registry.COMMANDS, *model_checks.COMMANDS, *certificates.COMMANDS, adopt.adopt, packages.packages):
    models.add_command(command)


def _version(client: Client, ref: str) -> ModelVersion:
    wanted = parse_ref(ref)
    return client.model_version(wanted.name, str(wanted).partition("@")[2])


def _files(path: Path) -> dict[str, Path]:
    """Relative POSIX path → file. Links are followed to files only: a link to a folder could lead anywhere."""
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        raise NotFound(f"no file or folder {path}", "give the model's file, or the folder that holds its files")
    found = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    if not found:
        raise InvalidInput(f"{path} holds no files", "give the model's file, or the folder that holds its files")
    return found


def _file_refusals(files: dict[str, Path]) -> list[Refused]:
    from groundplane.domain.scanning.model_files import inspect  # noqa: PLC0415 - it brings readers of a dozen formats

    refused = list(path_refusals(list(files)))
    for relative, file in files.items():
        with file.open("rb") as opened:

            def read(offset: int, count: int, opened: object = opened) -> bytes:
                opened.seek(offset)  # type: ignore[attr-defined]
                data: bytes = opened.read(count)  # type: ignore[attr-defined]
                return data

            found = inspect(relative, ByteView(read, file.stat().st_size))
        if found.refused is not None:
            refused.append(found.refused)
    return refused


def _versions_table(versions: Sequence[ModelVersion]) -> Table:
    rows = [
        (
            version.id,
            version.project,
            version.owner,
            version.license,
            str(len(version.files)),
            format_bytes(version.size_bytes),
            version.run_id or "by hand",
            " ".join(f"{name}={value:g}" for name, value in sorted(version.metrics.items())[:3]),
            moment(version.created_at),
        )
        for version in versions
    ]
    columns = ("VERSION", "PROJECT", "OWNER", "LICENSE", "FILES", "SIZE", "FROM", "METRICS", "CREATED")
    return Table(
        columns,
        rows,
        right=frozenset({"FILES", "SIZE"}),
        empty="no models registered yet; ground models register PATH --name NAME, or adopt",
    )


def _version_lines(version: ModelVersion, adopted_from: str = "") -> list[str]:
    maker = version.run_id or (f"adoption of {adopted_from}" if adopted_from else "hand")
    metrics = ", ".join(f"{name} {value:g}" for name, value in sorted(version.metrics.items())) or "none"
    return [
        f"{version.id} of project {version.project}, owner {version.owner}",
        f"  made by      {maker}, {moment(version.created_at)}, registered by {version.created_by}",
        f"  license      {version.license or '-'}",
        f"  metrics      {metrics}",
        f"  size         {format_bytes(version.size_bytes)} in {counted(len(version.files), 'file')}",
        f"  manifest     sha256:{version.manifest_sha256}",
        f"  certificate  sha256:{version.certificate_sha256}",
    ]


def _files_table(version: ModelVersion) -> Table:
    rows = [(file.path, format_bytes(file.size_bytes), file.sha256) for file in version.files]
    return Table(("FILE", "SIZE", "SHA-256"), rows, right=frozenset({"SIZE"}))
