"""`ground models scan | …`: what is looked at before a model is trusted, here or on the control plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from groundplane.cli import model_tools, render
from groundplane.cli.options import Size, connect, output_option
from groundplane.cli.render import Table, View
from groundplane.cli.words import counted
from groundplane.domain.model import parse_ref
from groundplane.domain.scanning.report import Finding, ScanReport, judge_scan
from groundplane.errors import IntegrityFailure, NotFound, Refusal, Refused
from groundplane.units import format_bytes


@click.command()
@click.argument("subject", metavar="PATH|NAME@VERSION")
@click.option("--license", "license_", default="", metavar="SPDX-ID", help="What is declared for it.")
@click.option(
    "--base-license", multiple=True, metavar="MODEL=SPDX-ID", help="What it is made from; may be given again."
)
@click.option("--memory", type=Size(), metavar="SIZE", help="What its weights must fit, such as 24GiB.")
@output_option
def scan(subject: str, license_: str, base_license: Sequence[str], memory: int | None, output: str) -> None:
    """Look for what may not enter: programs, archives, templates, secrets, licences, size. Exits with 3 when found.

    A path is scanned on this machine, without a server; a version where it is stored, and what is found is kept.
    Nothing is loaded, unpacked or run.
    """
    bases = _pairs(base_license)
    path = Path(subject)
    if path.exists() or "@" not in subject:
        report = _here(path, license_, bases, memory)
    else:
        wanted = parse_ref(subject)
        with connect() as client:
            number = str(wanted).partition("@")[2]
            report = client.scan_model(wanted.name, number, base_licenses=bases, memory_bytes=memory)
    render.show(report, output, lambda: _lines(report))
    refused = [finding for finding in report.findings if finding.severity == "refused"]
    if refused and output == "table":  # which said each of them
        ways = "; ".join(dict.fromkeys(finding.hint for finding in refused if finding.hint))
        have = f"{counted(len(refused), 'finding')} in {report.subject}"
        raise Refusal([Refused(rule="scan", need="files that may enter", have=have, hint=ways)])
    if refused:
        raise Refusal([_refused(finding) for finding in refused])


def verify_offline(folder: str, certificate: str, keys: Sequence[str], addenda: str, output: str) -> None:
    """A stranger's check: files, a certificate, its addenda where there are some, and public keys."""
    if not Path(certificate).exists():
        raise NotFound(f"there is no certificate {certificate}", "ground models certificate NAME@VERSION --envelope")
    told = model_tools.verify(folder, certificate, keys, addenda)
    text = f"{told['subject']}: {counted(told['files'], 'file')} are as key {told['key_id']} signed"
    later = [f"{len(told['addenda'])} addenda are chained to it; only the control plane knows whether there are more"]
    lines = [text, *(later if addenda else []), *(f"  {each}" for each in told["addenda"])]
    render.show(told, output, lambda: told["problems"] or lines)
    if told["problems"]:
        raise IntegrityFailure(
            f"{folder} is not what was signed: {told['problems'][0]}", "fetch it anew, or don't use it"
        )


@click.command()
@click.argument("ref", metavar="NAME@VERSION")
def bom(ref: str) -> None:
    """Print a version's CycloneDX 1.6 bill of materials (ML-BOM), made from its certificate."""
    wanted = parse_ref(ref)
    with connect() as client:
        found = client.bom(wanted.name, str(wanted).partition("@")[2])
    render.show(found, "json", list)


@click.command()
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--public-key", is_flag=True, help="The key to check it with (PEM) instead.")
def signature(ref: str, public_key: bool) -> None:
    """Print a version's signature for the OpenSSF model-signing tool: keep it as model.sig beside the files."""
    wanted = parse_ref(ref)
    with connect() as client:
        found = client.model_signature(wanted.name, str(wanted).partition("@")[2])
    if public_key:
        render.text(found.public_key)
    else:
        render.show(found.bundle, "json", list)


@click.command("public-key")
@click.argument("key_id", default="")
@output_option
def public_key(key_id: str, output: str) -> None:
    """Print the public keys whose certificates count, or the one whose id begins like KEY_ID."""
    with connect() as client:
        found = {name: pem for name, pem in client.public_keys().keys.items() if name.startswith(key_id)}
    if not found:
        raise NotFound(f"no trusted key has an id that begins with {key_id}", "ground models public-key shows them all")
    render.show(found, output, lambda: [line for pem in found.values() for line in pem.splitlines()])


@click.command("rotate-signing-key")
@click.option("--reason", required=True, help="Why: written to the audit trail.")
@output_option
def rotate_signing_key(reason: str, output: str) -> None:
    """Sign certificates with a new key from now on; what was signed before stays true."""
    with connect() as client:
        found = client.rotate_signing_key(reason)
    lines = [
        f"{found.key_id} signs from now on",
        f"  give strangers its public key: ground models public-key {found.key_id[:12]}",
        f"  {found.before} stays trusted; if it leaked, take its .pub out of keys/trusted under GROUND_HOME",
    ]
    render.show(found, output, lambda: lines)


def _here(path: Path, license_: str, bases: dict[str, str], memory_bytes: int | None) -> ScanReport:
    return judge_scan(
        str(path), model_tools.look(str(path)), license=license_, base_licenses=bases, memory_bytes=memory_bytes
    )


def _pairs(words: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        model, equals, licence = word.rpartition("=")
        if not (equals and model and licence):
            raise click.UsageError(f"--base-license takes MODEL=SPDX-ID, not {word!r}.")
        pairs[model] = licence
    return pairs


def _refused(finding: Finding) -> Refused:
    need, _, have = finding.message.removeprefix("needs ").partition(", has ")
    return Refused(rule=finding.rule, need=need, have=have, hint=finding.hint)


def _lines(report: ScanReport) -> list[View]:
    formats = ", ".join(f"{count} {name}" for name, count in report.formats.items())
    verdict = "nothing keeps it out" if report.ok else "it may not enter"
    if report.ok and any(finding.severity == "convert" for finding in report.findings):
        verdict = "it may enter once its weights are converted (ground models adopt)"
    rows = [
        (finding.severity, finding.rule, finding.path or "-", finding.message.partition(", has ")[2] or finding.message)
        for finding in report.findings
    ]
    files = f"{counted(report.files, 'file')} ({format_bytes(report.size_bytes)}): {formats or 'none'}"
    return [
        f"{report.subject}: {verdict}; {files}",
        Table(("SEVERITY", "RULE", "FILE", "FOUND"), rows, empty="nothing found"),
    ]


COMMANDS = (scan, bom, signature, public_key, rotate_signing_key)
