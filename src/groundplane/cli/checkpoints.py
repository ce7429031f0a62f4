"""`ground checkpoints | stacks`: what a run has saved, and what it did when it hung."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from groundplane.cli import render
from groundplane.cli.options import connect, output_option
from groundplane.cli.render import Table
from groundplane.cli.words import moment
from groundplane.domain.run import Checkpoint, CopyState
from groundplane.units import format_bytes

step_option = click.option("--step", type=click.IntRange(0), help="Of this step; the newest copy when left out.")


class _RunFirst(click.Group):
    """`ground checkpoints RUN` is `ground checkpoints list RUN`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["list", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_RunFirst)
def checkpoints() -> None:
    """List a run's checkpoints, pull one here, lay one on a node."""


@checkpoints.command("list")
@click.argument("run_id", metavar="RUN")
@output_option
def list_(run_id: str, output: str) -> None:
    """List complete checkpoints: where each lies, and whether it has a copy in the artifact store."""
    with connect() as client:
        found = client.checkpoints(run_id)
    render.show(found, output, lambda: [_table(found)])


@checkpoints.command()
@click.argument("run_id", metavar="RUN")
@click.argument("target", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER")
@step_option
def pull(run_id: str, target: Path, step: int | None) -> None:
    """Write a copy's files into a folder here, each verified. Broken off, it goes on where it was."""
    with connect() as client:
        copies = [each for each in client.checkpoints(run_id) if each.files and step in (None, each.step)]
        total = sum(file.size_bytes for file in copies[-1].files) if copies else 0
        with render.progress(f"pulling {run_id}", total) as progress:
            pulled = client.pull_checkpoint(run_id, target, step=step, progress=progress)
    render.say(f"step {pulled.step} of {run_id} is in {target}: {format_bytes(total)}, verified")


@checkpoints.command()
@click.argument("run_id", metavar="RUN")
@click.option("--node", required=True, help="The node that gets it.")
@click.option("--pool", default="", help="The node's pool; the run's own when left out.")
@step_option
def restore(run_id: str, node: str, pool: str, step: int | None) -> None:
    """Lay a copy into the run's checkpoint folder on a node. Attempts do so by themselves where it is missing."""
    with connect() as client:
        laid = client.restore_checkpoint(run_id, node, pool=pool, step=step)
    render.say(f"step {laid.step} of {run_id} is on {node}, verified")


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--attempt", type=click.IntRange(1), help="Which try; the newest when left out.")
@click.option("--rank", type=click.IntRange(0), default=0, help="Which member of a run on several nodes.")
def stacks(run_id: str, attempt: int | None, rank: int) -> None:
    """Print what a run's processes were doing when it was taken for hung."""
    with connect() as client:
        text = client.stacks(run_id, attempt=attempt, rank=rank)
    if text:
        render.raw(text.encode())
    else:
        render.say(f"{run_id} was never taken for hung; spec.hang_limit says after how long it is")


def _table(found: Sequence[Checkpoint]) -> Table:
    rows = [
        (
            str(each.step),
            moment(each.found_at),
            format_bytes(each.size_bytes),
            "removed" if each.removed_at else each.node or "-",
            _copy(each),
            " ".join(f"{name}={value:.4g}" for name, value in each.metrics.items()) or "-",
        )
        for each in found
    ]
    empty = "no complete checkpoint yet; docs/guides/checkpoints.md says how a job writes one"
    return Table(("STEP", "FOUND", "SIZE", "NODE", "COPY", "METRICS"), rows, right=frozenset({"STEP"}), empty=empty)


def _copy(each: Checkpoint) -> str:
    if each.copy is CopyState.COPIED:
        return f"sha256:{each.manifest_sha256[:12]}"
    return f"{each.copy}: {each.note}" if each.note else each.copy.value
