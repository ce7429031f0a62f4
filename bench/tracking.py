"""Tracking beside the MLflow server: the same requests to both, one after the other, medians and ratios.

    python bench/tracking.py [--mlflow PROGRAM] [--rounds 60] [--many 10000] [--ours URL --theirs URL] [--folder DIR]
        [--json]

`--mlflow` names the `mlflow` program of another environment (`pip install mlflow`): its server is the peer, with one
worker and the default SQLite database, as ours. `--ours` and `--theirs` put each on an empty database of its own.
Requests are made by the standard library's client over one kept connection, so the figures are the servers' and not a
client's: one metric, a batch of 1,000 points of 10 metrics, a batch of 1,000 metrics, a batch of 100 parameters, a
history of 1,000 points, a search among 200 runs; with `--many`, a page of 100 among so many runs, the best metric
first, and the 50th page of them. Beside them the floor: what the bare commit of one row takes in a
database of that kind on that disk, measured in the same rounds, as nothing is acknowledged before one. Then what 8
clients at once log here, a metric at a time, and what the server holds in memory before the first request. Goals: one
metric in 5 ms at the median; batches of 1,000 points 5 times as fast; 200 MB while it idles.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import asyncpg
import httpx

GROUND = str(Path(sys.executable).parent / "ground")
ONE_METRIC_GOAL_MS = 5.0
IDLE_GOAL_MB = 200.0
BATCH_GOAL = 5.0
BATCHES = ("1,000 points of 10 metrics", "1,000 points of 1,000 metrics")
SEARCHED_RUNS = 200
CLIENTS = 8
KEPT_S = 2.0


class Server:
    """One of the two, with an experiment and runs to log to."""

    def __init__(self, url: str, headers: dict[str, str], suffix: str = "") -> None:
        self.url, self.headers = url, headers
        address = urlsplit(url)
        self._used_s = time.monotonic()
        self._path = f"{address.path}/api/2.0/mlflow/"
        self._client = http.client.HTTPConnection(str(address.hostname), address.port, timeout=120)
        name = f"bench-{os.getpid()}{suffix}"
        self.experiment = self.post("experiments/create", {"name": name})["experiment_id"]
        self.run = self.begin()
        self.number = 0

    def post(self, path: str, body: dict[str, object]) -> dict[str, str]:
        found: dict[str, str] = json.loads(self._ask("POST", path, json.dumps(body).encode()))
        return found

    def get(self, path: str, **query: str) -> dict[str, list[object]]:
        found: dict[str, list[object]] = json.loads(self._ask("GET", f"{path}?{urlencode(query)}"))
        return found

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {**self.headers, "Content-Type": "application/json"}
        if time.monotonic() - self._used_s > KEPT_S:
            self._client.close()  # The server may have closed it by now; the next request opens another.
        self._client.request(method, self._path + path, body, headers)
        answer = self._client.getresponse()
        text = answer.read()
        self._used_s = time.monotonic()
        assert answer.status == 200, text
        return text

    def begin(self) -> str:
        body = {"experiment_id": self.experiment, "start_time": int(time.time() * 1000)}
        made = json.loads(self._ask("POST", "runs/create", json.dumps(body).encode()))
        return str(made["run"]["info"]["run_id"])

    # ------------------------------------------------------------ what is timed

    def one_metric(self) -> None:
        self.number += 1
        body = {"run_id": self.run, "key": "loss", "value": 0.5, "timestamp": self.number, "step": self.number}
        self.post("runs/log-metric", body)

    def points_of_10(self) -> None:
        self._batch(10)

    def points_of_1000(self) -> None:
        self._batch(1_000)

    def _batch(self, names: int) -> None:
        run = self.begin()
        points = [
            {"key": f"m{n % names}", "value": n / 7, "timestamp": 1_700_000_000_000 + n, "step": n // names}
            for n in range(1_000)
        ]
        started = time.perf_counter()
        self.post("runs/log-batch", {"run_id": run, "metrics": points})
        self.taken_s = time.perf_counter() - started

    def parameters(self) -> None:
        run = self.begin()
        params = [{"key": f"p{n}", "value": str(n)} for n in range(100)]
        started = time.perf_counter()
        self.post("runs/log-batch", {"run_id": run, "params": params})
        self.taken_s = time.perf_counter() - started

    def history(self) -> None:
        found = self.get("metrics/get-history", run_id=self.long, metric_key="loss")
        assert len(found["metrics"]) == 1_000

    def search(self) -> None:
        body: dict[str, object] = {
            "experiment_ids": [self.searched],
            "filter": "metrics.loss < 0.5 AND params.kind = 'big'",
            "order_by": ["metrics.loss ASC"],
        }
        assert len(self.post("runs/search", body)["runs"]) == SEARCHED_RUNS // 4

    def best_of_many(self) -> None:
        self._page_of_many("")

    def page_50_of_many(self) -> None:
        self._page_of_many(self.token)

    def _page_of_many(self, token: str) -> str:
        body: dict[str, object] = {"experiment_ids": [self.many], "order_by": ["metrics.loss DESC"], "max_results": 100}
        found = self.post("runs/search", {**body, **({"page_token": token} if token else {})})
        assert len(found["runs"]) == 100
        return found.get("next_page_token", "")

    def prepare_many(self, runs: int) -> None:
        self.many = self.post("experiments/create", {"name": f"bench-many-{os.getpid()}"})["experiment_id"]
        kept, self.experiment = self.experiment, self.many
        for number in range(runs):
            names = ("loss", "f1", "lr")
            metrics = [{"key": name, "value": number * 7919 % runs / 7, "timestamp": 1, "step": 1} for name in names]
            params: list[dict[str, str]] = [{"key": f"p{n}", "value": str(n)} for n in range(10)]
            self.post("runs/log-batch", {"run_id": self.begin(), "metrics": metrics, "params": params})
        self.experiment, self.token = kept, ""
        for _ in range(min(49, runs // 100 - 1)):
            self.token = self._page_of_many(self.token)

    def prepare(self) -> None:
        self.long = self.begin()
        points = [{"key": "loss", "value": n / 7, "timestamp": n, "step": n} for n in range(1_000)]
        self.post("runs/log-batch", {"run_id": self.long, "metrics": points})
        self.searched = self.post("experiments/create", {"name": f"bench-search-{os.getpid()}"})["experiment_id"]
        kept, self.experiment = self.experiment, self.searched
        for number in range(SEARCHED_RUNS):
            kind = "big" if number % 2 else "small"
            body: dict[str, object] = {
                "run_id": self.begin(),
                "metrics": [{"key": "loss", "value": number / SEARCHED_RUNS, "timestamp": 1, "step": 1}],
                "params": [{"key": "kind", "value": kind}],
            }
            self.post("runs/log-batch", body)
        self.experiment = kept


STEPS: tuple[tuple[str, Callable[[Server], None], int], ...] = (
    ("one metric", Server.one_metric, 10),
    (BATCHES[0], Server.points_of_10, 1),
    (BATCHES[1], Server.points_of_1000, 1),
    ("100 parameters", Server.parameters, 1),
    ("a history of 1,000 points", Server.history, 1),
    (f"a search among {SEARCHED_RUNS} runs", Server.search, 1),
)


MANY_STEPS: tuple[tuple[str, Callable[[Server], None], int], ...] = (
    ("the best 100 of many runs", Server.best_of_many, 1),
    ("page 50 of them", Server.page_50_of_many, 1),
)


def timed(server: Server, step: Callable[[Server], None]) -> float:
    """Milliseconds; of the logging alone, where a run is begun first."""
    server.taken_s = 0.0
    started = time.perf_counter()
    step(server)
    return 1000 * (server.taken_s or time.perf_counter() - started)


class Floor:
    """A database of the kind of ours with one table of its own, into which one row is put and committed."""

    def __init__(self, folder: Path, url: str) -> None:
        self._rows = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._remote = self._loop.run_until_complete(self._connect(url)) if url else None
        self._local = sqlite3.connect(folder / "floor.db", isolation_level=None)
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "CREATE TABLE rows (id, body)"):
            self._local.execute(statement)

    async def _connect(self, url: str) -> asyncpg.Connection:
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE IF NOT EXISTS bench_floor (id bigint, body text)")
        return connection

    def commit_ms(self) -> float:
        row = (next(self._rows), "x" * 100)
        started = time.perf_counter()
        if self._remote is None:
            self._local.execute("INSERT INTO rows VALUES (?, ?)", row)
        else:
            self._loop.run_until_complete(self._remote.execute("INSERT INTO bench_floor VALUES ($1, $2)", *row))
        return 1000 * (time.perf_counter() - started)

    def close(self) -> None:
        self._local.close()
        if self._remote is not None:
            self._loop.run_until_complete(self._remote.execute("DROP TABLE bench_floor"))
            self._loop.run_until_complete(self._remote.close())
        self._loop.close()


def memory_mb(home: Path) -> float:
    """What the server under this home keeps in memory of its own and shared, as the kernel counts it."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = b"groundplane.server" in (process / "cmdline").read_bytes()
            if is_ours and f"GROUND_HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                status = (process / "status").read_text()
                return int(status.partition("VmRSS:")[2].split()[0]) / 1000
        except OSError:
            continue  # It ended while we looked.
    raise SystemExit("the server's process is not there")


