"""`ground endpoints`: served names."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.options import Listing, connect, output_option
from groundplane.cli.words import endpoints_table, moment
from groundplane.units import format_usd

if TYPE_CHECKING:
    from groundplane.domain.endpoint import Endpoint


@click.group(cls=Listing)
def endpoints() -> None:
    """List and show endpoints. They are deployed with apply and stopped with stop."""


@endpoints.command("list")
@click.option("--project", help="Of one project.")
@output_option
def list_(project: str | None, output: str) -> None:
    """List endpoints by name."""
    with connect() as client:
        found = client.endpoints(project)
    render.show(found, output, lambda: [endpoints_table(found, datetime.now(UTC))])


@endpoints.command()
@click.argument("name")
@output_option
def show(name: str, output: str) -> None:
    """Show one endpoint: its version, its price per token, how to call it."""
    with connect() as client:
        found, gateway_url = client.endpoint(name), client.status().gateway_url
    render.show(found, output, lambda: _lines(found, gateway_url))


def _lines(found: Endpoint, gateway_url: str) -> list[str]:
    price = found.spec.token_price
    prompt, completion = price.prompt_microusd_per_million, price.completion_microusd_per_million
    return [
        f"endpoint {found.id} is {found.status}" + (f": {found.message}" if found.message else ""),
        f"  model    {found.model_version} (revision {found.revision}, run {found.run_id})",
        f"  owner    {found.owner}, project {found.project}, cost centre {found.cost_center}",
        f"  price    {format_usd(prompt)} in and {format_usd(completion)} out, per million tokens",
        f"  since    {moment(found.created_at)}, ready {moment(found.ready_at)}, ends {moment(found.end_date)}",
        f'  call     {gateway_url}/v1/chat/completions with "model": "{found.id}" and a caller key',
    ]
