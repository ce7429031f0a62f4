"""Preflight: what is asked of a node before a run may start there, what its checks mean, and what checkpoints cost.

The node judges by itself (`runner/preflight.py`): it must know before the first paid second. Here is what it is told,
what each check is for, whose fault a failure is, and the advice that follows from what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from groundplane.domain.spec import JobSpec
from groundplane.units import format_bytes, format_duration

# 419 unexpected interruptions in 54 days on 16,384 H100s: one every 50,700 hours of a card.
# Source: The Llama 3 Herd of Models, 2024, section 3.3.4, table 5.
ACCELERATOR_MTBF_S = 54 * 86_400 * 16_384 / 419
# A machine without accelerators fails about once in two years: assumed, no source was read for it.
NODE_MTBF_S = 2 * 365 * 86_400.0


class CheckStatus(StrEnum):
    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataNeed:
    """A source to read: `path` on the node, or `url`. Its size is read `passes` times within the run's duration."""

    name: str
    path: str = ""
    url: str = ""
    size_bytes: int = 0
    passes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightNeed:
    """What an order asks its node to check. `only` names checks to carry out alone; empty means all of them.
    `packages` are what a model server of the job's own imports there."""

    sent_at: str
    budget_s: float = 15.0
    kept_s: float = 600.0
    disk_bytes: int = 0
    data: tuple[DataNeed, ...] = ()
    checkpoint_bytes: int = 0
    memory_bytes_per_s: float = 0.0
    only: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One check on one node. A skipped one says why in `have`; `fault` is `node` or `run` when it failed."""

    name: str
    status: CheckStatus
    need: str = ""
    have: str = ""
    hint: str = ""
    fault: str = ""
    took_s: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightReport:
    """What one node answered, for an attempt, a spec or by itself. id = `<subject>/<node>`, the newest counts."""

    id: str
    subject: str
    pool: str
    node: str
    project: str
    results: tuple[CheckResult, ...]
    at: datetime
    advice: tuple[str, ...] = ()
    version: int = 0

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        return tuple(result for result in self.results if result.status is CheckStatus.FAILED)


def need_of(
    spec: JobSpec, *, now: datetime, memory_bytes_per_s: float, budget_s: float, packages: Sequence[str] = ()
) -> PreflightNeed:
    """What a node is asked to check before this spec's job starts."""
    return PreflightNeed(
        sent_at=now.isoformat(),
        budget_s=budget_s,
        disk_bytes=spec.resources.disk_bytes,
        data=tuple(
            DataNeed(name=item.name, path=item.path, url=item.url, size_bytes=item.size_bytes, passes=item.passes)
            for item in spec.data
            if not item.source
        ),
        checkpoint_bytes=spec.checkpoint_bytes,
        memory_bytes_per_s=memory_bytes_per_s,
        packages=tuple(packages),
    )


def results_of(documents: Sequence[dict[str, object]]) -> tuple[CheckResult, ...]:
    """A runner's answer as values. ValueError for a status that is none."""
    return tuple(
        CheckResult(
            name=str(each["name"]),
            status=CheckStatus(str(each["status"])),
            need=str(each.get("need", "")),
            have=str(each.get("have", "")),
            hint=str(each.get("hint", "")),
            fault=str(each.get("fault", "")),
            took_s=_number(each.get("took_s")),
            figures={name: _number(value) for name, value in _mapping(each.get("figures")).items()},
        )
        for each in documents
    )


def advice_of(spec: JobSpec, results: Sequence[CheckResult]) -> tuple[str, ...]:
    """What follows from the measurements: a checkpoint's cost and how often to write one, with the arithmetic."""
    found = next((each for each in results if each.name == "checkpoints" and each.status is CheckStatus.OK), None)
    rate = found.figures.get("write_bytes_per_s", 0.0) if found else 0.0
    if not spec.checkpoint_bytes or rate <= 0:
        return ()
    cost_s = spec.checkpoint_bytes / rate
    mtbf_s = mtbf_of(spec)
    return (
        f"a checkpoint of {format_bytes(spec.checkpoint_bytes)} takes {cost_s:.2f} s"
        f" ({format_bytes(spec.checkpoint_bytes)} ÷ {format_bytes(int(rate))}/s measured)",
        f"write one every {format_duration(young_interval_s(cost_s, mtbf_s))}"
        f" (Young: √(2 × {cost_s:.2f} s × {mtbf_s:,.0f} s between failures); Daly:"
        f" {format_duration(daly_interval_s(cost_s, mtbf_s))})",
    )


def lines_of(reports: Sequence[PreflightReport]) -> tuple[str, ...]:
    """What was checked, for people: one line per node, one per failure with its way forward, and the advice."""
    lines: list[str] = []
    for report in reports:
        tally = [(status, sum(each.status is status for each in report.results)) for status in CheckStatus]
        counts = ", ".join(f"{count} {status}" for status, count in tally if count)
        lines.append(f"preflight of {report.subject} on {report.node}: {counts}")
        lines += [f"{each.name} failed: need {each.need}, have {each.have}; {each.hint}" for each in report.failed]
        lines += report.advice
    return tuple(lines)


def mtbf_of(spec: JobSpec) -> float:
    """Seconds between failures that end the run, as its nodes and accelerators make them likely."""
    cards = spec.resources.nodes * spec.resources.accelerators
    return ACCELERATOR_MTBF_S / cards if cards else NODE_MTBF_S / spec.resources.nodes


def young_interval_s(cost_s: float, mtbf_s: float) -> float:
    """√(2 × cost × MTBF). Source: J. W. Young, A first order approximation to the optimum checkpoint interval, 1974."""
    return math.sqrt(2 * cost_s * mtbf_s)


def daly_interval_s(cost_s: float, mtbf_s: float) -> float:
    """Young's with higher orders; the MTBF itself when a checkpoint costs more than twice that.

    Source: J. T. Daly, A higher order estimate of the optimum checkpoint interval, 2006, equation 37.
    """
    if cost_s >= 2 * mtbf_s:
        return mtbf_s
    share = cost_s / (2 * mtbf_s)
    return math.sqrt(2 * cost_s * mtbf_s) * (1 + math.sqrt(share) / 3 + share / 9) - cost_s


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
