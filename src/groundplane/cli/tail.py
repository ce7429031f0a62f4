"""`ground tail`: requests through the gateways as they end, like a log that grows."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import click
import msgspec

from groundplane.cli import render
from groundplane.cli.options import connect, output_option
from groundplane.domain.serving.traffic import Filter, Passed
from groundplane.errors import InvalidInput
from groundplane.units import format_usd, parse_duration_s

_WAIT_S = 20.0


@click.command()
@click.option("--project", default="", help="Of one project.")
@click.option("--model", default="", help="Of one model.")
@click.option("--key", "key_id", default="", help="Of one key, by its id.")
@click.option("--status", default="", help="With this status, like 429, or of a class, like 5xx.")
@click.option("--slow", default="", help="That took at least so long, like 500ms or 10s.")
@click.option("--for", "for_s", default="", help="End after so long; without it, with Ctrl-C.")
@output_option
def tail(project: str, model: str, key_id: str, status: str, output: str, **more: str) -> None:
    """Follow requests through the gateways as they end.

    Those of every worker of the control plane's machine. No gateway waits for readers: when there are more requests
    than can be told, some are missed, and it is said how many. Prompts and answers are not shown; with -o json a line
    is one request.
    """
    slow_ms = _milliseconds(more["slow"]) if more["slow"] else 0.0
    wanted = Filter(project=project, model=model, key_id=key_id, status=status, slow_ms=slow_ms)
    end = time.monotonic() + _milliseconds(more["for_s"]) / 1000 if more["for_s"] else None
    with connect() as client:
        seen = client.tail_requests(wanted)
        render.say("listening")
        while end is None or time.monotonic() < end:
            wait_s = _WAIT_S if end is None else max(0.0, min(_WAIT_S, end - time.monotonic()))
            seen = client.tail_requests(wanted, after=seen.next, wait_s=wait_s)
            if seen.missed:
                render.say(f"{seen.missed} requests were missed")
            for one in seen.requests:
                if output == "json":
                    render.line(msgspec.json.encode(one).decode())
                else:
                    render.show(one, output, lambda one=one: [render.clean(_words(one))])  # type: ignore[misc]


def _words(one: Passed) -> str:
    at = datetime.fromtimestamp(one.at_s, UTC).strftime("%H:%M:%S.%f")[:-3]
    what = f"{one.project or '-'}/{one.model or '-'}"
    if one.target and one.target != one.model:
        what += f" at {one.target}"
    ttft = "" if one.ttft_ms is None else f", first after {one.ttft_ms:.0f} ms"
    tokens = f"{one.prompt_tokens}+{one.completion_tokens} tokens, {format_usd(one.amount_microusd)}"
    why = one.limit or one.error
    told = f"{tokens}, {one.duration_ms:.0f} ms{ttft}" if one.target else why
    if one.target and why:
        told += f", {why}"
    return f"{at} {one.status} {what} {one.key_id or '-'} {one.id}: {told}"


def _milliseconds(text: str) -> float:
    try:
        return float(text.removesuffix("ms")) if text.endswith("ms") else parse_duration_s(text) * 1000.0
    except ValueError:
        raise InvalidInput(f"{text[:40]!r} is no duration", "like 500ms or 10s") from None
