"""`ground recon`: this machine, the pools, and what the clouds sell, with price, quota, lead time and restriction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.options import Money, Size, connect
from groundplane.cli.render import Cell, Table, Usd, View
from groundplane.domain.planning.recon import CLOUDS, Disk, Machine, Quota, Reconnaissance, SkuRow, Survey, Wanted
from groundplane.units import format_bytes

if TYPE_CHECKING:
    from groundplane.domain.planning.plan import Offer

_ROWS_SHOWN = 30


@click.command()
@click.option("--gpu-memory", type=Size(), metavar="SIZE", help="Least memory of one accelerator, like 80GB.")
@click.option("--gpu", default="", metavar="NAME", help="An accelerator or a family of them: h100, a100-80gb.")
@click.option("--cloud", default="", metavar="NAME", help=f"One of {', '.join(CLOUDS)}.")
@click.option("--region", default="", metavar="NAME", help="As the cloud writes it: eastus2, us-east-1.")
@click.option("--sku", default="", metavar="NAME", help="One instance type.")
@click.option("--max-price", type=Money(), metavar="USD", help="Most that an hour may cost, on demand.")
@click.option("--include-retired", is_flag=True, help="Retired types too.")
@click.option("--live/--no-live", default=True, show_default=True, help="Ask the clouds with az, boto3 and gcloud.")
@click.option("--measure", is_flag=True, help="Measure this machine's disks, with files that are gone afterwards.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "wide", "json", "yaml"]),
    default="table",
    show_default=True,
    help="table and wide are for people; json and yaml are exact.",
)
def recon(
    gpu_memory: int | None,
    gpu: str,
    cloud: str,
    region: str,
    sku: str,
    max_price: int | None,
    include_retired: bool,
    live: bool,
    measure: bool,
    output: str,
) -> None:
    """Show what could be run, where, for how much: this machine, every pool, and the clouds.

    "This machine" is the one that the control plane runs on. Clouds answer live where its tools and credentials allow;
    everything else is from the catalogue, and says so. What nobody said is unknown, never 0.
    """
    wanted = Wanted(
        gpu_memory_bytes=gpu_memory,
        gpu=gpu,
        cloud=cloud,
        region=region,
        sku=sku,
        max_price_microusd_per_hour=max_price,
        include_retired=include_retired,
    )
    with connect() as client:
        found = client.recon(wanted, live=live)
        if measure:
            render.say("measuring the disks: some seconds for each")
            found = _with_machine(found, client.measure_machine())
    render.show(found, output, lambda: recon_views(found, wide=output == "wide"))


def _with_machine(found: Reconnaissance, machine: Machine) -> Reconnaissance:
    from dataclasses import replace  # noqa: PLC0415 - used by --measure alone

    return replace(found, machine=machine)


def recon_views(found: Reconnaissance, *, wide: bool = False) -> list[View]:
    """All of it for people. Narrow shows the cheapest rows and the columns that decide."""
    return [*_machine_views(found.machine), *_pool_views(found), *_cloud_views(found, wide=wide)]


# ---------------------------------------------------------------- this machine


def _machine_views(machine: Machine) -> list[View]:
    present = f" of {machine.cpus_present}" if machine.cpus_present != machine.cpus_usable else ""
    views: list[View] = [
        f"this machine: {machine.node}",
        f"  CPU           {machine.cpu_model}: {machine.cpus_usable:g}{present} usable",
        f"  memory        {format_bytes(machine.memory_bytes)}, {format_bytes(machine.memory_available_bytes)} free",
        f"  accelerators  {_cards(machine)}",
        f"  drivers       {machine.verdict}",
    ]
    if machine.driver_chain:
        rows = [(link.name, link.found or "missing", link.hint) for link in machine.driver_chain]
        views.append(Table(("LINK", "FOUND", "WAY FORWARD"), rows))
    disks = [
        (disk.mount, disk.kind, format_bytes(disk.free_bytes), format_bytes(disk.total_bytes), *_rates(disk))
        for disk in machine.disks
    ]
    views.append(Table(("DISK", "KIND", "FREE", "SIZE", "READ", "WRITE"), disks, right=_FIGURES, empty="no disks"))
    views += [f"{disk.mount}: {disk.measured}" for disk in machine.disks if disk.measured]
    return views


_FIGURES = frozenset({"FREE", "SIZE", "READ", "WRITE"})


def _cards(machine: Machine) -> str:
    if not machine.accelerators:
        return "none"
    kinds: dict[tuple[str, int], int] = {}
    for card in machine.accelerators:
        kinds[card.name, card.memory_bytes] = kinds.get((card.name, card.memory_bytes), 0) + 1
    return ", ".join(f"{count} × {name} ({format_bytes(size)})" for (name, size), count in kinds.items())


def _rates(disk: Disk) -> tuple[str, str]:
    if disk.read_bytes_per_s is None or disk.write_bytes_per_s is None:
        return "not measured", "not measured"
    return f"{disk.read_bytes_per_s / 1e6:,.0f} MB/s", f"{disk.write_bytes_per_s / 1e6:,.0f} MB/s"


# ---------------------------------------------------------------- pools


def _pool_views(found: Reconnaissance) -> list[View]:
    columns = ("POOL", "NODE TYPE", "NODES", "CPUS", "MEMORY", "ACCELERATORS", "PRICE/H", "FROM")
    rows = [_offer_row(offer) for offer in found.offers]
    right = frozenset({"NODES", "CPUS", "MEMORY", "PRICE/H"})
    pools = Table(columns, rows, right=right, title="pools:", empty="no pool offers anything")
    return [pools, *(f"pool {silent.pool}: {silent.why}" for silent in found.silent)]


def _offer_row(offer: Offer) -> tuple[Cell, ...]:
    return (
        offer.pool,
        f"{offer.node_type}{' (SIMULATED)' if offer.simulated else ''}",
        str(offer.nodes),
        f"{offer.cpus:g}",
        format_bytes(offer.memory_bytes),
        f"{offer.accelerators} × {offer.accelerator}" if offer.accelerators else "none",
        Usd(offer.price_microusd_per_hour, exact=True),
        f"{offer.price_source}, {offer.price_as_of}",
    )


# ---------------------------------------------------------------- clouds


def _cloud_views(found: Reconnaissance, *, wide: bool) -> list[View]:
    survey = found.survey
    said = f"live from {', '.join(found.live)}, the rest from" if found.live else "from"
    shown = survey.rows if wide else survey.rows[:_ROWS_SHOWN]
    title = f"clouds ({said} the catalogue, prices as of {found.catalogue_as_of}):"
    views: list[View] = [_sku_table(shown, title, wide=wide)]
    if len(shown) < len(survey.rows):
        left = len(survey.rows) - len(shown)
        views.append(f"and {left} more: narrow with --gpu, --gpu-memory, --cloud, --max-price, or -o wide for all")
    if survey.halted:
        views.append(_halted_table(survey))
    views += [f"note: {note}" for note in survey.notes]
    for gap in survey.gaps:
        place = f"{gap.cloud} {gap.region}".strip()
        views.append(f"no {gap.what} from {place}: {gap.why}; hint: {gap.hint}")
    return views


def _sku_table(rows: Sequence[SkuRow], title: str, *, wide: bool) -> Table:
    narrow = ("CLOUD", "REGION", "SKU", "ACCELERATORS", "GPU MEM", "PRICE/H", "SPOT/H", "QUOTA", "LEAD TIME")
    columns: tuple[str, ...] = (*narrow, "RESTRICTION", "RETIRES", "FROM")
    if wide:
        columns = (*columns, "CPUS", "MEMORY", "STATUS", "PRICE FROM")
    right = frozenset({"GPU MEM", "PRICE/H", "SPOT/H", "CPUS", "MEMORY"})
    cells = [(*_sku_cells(row), *(_wide_cells(row) if wide else ())) for row in rows]
    return Table(columns, cells, right=right, title=title, empty="no SKU fits")


def _sku_cells(row: SkuRow) -> tuple[Cell, ...]:
    memory = row.accelerator_memory_bytes
    unknown_card = row.accelerator or "unknown"
    return (
        row.cloud,
        row.region or "-",
        row.name,
        f"{row.accelerators:g} × {unknown_card}" if row.accelerators else "none",
        "-" if not row.accelerators else f"{memory / 2**30:.0f} GiB" if memory else "unknown",
        _money(row.price_microusd_per_hour),
        _money(row.spot_microusd_per_hour),
        quota_words(row.quotas),
        lead_time_words(row.lead_time_h),
        "unknown" if row.restriction is None else row.restriction or "none",
        str(row.retirement_date or "-"),
        row.source,
    )


def _wide_cells(row: SkuRow) -> tuple[str, ...]:
    cpus = "unknown" if row.cpus is None else f"{row.cpus:g}"
    memory = "unknown" if row.memory_bytes is None else format_bytes(row.memory_bytes)
    return cpus, memory, row.status.replace("_", " "), row.price_source or "-"


def _money(amount: int | None) -> Cell:
    return "unknown" if amount is None else Usd(amount, exact=True)


def quota_words(quotas: Sequence[Quota] | None) -> str:
    """The tightest limit: `0/96 vCPU`; what is not known is said."""
    if not quotas:
        return "unknown"
    tightest = quotas[0]
    used = "?" if tightest.used is None else f"{tightest.used:g}"
    limit = "?" if tightest.limit is None else f"{tightest.limit:g}"
    return f"{used}/{limit} {tightest.unit}"


def lead_time_words(hours: tuple[int, int] | None) -> str:
    """`now`, `24–72 h` for a quota request, or `unknown`."""
    if hours is None:
        return "unknown"
    return "now" if hours == (0, 0) else f"{hours[0]}–{hours[1]} h (quota request)"


def _halted_table(survey: Survey) -> Table:
    rows = [
        (m.cloud, m.region, m.name, m.sku, "unknown" if m.cpus is None else f"{m.cpus:g}", m.state, m.hint)
        for m in survey.halted
    ]
    columns = ("CLOUD", "REGION", "MACHINE", "SKU", "VCPUS HELD", "STATE", "GIVES THEM BACK")
    title = "stopped, and still taking quota:"
    return Table(columns, rows, right=frozenset({"VCPUS HELD"}), title=title)
