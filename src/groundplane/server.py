"""The control plane's process: API, console and loops on one event loop, over one wired application.

    python -m groundplane.server [--report-fd N]

Started by the supervisor, or by hand. It says on the report pipe, in JSON lines, that it is ready or why it is not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
import uvloop

from groundplane.api.app import create_app
from groundplane.api.errors import error_info
from groundplane.api.staging import Staging
from groundplane.console import pages
from groundplane.domain.access import Exposure, covers
from groundplane.errors import Conflict, GroundError, Refusal, Refused, Unavailable
from groundplane.identity import SYSTEM, Role
from groundplane.loops.schedule import run_forever
from groundplane.processes import make_home
from groundplane.services.access import new_secret
from groundplane.settings import LOOPBACK_HOSTS, Settings
from groundplane.wiring import App, build

_SWEEP_PERIOD_S = 3600.0
log = logging.getLogger("groundplane.server")

HEAD_LIMIT_BYTES = 64 * 1024
KEEP_ALIVE_S = 30
_BACKLOG = 1024


class Reporter:
    """Tells the supervisor what happened. Without a pipe, or with nobody reading any more, it tells nobody."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def say(self, event: str, **facts: object) -> None:
        if self._descriptor is None:
            return
        line = msgspec.json.encode({"event": event, **facts}) + b"\n"
        try:
            os.write(self._descriptor, line)
        except BrokenPipeError:
            self._descriptor = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """An address that this installation listens on."""

    host: str
    port: int
    what: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK_HOSTS


class Server(uvicorn.Server):
    """Uvicorn that tells when it listens, and leaves signals to this process, which drains more than HTTP."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: Settings, reporter: Reporter) -> None:
    """Runs until SIGTERM or SIGINT, then drains. Raises GroundError when it may not or can't run."""
    make_home(settings.home)
    app = await build(settings)
    try:
        await _first_start(app, reporter)
        addresses = _addresses(settings)
        await _check_exposures(app, addresses)
        await Staging(settings.home / "uploads", settings.upload_limit_bytes).sweep()
        with _listen(settings.host, settings.port) as listener:
            await _run(app, listener, addresses, reporter)
    finally:
        await app.close()


