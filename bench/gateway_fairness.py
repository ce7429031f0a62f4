"""What a project waits while another one floods the same worker with requests that are admitted.

    python bench/gateway_fairness.py                        200 connections that flood, windows of 3 s, 5 of each kind
    python bench/gateway_fairness.py --answer-ms 0 --connections 1000

One worker, two projects without limits, each with a model server of its own. The victim asks 200 times a second, timed
from when each request was due; windows with and without the flood take turns, and so do a worker as it ships and one
whose turns do all that came (`unfair`). The worker has the first core; all else has the last, which the flood fills
too. So that only the worker is shared, the victim's generator and model server run at real-time priority where that is
allowed; and in every window the same requests go past the worker as well (`direct`), under the same pressure.

`x_p99` is the victim's 99th percentile beside the flood over that without, divided by the same of `direct`: medians of
the windows' ratios. `waited_ms_per_s`: how long the worker was ready and other work had its core, which no order within
it can help (among it its own writing of usage); where that is much, a goal that is missed is not judged.
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
from groundplane.domain.serving.snapshot import Route, Snapshot, SnapshotKey, Target, encode
from groundplane.domain.spec import TokenPrice
from groundplane.gateway import app
from groundplane.gateway.state import Options

HERE = Path(__file__)
FIGURES = ("p50_ms", "p99_ms", "direct_p99_ms", "flood_per_s", "cpu_us_per_request", "waited_ms_per_s")
_GOAL = 1.10
_WAITED_MAX_MS_PER_S = 10.0
"""A hundredth of the time: where it is more, the 99th percentile is that of the other work."""
_SETTLE_S = 1.0
"""Two generators that start side by side at real-time priority keep each other waiting while they are loaded."""
_FIRST = ["chrt", "--fifo", "10"]


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


def may_go_first() -> bool:
    try:
        return not subprocess.run([*_FIRST, "true"], capture_output=True, check=False).returncode
    except FileNotFoundError:
        return False


class Yard:
    """The model servers, and workers in front of them."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, options: argparse.Namespace) -> None:
        self.folder = folder
        self.stack = stack
        self.options = options
        self.first = _FIRST if may_go_first() else []
        self.direct = self._model_server(self.first)
        self._servers = {"victim": self.direct.port, "flood": self._model_server([]).port}

    def _model_server(self, first: list[str]) -> Subject:
        port = free_port()
        command = [*first, sys.executable, str(HERE), "--upstream", str(port)]
        command += ["--answer-ms", str(self.options.answer_ms)]
        return Subject("direct", -1, port, [self.stack.enter_context(process(command, port, core=-1))])

    def worker(self, name: str, per_turn: int) -> Subject:
        home = self.folder / name
        home.mkdir()
        (home / "snapshot.json").write_bytes(encode(self._snapshot()))
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)
        port, fd = listener.getsockname()[1], listener.fileno()
        command = [sys.executable, str(HERE), "--worker", str(per_turn), "--", "--fd", str(fd), "--gateway-id", "gw-0"]
        for option, file in (("--snapshot", "snapshot.json"), ("--wal", "wal"), ("--shared", "shared")):
            command += [option, str(home / file)]
        found = process(command, port, core=0, pass_fds=(fd,), log=home / "log")
        subject = Subject(name, 2, port, [self.stack.enter_context(found)])
        listener.close()
        subject.load("answers", seconds=0.3, connections=16)
        return subject

    def _snapshot(self) -> Snapshot:
        price = TokenPrice(prompt_microusd_per_million=150_000, completion_microusd_per_million=600_000)
        keys, routes = [], []
        for project, secret in (("victim", SECRET), ("flood", FLOOD)):
            digest = hashlib.sha256(secret.encode()).hexdigest()
            keys.append(SnapshotKey(id=project, secret_sha256=digest, project=project, owner="bench", role="caller"))
            url = f"http://127.0.0.1:{self._servers[project]}"
            target = Target(endpoint=project, revision=1, base_url=url, upstream_model="bench", price=price)
            routes.append(Route(model="bench", project=project, targets=(target,)))
        budgets = {"victim": 10**15, "flood": 10**15}
        return Snapshot(version=1, compiled_at=time.time(), keys=tuple(keys), routes=tuple(routes), budgets=budgets)

    def window(self, one: Subject, *, flooded: bool) -> dict[str, float]:
        """The victim's figures through a worker and past it, and what the flood got through meanwhile."""
        options, flood, per_s = self.options, None, 0.0
        if flooded:
            seconds = options.seconds + _SETTLE_S + 2  # it begins before and ends after
            command = one.command("answers", connections=options.connections, seconds=seconds, secret=FLOOD)
            flood = subprocess.Popen(command, stdout=subprocess.PIPE)
            time.sleep(1)
        paced = {"rate": options.rate, "seconds": options.seconds, "connections": 32}
        before_s, waited_ns = one.cpu_s(), _waited_ns(one)
        asked = [
            subprocess.Popen(
                [*self.first, *way.command("paced", settle=_SETTLE_S, **paced)],
                stdout=subprocess.PIPE,
            )
            for way in (one, self.direct)
        ]
        told, direct = (json.loads(each.communicate()[0]) for each in asked)
        cpu_s, requests, lasted_s = one.cpu_s() - before_s, told["due"], options.seconds + _SETTLE_S
        waited_ms = (_waited_ns(one) - waited_ns) / 1e6
        if flood is not None:
            said = json.loads(flood.communicate()[0])
            if said["failed"]:
                raise SystemExit(f"error: {said['failed']} requests of the flood were refused")
            per_s = said["per_s"]
            requests += per_s * lasted_s
        return {
            "p50_ms": told["p50_ms"],
            "p99_ms": told["p99_ms"],
            "direct_p99_ms": direct["p99_ms"],
            "flood_per_s": per_s,
            "cpu_us_per_request": cpu_s / requests * 1e6,
            "waited_ms_per_s": waited_ms / lasted_s,
        }


