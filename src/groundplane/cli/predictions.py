"""`ground predictions`: what of a project's requests is kept, shown, exported, and erased with proof."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec

from groundplane.cli import render
from groundplane.cli.options import Listing, Moment, connect, output_option
from groundplane.cli.render import Table
from groundplane.domain.serving.prediction import Form, PredictionRule
from groundplane.errors import InvalidInput, Unavailable
from groundplane.units import format_usd
from groundplane.wire.traffic import PredictionRuleRequest

_PROMPT_CHARACTERS = 60
_project = click.option("--project", required=True)


@click.group(cls=Listing)
def predictions() -> None:
    """Keep prompts and answers of a project: show, export, erase, and what is kept."""


def _narrowed(command: Any) -> Any:
    for option in (
        click.option("--since", type=Moment(ahead=False), help="A time, a date, or how long ago, like 2h."),
        click.option("--until", type=Moment(ahead=False), help="A time, a date, or how long ago."),
        click.option("--model", default=""),
        click.option("--key", default="", help="A key's id."),
        click.option("--status", type=int),
        click.option("--subject", default="", help="Whom they are about, as callers send it."),
    ):
        command = option(command)
    return command


def _wanted(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value not in {None, ""}}


@predictions.command("list")
@_project
@_narrowed
@click.option("--limit", type=click.IntRange(1, 1000), default=30, show_default=True)
@output_option
def list_predictions(project: str, limit: int, output: str, **given: Any) -> None:
    """List what was kept, newest first."""
    with connect() as client:
        page = client.predictions(project, limit=limit, **_wanted(given))
    render.show(page.records, output, lambda: [_records_table(page.records)])


@predictions.command("show")
@click.argument("request_id", metavar="REQUEST")
@_project
@output_option
def show_prediction(request_id: str, project: str, output: str) -> None:
    """Show one record, prompt and answer included."""
    with connect() as client:
        record = client.prediction(project, request_id)
    render.show(record, output, lambda: _record_lines(record))


@predictions.command("export")
@_project
@_narrowed
@click.option("--to", "target", required=True, metavar="FILE", help="Ends in .jsonl or .parquet; - is standard output.")
@click.option("--artifact", default="", help="Push the file to the artifact store under this name, too.")
def export_predictions(project: str, target: str, artifact: str, **given: Any) -> None:
    """Copy records to a file, oldest first. The trail says that they were: an erasure does not reach copies."""
    from groundplane.client import parquet  # noqa: PLC0415 - with it comes the HTTP library

    columns = target.endswith(".parquet")
    if not columns and target != "-" and not target.endswith(".jsonl"):
        raise InvalidInput(f"{target} ends neither in .jsonl nor in .parquet", "the ending says what is written")
    if columns and not parquet.is_installed():
        raise Unavailable("Parquet needs the extra `parquet`", "pip install 'groundplane[parquet]'")
    if artifact and target == "-":
        raise InvalidInput("an artifact needs a file", "--to FILE")
    with connect() as client:
        records = client.every_prediction(project, **_wanted(given))
        if target == "-":
            lines = (msgspec.json.encode(record).decode() for record in records)
            count = sum(1 for _ in map(render.line, lines))
        else:
            with _fresh(Path(target)) as file:
                count = parquet.write(file, records) if columns else _write_lines(file, records)
        client.note_prediction_export(project, count, f"artifact {artifact}" if artifact else "a file")
        render.say(f"{count} records" + ("" if target == "-" else f" in {target}"))
        if artifact:
            pushed = client.push(Path(target), name=artifact, project=project)
            render.say(f"artifact {pushed.name} {pushed.id}")


@predictions.command("erase")
@_project
@click.option("--subject", required=True, help="Whom they are about, as callers send it in `user` or x-subject.")
@click.option("--reason", required=True, help="Why: written to the audit trail.")
@output_option
def erase_predictions(project: str, subject: str, reason: str, output: str) -> None:
    """Remove a subject's records from every file, and say how many there were. What was exported is not reached."""
    with connect() as client:
        done = client.erase_predictions(project, subject, reason)
    files = Table(
        ("FILE", "REMOVED", "KEPT", "SHA-256 BEFORE", "AFTER"),
        [(one.name, str(one.removed), str(one.kept), one.sha256_before[:16], one.sha256_after[:16] or "removed")
         for one in done.files],
        right=frozenset({"REMOVED", "KEPT"}),
        empty="no file held a record",
    )  # fmt: skip
    gone = f"{done.removed} of {done.looked_at} records were of {done.subject} and are gone; {done.left} are left"
    told = gone if done.removed or done.left else f"none of {done.looked_at} records was of {done.subject}"
    render.show(done, output, lambda: [files, told])


