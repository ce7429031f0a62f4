"""`ground data`: how far a run's data is, and what nodes keep of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.options import Listing, connect, output_option
from groundplane.cli.render import Table, View
from groundplane.units import format_bytes

if TYPE_CHECKING:
    from groundplane.client import Client
    from groundplane.domain.staging import NodeCache, StagedData

_POLL_S = 0.5
_BEFORE = ("pending", "starting")


@click.group()
def data() -> None:
    """Follow a run's data to its node; list and clear what nodes keep."""


@data.command()
@click.argument("run_id", metavar="RUN")
@click.option("-f", "--follow", is_flag=True, help="Go on until all of it is there, or the run ends.")
@output_option
def progress(run_id: str, follow: bool, output: str) -> None:
    """Show how far a run's data is: bytes, rate and time left; afterwards what came of each source."""
    with connect() as client:
        found = _followed(client, run_id) if follow else client.run_data(run_id)
    render.show(found, output, lambda: _views(found))


@data.group(cls=Listing)
def cache() -> None:
    """Staged data that nodes keep for later runs."""


@cache.command("list")
@click.option("--pool", default="", help="Of one pool.")
@click.option("--node", default="", help="Of one node.")
@output_option
def list_(pool: str, node: str, output: str) -> None:
    """List what each node keeps: bytes, what running work uses, the limit, the disk."""
    with connect() as client:
        found = client.data_caches(pool=pool, node=node)
    render.show(found, output, lambda: [_table(found)])


@cache.command()
@click.option("--pool", required=True, help="Whose nodes are cleared.")
@click.option("--node", default="", help="Only this node.")
@click.option("--reason", default="", help="Why: written to the audit trail.")
@output_option
def clear(pool: str, node: str, reason: str, output: str) -> None:
    """Remove staged data that no run uses. What running work reads stays."""
    with connect() as client:
        found = client.clear_data_caches(pool, node=node, reason=reason)
    render.show(
        found,
        output,
        lambda: [
            f"{each.node}: {each.problem or f'{each.cleared_files} files removed, {format_bytes(each.cleared_bytes)}'}"
            for each in found
        ],
    )


def _followed(client: Client, run_id: str) -> StagedData:
    found = client.run_data(run_id)
    while found.status in _BEFORE and found.progress is None:
        time.sleep(_POLL_S)
        found = client.run_data(run_id)
    total, shown = found.progress.bytes if found.progress else 0, 0
    with render.progress(f"staging for {run_id}", total) as advance:
        while found.status in _BEFORE:
            if found.progress is not None:
                advance(found.progress.done_bytes - shown)
                shown = found.progress.done_bytes
            time.sleep(_POLL_S)
            found = client.run_data(run_id)
    return found


def _views(found: StagedData) -> list[View]:
    views: list[View] = [found.progress.sentence] if found.progress is not None else []
    if found.results:
        rows = [(each.name, each.status.value, each.need, each.have, f"{each.took_s:.2f} s") for each in found.results]
        views.append(Table(columns=("SOURCE", "VERDICT", "WHAT", "HOW", "TOOK"), rows=tuple(rows)))
        views += [f"  {each.name}: {each.hint}" for each in found.results if each.hint]
    return views or [f"{found.run_id} is {found.status}; nothing of it is staged"]


def _table(found: Sequence[NodeCache]) -> Table:
    rows = [
        (
            each.pool,
            each.node,
            str(each.files),
            format_bytes(each.bytes),
            format_bytes(each.pinned_bytes),
            format_bytes(each.partial_bytes),
            format_bytes(each.limit_bytes) if not each.problem else "unknown",
            f"{format_bytes(each.disk_free_bytes)}{', the OS disk' if each.on_os_disk else ''}"
            if not each.problem
            else "unknown",
            each.problem or each.folder,
        )
        for each in found
    ]
    return Table(
        ("POOL", "NODE", "FILES", "KEPT", "IN USE", "UNDER WAY", "LIMIT", "DISK FREE", "FOLDER"),
        rows,
        right=frozenset({"FILES", "KEPT", "IN USE", "UNDER WAY", "LIMIT"}),
        empty="no node keeps staged data",
    )
