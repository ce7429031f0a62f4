"""`ground preflight`: whether a node can carry a job, before the first paid hour."""

from __future__ import annotations

from collections.abc import Sequence

import click

from groundplane.cli import render
from groundplane.cli.options import connect, output_option
from groundplane.cli.render import Table, View
from groundplane.cli.specs import spec_text
from groundplane.domain.preflight import CheckResult, CheckStatus, PreflightReport
from groundplane.errors import Refusal, Refused


@click.command()
@click.argument("run_id", required=False, metavar="[RUN]")
@click.option("-f", "--file", "path", metavar="FILE", help="A spec in YAML; - reads standard input.")
@click.option("--node", default="", help="Only this node of the pool.")
@click.option("--all", "everything", is_flag=True, help="Skipped checks too, with why.")
@output_option
def preflight(run_id: str | None, path: str | None, node: str, everything: bool, output: str) -> None:
    """Check nodes, storage and data of a spec (-f), or show what was checked for a run.

    Nothing starts and no money is held. Exits with 3 when a check failed on every node that was asked.
    """
    if (run_id is None) == (path is None):
        raise click.UsageError("Give either a run's id or -f FILE.")
    with connect() as client:
        if run_id:
            reports = client.run_preflight(run_id)
        else:
            with spec_text(str(path)) as text:
                reports = client.preflight(text, node=node)
    render.show(reports, output, lambda: _views(reports, everything) or ["nothing was checked"])
    refused = _refused(reports)
    if path and refused:
        raise Refusal(refused)


def _views(reports: Sequence[PreflightReport], everything: bool) -> list[View]:
    views: list[View] = []
    for report in reports:
        shown = [each for each in report.results if everything or each.status is not CheckStatus.SKIPPED]
        skipped = len(report.results) - len(shown)
        views.append(
            Table(
                title=f"{report.subject} on {report.node}",
                columns=("CHECK", "VERDICT", "NEED", "HAVE", "TOOK"),
                rows=tuple(
                    (each.name, each.status.value, each.need or "-", each.have, f"{each.took_s:.2f} s")
                    for each in shown
                ),
            )
        )
        views += [f"  {each.name}: {each.hint}" for each in report.failed]
        views += [f"  {line}" for line in report.advice]
        if skipped:
            views.append(f"  {skipped} checks were skipped: --all says why")
    return views


def _refused(reports: Sequence[PreflightReport]) -> list[Refused]:
    """The failures of the node that is nearest to fit; none when a node fits."""
    if not reports or any(not report.failed for report in reports):
        return []
    nearest = min(reports, key=lambda report: len(report.failed))
    return [_refusal(each, nearest.node) for each in nearest.failed]


def _refusal(failed: CheckResult, node: str) -> Refused:
    return Refused(rule=f"preflight {failed.name}", need=failed.need, have=f"{failed.have} on {node}", hint=failed.hint)
