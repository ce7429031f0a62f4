"""What could be run, where, for how much: the catalogue and the clouds' own answers, joined, filtered and ordered.

What nobody said stays unknown: a quota that was not read is None, never 0, and every row says where it is from.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime

from groundplane.domain.hardware import Hardware, InstanceType
from groundplane.domain.planning.plan import Offer
from groundplane.errors import InvalidInput
from groundplane.units import format_bytes, format_count, format_usd

GIB = 2**30
CLOUDS = ("azure", "aws", "gcp")
QUOTA_REQUEST_H = (24, 72)
"""How long a cloud takes over a request for more GPU quota, least and most, in hours: planners count on the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What one limit of a region allows. `unit` is vCPU or accelerator. None: the cloud did not say."""

    cloud: str
    region: str
    family: str
    unit: str
    used: float | None
    limit: float | None

    @property
    def free(self) -> float | None:
        return None if self.used is None or self.limit is None else max(0.0, self.limit - self.used)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudSku:
    """An instance type as a cloud itself describes it. `restriction` is empty when it may be used."""

    name: str
    cpus: float | None = None
    memory_bytes: int | None = None
    accelerators: float = 0
    accelerator: str = ""
    quota_family: str = ""
    restriction: str = ""
    zones: tuple[str, ...] = ()
    price_microusd_per_hour: int | None = None
    spot_microusd_per_hour: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HaltedMachine:
    """A machine that is stopped but not given back: it does no work and still takes quota, and on Azure money."""

    cloud: str
    region: str
    name: str
    sku: str
    group: str
    state: str
    cpus: float | None
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Something that could not be read live: what, why, and what to do about it."""

    cloud: str
    region: str
    what: str
    why: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudView:
    """One cloud's answer for one region. `skus` is None when it gave no list; `gaps` says what it did not answer."""

    cloud: str
    region: str
    source: str
    read_at: datetime
    skus: tuple[CloudSku, ...] | None = None
    quotas: tuple[Quota, ...] | None = None
    halted: tuple[HaltedMachine, ...] = ()
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The filters. `gpu_memory_bytes` is the least memory of one accelerator, a share of one counted as its share."""

    gpu_memory_bytes: int | None = None
    gpu: str = ""
    cloud: str = ""
    region: str = ""
    sku: str = ""
    max_price_microusd_per_hour: int | None = None
    include_retired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SkuRow:
    """One instance type in one region. None is unknown. `quotas` are the limits it counts against, tightest first."""

    cloud: str
    region: str
    name: str
    accelerators: float
    accelerator: str
    accelerator_memory_bytes: int | None
    cpus: float | None
    memory_bytes: int | None
    price_microusd_per_hour: int | None
    spot_microusd_per_hour: int | None
    price_source: str
    quota_family: str
    quotas: tuple[Quota, ...] | None
    lead_time_h: tuple[int, int] | None
    restriction: str | None
    status: str
    retirement_date: date | None
    source: str
    price_as_of: date | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The rows, cheapest first and unpriced last; machines that only eat quota; gaps; and what a reader must know."""

    rows: tuple[SkuRow, ...]
    halted: tuple[HaltedMachine, ...]
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]


# ---------------------------------------------------------------- this machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One file system. The rates are None until measured; `measured` says how."""

    mount: str
    device: str
    kind: str
    total_bytes: int
    free_bytes: int
    write_bytes_per_s: float | None = None
    read_bytes_per_s: float | None = None
    measured: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One accelerator as its driver reports it."""

    index: int
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverLink:
    """One link of the chain from the card to the framework. `found` is empty when it is missing; `hint` mends it."""

    name: str
    found: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine that the control plane runs on. `cpus_usable` and `memory_bytes` respect affinity and cgroups."""

    node: str
    cpu_model: str
    cpus_usable: float
    cpus_present: int
    memory_bytes: int
    memory_available_bytes: int
    disks: tuple[Disk, ...]
    accelerators: tuple[Card, ...]
    driver_chain: tuple[DriverLink, ...]
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentPool:
    """A pool that did not answer, or whose nodes have no price, and why."""

    pool: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconnaissance:
    """All of it: this machine, every pool's offers, the clouds. `live` names the sources that answered."""

    at: datetime
    machine: Machine
    offers: tuple[Offer, ...]
    silent: tuple[SilentPool, ...]
    survey: Survey
    live: tuple[str, ...]
    catalogue_as_of: str


