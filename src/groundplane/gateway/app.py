"""The gateway as a program: arguments, signals, exit codes."""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from groundplane.errors import Conflict, GroundError, InvalidInput
from groundplane.gateway.counting.broker import BrokerCounters
from groundplane.gateway.counting.counters import Counters
from groundplane.gateway.counting.redis_counters import RedisCounters
from groundplane.gateway.server import Gateway
from groundplane.gateway.state import Options
from groundplane.gateway.telemetry.sighting import TelemetryOptions
from groundplane.gateway.wal import FREE_MIN_BYTES, WriteAheadLog, adopt_abandoned
from groundplane.units import parse_bytes

_SPARE_FILES = 32
"""Descriptors for the log, the snapshot, limits and metrics."""
_FILES_MAX = 1 << 20


def main(argv: Sequence[str]) -> int:
    """Serves until SIGTERM or SIGINT. Returns the exit code; errors are one `error:` line on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(arguments))
    except GroundError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m groundplane.gateway", description="The OpenAI-compatible gateway of a Groundplane installation."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=4710, help="port to listen on; 0 takes a free one (%(default)s)")
    parser.add_argument("--snapshot", type=Path, required=True, help="the compiled configuration; may appear later")
    parser.add_argument("--wal", type=Path, required=True, help="directory of the usage log")
    parser.add_argument("--gateway-id", default="gateway", help="names this gateway's usage records (%(default)s)")
    parser.add_argument("--body-max", type=parse_bytes, default=Options().body_max_bytes, help="largest request body")
    parser.add_argument(
        "--cache-max", type=parse_bytes, default=Options().cache_max_bytes, help="answers kept at most (%(default)s)"
    )
    parser.add_argument(
        "--free-min", type=parse_bytes, default=FREE_MIN_BYTES, help="refuse requests when the disk has less free"
    )
    parser.add_argument("--fd", type=int, help="a socket that listens already, in place of --host and --port")
    parser.add_argument("--workers", type=int, default=1, help="how many gateways share the folders (%(default)s)")
    parser.add_argument("--shared", type=Path, help="folder in which they share limits and metrics")
    parser.add_argument("--provider-keys", type=Path, help="folder of hosted providers' keys, as PROJECT/NAME files")
    parser.add_argument(
        "--node", default=socket.gethostname(), help="name of this machine among those that share limits"
    )
    parser.add_argument("--nodes", type=int, default=1, help="how many machines share limits (%(default)s)")
    parser.add_argument("--report-fd", type=int, help="descriptor to say `ready` on")
    parser.add_argument("--drain", type=float, default=Options().drain_s, help="seconds to finish requests on SIGTERM")
    parser.add_argument("--predictions", type=Path, help="folder of the prediction log")
    parser.add_argument("--traces-url", default="", help="where spans go: an OTLP/HTTP address, like …:4318/v1/traces")
    parser.add_argument("--traces-percent", type=float, default=100.0, help="of requests that bring no trace of theirs")
    # Passwords have no business in the list of processes.
    parser.set_defaults(
        limits_url=os.environ.get("GROUND_GATEWAY_LIMITS_URL", ""),
        traces_headers=os.environ.get("GROUND_GATEWAY_TRACES_HEADERS", ""),
    )
    return parser


def _raise_files() -> int:
    """As many descriptors as this process may have: a client and its upstream take one each."""
    have, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_MAX if most == resource.RLIM_INFINITY else min(most, _FILES_MAX)
    if have < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return wanted


async def _serve(arguments: argparse.Namespace) -> None:
    options = Options(
        clients_max=max(_SPARE_FILES, (_raise_files() - _SPARE_FILES) // 2),
        body_max_bytes=arguments.body_max,
        drain_s=arguments.drain,
        workers=arguments.workers,
        cache_max_bytes=arguments.cache_max,
    )
    log = WriteAheadLog(arguments.wal, arguments.gateway_id, free_min_bytes=arguments.free_min)
    counters: Counters | None = None
    if arguments.limits_url:
        redis = RedisCounters(
            arguments.limits_url,
            f"{arguments.node}:{arguments.gateway_id}",
            arguments.nodes * arguments.workers,
        )
        await redis.ready()
        counters = redis
    elif arguments.shared is not None:
        # One worker's accounts are kept there too: they outlive its death.
        counters = BrokerCounters(arguments.shared / "limits", arguments.gateway_id, arguments.workers)
    adopt_abandoned(arguments.wal, arguments.gateway_id, arguments.workers)
    gateway = Gateway(
        snapshot_path=arguments.snapshot,
        log=log,
        gateway_id=arguments.gateway_id,
        options=options,
        counters=counters,
        metrics_folder=None if arguments.shared is None else arguments.shared / "metrics",
        keys_folder=arguments.provider_keys,
        telemetry=TelemetryOptions(
            gateway_id=arguments.gateway_id,
            predictions=arguments.predictions,
            tail=None if arguments.shared is None else arguments.shared / "tail.sock",
            traces_url=arguments.traces_url,
            traces_headers=arguments.traces_headers,
            traces_percent=arguments.traces_percent,
        ),
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        listener = None if arguments.fd is None else socket.socket(fileno=arguments.fd)
        port = await gateway.start(arguments.host, arguments.port, listener)
    except OSError as error:
        raise _start_failure(error, arguments) from error
    # What lives from here on is short-lived: the collector need not look at the rest again.
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    sys.stdout.write(f"gateway {arguments.gateway_id} listens on http://{arguments.host}:{port}\n")
    sys.stdout.flush()
    if arguments.report_fd is not None:
        os.write(arguments.report_fd, b'{"event":"ready"}\n')
        os.close(arguments.report_fd)
    await stop.wait()
    await gateway.stop()


def _start_failure(error: OSError, arguments: argparse.Namespace) -> GroundError:
    if error.errno == errno.EADDRINUSE:
        return _PortTaken(
            f"port {arguments.port} on {arguments.host} is taken by another process",
            f"see who has it: ss -ltnp 'sport = :{arguments.port}'; or set GROUND_GATEWAY_PORT to a free one",
        )
    if isinstance(error, PermissionError) or error.filename:
        return InvalidInput(f"the usage log {arguments.wal} can't be written: {error.strerror}", "check its owner")
    return InvalidInput(f"can't listen on {arguments.host}:{arguments.port}: {error.strerror}", "check the address")


class _PortTaken(Conflict):
    exit_code = 1