@predictions.command("settings")
@click.option("--project", help="Of one project; needed to change something.")
@click.option("--model", default="", help="Of one of its models, which goes before the project's.")
@click.option("--on/--off", "enabled", default=None, help="Keep records, or keep no more.")
@click.option("--sample", "sample_percent", type=float, help="How many of a hundred requests are kept.")
@click.option("--content/--figures", default=None, help="Keep prompts and answers, or figures alone.")
@click.option("--redact/--as-is", default=None, help="Replace personal data and keys by marks, or keep them.")
@click.option("--retention", "retention_days", type=int, help="Days until files are removed.")
@click.option("--form", type=click.Choice([one.value for one in Form]), help="What hours that are over are kept as.")
@click.option("--reason", default="", help="Why: written to the audit trail.")
@output_option
def prediction_settings(project: str | None, model: str, output: str, reason: str, **given: Any) -> None:
    """Show what is kept of which project, or change it. Without --on nothing of a project is kept."""
    changes = {name: value for name, value in given.items() if value is not None}
    if "form" in changes:
        changes["form"] = Form(changes["form"])
    with connect() as client:
        if changes:
            if not project:
                raise InvalidInput("of which project?", "--project NAME")
            rules = [
                client.set_prediction_rule(
                    PredictionRuleRequest(project=project, model=model, reason=reason, **changes)
                )
            ]
        else:
            rules = client.prediction_rules(project)
    render.show(rules, output, lambda: [_rules_table(rules)])


def _rules_table(rules: list[PredictionRule]) -> Table:
    rows = [
        (
            rule.project,
            rule.model or "all",
            "on" if rule.enabled else "off",
            f"{rule.sample_percent:g} %",
            ("redacted" if rule.redact else "as they are") if rule.content else "figures only",
            f"{rule.retention_days} d",
            rule.form.value,
            rule.set_by,
        )
        for rule in rules
    ]
    columns = ("PROJECT", "MODEL", "STATE", "SAMPLE", "TEXTS", "RETENTION", "FORM", "SET BY")
    return Table(columns, rows, empty="nothing of any project is kept")


def _records_table(records: Iterable[dict[str, Any]]) -> Table:
    rows = [
        (
            one["at"],
            one["id"],
            one["model"],
            str(one["status"]),
            str(one["prompt_tokens"]),
            str(one["completion_tokens"]),
            f"{one['duration_ms']:.0f} ms",
            _short(one["messages"]),
        )
        for one in records
    ]
    columns = ("AT", "REQUEST", "MODEL", "STATUS", "PROMPT", "ANSWER", "TOOK", "LAST MESSAGE")
    empty = "none; ground predictions settings says what is kept"
    return Table(columns, rows, right=frozenset({"PROMPT", "ANSWER", "TOOK"}), empty=empty)


def _short(messages: list[dict[str, Any]]) -> str:
    text = " ".join(_text(messages[-1].get("content")).split()) if messages else ""
    return text if len(text) <= _PROMPT_CHARACTERS else text[: _PROMPT_CHARACTERS - 1] + "…"


def _text(content: object) -> str:
    return content if isinstance(content, str) else msgspec.json.encode(content).decode()


def _record_lines(record: dict[str, Any]) -> list[str]:
    marks = ", ".join(f"{count} {mark}" for mark, count in record["redactions"].items()) or "nothing replaced"
    return [
        f"{record['id']} at {record['at']}, project {record['project']}, key {record['key_id']} of {record['owner']}",
        f"{record['model']} at {record['target'] or 'no target'} ({record['dialect']}): status {record['status']} "
        + record["error"],
        f"{record['prompt_tokens']} + {record['completion_tokens']} tokens, {format_usd(record['amount_microusd'])}, "
        f"{record['duration_ms']:.1f} ms of which {record['queue_ms']:.1f} before it was sent",
        f"subject {record['subject'] or 'nobody'}; {marks}" + ("; cut short" if record["truncated"] else ""),
        *(f"[{one.get('role', 'user')}] {_text(one.get('content', one))}" for one in record["messages"]),
        *(f"[answer] {_text(one.get('content', one))}" for one in record["answer"]),
    ]


# ---------------------------------------------------------------- files


@contextlib.contextmanager
def _fresh(path: Path) -> Iterator[BinaryIO]:
    """A file that appears whole or not at all, for its owner's eyes."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise InvalidInput(f"{path} can't be written: {error.strerror}", "name another file") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _write_lines(file: BinaryIO, records: Iterable[dict[str, Any]]) -> int:
    return sum(1 for record in records if file.write(msgspec.json.encode(record) + b"\n"))