def chain_verdict(cards_on_bus: int, cards_seen: int, chain: Sequence[DriverLink]) -> str:
    """One sentence on the way from card to framework: whole, broken at its first missing link, or not needed."""
    missing = [link for link in chain if not link.found]
    if not cards_on_bus and not cards_seen:
        return "no accelerator: CPU work only"
    if not missing:
        return f"whole: {format_count(cards_seen, 'accelerator')} answer{'s' if cards_seen == 1 else ''}"
    if cards_seen >= max(cards_on_bus, 1):
        names = ", ".join(link.name for link in missing)
        return f"the driver answers; missing here: {names} (an image or environment may bring its own)"
    return (
        f"broken at {missing[0].name}: {format_count(cards_on_bus, 'card')} on the bus,"
        f" {cards_seen} answer{'s' if cards_seen == 1 else ''}"
    )


# ---------------------------------------------------------------- the clouds


def regions_to_ask(hardware: Hardware, cloud: str, wanted: Wanted) -> tuple[str, ...]:
    """The regions of a cloud worth a live question: the one asked for, else those that the catalogue knows."""
    if wanted.cloud and wanted.cloud != cloud:
        return ()
    known = sorted({item.region for item in hardware.instance_types if item.cloud == cloud and item.region})
    if not wanted.region:
        return tuple(known)
    elsewhere = {item.region for item in hardware.instance_types if item.cloud != cloud}
    # Without a cloud, a region that only another cloud has is no question for this one.
    return (wanted.region,) if wanted.cloud or wanted.region in known or wanted.region not in elsewhere else ()


def survey(hardware: Hardware, views: Sequence[CloudView], wanted: Wanted, today: date) -> Survey:
    """Every SKU in every region, filtered. Raises InvalidInput for a filter that nothing known can meet by its name."""
    by_place = {(view.cloud, view.region): view for view in views}
    rows = [
        _from_catalogue(hardware, item, by_place.get((item.cloud, item.region))) for item in hardware.instance_types
    ]
    rows += _only_live(hardware, views)
    check_filters(hardware, rows, wanted)
    notes: list[str] = []
    kept = [row for row in rows if _named(hardware, row, wanted)]
    if wanted.region and len(clouds := sorted({row.cloud for row in kept})) > 1:
        notes.append(
            f"{' and '.join(clouds)} both have a region {wanted.region}: rows of each are shown; --cloud chooses one"
        )
    if not wanted.include_retired:
        retired = [row for row in kept if _retired(row, today)]
        kept = [row for row in kept if not _retired(row, today)]
        notes += [f"{len(retired)} retired left out; --include-retired shows them"] if retired else []
    if wanted.max_price_microusd_per_hour is not None:
        unpriced = sum(row.price_microusd_per_hour is None for row in kept)
        limit = wanted.max_price_microusd_per_hour
        kept = [row for row in kept if _within(row.price_microusd_per_hour, limit)]
        notes += [f"{unpriced} without a known price left out by --max-price"] if unpriced else []
    free = [sku for view in views for sku in view.skus or () if sku.price_microusd_per_hour == 0]
    if free:
        notes.append(f"a price of $0 was given for {free[0].name} ({len(free)} in all): taken as not known")
    unknown = sum(row.quotas is None for row in kept)
    if unknown:
        notes.append(f"the quota of {unknown} of {len(kept)} rows is unknown: no live source answered for it")
    if not kept:
        notes.append("nothing fits these filters; " + _loosen(wanted))
    gaps = tuple(dict.fromkeys(gap for view in views for gap in view.gaps))
    halted = tuple(machine for view in views for machine in view.halted)
    return Survey(rows=tuple(sorted(kept, key=_order)), halted=halted, gaps=gaps, notes=tuple(notes))


_CARD_BYTES_MIN = 2**20
"""No card has so little: a number below it lost its unit."""


