"""`ground nodes` and `ground pools`: the machines there are, how they are, and which take no new work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.options import Listing, connect, output_option
from groundplane.cli.render import Table
from groundplane.cli.words import counted, moment
from groundplane.errors import InvalidInput, NotFound
from groundplane.units import exact_usd, format_bytes

if TYPE_CHECKING:
    from groundplane.client import Client
    from groundplane.domain.node import Node, PoolView
    from groundplane.domain.pool_file import PoolChanges

pool_option = click.option("--pool", help="Of one pool.")


@click.group(cls=Listing)
def nodes() -> None:
    """List and show nodes; keep new work away from one, and let it there again."""


@nodes.command("list")
@pool_option
@output_option
def list_(pool: str | None, output: str) -> None:
    """List nodes by pool and name, also those that do not answer."""
    with connect() as client:
        found = client.nodes(pool)
    render.show(found, output, lambda: [_nodes_table(found)])


@nodes.command()
@click.argument("node")
@pool_option
@output_option
def show(node: str, pool: str | None, output: str) -> None:
    """Show one node: what it has, how it is, who holds its accelerators."""
    with connect() as client:
        found = _one(client, node, pool)
    render.show(found, output, lambda: _lines(found))


@nodes.command()
@click.argument("node")
@pool_option
@click.option("--reason", required=True, help="What is wrong with it: kept, shown, and written to the audit trail.")
@output_option
def cordon(node: str, pool: str | None, reason: str, output: str) -> None:
    """Send no new work to a node. What runs there goes on."""
    with connect() as client:
        made = client.cordon(_one(client, node, pool).pool, node, reason)
    render.show(made, output, lambda: [f"node {made.node} of pool {made.pool} takes no new work: {made.reason}"])


@nodes.command()
@click.argument("node")
@pool_option
@click.option("--reason", default="", help="Why it is well again: written to the audit trail.")
@output_option
def uncordon(node: str, pool: str | None, reason: str, output: str) -> None:
    """Let work to a node again."""
    with connect() as client:
        found = _one(client, node, pool)
        client.uncordon(found.pool, node, reason)
        now = client.node(found.pool, node)
    render.show(now, output, lambda: [f"node {now.name} of pool {now.pool} takes work again"])


@click.group(cls=Listing)
def pools() -> None:
    """List pools: nodes, accelerators, price, and why one does not answer; read the pool file anew."""


@pools.command("list")
@output_option
def list_pools(output: str) -> None:
    """List pools in numbers."""
    with connect() as client:
        found = client.pools()
    render.show(found, output, lambda: [_pools_table(found), *(f"{p.name}: {p.why}" for p in found if p.why)])


@pools.command("reload")
@click.option("--reason", default="", help="Why: written to the audit trail.")
@output_option
def reload(reason: str, output: str) -> None:
    """Put the pool file in force as it is now: all of it, or nothing when it has a fault."""
    with connect() as client:
        changes = client.reload_pools(reason)
    render.show(changes, output, lambda: _change_lines(changes))


def _change_lines(changes: PoolChanges) -> list[str]:
    told = {"added": changes.added, "removed": changes.removed, "changed": changes.changed}
    return [f"{what}: {', '.join(names)}" for what, names in told.items() if names] or ["nothing has changed"]


def _one(client: Client, name: str, pool: str | None) -> Node:
    """The node of that name. A name that two pools have needs --pool."""
    if pool is not None:
        return client.node(pool, name)
    found = [node for node in client.nodes() if node.name == name]
    if not found:
        raise NotFound(f"no pool has a node {name}", "ground nodes list")
    if len(found) > 1:
        raise InvalidInput(
            f"{name} is a node of {' and of '.join(node.pool for node in found)}", f"add --pool {found[0].pool}"
        )
    return found[0]


def state_words(node: Node) -> str:
    """How a node is, in one line."""
    if node.cordoned:
        return f"cordoned: {node.cordoned}"
    return f"{node.health}: {node.reason}" if node.reason else str(node.health)


def accelerator_words(node: Node) -> str:
    """`2 of 8 h100-80gb free`, or none."""
    if not node.accelerators:
        return "none"
    free = sum(not card.held_by for card in node.accelerators)
    return f"{free} of {len(node.accelerators)} {node.accelerators[0].model} free"


def _nodes_table(found: list[Node]) -> Table:
    rows = [
        (
            node.pool,
            node.name,
            f"{node.cpus:g}" if node.cpus else "-",
            format_bytes(node.memory_bytes) if node.memory_bytes else "-",
            accelerator_words(node),
            str(node.attempts),
            state_words(node),
        )
        for node in found
    ]
    columns = ("POOL", "NODE", "CPUS", "MEMORY", "ACCELERATORS", "ATTEMPTS", "STATE")
    return Table(columns, rows, right=frozenset({"CPUS", "MEMORY", "ATTEMPTS"}), empty="no such node; ground pools")


def _pools_table(found: list[PoolView]) -> Table:
    rows = [
        (
            pool.name,
            f"{pool.ready} of {pool.nodes}",
            str(pool.cordoned),
            f"{pool.cpus:g}",
            format_bytes(pool.memory_bytes),
            f"{pool.accelerators_free} of {pool.accelerators} {pool.accelerator}".strip()
            if pool.accelerators
            else "none",
            price_words(pool),
        )
        for pool in found
    ]
    columns = ("POOL", "NODES READY", "CORDONED", "CPUS", "MEMORY", "ACCELERATORS FREE", "PRICE/H")
    return Table(columns, rows, right=frozenset({"CORDONED", "CPUS", "MEMORY", "PRICE/H"}))


def price_words(pool: PoolView) -> str:
    """Per node and hour."""
    low, high = pool.price_low_microusd_per_hour, pool.price_high_microusd_per_hour
    if low is None or high is None:
        return "unknown"
    return exact_usd(low) if low == high else f"{exact_usd(low)} to {exact_usd(high)}"


def _lines(node: Node) -> list[str]:
    has = (
        f"{counted(node.cpus, 'CPU')}, {format_bytes(node.memory_bytes)} of memory,"
        f" {format_bytes(node.disk_free_bytes)} of disk free"
    )
    lines = [
        f"node {node.name} of pool {node.pool} is {state_words(node)}",
        f"  has      {has if node.cpus else 'unknown: it has not answered yet'}",
        f"  address  {node.address}",
        f"  heard    {moment(node.heard_at) if node.heard_at else 'never'}",
        f"  at work  {counted(node.attempts, 'attempt')}",
    ]
    lines += [
        f"  accelerator {card.index}  {card.model}, {format_bytes(card.memory_bytes)},"
        f" {'held by ' + card.held_by if card.held_by else 'free'}"
        for card in node.accelerators
    ]
    if node.isolation:
        lines.append("  walls    " + "; ".join(f"{mode} ({why})" if why else mode for mode, why in node.isolation))
        kept = ", ".join(f"{name} by {keeper}" for name, keeper in node.limits)
        lines.append(f"  limits   {kept or 'none by the kernel: memory is watched'}")
    lines += [f"  label    {name}={value}" for name, value in node.labels]
    return [*lines, f"hint: {node.hint}"] if node.hint else lines
