"""`ground up | down | status`: the processes of one installation on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from groundplane.cli import render
from groundplane.cli.options import output_option
from groundplane.cli.render import Table, View
from groundplane.cli.words import age, counted, moment
from groundplane.errors import GroundError, Unauthenticated, Unavailable
from groundplane.processes import ProcessMark, end, make_home, read_mark
from groundplane.settings import Settings
from groundplane.units import format_bytes, format_usd
from groundplane.wire import ErrorInfo

if TYPE_CHECKING:
    from groundplane.wire.system import FailingLoop, Status

CHILDREN = ("gateway", "control-plane")
DOWN_EXIT_CODE = 6
_STOP_RUNS_LIMIT_S = 60.0

# ---------------------------------------------------------------- up


@click.command()
@click.option("--detach", is_flag=True, help="Return when everything is ready, and leave it running.")
@click.option("--no-gateway", is_flag=True, help="The control plane alone.")
def up(detach: bool, no_gateway: bool) -> int:
    """Start the control plane and the gateway on this machine.

    Stays in the foreground until Ctrl-C unless --detach is given. Runs go on when it stops, and are adopted when it
    starts again. The first start prints an admin key, once.
    """
    settings = Settings.from_env()
    make_home(settings.home)
    supervisor = _spawn(settings, detach=detach, no_gateway=no_gateway)
    assert supervisor.stdout is not None
    if detach:
        _narrate(_events(supervisor.stdout), until="ready")
        # Read to its end only in the foreground: detached, it keeps running without us.
        return 0
    with _passing_on_signals(supervisor):
        _narrate(_events(supervisor.stdout), until="")
        return supervisor.wait()


def _spawn(settings: Settings, *, detach: bool, no_gateway: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "groundplane.supervisor"]
    command += [] if detach else ["--attached"]
    command += ["--no-gateway"] if no_gateway else []
    with (settings.home / "log" / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if detach else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            # Its own session: neither Ctrl-C nor a closing terminal reaches it but through us.
            start_new_session=True,
            env={**os.environ, "GROUND_HOME": str(settings.home)},
        )


def _events(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in stream:
        yield json.loads(line)


def _narrate(events: Iterator[dict[str, Any]], *, until: str) -> None:
    """Turns what the supervisor tells into words. Raises the error that kept it from being up."""
    last = ""
    for event in events:
        last = event["event"]
        _tell(event)
        if last == until:
            return
    if until or not last:
        raise Unavailable(
            "the supervisor ended before everything was ready", "see log/supervisor.log under GROUND_HOME"
        )


def _tell(event: dict[str, Any]) -> None:
    kind = event["event"]
    if kind == "admin-key":
        render.say(f"admin key, shown this once and kept in {event['path']}:")
        render.line(event["secret"])
    elif kind == "ready":
        render.say(f"control plane  {event['url']}  (console: {event['url']}/console)")
        if "gateway_url" in event:
            render.say(f"gateway        {event['gateway_url']}/v1")
        render.say(f"logs           {event['log_dir']}")
    elif kind == "leftover":
        render.say(f"{event['name']} of an earlier start (pid {event['pid']}) was still there: {event['how']}")
    elif kind == "crashed":
        how = f"signal {-event['exit']}" if event["exit"] < 0 else f"status {event['exit']}"
        render.say(f"{event['name']} ended with {how}; it starts again in {event['restart_in_s']:g} s")
    elif kind == "stopping":
        render.say(f"stopping ({event['because']}); runs keep running")
    elif kind == "stopped":
        render.say(f"{event['name']} {event['how']}")
    elif kind == "failed":
        raise _failure(event)


def _failure(event: dict[str, Any]) -> GroundError:
    # The client's error table lives with the HTTP library: only a failed start pays for importing it.
    import msgspec  # noqa: PLC0415

    from groundplane.client import error_of  # noqa: PLC0415

    error = error_of(msgspec.convert(event["error"], ErrorInfo))
    if error.exit_code != event["exit_code"]:
        error.exit_code = event["exit_code"]  # type: ignore[misc]
    return error


@contextlib.contextmanager
def _passing_on_signals(supervisor: subprocess.Popen[bytes]) -> Iterator[None]:
    """While it waits, this process passes its signals on as SIGTERM, and lets the supervisor drain."""

    def pass_on(_number: int, _frame: object) -> None:
        if supervisor.poll() is None:
            supervisor.terminate()

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- down


@click.command()
@click.option("--stop-runs", is_flag=True, help="Stop runs and endpoints first, and wait for them.")
def down(stop_runs: bool) -> None:
    """Stop the control plane and the gateway. Runs keep running, unless --stop-runs is given."""
    settings = Settings.from_env()
    supervisor = read_mark(settings.home / "run" / "up.lock")
    left = _left_running(settings, stop_runs) if supervisor else ""
    stopped = []
    if supervisor is not None:
        # It drains its children one after the other; only then does killing make sense.
        how = end(supervisor, wait_s=2 * settings.drain_s + 15)
        stopped.append(f"supervisor (pid {supervisor.pid}) {how}")
    for name in _children(settings.home):
        # What a killed supervisor left behind.
        child = read_mark(settings.home / "run" / f"{name}.pid")
        if child is not None:
            stopped.append(f"{name} (pid {child.pid}) {end(child, wait_s=settings.drain_s + 4)}")
    if not stopped:
        render.line(f"nothing is up on {settings.home}")
        return
    for text in stopped:
        render.line(text)
    if left:
        render.line(left)


def _left_running(settings: Settings, stop_runs: bool) -> str:
    """What keeps running, in words; with `stop_runs` it is stopped first."""
    from groundplane.client import Client  # noqa: PLC0415 (only when there is something to ask)

    try:
        with Client.from_settings(settings) as client:
            if stop_runs:
                return _stop_everything(client)
            runs = client.runs(status="active", limit=1000)
    except (Unavailable, Unauthenticated) as error:
        if stop_runs:
            raise
        return f"whether runs keep running is not known: {error}"
    if not runs:
        return "no runs are left"
    if len(runs) == 1:
        return "1 run keeps running; the next ground up adopts it"
    return f"{len(runs)} runs keep running; the next ground up adopts them"


def _stop_everything(client: Any) -> str:
    endpoints = [e for e in client.endpoints() if e.status not in {"stopped", "failed"}]
    for endpoint in endpoints:
        client.stop_endpoint(endpoint.id, "ground down --stop-runs")
    for run in client.runs(status="active", limit=1000):
        if not run.endpoint:
            client.stop_run(run.id, "ground down --stop-runs")
    deadline = time.monotonic() + _STOP_RUNS_LIMIT_S
    while left := client.runs(status="active", limit=1000):
        if time.monotonic() > deadline:
            names = ", ".join(run.id for run in left)
            raise Unavailable(
                f"still stopping after {_STOP_RUNS_LIMIT_S:.0f} s: {names}", "ground explain RUN says why"
            )
        time.sleep(0.3)
    return "no runs are left"


# ---------------------------------------------------------------- status


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    name: str
    state: str
    pid: int | None
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What `ground status` shows: processes from this machine, the rest from the control plane when it answers.

    `up`: the control plane answers. `ready`: the gateway too.
    """

    home: str
    up: bool
    ready: bool
    url: str
    processes: tuple[ProcessState, ...]
    control_plane: Status | None
    problem: str = ""


