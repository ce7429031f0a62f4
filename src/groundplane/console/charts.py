"""Lines over steps as SVG geometry: what a page needs to draw metrics of one run or of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LOOKS = 6
"""So many lines look different from each other, by colour and by dashes; more begin anew."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 10.0, 8.0, 22.0
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Line:
    """One run's line, in pieces where values are missing. `look` is 0 to LOOKS - 1."""

    label: str
    look: int
    pieces: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]
    last: str


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture of a metric in a `width` × `height` box; `summary` says it in words."""

    name: str
    width: float
    height: float
    lines: tuple[Line, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    summary: str
    left: float = _LEFT
    bottom: float = 0.0


def chart(
    name: str, series: Mapping[str, Sequence[tuple[float, float]]], *, width: float = 640, height: float = 220
) -> Chart | None:
    """(step, value) of each line, by step. What is no finite number leaves a gap. None when nothing can be drawn."""
    known = [pair for points in series.values() for pair in points if math.isfinite(pair[1])]
    if not known:
        return None
    across, values = zip(*known, strict=True)
    low_x, high_x = min(across), max(across)
    up = _ticks(min(values), max(values))
    low_y, high_y = up[0], up[-1]
    wide, high = (width - _LEFT - _RIGHT) / ((high_x - low_x) or 1.0), (height - _TOP - _BOTTOM) / (high_y - low_y)

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + wide * (x - low_x), height - _BOTTOM - high * (y - low_y)

    lines = tuple(_line(label, number % LOOKS, points, place) for number, (label, points) in enumerate(series.items()))
    ends = ", ".join(f"{line.label} {line.last}" for line in lines)
    return Chart(
        name=name,
        width=width,
        height=height,
        lines=lines,
        across=tuple(Tick(round(place(x, low_y)[0], 1), f"{x:g}") for x in sorted({low_x, high_x})),
        up=tuple(Tick(round(place(low_x, y)[1], 1), f"{y:.4g}") for y in up),
        summary=f"{name} over steps {low_x:g} to {high_x:g}; last: {ends}",
        bottom=height - _BOTTOM,
    )


def _line(label: str, look: int, points: Sequence[tuple[float, float]], place: object) -> Line:
    assert callable(place)
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            pieces[-1].append(place(x, y))
        elif pieces[-1]:
            pieces.append([])
    drawn = tuple(" ".join([f"{x:.1f},{y:.1f}" for x, y in piece]) for piece in pieces if len(piece) > 1)
    dots = tuple((round(piece[0][0], 1), round(piece[0][1], 1)) for piece in pieces if len(piece) == 1)
    return Line(label, look, drawn, dots, f"{points[-1][1]:.6g}" if points else "nothing")


def _ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round figures from at or below the lowest to at or above the highest."""
    if low == high:
        room = abs(low) or 1.0
        return [low - room / 2, low, low + room / 2]
    rough = (high - low) / wanted
    if not math.isfinite(rough) or rough == 0:
        return [low, high]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((each * power for each in _STEPS if each * power >= rough), 10 * power)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, last + 1)] if last > first else [low, high]