def check_filters(hardware: Hardware, rows: Sequence[SkuRow], wanted: Wanted) -> None:
    """Raises InvalidInput for a name that no row has, with what looks like it, and for limits that exclude all."""
    if wanted.gpu_memory_bytes is not None and 0 < wanted.gpu_memory_bytes < _CARD_BYTES_MIN:
        message = f"a card with {wanted.gpu_memory_bytes} bytes of memory would be any"
        raise InvalidInput(message, f"give the unit: --gpu-memory {wanted.gpu_memory_bytes}GB")
    if wanted.cloud and wanted.cloud not in CLOUDS:
        raise InvalidInput(f"{wanted.cloud!r} is no cloud that the catalogue knows", _near(wanted.cloud, CLOUDS))
    if wanted.max_price_microusd_per_hour == 0:
        raise InvalidInput("a --max-price of $0 leaves nothing: no cloud gives machines away", "try --max-price 5")
    if wanted.gpu_memory_bytes == 0:
        raise InvalidInput("a --gpu-memory of 0 asks for nothing", "leave it out, or write --gpu-memory 80GB")
    here = [row for row in rows if not wanted.cloud or row.cloud == wanted.cloud]
    if wanted.region and not any(row.region == wanted.region for row in here):
        regions = sorted({row.region for row in here if row.region})
        other = sorted({row.cloud for row in rows if row.region == wanted.region})
        hint = f"{wanted.region} is a region of {other[0]}" if other else _near(wanted.region, regions)
        of_cloud = f" of {wanted.cloud}" if wanted.cloud else ""
        raise InvalidInput(f"nothing is known of a region {wanted.region!r}{of_cloud}", hint)
    if wanted.gpu and not any(
        row.accelerators and hardware.same_accelerator(wanted.gpu, row.accelerator) for row in rows
    ):
        names = {row.accelerator.lower() for row in rows if row.accelerator}
        near = hardware.near_accelerators(wanted.gpu) or difflib.get_close_matches(wanted.gpu.lower(), names, 3, 0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "ground catalog show accelerators lists them"
        raise InvalidInput(f"no SKU has an accelerator called {wanted.gpu!r}", hint)
    if wanted.sku and not any(_same_sku(row.name, wanted.sku) for row in here):
        elsewhere = sorted({row.cloud for row in rows if _same_sku(row.name, wanted.sku)})
        hint = f"it is a SKU of {elsewhere[0]}" if elsewhere else _near(wanted.sku, _short_names(here))
        raise InvalidInput(f"no SKU is called {wanted.sku!r}", hint)


def _short_names(rows: Iterable[SkuRow]) -> list[str]:
    return sorted({row.name.removeprefix("Standard_") for row in rows})


def _same_sku(name: str, asked: str) -> bool:
    """Azure's own tools write `Standard_NC24ads_A100_v4`, people write it without the first word."""
    plain = asked.lower().removeprefix("standard_")
    return name.lower().removeprefix("standard_") == plain


def _near(word: str, known: Iterable[str]) -> str:
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower().removeprefix("standard_"), names, 3, 0.5)
    if close:
        return f"did you mean {', '.join(names[each] for each in close)}?"
    shown = sorted(names.values())[:8]
    return f"known: {', '.join(shown)}{' …' if len(names) > 8 else ''}"


def _named(hardware: Hardware, row: SkuRow, wanted: Wanted) -> bool:
    if wanted.cloud and row.cloud != wanted.cloud:
        return False
    if wanted.region and row.region != wanted.region:
        return False
    if wanted.sku and not _same_sku(row.name, wanted.sku):
        return False
    if wanted.gpu and not (row.accelerators and hardware.same_accelerator(wanted.gpu, row.accelerator)):
        return False
    if wanted.gpu_memory_bytes is None:
        return True
    return row.accelerator_memory_bytes is not None and row.accelerator_memory_bytes >= wanted.gpu_memory_bytes


def _from_catalogue(hardware: Hardware, item: InstanceType, view: CloudView | None) -> SkuRow:
    row = SkuRow(
        cloud=item.cloud,
        region=item.region,
        name=item.name,
        accelerators=item.accelerators,
        accelerator=item.accelerator,
        accelerator_memory_bytes=_card_memory(hardware, item.accelerator, item.accelerators),
        cpus=item.cpus,
        memory_bytes=item.memory_bytes,
        price_microusd_per_hour=item.price_microusd_per_hour,
        spot_microusd_per_hour=item.spot_microusd_per_hour,
        price_source=f"catalogue (as of {item.price_as_of})" if item.price_microusd_per_hour is not None else "",
        quota_family=item.quota_family,
        quotas=None,
        lead_time_h=None,
        restriction=None,
        status=item.status,
        retirement_date=item.retirement_date,
        source=f"catalogue (as of {item.as_of})",
        price_as_of=item.price_as_of,
    )
    if view is None:
        return row
    if view.skus is None:
        return _with_quota(row, view)
    found = next((sku for sku in view.skus if _same_sku(sku.name, item.name)), None)
    if found is None:
        absent = "not offered in this region to this account"
        return _with_quota(replace(row, restriction=absent, source=_live(view)), view)
    return _with_quota(_overlaid(row, found, view), view)


def _only_live(hardware: Hardware, views: Sequence[CloudView]) -> list[SkuRow]:
    """What a cloud lists and the catalogue has not in that region; CPU sizes the catalogue leaves out stay out."""
    listed = {(item.cloud, item.region, item.name.lower()) for item in hardware.instance_types}
    shapes = {(item.cloud, item.name.lower()): item for item in hardware.instance_types}
    rows = []
    for view in views:
        for sku in view.skus or ():
            shape = shapes.get((view.cloud, sku.name.lower()))
            if (view.cloud, view.region, sku.name.lower()) in listed or (shape is None and not sku.accelerators):
                continue
            accelerator = shape.accelerator if shape else _known_name(hardware, sku.accelerator)
            count = shape.accelerators if shape else sku.accelerators
            row = SkuRow(
                cloud=view.cloud,
                region=view.region,
                name=sku.name,
                accelerators=count,
                accelerator=accelerator,
                accelerator_memory_bytes=_card_memory(hardware, accelerator, count),
                cpus=shape.cpus if shape else None,
                memory_bytes=shape.memory_bytes if shape else None,
                # A price belongs to a region: another region's is not this one's.
                price_microusd_per_hour=None,
                spot_microusd_per_hour=None,
                price_source="",
                quota_family=shape.quota_family if shape else "",
                quotas=None,
                lead_time_h=None,
                restriction=None,
                status=shape.status if shape else "unknown",
                retirement_date=shape.retirement_date if shape else None,
                source=_live(view),
            )
            rows.append(_with_quota(_overlaid(row, sku, view), view))
    return rows


