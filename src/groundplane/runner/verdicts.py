"""How a check of preflight says what it found, and sizes and rates in words."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from groundplane.runner.files import Document


def ok(need: str, have: str, **figures: float) -> Document:
    return _result("ok", need, have, "", "", figures)


def failed(need: str, have: str, hint: str, *, fault: str, **figures: float) -> Document:
    """`fault` is `node` when another node may do, `run` when no node would."""
    return _result("failed", need, have, hint, fault, figures)


def skipped(why: str, **figures: float) -> Document:
    return _result("skipped", "", why, "", "", figures)


def _result(status: str, need: str, have: str, hint: str, fault: str, figures: dict[str, float]) -> Document:
    rounded = {name: round(float(value), 6) for name, value in figures.items()}
    return {"status": status, "need": need, "have": have, "hint": hint, "fault": fault, "figures": rounded}


def size(count: float) -> str:
    """Decimal, as storage and networks are sold: `2.0 TB`, `60.0 MB`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def rate(bytes_per_s: float) -> str:
    return f"{size(bytes_per_s)}/s"


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds:.3g} s"
