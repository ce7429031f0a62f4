"""`ground experiments`: what training scripts told: experiments, their runs, metrics, runs side by side."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.options import Listing, connect, output_option
from groundplane.cli.render import Table, View
from groundplane.cli.words import age, counted

if TYPE_CHECKING:
    from groundplane.domain.tracking.views import Comparison, ExperimentView, Series, TrackedView

METRICS_SHOWN = 4
_RIGHT = frozenset({"RUNS", "VALUE", "STEP"})


@click.group(cls=Listing)
def experiments() -> None:
    """Show experiments, their runs and what was measured in them."""


@experiments.command("list")
@output_option
def list_(output: str) -> None:
    """List experiments, newest first."""
    with connect() as client:
        found = client.experiments()
    render.show(found, output, lambda: [_experiments(found)])


@experiments.command()
@click.argument("experiment", metavar="EXPERIMENT")
@click.option("--filter", "filter_", default="", metavar="TEXT", help="metrics.loss < 0.5 AND params.kind = 'big'")
@click.option("--order", multiple=True, metavar="NAME [ASC|DESC]", help="metrics.loss ASC; may be given again.")
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@output_option
def show(experiment: str, filter_: str, order: tuple[str, ...], limit: int, output: str) -> None:
    """List the runs of an experiment, by its id or its name."""
    with connect() as client:
        runs = client.tracked_runs(experiment, filter=filter_, order=order, limit=limit)
    render.show(runs, output, lambda: [_runs(runs)])


@experiments.command()
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@click.option("--all", "everything", is_flag=True, help="Also what is the same in all of them.")
@output_option
def compare(run_ids: tuple[str, ...], everything: bool, output: str) -> None:
    """Hold runs side by side: parameters, metrics, data, tags."""
    with connect() as client:
        found = client.compare_tracked_runs(run_ids)
    render.show(found, output, lambda: [_comparison(found, everything)])


@experiments.command()
@click.argument("run_id", metavar="RUN")
@click.option("--key", "keys", multiple=True, metavar="METRIC", help="Its points, instead of every metric's last.")
@click.option("-n", "--limit", type=click.IntRange(2, 10_000), default=20, show_default=True, help="Points of each.")
@output_option
def metrics(run_id: str, keys: tuple[str, ...], limit: int, output: str) -> None:
    """Show what was measured in a run: of a tracked run, or of every one that a Groundplane run's job told of."""
    with connect() as client:
        if keys:
            series = client.metric_series(run_id, keys, limit=limit)
            render.show(series, output, lambda: [_points(each) for each in series])
            return
        found = client.tracked_of_run(run_id) or [client.tracked_run(run_id)]
    render.show(found, output, lambda: [part for each in found for part in _measured(each)])


def _experiments(found: list[ExperimentView]) -> Table:
    now = datetime.now(UTC)
    rows = [
        (each.experiment.name, each.experiment.project, str(each.runs), age(each.experiment.created_at, now),
         each.experiment.id)
        for each in found
    ]  # fmt: skip
    empty = "no experiments yet: set MLFLOW_TRACKING_URI and log (docs/guides/tracking.md)"
    return Table(("EXPERIMENT", "PROJECT", "RUNS", "AGE", "ID"), rows, _RIGHT, empty)


def _runs(runs: list[TrackedView]) -> Table:
    """With the metrics that most runs have."""
    names: dict[str, int] = {}
    for each in runs:
        for name in each.metrics:
            names[name] = names.get(name, 0) + 1
    shown = sorted(names, key=lambda name: (-names[name], name))[:METRICS_SHOWN]
    now = datetime.now(UTC)
    rows = [
        (
            each.run.name,
            each.run.state.value.lower(),
            age(datetime.fromtimestamp(each.run.started_ms / 1000, UTC), now),
            *(each.metrics[name].text if name in each.metrics else "" for name in shown),
            each.run.id,
        )
        for each in runs
    ]
    columns = ("RUN", "STATE", "AGE", *shown, "ID")
    return Table(columns, rows, _RIGHT | frozenset(shown), "no runs that match")


def _comparison(found: Comparison, everything: bool) -> Table:
    rows = [(row.part, row.name, *row.values) for row in found.rows if row.differs or everything]
    columns = ("WHAT", "NAME", *(run.name for run in found.runs))
    return Table(columns, rows, frozenset(), "nothing differs; --all shows what is the same")


def _measured(found: TrackedView) -> list[View]:
    run = found.run
    name = run.id if run.name == run.id else f"{run.name} ({run.id})"
    head = f"{name} {run.state.value.lower()}, {counted(found.points, 'point')}"
    rows = [(name, each.text, str(each.step)) for name, each in found.metrics.items()]
    parameters = [(name, text) for name, text in sorted(run.params.items())]
    views: list[View] = [head, Table(("METRIC", "VALUE", "STEP"), rows, _RIGHT, "no metrics")]
    return [*views, Table(("PARAMETER", "VALUE"), parameters, frozenset())] if parameters else views


def _points(series: Series) -> Table:
    rows = [(str(each.step), each.text) for each in series.points]
    return Table(("STEP", "VALUE"), rows, _RIGHT, "no points", title=series.key)
