"""Whether data can arrive in time: bytes × passes against what its storage gives, and what would do instead.

MB and GB are 10^6 and 10^9 bytes here, as storage is sold.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from groundplane.domain.catalogue.entries import StorageTier
from groundplane.domain.sizing.roofline import duration
from groundplane.domain.spec import DataSource, JobSpec
from groundplane.domain.staging import SourceSpeed
from groundplane.errors import Refused

MB, TIB = 10**6, 2**40
SCRATCH = "local-nvme"
TIERS_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One input's way to the work: how long a pass and all of them take, and the rate that would be enough."""

    source: DataSource
    where: str
    bytes_per_s: int
    pass_s: float
    total_s: float
    enough_bytes_per_s: float

    @property
    def formula(self) -> str:
        """`corpus: 2.00 TB ÷ 60 MB/s = 9.26 h a pass`."""
        size = f"{self.source.size_bytes / 1e12:.2f} TB" if self.source.size_bytes >= 10**12 else _gb(self.source)
        text = f"{self.source.name}: {size} ÷ {rate(self.bytes_per_s)} ({self.where}) = {duration(self.pass_s)} a pass"
        if self.source.source:
            text += ", once, before the start; then from the node's own disk"
        elif self.source.passes > 1:
            text += f", × {self.source.passes} passes = {duration(self.total_s)}"
        return text


