"""`ground models packages`: a model as OCI clients see it."""

from __future__ import annotations

import click

from groundplane.cli import render
from groundplane.cli.options import connect, output_option
from groundplane.cli.render import Table
from groundplane.cli.words import moment


@click.command()
@click.argument("name")
@click.option("--project", default="", help="Whose; the model's own when left out.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="Of so many versions.")
@click.option("--below", type=click.IntRange(1), metavar="NUMBER", help="Of versions before this one.")
@output_option
def packages(name: str, project: str, limit: int, below: int | None, output: str) -> None:
    """List a model's OCI manifests, newest first: their tags, who pushed them, and what refers to what."""
    with connect() as client:
        project = project or client.model_version(name, "latest").project
        found = client.packages(project, name, limit=limit, below=below or 0)
    rows = [
        (
            each.digest[:19],
            ", ".join(each.tags) or "-",
            each.artifact_type or "-",
            each.version_id or "-",
            each.subject[:19] or "-",
            each.made_by or "this registry",
            moment(each.at),
        )
        for each in found
    ]
    columns = ("DIGEST", "TAGS", "TYPE", "VERSION", "REFERS TO", "BY", "AT")
    render.show(found, output, lambda: [Table(columns, rows)])
