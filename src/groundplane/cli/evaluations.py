"""`ground eval` and `ground batch`: a dataset's rows put to a model; scores with intervals, answers as a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.following import UNSUCCESSFUL_CODE, follow_run
from groundplane.cli.options import Listing, connect, output_option
from groundplane.cli.render import Table, Usd, View
from groundplane.cli.specs import spec_text
from groundplane.cli.words import moment
from groundplane.domain.run import Run, RunStatus
from groundplane.domain.spec import JobSpec
from groundplane.errors import InvalidInput, NotFound
from groundplane.units import exact_usd

if TYPE_CHECKING:
    from groundplane.client import Client
    from groundplane.domain.batch import Batch, BatchProgress
    from groundplane.domain.evaluation import Evaluation, EvaluationComparison, Item, Score

_SHOWN = 60
spec_file = click.option(
    "-f", "--file", "path", required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)


# ---------------------------------------------------------------- evaluations


@click.group(cls=Listing)
def eval() -> None:
    """Evaluate models on a dataset's rows: run, list, show, compare."""


@eval.command("run")
@spec_file
@click.option("--wait", is_flag=True, help="Follow to the end and show the scores; exit by the outcome.")
@output_option
def run_evaluation(path: Path, wait: bool, output: str) -> int:
    """Submit a spec of kind: Evaluation."""
    with connect() as client:
        run = _submitted(client, path, "Evaluation")
        if not wait:
            render.show(run, output, lambda: [f"{run.id} submitted: ground eval show {run.id} when it is over"])
            return 0
        over = follow_run(client, run.id, log=output == "table")
        if over.status is not RunStatus.SUCCEEDED:
            render.show(over, output, lambda: [client.explain(over.id).sentence])
            return UNSUCCESSFUL_CODE
        found = client.evaluation(run.id)
    render.show(found, output, lambda: evaluation_views(found))
    return 0


