"""`ground checkpoints | stacks`: what a run has saved, and what it did when it hung."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from groundplane.cli import render
from groundplane.cli.options import connect, output_option
from groundplane.cli.render import Table
from groundplane.cli.specs import spec_text
from groundplane.cli.words import moment
from groundplane.domain.checkpoints import ProofStatus
from groundplane.domain.run import Checkpoint, CopyState
from groundplane.errors import Refusal, Refused
from groundplane.units import format_bytes

LOOK_PERIOD_S = 0.5
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
    render.show(found, output, lambda: [_table(found), *_notes(found)])


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


@click.command("prove-resume")
@click.argument("run_id", required=False, metavar="[RUN]")
@click.option("-f", "--file", "path", metavar="FILE", help="A spec in YAML; - reads standard input.")
@click.option("--detach", is_flag=True, help="Begin it and don't wait for its end.")
@output_option
def prove_resume(run_id: str | None, path: str | None, detach: bool, output: str) -> None:
    """Kill a short run after its first checkpoint, and see whether it goes on.

    The run costs what half an hour of it costs at most. Jobs with `spot: true` need the proof. Exits with 3 when the
    job did not resume.
    """
    if (run_id is None) == (path is None):
        raise click.UsageError("Give either a run's id or -f FILE.")
    with connect() as client:
        if run_id:
            proof = client.prove_resume("", run_id=run_id)
        else:
            with spec_text(str(path)) as text:
                proof = client.prove_resume(text)
        stood = ""
        while proof.status is ProofStatus.RUNNING and not detach:
            run = client.run(proof.run_id).run
            stands = f"{run.id} is {run.status}" + (f", attempt {run.attempt}" if run.attempt else "")
            if stands != stood:
                stood = stands
                render.say(f"{stands}; ground explain {run.id} says why")
            time.sleep(LOOK_PERIOD_S)
            proof = client.resume_proofs(proof.run_id)[0]
    words = proof.message or f"{proof.run_id} proves it"
    render.show(proof, output, lambda: [f"{proof.status}: {words}"])
    if proof.status is ProofStatus.FAILED:
        hint = "read GROUND_RESUME_FROM at the start: docs/guides/checkpoints.md"
        raise Refusal(
            [Refused(rule="resume-proven", need="a job that goes on from its checkpoint", have=words, hint=hint)]
        )


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
            f"sha256:{each.manifest_sha256[:12]}" if each.copy is CopyState.COPIED else each.copy.value,
            " ".join(f"{name}={value:.4g}" for name, value in each.metrics.items()) or "-",
        )
        for each in found
    ]
    empty = "no complete checkpoint yet; docs/guides/checkpoints.md says how a job writes one"
    return Table(("STEP", "FOUND", "SIZE", "NODE", "COPY", "METRICS"), rows, right=frozenset({"STEP"}), empty=empty)


def _notes(found: Sequence[Checkpoint]) -> list[str]:
    """Why there are copies missing, each reason once with its steps."""
    steps: dict[tuple[CopyState, str], list[str]] = {}
    for each in found:
        if each.note:
            steps.setdefault((each.copy, each.note), []).append(str(each.step))
    return [f"{state} at step {', '.join(those)}: {note}" for (state, note), those in steps.items()]