def side_by_side(url: str, headers: dict[str, str], clients: int, each: int) -> float:
    """Metrics a second that so many clients log, each one after the other, each to a run of its own."""
    servers = [Server(url, headers, f"-{number}") for number in range(clients)]

    def work(server: Server) -> None:
        for _ in range(each):
            server.one_metric()

    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        list(pool.map(work, servers))
        return clients * each / (time.perf_counter() - started)


def measure(servers: dict[str, Server], floor: Floor, rounds: int, many: int) -> dict[str, dict[str, list[float]]]:
    """Step → server → milliseconds, the servers taking turns, and the floor with them."""
    steps = STEPS + (MANY_STEPS if many else ())
    found: dict[str, dict[str, list[float]]] = {name: {who: [] for who in servers} for name, _, _ in steps}
    for server in servers.values():
        server.prepare()
        if many:
            server.prepare_many(many)
        for _, step, _ in steps:
            step(server)
    for _ in range(rounds):
        for name, step, times in steps:
            for who, server in servers.items():
                found[name][who] += [timed(server, step) for _ in range(times)]
        found["one metric"].setdefault("floor", []).extend(floor.commit_ms() for _ in range(10))
    return found


# ---------------------------------------------------------------- servers


@contextmanager
def ground(home: Path, database: str) -> Iterator[Server]:
    port = free_port()
    env = os.environ | {
        "GROUND_HOME": str(home),
        "GROUND_PORT": str(port),
        "GROUND_GATEWAY_PORT": str(free_port()),
        "GROUND_LOCAL_PRICE": "0.01",
    }
    if database:
        env["GROUND_DATABASE_URL"] = database
    subprocess.run([GROUND, "up", "--detach"], env=env, check=True, capture_output=True)
    try:
        key = (home / "keys" / "admin").read_text().strip()
        yield Server(f"http://127.0.0.1:{port}/mlflow", {"Authorization": f"Bearer {key}"})
    finally:
        subprocess.run([GROUND, "down"], env=env, check=True, capture_output=True)