async def _run(app: App, listener: socket.socket, addresses: list[Bound], reporter: Reporter) -> None:
    settings = app.settings
    config = http_config(create_app(app, routers=(pages.router(),)), settings)
    stop = asyncio.Event()
    server = Server(config, on_started=lambda: _say_ready(settings, reporter))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    looping = asyncio.create_task(run_forever(app, stop), name="loops")
    guarding = asyncio.create_task(_guard(app, addresses), name="exposures")
    sweeping = asyncio.create_task(_sweep_uploads(settings), name="uploads")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        # Whichever ends first ends the process: a part that is gone must not leave the others looking healthy.
        await asyncio.wait({serving, looping, guarding, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.set()
        server.should_exit = True
        guarding_error = guarding.exception() if guarding.done() else None
        guarding.cancel()
        sweeping.cancel()
        _, late = await asyncio.wait({serving, looping}, timeout=settings.drain_s + 2)
        for task in late:
            log.warning("%s did not finish within %s s and is cut off", task.get_name(), settings.drain_s)
            task.cancel()
    if guarding_error is not None:
        raise guarding_error
    for task in (serving, looping):
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise error


def http_config(api: Any, settings: Settings) -> uvicorn.Config:
    """How HTTP is spoken: bounded heads, patient with idle connections, quick to drain."""
    return uvicorn.Config(
        api,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # The faster parser keeps headers of any size in memory; a caller without a key must not fill it.
        http="h11",
        h11_max_incomplete_event_size=HEAD_LIMIT_BYTES,
        timeout_keep_alive=KEEP_ALIVE_S,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=settings.drain_s,
    )


def _say_ready(settings: Settings, reporter: Reporter) -> None:
    log.info("control plane ready on %s, pid %s", settings.base_url, os.getpid())
    reporter.say("ready")


async def _first_start(app: App, reporter: Reporter) -> None:
    """The admin key, made once: its file for the CLI of this user, and one look at it for whoever started us.

    The secret is on disk before the database knows its hash: dying in between loses no key.
    """
    path = app.settings.home / "keys" / "admin"
    is_new = not path.exists()
    if is_new:
        _write_secret(path, new_secret(Role.ADMIN))
    secret = path.read_text().strip()
    if await app.access.bootstrap(secret) is not None:
        reporter.say("admin-key", secret=secret, path=str(path))
    elif is_new:
        # Not a first start: somebody removed the file. A key that opens nothing must not stand in its place.
        path.unlink()
        log.warning("%s is gone; set GROUND_KEY to a key that was made before", path)


def _write_secret(path: Path, secret: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


# ---------------------------------------------------------------- addresses


def _addresses(settings: Settings) -> list[Bound]:
    return [
        Bound(host=settings.host, port=settings.port, what="the control plane"),
        Bound(host=settings.gateway_host, port=settings.gateway_port, what="the gateway"),
    ]


def exposure_refusals(addresses: list[Bound], exposures: list[Exposure], now: datetime) -> list[Refused]:
    """One refusal per address beyond loopback that no exposure in force permits."""
    permitted = {exposure.id for exposure in exposures if covers(exposure, now)}
    return [
        Refused(
            rule="exposure",
            need=f"an exposure with owner, reason and expiry to bind {bound.what} to {bound}",
            have=_have(bound, exposures),
            hint=f"start on 127.0.0.1, then: ground exposures add {bound} --owner NAME --reason WHY --expires DATE",
        )
        for bound in addresses
        if not bound.is_loopback and not permitted & {bound.host, str(bound)}
    ]


def _have(bound: Bound, exposures: list[Exposure]) -> str:
    for exposure in exposures:
        if exposure.id in {bound.host, str(bound)}:
            return f"one that expired {exposure.expires_at.isoformat()}"
    return "none"


async def _check_exposures(app: App, addresses: list[Bound]) -> None:
    if all(bound.is_loopback for bound in addresses):
        return
    refused = exposure_refusals(addresses, await app.access.exposures(SYSTEM), app.clock.now())
    if refused:
        raise Refusal(refused)


async def _sweep_uploads(settings: Settings) -> None:
    """Half uploads of days ago go away in a server that runs for months, too. Trouble with one disk ends nobody."""
    while True:
        await asyncio.sleep(_SWEEP_PERIOD_S)
        try:
            await Staging(settings.home / "uploads", settings.upload_limit_bytes).sweep()
        except OSError:
            log.exception("uploads could not be swept")


async def _guard(app: App, addresses: list[Bound]) -> None:
    """Ends the process when an address it is bound to stops being permitted: what outlives its end is stopped."""
    while True:
        await asyncio.sleep(app.settings.exposure_check_s)
        try:
            await _check_exposures(app, addresses)
        except Unavailable as error:
            log.warning("the exposures can't be checked now: %s", error)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise Conflict(f"{host}:{port} can't be bound: {error.strerror}", "choose another with GROUND_PORT") from None
    return listener


# ---------------------------------------------------------------- process


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 after a drain, a GroundError's own code, 1 for a defect."""
    parser = argparse.ArgumentParser(prog="python -m groundplane.server", description="The control plane's process.")
    parser.add_argument("--report-fd", type=int, help="pipe on which readiness and failures are told")
    options = parser.parse_args(arguments)
    reporter = Reporter(options.report_fd)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(level=logging.INFO, format="%(asctime)sZ %(levelname)s %(name)s: %(message)s")
    # Alembic tells of every plugin it has, at every start.
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
    try:
        uvloop.run(serve(Settings.from_env(), reporter))
    except GroundError as error:
        log.error("%s", error)
        reporter.say("failed", error=error_info(error, ""), exit_code=error.exit_code)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