def _waited_ns(one: Subject) -> int:
    """How long its main thread has been ready to run without running."""
    return int(Path(f"/proc/{one.processes[0].pid}/schedstat").read_text().split()[1])


def measure(options: argparse.Namespace) -> tuple[dict[str, dict[str, float]], list[str]]:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        yard = Yard(Path(name), stack, options)
        subjects = [yard.worker("ours", Options().pieces_per_turn), yard.worker("unfair", 10**9)]
        rounds: dict[str, list[dict[str, float]]] = {}
        for number in range(options.rounds):
            for one in subjects[:: 1 if number % 2 else -1]:
                for kind in ("quiet", "flooded"):
                    told = yard.window(one, flooded=kind == "flooded")
                    rounds.setdefault(f"{one.name} {kind}", []).append(told)
        said = (
            [] if yard.first else ["real-time priority is not allowed: the victim's own side waits for the flood's too"]
        )
    table = {name: {f: statistics.median(one[f] for one in told) for f in FIGURES} for name, told in rounds.items()}
    for one in subjects:
        pairs = list(zip(rounds[f"{one.name} flooded"], rounds[f"{one.name} quiet"], strict=True))
        row = table[f"{one.name} flooded"]
        row["x_direct"] = statistics.median(f["direct_p99_ms"] / q["direct_p99_ms"] for f, q in pairs)
        row["x_p99"] = statistics.median(
            f["p99_ms"] / q["p99_ms"] / (f["direct_p99_ms"] / q["direct_p99_ms"]) for f, q in pairs
        )
    ours = table["ours flooded"]
    waited, times = ours["waited_ms_per_s"], ours["x_p99"]
    verdict = "kept" if times <= _GOAL else "MISSED"
    if times > _GOAL and waited > _WAITED_MAX_MS_PER_S:
        verdict = f"NOT JUDGED (other work had the worker's core for {waited:.0f} ms a second)"
    said.append(f"goal {verdict}: × {times:.2f} of the p99 without a flood, at most {_GOAL:.2f} wanted")
    return table, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=200, help="of the flood")
    parser.add_argument("--answer-ms", type=float, default=20.0, help="what a model server takes")
    parser.add_argument("--rate", type=int, default=200, help="requests a second of the victim")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a window")
    parser.add_argument("--rounds", type=int, default=5)
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
        table, said = measure(options)
        if options.json:
            print(json.dumps({"rows": table, "said": said}, indent=2))
            return
        columns = (*FIGURES, "x_direct", "x_p99")
        print(f"{'':18}" + "".join(f"{column:>20}" for column in columns))
        for name, row in table.items():
            print(f"{name:18}" + "".join(f"{row[one]:20,.2f}" if one in row else "" for one in columns))
        print("\n".join(said))


if __name__ == "__main__":
    main()
