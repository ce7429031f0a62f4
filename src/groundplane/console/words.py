"""Records turned into words and pictures: moments, amounts, states, sparklines. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from groundplane.domain.run import ENDINGS, EndReason
from groundplane.units import format_bytes, format_count, format_duration, format_usd, usd_decimals


@dataclass(frozen=True, slots=True)
class Tone:
    """How a state looks: a CSS class and a mark, so that colour never carries the meaning alone."""

    name: str
    mark: str


GOOD, BUSY, BAD, OFF = Tone("good", "●"), Tone("busy", "◐"), Tone("bad", "✕"), Tone("off", "○")

TONES = {
    "pending": OFF,
    "open": BUSY,
    "closed": OFF,
    "waiting": BUSY,
    "needs-approval": BUSY,
    "approved": GOOD,
    "rejected": BAD,
    "applied": OFF,
    "starting": BUSY,
    "running": GOOD,
    "stopping": BUSY,
    "succeeded": GOOD,
    "failed": BAD,
    "ok": GOOD,
    "finished": GOOD,
    "killed": BAD,
    "scheduled": BUSY,
    "met": GOOD,
    "not-met": BAD,
    "no-evidence": BAD,
    "waived": BUSY,
    "clean": GOOD,
    "warnings": BUSY,
    "stale": BAD,
    "skipped": OFF,
    "stopped": OFF,
    "deploying": BUSY,
    "ready": GOOD,
    "silent": BAD,
    "refused": BAD,
    "cordoned": OFF,
    "revoked": OFF,
    "expired": BAD,
    "active": GOOD,
    "voided": OFF,
    "posted": GOOD,
}


@dataclass(frozen=True, slots=True)
class Sparkline:
    """Points of an SVG polyline in a `width` × `height` box, and its figures in words."""

    points: str
    area: str
    width: int
    height: int
    summary: str


def sparkline(values: Sequence[float], texts: Sequence[str], *, width: int = 320, height: int = 56) -> Sparkline | None:
    """None without at least two values. The floor is 0, so that heights compare; `texts` are the values in words."""
    if len(values) < 2:
        return None
    top = max(*values, 1e-9)
    step = width / (len(values) - 1)
    inset = 2.0
    points = [(index * step, height - inset - (height - 2 * inset) * value / top) for index, value in enumerate(values)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    highest = texts[max(range(len(values)), key=values.__getitem__)]
    return Sparkline(
        points=line,
        area=f"0,{height} {line} {width},{height}",
        width=width,
        height=height,
        summary=f"last {texts[-1]}, highest {highest}",
    )


def relative(moment: datetime, now: datetime) -> str:
    """`3m 2s ago`, `in 2d 4h`, `now`."""
    seconds = (now - moment).total_seconds()
    if abs(seconds) < 1:
        return "now"
    distance = format_duration(abs(seconds))
    return f"{distance} ago" if seconds > 0 else f"in {distance}"


def stamp(moment: datetime) -> str:
    """`2026-11-21 07:04:09`, UTC."""
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def seconds_between(start: datetime | None, end: datetime | None, now: datetime) -> str:
    """How long something took, or has taken so far; a dash when it has not begun."""
    return "–" if start is None else format_duration(((end or now) - start).total_seconds())


def percent(part: float, whole: float) -> float:
    """0 to 100, however far part exceeds whole: a bar's width."""
    return 0.0 if whole <= 0 else max(0.0, min(100.0, 100.0 * part / whole))


def meaning(reason: EndReason) -> str:
    """What an end reason means, from the table that also decides what follows from it."""
    return ENDINGS[reason].meaning


def tone(status: str) -> Tone:
    return TONES.get(str(status), OFF)


def count(number: int) -> str:
    """With thousands separators."""
    return f"{number:,}"


def argv(command: Sequence[str]) -> str:
    """A command as one would type it; the shell text itself when it is `sh -c TEXT`."""
    if len(command) == 3 and tuple(command[:2]) == ("sh", "-c"):
        return command[2]
    return shlex.join(command)


FILTERS = {
    "usd": format_usd,
    "usd_decimals": usd_decimals,
    "bytes": format_bytes,
    "duration": format_duration,
    "stamp": stamp,
    "meaning": meaning,
    "tone": tone,
    "count": count,
    "counted": format_count,
    "argv": argv,
}
GLOBALS = {"relative": relative, "seconds_between": seconds_between, "percent": percent}
