"""Whether a cloud's limits leave room for a plan, when machines could be had, and where else there is room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from groundplane.domain.intake import QuotaFact
from groundplane.domain.planning.outlook import QuotaShot
from groundplane.domain.planning.plan import same_sku
from groundplane.domain.planning.recon import QUOTA_REQUEST_H, HaltedMachine, Quota, SkuRow
from groundplane.domain.spec import EndpointSpec, JobSpec
from groundplane.errors import Refused

ROOM_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the tightest limit leaves for so many machines. `known` is false where no source gave a number."""

    row: SkuRow
    nodes: int
    needed: float
    known: bool
    tightest: Quota | None
    lead_time_h: tuple[int, int] | None

    @property
    def short(self) -> bool:
        return self.known and self.tightest is not None and self.needed > (self.tightest.free or 0)

    @property
    def words(self) -> str:
        """`96 of 96 vCPU used` or `unknown`."""
        quota = self.tightest
        if not self.known or quota is None:
            return "unknown"
        return f"{quota.used:g} of {quota.limit:g} {quota.unit} used"

    def refusals(self, spec: JobSpec | EndpointSpec, now: datetime, hours: float) -> list[Refused]:
        """What the limit, a restriction or the lead time against the deadline forbid."""
        found: list[Refused] = []
        row = self.row
        if row.restriction:
            hint = f"another region or SKU: ground recon --cloud {row.cloud} --live"
            found.append(
                Refused(rule="restriction", need=f"{row.name} in {row.region}", have=row.restriction, hint=hint)
            )
        if not self.short:
            return found
        quota = self.tightest
        assert quota is not None
        free = quota.free or 0
        found.append(
            Refused(
                rule="quota",
                need=f"{self.needed:g} {quota.unit} of {quota.family} for {self.nodes} × {row.name}",
                have=f"{free:g} free in {row.cloud} {row.region}: {self.words}",
                hint=f"ask for {self.needed - free:g} more (24 to 72 h), give back what idles, or take another region",
            )
        )
        found += _late(spec, now, hours)
        return found


def room_for(row: SkuRow, nodes: int, *, spot: bool) -> Room:
    """The room for so many machines of a row. Spot counts against limits of its own, which no source was read for."""
    by_unit = {"vCPU": (row.cpus or 0) * nodes, "accelerator": row.accelerators * nodes}
    quotas = () if spot else tuple(row.quotas or ())
    known = [quota for quota in quotas if quota.free is not None]
    if not known or len(known) < len(quotas):
        return Room(row=row, nodes=nodes, needed=0, known=False, tightest=None, lead_time_h=None)
    tightest = min(known, key=lambda quota: (quota.free or 0) - by_unit.get(quota.unit, 0))
    needed = by_unit.get(tightest.unit, 0)
    short = needed > (tightest.free or 0)
    lead = None if row.restriction else (QUOTA_REQUEST_H if short else (0, 0))
    return Room(row=row, nodes=nodes, needed=needed, known=True, tightest=tightest, lead_time_h=lead)


def _late(spec: JobSpec | EndpointSpec, now: datetime, hours: float) -> list[Refused]:
    """The wait for quota and the work against the deadline."""
    deadline = spec.deadline or spec.end_date
    low, high = QUOTA_REQUEST_H
    ready = now + timedelta(hours=high + hours)
    if ready <= deadline:
        return []
    left_h = (deadline - now).total_seconds() / 3600
    work = f" + {hours:,.2f} h of work" if hours else ""
    return [
        Refused(
            rule="lead-time",
            need=f"{low} to {high} h until quota is granted{work} = up to {high + hours:,.2f} h",
            have=f"{left_h:,.2f} h until {deadline:%Y-%m-%d %H:%M} UTC",
            hint="choose what needs no new quota, or move spec.deadline",
        )
    ]


def snapshot(rows: Sequence[SkuRow]) -> tuple[QuotaShot, ...]:
    """The limits of these rows as they stand, each once, in a stable order."""
    found = {
        (quota.cloud, quota.region, quota.family): QuotaShot(
            cloud=quota.cloud,
            region=quota.region,
            family=quota.family,
            unit=quota.unit,
            used=quota.used,
            limit=quota.limit,
            source=row.source,
        )
        for row in rows
        for quota in row.quotas or ()
    }
    return tuple(found[key] for key in sorted(found))


def ways_out(
    rows: Sequence[SkuRow], halted: Sequence[HaltedMachine], nodes: int, cloud: str, region: str
) -> tuple[str, ...]:
    """Machines that are stopped and still take quota there, and other regions with room for the same machine."""
    lines = []
    for machine in halted:
        if (machine.cloud, machine.region) == (cloud, region):
            gives = f", {machine.cpus:g} vCPU" if machine.cpus else ""
            lines.append(f"{machine.name} ({machine.sku}{gives}) is {machine.state} and takes quota: {machine.hint}")
    elsewhere = [(row, room_for(row, nodes, spot=False)) for row in rows if row.region != region]
    free = [(row, room) for row, room in elsewhere if room.known and not room.short and not row.restriction]
    for row, room in free[:ROOM_SHOWN]:
        lines.append(f"{row.cloud} {row.region} has room for {nodes} × {row.name}: {room.words}")
    if not free:
        unread = sorted({row.region for row, room in elsewhere if not room.known})
        if unread:
            lines.append(f"the quota of {', '.join(unread[:ROOM_SHOWN])} is unknown")
        else:
            lines.append(f"no other region that was read has room for {nodes} of them")
    return tuple(lines)


def as_facts(rows: Sequence[SkuRow], skus: Sequence[str] = ()) -> tuple[QuotaFact, ...]:
    """The limits that a request is judged by: those of the SKUs it names, else each region's roomiest of accelerators.

    A region has a hundred families: that its roomiest one is full says what a reader must know.
    """
    found: dict[tuple[str, str, str], QuotaFact] = {}
    for row in rows:
        named = any(same_sku(row.name, sku) for sku in skus)
        for quota in row.quotas or ():
            if quota.free is None or not (named or (not skus and row.accelerators)) or not _counts(row, quota):
                continue
            fact = QuotaFact(
                cloud=quota.cloud,
                region=quota.region,
                family=quota.family,
                limit=int(quota.limit or 0),
                used=int(quota.used or 0),
                unit="vCPU" if quota.unit == "vCPU" else "GPU",
                lead_time_low_h=QUOTA_REQUEST_H[0],
                lead_time_high_h=QUOTA_REQUEST_H[1],
                source=row.source,
            )
            key = (quota.cloud, quota.region, quota.family if skus else "")
            if key not in found or fact.left > found[key].left:
                found[key] = fact
    return tuple(found[key] for key in sorted(found))


def _counts(row: SkuRow, quota: Quota) -> bool:
    """Whether it is the SKU's own limit, not one over every family of the region."""
    return quota.family.casefold().replace(" ", "") == row.quota_family.casefold().replace(" ", "")
