"""One gateway worker that does less than it does in production, to see what each part of the work costs.

    python bench/_gateway_tier.py TIER --fd FD --snapshot FILE --folder FOLDER

Tier 0 forwards: a key is looked up, and nothing is limited, charged or written down. Tier 1 keeps limits of requests
and tokens and counts metrics, without dollars and without the usage log. Tier 2, all of it, is `python -m
groundplane.gateway`. What tiers 0 and 1 leave out no configuration can switch off: it is replaced here.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import socket
from collections.abc import Callable
from pathlib import Path

import uvloop

from groundplane.gateway import approach, exchange
from groundplane.gateway.counting.broker import BrokerCounters
from groundplane.gateway.lanes import Lane
from groundplane.gateway.server import Gateway
from groundplane.gateway.state import GatewayState, Options
from groundplane.gateway.tables import KeyState
from groundplane.gateway.targets import RouteState
from groundplane.gateway.wal import Recovered, WriteAheadLog


class NoLog(WriteAheadLog):
    """Takes every record and keeps none."""

    def open(self, wait_s: float = 0.0) -> Recovered:
        return Recovered((), 0)

    def reserved(self, request_id: bytes, members: bytes) -> None:
        pass

    def settled(self, request_id: bytes, members: bytes, project: str, microusd: int) -> None:
        pass

    def check_space(self) -> None:
        pass

    def sync_work(self) -> Callable[[], None] | None:
        return None

    def close(self) -> None:
        pass


def no_words(*_: object) -> bytes:
    """For a record that nobody keeps."""
    return b""


class NoDollars(GatewayState):
    """Lanes without purses, which serve all the same."""

    def lane(self, key: KeyState, route: RouteState) -> Lane:
        lane = super().lane(key, route)
        lane.money, lane.has_budget = (), True
        return lane


async def serve(options: argparse.Namespace) -> None:
    approach.reserved_members = exchange.settled_members = no_words  # type: ignore[attr-defined]
    folder: Path = options.folder
    log = NoLog(folder, "bench")
    counters = BrokerCounters(folder / "limits", "bench", 1)
    gateway = Gateway(snapshot_path=options.snapshot, log=log, gateway_id="bench", options=Options(), counters=counters)
    gateway.state = NoDollars(
        options=Options(), snapshot_path=options.snapshot, log=log, gateway_id="bench", counters=counters
    )
    await gateway.start("", 0, socket.socket(fileno=options.fd))
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tier", type=int, choices=(0, 1), help="which snapshot is given decides what is limited")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--snapshot", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
