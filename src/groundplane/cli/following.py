"""Following what was begun: logs as they come, and an exit status by the outcome."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from groundplane.cli import render
from groundplane.domain.endpoint import Endpoint, EndpointStatus
from groundplane.domain.run import Run, RunStatus

if TYPE_CHECKING:
    from groundplane.client import Client
    from groundplane.domain.planning.plan import Plan
    from groundplane.wire.plans import Applied

UNSUCCESSFUL_CODE = 9
"""A followed run ended otherwise than well, or an endpoint did not become ready."""
_POLL_S = 0.3


def follow_applied(client: Client, plans: Sequence[Plan], applied: Sequence[Applied], output: str) -> int:
    """Follows each to its end, in order; 0 when all went well."""
    runs: list[Run] = []
    endpoints: list[Endpoint] = []
    for item in applied:
        if item.run is not None:
            runs.append(follow_run(client, item.run.id, log=output == "table"))
        if item.endpoint is not None:
            endpoints.append(follow_endpoint(client, item.endpoint.id))

    def explained(run: Run) -> str:
        return client.explain(run.id).sentence

    ended = {"plans": plans, "runs": runs, "endpoints": endpoints}
    render.show(ended, output, lambda: [*map(explained, runs), *map(_stands, endpoints)])
    good = all(run.status is RunStatus.SUCCEEDED for run in runs)
    good = good and all(endpoint.status is EndpointStatus.READY for endpoint in endpoints)
    return 0 if good else UNSUCCESSFUL_CODE


def follow_run(client: Client, run_id: str, *, log: bool) -> Run:
    """Prints the run's log as it comes, saying where an attempt begins; returns the run when it is over."""
    if log:
        print_log(client, run_id, attempt=None)
    return client.wait(run_id)


def print_log(client: Client, run_id: str, *, attempt: int | None) -> None:
    """The log through every attempt from the given one (the newest) on, until the run is over."""
    shown = 0
    try:
        for piece in client.follow_log(run_id, attempt=attempt):
            if shown and piece.attempt != shown:
                render.say(f"attempt {piece.attempt} begins")
            shown = piece.attempt
            render.raw(piece.data)
    except KeyboardInterrupt:
        render.say(f"\n{run_id} goes on; follow it again: ground logs -f {run_id}")
        raise


def follow_endpoint(client: Client, name: str) -> Endpoint:
    """Waits until the endpoint answers, failed or was stopped; says each new state on the way there."""
    said = ""
    while (endpoint := client.endpoint(name)).status in {EndpointStatus.DEPLOYING, EndpointStatus.STOPPING}:
        if _stands(endpoint) != said:
            said = _stands(endpoint)
            render.say(said)
        time.sleep(_POLL_S)
    return endpoint


def _stands(endpoint: Endpoint) -> str:
    return f"endpoint {endpoint.id} is {endpoint.status}" + (f": {endpoint.message}" if endpoint.message else "")
