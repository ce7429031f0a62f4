"""`ground audit`: read the trail, prove the trail."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.options import Listing, connect, output_option
from groundplane.cli.render import Table
from groundplane.cli.words import moment
from groundplane.errors import IntegrityFailure

if TYPE_CHECKING:
    from groundplane.audit import Event

_WORD_MAX = 60


@click.group(cls=Listing, bare="log")
def audit() -> None:
    """Read and prove the audit trail."""


@audit.command("log")
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--kind", help="Of one kind of object, such as run or key.")
@click.option("--id", "object_id", help="Of one object.")
@output_option
def log(limit: int, kind: str | None, object_id: str | None, output: str) -> None:
    """Show who changed what, before, after and why; newest first."""
    with connect() as client:
        events = client.audit_events(limit=limit, object_kind=kind, object_id=object_id)
    render.show(events, output, lambda: [_events_table(events)])


@audit.command("verify")
@output_option
def verify(output: str) -> None:
    """Walk the whole chain. Exits with 8 when an event was changed, removed or inserted."""
    with connect() as client:
        verdict = client.audit_verify()
    if verdict.broken is not None:
        if output != "table":
            render.show(verdict, output, list)
        raise IntegrityFailure(
            f"the audit trail breaks at event {verdict.broken.event_id}: {verdict.broken.what}",
            "compare the database with a backup: from that event on it can't be trusted",
        )
    render.show(
        verdict, output, lambda: [f"{verdict.events} events, each sealed to the one before: the trail is whole"]
    )


def _events_table(events: Sequence[Event]) -> Table:
    rows = [
        (
            str(event.id),
            moment(event.at),
            event.actor,
            event.action,
            f"{event.object_kind}/{event.object_id}",
            _change(event.before, event.after),
            event.reason,
        )
        for event in events
    ]
    return Table(("EVENT", "AT", "WHO", "DID", "TO", "CHANGE", "WHY"), rows, frozenset({"EVENT"}), "no such event")


def _change(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """`status: running → stopping`; what did not change is left out."""
    parts = []
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        parts.append(f"{name}: {_word(new)}" if old is None else f"{name}: {_word(old)} → {_word(new)}")
    return ", ".join(parts)


def _word(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    # Digests are told apart by their first characters; -o json has them whole.
    return text if len(text) <= _WORD_MAX else f"{text[:12]}…"