@contextmanager
def peer(program: str, folder: Path, database: str) -> Iterator[Server]:
    port = free_port()
    place = database or f"sqlite:///{folder / 'mlflow.db'}"
    command = [program, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", place, "--artifacts-destination", str(folder / "artifacts")]
    env = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "PATH": f"{Path(program).parent}:{os.environ['PATH']}"}
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not _answers(port):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "mlflow.log").read_text()
            time.sleep(0.5)
        yield Server(f"http://127.0.0.1:{port}", {})
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--mlflow", default=shutil.which("mlflow") or "", help="the peer's program; empty: none")
    arguments.add_argument("--rounds", type=int, default=60)
    arguments.add_argument("--many", type=int, default=0, help="also search among so many runs")
    arguments.add_argument("--ours", default="", help="our database's URL; default: SQLite in the home")
    arguments.add_argument("--theirs", default="", help="the peer's database's URL; default: SQLite")
    arguments.add_argument("--folder", default="", help="where homes are made; default: the system's")
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    # Servers are stopped when the bench is, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="ground-bench-", dir=options.folder or None) as name:
        home = Path(name) / "ground"
        with ground(home, options.ours) as ours:
            idle_mb = memory_mb(home)
            floor = Floor(Path(name), options.ours)
            with ExitStack() as stack:
                servers = {"ground": ours}
                if options.mlflow:
                    servers["mlflow"] = stack.enter_context(peer(options.mlflow, Path(name), options.theirs))
                found = measure(servers, floor, options.rounds, options.many)
            floor.close()
            together = side_by_side(ours.url, ours.headers, CLIENTS, 5 * options.rounds)
    medians = {step: {who: statistics.median(times) for who, times in by.items()} for step, by in found.items()}
    if options.json:
        print(json.dumps({"ms": medians, "together_per_s": together, "idle_mb": idle_mb}, indent=1))
        return 0
    for step, by in medians.items():
        line = "  ".join(f"{who} {value:8.2f} ms" for who, value in by.items())
        ratio = f"  {by['mlflow'] / by['ground']:5.1f}x" if "mlflow" in by else ""
        print(f"{step:<34} {line}{ratio}")
    one = medians["one metric"]["ground"]
    print(f"{f'{CLIENTS} clients, a metric at a time':<34} ground {together:8.0f} a second")
    print(f"{'memory before the first request':<34} ground {idle_mb:8.0f} MB")
    print(f"\none metric in {ONE_METRIC_GOAL_MS:g} ms: {'met' if one <= ONE_METRIC_GOAL_MS else 'NOT met'}")
    for step in BATCHES if options.mlflow else ():
        ratio_of = medians[step]["mlflow"] / medians[step]["ground"]
        print(f"{step} {BATCH_GOAL:g}x as fast: {'met' if ratio_of >= BATCH_GOAL else 'NOT met'}")
    print(f"{IDLE_GOAL_MB:g} MB while it idles: {'met' if idle_mb <= IDLE_GOAL_MB else 'NOT met'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
