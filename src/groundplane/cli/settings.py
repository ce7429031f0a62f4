"""`ground settings`: what may be turned, how it stands, and where that comes from."""

from __future__ import annotations

import click

from groundplane.cli import render
from groundplane.cli.options import output_option
from groundplane.cli.render import Table
from groundplane.settings import Settings


@click.command()
@output_option
def settings(output: str) -> None:
    """List every setting with its value and where that comes from. Secrets are masked.

    These are this shell's settings: a running installation has those it was started with.
    """
    found = Settings.from_env().describe()
    rows = [(item.variable, item.value, item.origin, item.meaning) for item in found]
    render.show(found, output, lambda: [Table(("SETTING", "VALUE", "FROM", "MEANING"), rows)])
