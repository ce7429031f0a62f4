"""What a project waits while another one floods the same worker with requests that are admitted.

    python bench/gateway_fairness.py                        200 connections that flood, windows of 2 s, 5 of each kind
    python bench/gateway_fairness.py --answer-ms 0 --connections 1000

One worker, one upstream, two projects without limits. The victim asks 100 times a second, timed from when each request
was due; windows with and without the flood take turns, and so do a worker as it ships and one whose turns begin all
that came (`unfair`). Medians over the windows. Upstream and both generators share the last core, the worker has the
first: read figures of the same window kind beside each other, and `direct` for what the machine itself adds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import hashlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from _gateway_load import SECRET
from _gateway_subjects import FLOOD, Subject, free_port, process
from _gateway_upstream import _ANSWER, Upstream
from groundplane.domain.snapshot import Route, Snapshot, SnapshotKey, Target, encode
from groundplane.domain.spec import TokenPrice
from groundplane.gateway import app
from groundplane.gateway.state import Options

HERE = Path(__file__)
FIGURES = ("p50_ms", "p99_ms", "flood_per_s", "cpu_us_per_request")


class Slow(Upstream):
    """Answers after a while, as a model does."""

    answer_s = 0.0

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.buffer.endswith(b"}"):
            return
        self.buffer = b""
        if self.answer_s:
            asyncio.get_running_loop().call_later(self.answer_s, self.transport.write, _ANSWER)
        else:
            self.transport.write(_ANSWER)


async def upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Slow, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def snapshot(base_url: str) -> Snapshot:
    keys, routes = [], []
    for project, secret in (("victim", SECRET), ("flood", FLOOD)):
        digest = hashlib.sha256(secret.encode()).hexdigest()
        keys.append(SnapshotKey(id=project, secret_sha256=digest, project=project, owner="bench", role="caller"))
        price = TokenPrice(prompt_microusd_per_million=150_000, completion_microusd_per_million=600_000)
        target = Target(endpoint="bench", revision=1, base_url=base_url, upstream_model="bench", price=price)
        routes.append(Route(model="bench", project=project, targets=(target,)))
    budgets = {"victim": 10**15, "flood": 10**15}
    return Snapshot(version=1, compiled_at=time.time(), keys=tuple(keys), routes=tuple(routes), budgets=budgets)


def worker(folder: Path, stack: contextlib.ExitStack, name: str, base_url: str, per_turn: int) -> Subject:
    home = folder / name
    home.mkdir()
    (home / "snapshot.json").write_bytes(encode(snapshot(base_url)))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    port, fd = listener.getsockname()[1], listener.fileno()
    command = [sys.executable, str(HERE), "--worker", str(per_turn), "--", "--fd", str(fd), "--gateway-id", "gw-0"]
    command += ["--snapshot", str(home / "snapshot.json"), "--wal", str(home / "wal"), "--shared", str(home / "shared")]
    found = process(command, port, core=0, pass_fds=(fd,), log=home / "log")
    subject = Subject(name, 2, port, [stack.enter_context(found)])
    listener.close()
    subject.load("answers", seconds=0.3, connections=16)
    return subject


def window(one: Subject, options: argparse.Namespace, *, flooded: bool) -> dict[str, float]:
    """The victim's figures, and what the flood got through."""
    asked = {"rate": options.rate, "seconds": options.seconds, "connections": 8}
    flood, before_s = None, 0.0
    if flooded:
        seconds = options.seconds + 1.5  # it begins before and ends after; the generators need half a second to start
        command = one.command("answers", connections=options.connections, seconds=seconds, secret=FLOOD)
        flood = subprocess.Popen(command, stdout=subprocess.PIPE)
        time.sleep(0.7)
    before_s = one.cpu_s()
    told = one.load("paced", **asked)
    cpu_s, requests, per_s = one.cpu_s() - before_s, told["requests"], 0.0
    if flood is not None:
        said = json.loads(flood.communicate()[0])
        if said["failed"]:
            raise SystemExit(f"error: {said['failed']} requests of the flood were refused")
        per_s = said["per_s"]
        requests += per_s * options.seconds
    return {
        "p50_ms": told["p50_ms"],
        "p99_ms": told["p99_ms"],
        "flood_per_s": per_s,
        "cpu_us_per_request": cpu_s / requests * 1e6,
    }


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, port = Path(name), free_port()
        command = [sys.executable, str(HERE), "--upstream", str(port), "--answer-ms", str(options.answer_ms)]
        direct = Subject("direct", -1, port, [stack.enter_context(process(command, port, core=-1))])
        url = f"http://127.0.0.1:{port}"
        subjects = [direct] if options.direct else []
        subjects += [worker(folder, stack, "ours", url, Options().pieces_per_turn)]
        subjects += [worker(folder, stack, "unfair", url, 10**9)]
        rounds: dict[str, list[dict[str, float]]] = {}
        for _ in range(options.rounds):
            for one in subjects:
                for kind in ("quiet", "flooded"):
                    told = window(one, options, flooded=kind == "flooded")
                    rounds.setdefault(f"{one.name} {kind}", []).append(told)
    table = {name: {f: statistics.median(one[f] for one in told) for f in FIGURES} for name, told in rounds.items()}
    for one in subjects:
        told = zip(rounds[f"{one.name} flooded"], rounds[f"{one.name} quiet"], strict=True)
        table[f"{one.name} flooded"]["x_p99"] = statistics.median(f["p99_ms"] / q["p99_ms"] for f, q in told)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=200, help="of the flood")
    parser.add_argument("--answer-ms", type=float, default=20.0, help="what the upstream takes")
    parser.add_argument("--rate", type=int, default=100, help="requests a second of the victim")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a window")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--direct", action="store_true", help="without a gateway too")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream is not None:
        Slow.answer_s = options.answer_ms / 1000
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(upstream(options.upstream))
    elif options.worker is not None:
        app.Options = functools.partial(Options, pieces_per_turn=options.worker)
        sys.exit(app.main(options.rest))
    else:
        table = measure(options)
        if options.json:
            print(json.dumps(table, indent=2))
            return
        print(f"{'':18}" + "".join(f"{figure:>20}" for figure in (*FIGURES, "x_p99")))
        for name, row in table.items():
            print(f"{name:18}" + "".join(f"{row[f]:20,.2f}" if f in row else "" for f in (*FIGURES, "x_p99")))


if __name__ == "__main__":
    main()
