"""Experiments and tracked runs as people look at them: figures beside each other, and what differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from groundplane.domain.tracking.records import Experiment, Point, TrackedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentView:
    """An experiment with the number of its runs."""

    experiment: Experiment
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A measured value. `value` is None for what is no finite number; `text` is it in full."""

    value: float | None
    text: str
    step: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedView:
    """A tracked run with the latest value of each metric, and how many points there are in all."""

    run: TrackedRun
    metrics: dict[str, Value]
    points: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one metric of one run, by step; when there are more than were asked for, what `thinned` picks."""

    run_id: str
    key: str
    points: tuple[Value, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing about each of the runs compared, in their order; an empty text where a run has none of it."""

    part: str
    name: str
    values: tuple[str, ...]
    differs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs side by side: parameters, metrics, tags that people set, data."""

    runs: tuple[TrackedRun, ...]
    rows: tuple[Row, ...]


def value_of(point: Point) -> Value:
    finite = math.isfinite(point.value)
    return Value(
        value=point.value if finite else None,
        text=f"{point.value:.6g}",
        step=point.step,
        timestamp_ms=point.timestamp_ms,
    )


def view_of(run: TrackedRun, latest: Mapping[str, Point], points: int) -> TrackedView:
    return TrackedView(run=run, metrics={key: value_of(each) for key, each in sorted(latest.items())}, points=points)


def compared(views: Sequence[TrackedView]) -> Comparison:
    """What differs comes first in its part; equal things follow."""
    runs = tuple(view.run for view in views)
    parts: tuple[tuple[str, list[Mapping[str, str]]], ...] = (
        ("parameter", [run.params for run in runs]),
        ("metric", [{key: each.text for key, each in view.metrics.items()} for view in views]),
        ("data", [{each.name: each.digest for each in run.datasets} for run in runs]),
        ("tag", [{key: text for key, text in run.tags.items() if not key.startswith("mlflow.")} for run in runs]),
    )
    rows = []
    for part, columns in parts:
        names = sorted({name for column in columns for name in column})
        found = [_row(part, name, columns) for name in names]
        rows += sorted(found, key=lambda row: not row.differs)
    return Comparison(runs=runs, rows=tuple(rows))


def _row(part: str, name: str, columns: Sequence[Mapping[str, str]]) -> Row:
    values = tuple(column.get(name, "") for column in columns)
    return Row(part=part, name=name, values=values, differs=len(set(values)) > 1)