@eval.command("list")
@click.option("--project", default="")
@click.option("--name", default="", help="Those of one spec: how it went over time.")
@click.option("--version", default="", metavar="NAME@VERSION", help="Those of one model version.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@output_option
def list_evaluations(project: str, name: str, version: str, limit: int, output: str) -> None:
    """List evaluations, newest first."""
    with connect() as client:
        found = client.evaluations(project=project, name=name, version=version, limit=limit)
    rows = [
        (
            each.id,
            each.name,
            each.project,
            each.model_version or each.target,
            each.dataset,
            f"{each.items:,}",
            ", ".join(f"{score.metric} {_score(score)}" for score in each.scores),
            Usd(each.cost_microusd_per_1000, exact=True),
            ", ".join(alarm.kind for alarm in each.alarms) or "-",
            moment(each.at),
        )
        for each in found
    ]
    headings = ("EVALUATION", "NAME", "PROJECT", "MODEL", "DATASET", "ITEMS", "SCORES", "PER 1,000", "ALARMS", "AT")
    table = Table(headings, rows, right=frozenset({"ITEMS", "PER 1,000"}), empty="none; ground eval run -f FILE")
    render.show(found, output, lambda: [table])


@eval.command("show")
@click.argument("evaluation_id", metavar="EVALUATION")
@click.option("--items", is_flag=True, help="Its items too, the worst first.")
@click.option("--metric", default="", help="The worst by this metric.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many items.")
@output_option
def show_evaluation(evaluation_id: str, items: bool, metric: str, limit: int, output: str) -> None:
    """Show scores with their intervals, by slice too; what it cost; what it raised alarms about."""
    with connect() as client:
        found = client.evaluation(evaluation_id)
        asked = client.evaluation_items(evaluation_id, metric=metric, limit=limit) if items or metric else []
    shown = {"evaluation": found, "items": asked} if items or metric else found
    render.show(shown, output, lambda: [*evaluation_views(found), *([_items(asked)] if asked else [])])


@eval.command("compare")
@click.argument("before", metavar="EVALUATION")
@click.argument("after", metavar="EVALUATION")
@output_option
def compare_evaluations(before: str, after: str, output: str) -> None:
    """Hold two evaluations beside each other, item by item where both asked the same rows."""
    with connect() as client:
        found = client.compare_evaluations(before, after)
    render.show(found, output, lambda: _comparison(found))


def evaluation_views(found: Evaluation) -> list[View]:
    """An evaluation for people."""
    asked = found.target if found.model_version in ("", found.target) else f"{found.target} ({found.model_version})"
    fast = f"P50 {found.latency_p50_s:.3f} s, P95 {found.latency_p95_s or 0:.3f} s" if found.latency_p50_s else "-"
    lines: list[View] = [
        f"{found.id}: {found.name} of {asked} on {found.dataset}, {found.items:,} items, {found.failed:,} unanswered",
        f"  latency  {fast}",
        f"  cost     {exact_usd(found.cost_microusd)} ({found.cost_source}), "
        f"{exact_usd(found.cost_microusd_per_1000)} for 1,000 requests",
        f"  records  artifact {found.records_id}",
    ]
    lines += [
        f"alarm: {alarm.title}\n  need {alarm.need}\n  have {alarm.have}\n  {alarm.hint}" for alarm in found.alarms
    ]
    rows = [("all", *_score_row(score)) for score in found.scores]
    rows += [(f"{each.column} = {each.value}", *_score_row(each.score)) for each in found.slices]
    interval = f"{found.confidence:.0%} INTERVAL"
    headings = ("ITEMS", "METRIC", "JUDGE", "COUNT", "MEAN", interval)
    return [*lines, Table(headings, rows, right=frozenset({"COUNT", "MEAN"}))]


def _score_row(score: Score) -> tuple[str, str, str, str, str]:
    judge = score.judge if score.agreement is None else f"{score.judge}, {score.agreement:.0%} of votes agree"
    return score.metric, judge, f"{score.count:,}", f"{score.mean:.4f}", f"{score.low:.4f} to {score.high:.4f}"


def _score(score: Score) -> str:
    return f"{score.mean:.3f} ({score.low:.3f}-{score.high:.3f})"


def _items(items: Sequence[Item]) -> Table:
    rows = [
        (
            item.id,
            ", ".join(f"{name} {'?' if score is None else f'{score:g}'}" for name, score in item.scores.items()) or "-",
            _short(item.question),
            _short(item.expected),
            _short(item.error or item.answer),
        )
        for item in items
    ]
    return Table(("ITEM", "SCORES", "ASKED", "EXPECTED", "ANSWERED"), rows)


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _SHOWN else f"{plain[: _SHOWN - 1]}…"


def _comparison(found: EvaluationComparison) -> list[View]:
    rows = [
        (
            each.metric,
            f"{each.before:.4f}",
            f"{each.after:.4f}",
            f"{each.low:+.4f} to {each.high:+.4f}",
            "yes" if each.significant else "no",
            "item by item" if each.paired else "means",
        )
        for each in found.metrics
    ]
    headings = ("METRIC", found.before.id, found.after.id, "DIFFERENCE", "SIGNIFICANT", "COMPARED")
    said = f"{found.answers_changed:,} of {found.answers_in_common:,} answers differ"
    moved = [f"worse: {', '.join(found.worse[:20])}"] if found.worse else []
    moved += [f"better: {', '.join(found.better[:20])}"] if found.better else []
    return [Table(headings, rows), said, *moved]


# ---------------------------------------------------------------- batches


@click.group(cls=Listing)
def batch() -> None:
    """Answer a dataset's rows with a model, in shards that survive a kill: run, list, status."""


@batch.command("run")
@spec_file
@click.option("--wait", is_flag=True, help="Follow to the end; exit by the outcome.")
@output_option
def run_batch(path: Path, wait: bool, output: str) -> int:
    """Submit a spec of kind: Batch."""
    with connect() as client:
        run = _submitted(client, path, "Batch")
        if not wait:
            render.show(run, output, lambda: [f"{run.id} submitted: ground batch status {run.id}"])
            return 0
        over = follow_run(client, run.id, log=output == "table")
        told = client.batch(run.id)
        good = over.status is RunStatus.SUCCEEDED
        sentence = "" if good else client.explain(run.id).sentence
    render.show(told, output, lambda: [*_progress(told), *([sentence] if sentence else [])])
    return 0 if good else UNSUCCESSFUL_CODE


@batch.command("list")
@click.option("--project", default="")
@output_option
def list_batches(project: str, output: str) -> None:
    """List batches that ended well, newest first."""
    with connect() as client:
        found = client.batches(project=project)
    rows = [
        (
            each.id,
            each.name,
            each.project,
            each.model_version or each.target,
            each.dataset,
            each.output,
            f"{each.rows:,}",
            f"{each.errors:,}",
            Usd(each.cost_microusd_per_1000, exact=True),
            moment(each.at),
        )
        for each in found
    ]
    headings = ("BATCH", "NAME", "PROJECT", "MODEL", "DATASET", "OUTPUT", "ROWS", "ERRORS", "PER 1,000 ROWS", "AT")
    right = frozenset({"ROWS", "ERRORS", "PER 1,000 ROWS"})
    render.show(found, output, lambda: [Table(headings, rows, right=right, empty="none; ground batch run -f FILE")])


@batch.command("status")
@click.argument("run_id", metavar="BATCH")
@output_option
def batch_status(run_id: str, output: str) -> None:
    """Say how far a batch is, what its rows cost, and which dataset they became."""
    with connect() as client:
        told = client.batch(run_id)
    render.show(told, output, lambda: _progress(told))


def _progress(told: BatchProgress) -> list[View]:
    shards = f"{told.shards_done:,} of {told.shards:,} shards"
    stands = told.status if RunStatus(told.status).is_over else f"is {told.status}"
    lines: list[View] = [
        f"{told.run_id} {stands}: {told.done:,} of {told.rows:,} rows, {told.errors:,} in error, {shards}"
    ]
    return [*lines, *(_result(told.result) if told.result is not None else [])]


def _result(made: Batch) -> list[View]:
    return [
        f"  answers  dataset {made.output} (artifact {made.artifact_id})",
        f"  asked    {made.model_version or made.target}, {made.dataset}",
        f"  cost     {exact_usd(made.cost_microusd)} ({made.cost_source}), "
        f"{exact_usd(made.cost_microusd_per_1000)} for 1,000 rows",
    ]


def _submitted(client: Client, path: Path, kind: str) -> Run:
    from groundplane.domain.spec.parse import parse  # noqa: PLC0415 - with it comes YAML

    with spec_text(path) as text:
        specs = parse(text, now=datetime.now(UTC))
        first = specs[0] if len(specs) == 1 else None
        need = first.inference if isinstance(first, JobSpec) else None
        if need is None or type(need).__name__ != f"{kind}Need":
            raise InvalidInput(f"{path} is not one document of kind: {kind}", "ground apply -f takes every kind")
        applied = client.apply(text)
    if not applied.runs:
        raise NotFound(f"{path} began nothing", "ground plan -f says why")
    return applied.runs[0]