@click.command()
@output_option
def status(output: str) -> int:
    """Show processes, version, counts, money held and disk. Exits with 6 when the control plane does not answer."""
    settings = Settings.from_env()
    found = _look(settings)
    render.show(found, output, lambda: _status_views(found))
    return 0 if found.up else DOWN_EXIT_CODE


def _look(settings: Settings) -> Installation:
    from groundplane.client import Client, gateway_answers  # noqa: PLC0415

    answer, problem = None, ""
    try:
        with Client.from_settings(settings) as client:
            answer = client.status()
    except (Unavailable, Unauthenticated) as error:
        problem = f"{error}; {error.hint}" if error.hint else str(error)
    local = not settings.url
    return Installation(
        home=str(settings.home) if local else "",
        up=answer is not None,
        ready=answer is not None and gateway_answers(answer.gateway_url),
        url=settings.base_url,
        processes=_processes(settings.home) if local else (),
        control_plane=answer,
        problem=problem,
    )


def _children(home: Path) -> list[str]:
    """What a supervisor starts, last first: the gateway's further workers have names of their own."""
    workers = (path.stem for path in (home / "run").glob("gateway-*.pid"))
    return [*sorted(workers, key=lambda name: int(name.rpartition("-")[2]), reverse=True), *CHILDREN]


def _processes(home: Path) -> tuple[ProcessState, ...]:
    restarts: dict[str, int] = {}
    try:
        told = json.loads((home / "run" / "up.json").read_text())
        restarts = {child["name"]: child["restarts"] for child in told["children"]}
    except FileNotFoundError:
        pass  # Never up, or down in good order: the pid files below say the rest.
    marks: list[tuple[str, ProcessMark | None]] = [("supervisor", read_mark(home / "run" / "up.lock"))]
    marks += [(name, read_mark(home / "run" / f"{name}.pid")) for name in reversed(_children(home))]
    return tuple(
        ProcessState(
            name=name,
            state="up" if found else "down",
            pid=found.pid if found else None,
            restarts=restarts.get(name, 0),
        )
        for name, found in marks
    )


def _status_views(found: Installation) -> list[View]:
    views: list[View] = []
    if found.processes:
        rows = [(p.name, p.state, str(p.pid or "-"), str(p.restarts)) for p in found.processes]
        views.append(Table(("PROCESS", "STATE", "PID", "RESTARTS"), rows, right=frozenset({"PID", "RESTARTS"})))
    answer = found.control_plane
    if answer is None:
        return [*views, f"down: {found.problem}"]
    disk = f"{format_bytes(answer.disk_free_bytes)} free of {format_bytes(answer.disk_total_bytes)}"
    return [
        *views,
        f"version    {answer.version}, up for {age(answer.started_at, answer.now)} since {moment(answer.started_at)}",
        f"addresses  {found.url}, gateway {answer.gateway_url}{'' if found.ready else ' (does not answer)'}",
        f"runs       {_counts(answer.runs_active) or 'none active'}",
        f"endpoints  {_counts(answer.endpoints) or 'none'}",
        f"models     {counted(answer.model_versions, 'version')}, {counted(answer.projects, 'project')}",
        f"money      {format_usd(answer.held_microusd)} held in {counted(answer.holds_pending, 'hold')}",
        f"policy     {answer.policy}",
        *(f"failing    {each.name} {_failing(each)}" for each in answer.failing),
        f"state      {answer.home} ({answer.database}), {disk}",
    ]


def _failing(loop: FailingLoop) -> str:
    error = loop.error or "an administrator sees the error"
    return f"since {moment(loop.since)}, {counted(loop.failures, 'time')}: {error}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