def _overlaid(row: SkuRow, sku: CloudSku, view: CloudView) -> SkuRow:
    """What the cloud says now over what the catalogue says; a price of 0 is not a price."""
    row = replace(
        row,
        cpus=row.cpus if sku.cpus is None else sku.cpus,
        memory_bytes=row.memory_bytes if sku.memory_bytes is None else sku.memory_bytes,
        quota_family=sku.quota_family or row.quota_family,
        restriction=sku.restriction,
        source=_live(view),
    )
    if sku.price_microusd_per_hour:
        row = replace(
            row,
            price_microusd_per_hour=sku.price_microusd_per_hour,
            price_source=_live(view),
            price_as_of=view.read_at.date(),
        )
    if sku.spot_microusd_per_hour:
        row = replace(row, spot_microusd_per_hour=sku.spot_microusd_per_hour)
    return row


def _with_quota(row: SkuRow, view: CloudView) -> SkuRow:
    """The limits that the SKU counts against, and what they mean for when a first machine could be had."""
    if view.quotas is None:
        return row
    family = _plain(row.quota_family)
    counting = [quota for quota in view.quotas if _plain(quota.family) == family and family]
    if not counting:
        return row
    counting += [quota for quota in view.quotas if _plain(quota.family) in _REGION_TOTALS]
    known = sorted(counting, key=lambda quota: (quota.free is None, quota.free or 0.0))
    return replace(row, quotas=tuple(known), lead_time_h=_lead_time(row, known))


_REGION_TOTALS = {"cores", "gpusallregions"}
"""Limits over every family: Azure's vCPUs of a region, Google's GPUs of all regions."""


def _lead_time(row: SkuRow, quotas: Sequence[Quota]) -> tuple[int, int] | None:
    """None when it can't be told: no number, or a restriction that no quota lifts."""
    if row.restriction or any(quota.free is None for quota in quotas):
        return None
    for quota in quotas:
        need = row.cpus if quota.unit == "vCPU" else row.accelerators
        if need is None:
            return None
        if quota.free is not None and need > quota.free:
            return QUOTA_REQUEST_H
    return 0, 0


def _card_memory(hardware: Hardware, accelerator: str, count: float) -> int | None:
    """Nominal where it says more: nobody asking for 80 GiB means the 79.6 that a driver leaves of it."""
    card = hardware.accelerator(accelerator) if accelerator else None
    if card is None:
        return None
    whole = max(card.memory_bytes, int(card.memory_nominal_gib * GIB))
    return int(whole * count) if 0 < count < 1 else whole


def _known_name(hardware: Hardware, name: str) -> str:
    card = hardware.accelerator(name) if name else None
    return card.id if card else name


def _retired(row: SkuRow, today: date) -> bool:
    return row.status == "retired" or (row.retirement_date is not None and row.retirement_date <= today)


def _within(price: int | None, limit: int) -> bool:
    return price is not None and price <= limit


def _order(row: SkuRow) -> tuple[bool, int, str, str, str]:
    price = row.price_microusd_per_hour
    return price is None, price or 0, row.cloud, row.region, row.name


def _live(view: CloudView) -> str:
    return f"live ({view.source}, {view.read_at:%Y-%m-%d %H:%M}Z)"


def _plain(family: str) -> str:
    return "".join(character for character in family.casefold() if character.isalnum())


def _loosen(wanted: Wanted) -> str:
    if wanted.max_price_microusd_per_hour is not None:
        return f"raise --max-price above {format_usd(wanted.max_price_microusd_per_hour)}"
    if wanted.gpu_memory_bytes is not None:
        return f"lower --gpu-memory below {format_bytes(wanted.gpu_memory_bytes)}, or take more than one accelerator"
    return "leave one of them out"


def as_of(rows: Iterable[InstanceType]) -> str:
    """The youngest and the oldest price day of the catalogue: `2025-01-31 to 2026-08-03`."""
    days = sorted({item.price_as_of for item in rows})
    if not days:
        return "empty"
    return str(days[0]) if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