def readings(
    spec: JobSpec, tiers: Sequence[StorageTier], measured: Mapping[str, SourceSpeed] | None = None
) -> tuple[tuple[Reading, ...], tuple[Refused, ...]]:
    """Each input whose size and rate are known, and a refusal for each tier that no catalogue has.

    What the spec says of a rate counts first, then what was `measured` (by the source's name), then the catalogue.
    """
    found: list[Reading] = []
    wrong: list[Refused] = []
    for source in spec.data:
        tier = next((each for each in tiers if each.id == source.tier), None)
        if source.tier and tier is None:
            near = difflib.get_close_matches(source.tier, [each.id for each in tiers], 3, 0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else "ground catalog show storage_tiers lists them"
            need = f"a storage tier of the catalogue for {source.name}"
            wrong.append(Refused(rule="storage", need=need, have=source.tier, hint=hint))
            continue
        seen = (measured or {}).get(source.name)
        speed = source.bytes_per_s or (seen.bytes_per_s if seen else 0)
        speed = speed or (_speed(tier, source.size_bytes) if tier is not None else 0)
        if not source.size_bytes or not speed:
            continue
        where = f"{tier.name}, {tier.scope}" if tier is not None else ""
        where = f"measured on {seen.node}, {seen.at:%Y-%m-%d}" if seen else where
        where = "as the spec says" if source.bytes_per_s else where
        pass_s = source.size_bytes / speed
        found.append(
            Reading(
                source=source,
                where=where,
                bytes_per_s=speed,
                pass_s=pass_s,
                total_s=pass_s * (1 if source.source else source.passes),
                enough_bytes_per_s=source.size_bytes * source.passes / spec.max_duration_s,
            )
        )
    return tuple(found), tuple(wrong)


def too_slow(spec: JobSpec, found: Sequence[Reading], tiers: Sequence[StorageTier]) -> tuple[Refused, ...]:
    """Inputs that would not be read within the work's time; what is staged is read before that begins."""
    slow = (each for each in found if each.total_s > spec.max_duration_s and not each.source.source)
    return tuple(_refusal(spec, each, tiers) for each in slow)


def staging(
    spec: JobSpec, found: Sequence[Reading], tiers: Sequence[StorageTier], scratch_bytes: int | None
) -> tuple[str, ...]:
    """How to bring slow data near before the machines are paid for; empty when everything arrives in time.

    `scratch_bytes` is the local disk of one chosen node, None when it is not known.
    """
    slow = [each for each in found if each.total_s > spec.max_duration_s and not each.source.source]
    nvme = next((tier for tier in tiers if tier.id == SCRATCH), None)
    if not slow or nvme is None or not nvme.bytes_per_s:
        return ()
    lines: list[str] = []
    for each in slow:
        size = each.source.size_bytes
        enough = fast_enough(each, tiers)
        target = enough[0] if enough else None
        lines.append(
            f"before the work: copy {each.source.name} once from where it lies ({rate(each.bytes_per_s)}) to"
            f" {target.name if target else 'storage that is fast enough'}: {duration(each.pass_s)} on a machine"
            " without accelerators; begin that much earlier"
        )
        near = min(_speed(target, size) if target else nvme.bytes_per_s, nvme.bytes_per_s)
        lines.append(
            f"at the start: stage it to {nvme.name} on each node: {_gb(each.source)} ÷ {rate(near)} ="
            f" {duration(size / near)}{_room(size, scratch_bytes)}"
        )
        read_s = size / nvme.bytes_per_s
        lines.append(
            f"then each pass reads from {nvme.name}: {_gb(each.source)} ÷ {rate(nvme.bytes_per_s)} = {duration(read_s)}"
            f"; {each.source.passes} of them and the staging are"
            f" {duration(size / near + read_s * each.source.passes)} of {duration(spec.max_duration_s)}"
        )
    return tuple(lines)


def fast_enough(reading: Reading, tiers: Sequence[StorageTier]) -> list[StorageTier]:
    """Durable tiers that would give the rate, the cheapest a month first; those without a price last."""
    able = [
        tier for tier in tiers if tier.durable and _speed(tier, reading.source.size_bytes) >= reading.enough_bytes_per_s
    ]
    return sorted(able, key=lambda t: (t.microusd_per_gib_month is None, t.microusd_per_gib_month or 0, t.id))


def rate(bytes_per_s: float) -> str:
    """`60 MB/s`, `138.9 MB/s`, `5,000 MB/s`."""
    return f"{round(bytes_per_s / MB, 1):,g} MB/s" if bytes_per_s < 10**9 else f"{bytes_per_s / MB:,.0f} MB/s"


def _refusal(spec: JobSpec, reading: Reading, tiers: Sequence[StorageTier]) -> Refused:
    source = reading.source
    passes = f" × {source.passes} passes" if source.passes > 1 else ""
    enough = ", ".join(
        f"{tier.id} ({rate(_speed(tier, source.size_bytes))})" for tier in fast_enough(reading, tiers)[:TIERS_SHOWN]
    )
    return Refused(
        rule="storage",
        need=f"{_gb(source)}{passes} ÷ {duration(spec.max_duration_s)} = {rate(reading.enough_bytes_per_s)}"
        f" for {source.name}",
        have=f"{rate(reading.bytes_per_s)} ({reading.where}): {duration(reading.total_s)}",
        hint=f"stage it to {SCRATCH} first (from: in place of path:)"
        + (f", or read it from {enough}" if enough else ""),
    )


def _speed(tier: StorageTier, size_bytes: int) -> int:
    """What a tier gives for so much data; 0 where no source says."""
    if tier.bytes_per_s:
        return tier.bytes_per_s
    return int((tier.bytes_per_s_per_tib or 0) * max(1.0, size_bytes / TIB))


def _room(size_bytes: int, scratch_bytes: int | None) -> str:
    if scratch_bytes is None:
        return "; whether its disk holds it is not known"
    if scratch_bytes >= size_bytes:
        return f"; its disk of {scratch_bytes / 1e9:,.0f} GB holds it"
    nodes = -(-size_bytes // scratch_bytes)
    return f"; its disk of {scratch_bytes / 1e9:,.0f} GB does not hold it: {nodes} nodes share it"


def _gb(source: DataSource) -> str:
    size = source.size_bytes
    return f"{size / 1e12:,.2f} TB" if size >= 10**12 else f"{size / 1e9:,.2f} GB"
