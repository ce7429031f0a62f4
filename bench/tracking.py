"""Tracking beside the MLflow server: the same requests to both, one after the other, medians and ratios.

    python bench/tracking.py [--mlflow PROGRAM] [--rounds 60] [--ours URL --theirs URL] [--json]

`--mlflow` names the `mlflow` program of another environment (`pip install mlflow`): its server is the peer, with one
worker and the default SQLite database, as ours. `--ours` and `--theirs` put each on an empty database of its own.
Requests are made by one HTTP client that keeps its connections, so the figures are the servers' and not a client's:
one metric, a batch of 1,000 points of 10 metrics, a batch of 1,000 metrics, a batch of 100 parameters, a history of
1,000 points, a search among 200 runs. Beside them, what one flush of 16 KiB takes on that disk, as nothing is
acknowledged before one; and what 8 clients at once log here, a metric at a time. Goals: one metric in 5 ms at the
median; batches of 1,000 points 5 times as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

GROUND = str(Path(sys.executable).parent / "ground")
ONE_METRIC_GOAL_MS = 5.0
BATCH_GOAL = 5.0
BATCHES = ("1,000 points of 10 metrics", "1,000 points of 1,000 metrics")
SEARCHED_RUNS = 200
CLIENTS = 8


class Server:
    """One of the two, with an experiment and runs to log to."""

    def __init__(self, url: str, headers: dict[str, str], suffix: str = "") -> None:
        self.url, self.headers = url, headers
        self._client = httpx.Client(base_url=f"{url}/api/2.0/mlflow", headers=headers, timeout=120, trust_env=False)
        name = f"bench-{os.getpid()}{suffix}"
        self.experiment = self.post("experiments/create", {"name": name})["experiment_id"]
        self.run = self.begin()
        self.number = 0

    def post(self, path: str, body: dict[str, object]) -> dict[str, str]:
        answer = self._client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, str] = answer.json()
        return found

    def get(self, path: str, **query: str) -> dict[str, list[object]]:
        answer = self._client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        found: dict[str, list[object]] = answer.json()
        return found

    def begin(self) -> str:
        body = {"experiment_id": self.experiment, "start_time": int(time.time() * 1000)}
        made = self._client.post("runs/create", json=body).json()
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


def timed(server: Server, step: Callable[[Server], None]) -> float:
    """Milliseconds; of the logging alone, where a run is begun first."""
    server.taken_s = 0.0
    started = time.perf_counter()
    step(server)
    return 1000 * (server.taken_s or time.perf_counter() - started)


def flushes(folder: Path, count: int) -> float:
    """Milliseconds at the median: what every acknowledged write costs on this disk, whoever makes it."""
    taken = []
    with (folder / "flushed").open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(bytes(16_384))
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


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


def measure(servers: dict[str, Server], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Step → server → milliseconds, the servers taking turns."""
    found: dict[str, dict[str, list[float]]] = {name: {who: [] for who in servers} for name, _, _ in STEPS}
    for server in servers.values():
        server.prepare()
        for _, step, _ in STEPS:
            step(server)
    for _ in range(rounds):
        for name, step, times in STEPS:
            for who, server in servers.items():
                found[name][who] += [timed(server, step) for _ in range(times)]
    return found


# ---------------------------------------------------------------- servers


@contextmanager
def ground(folder: Path, database: str) -> Iterator[Server]:
    home, port = folder / "ground", free_port()
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
        subprocess.run([GROUND, "down", "--stop-runs"], env=env, check=True, capture_output=True)


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
    arguments.add_argument("--ours", default="", help="our database's URL; default: SQLite in the home")
    arguments.add_argument("--theirs", default="", help="the peer's database's URL; default: SQLite")
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="ground-bench-") as name, ground(Path(name), options.ours) as ours:
        if options.mlflow:
            with peer(options.mlflow, Path(name), options.theirs) as theirs:
                found = measure({"ground": ours, "mlflow": theirs}, options.rounds)
        else:
            found = measure({"ground": ours}, options.rounds)
        flush_ms = flushes(Path(name), 10 * options.rounds)
        together = side_by_side(ours.url, ours.headers, CLIENTS, 10 * options.rounds)
    medians = {step: {who: statistics.median(times) for who, times in by.items()} for step, by in found.items()}
    if options.json:
        print(json.dumps({"ms": medians, "flush_ms": flush_ms, "together_per_s": together}, indent=1))
        return 0
    for step, by in medians.items():
        line = "  ".join(f"{who} {value:8.2f} ms" for who, value in by.items())
        ratio = f"  {by['mlflow'] / by['ground']:5.1f}x" if "mlflow" in by else ""
        print(f"{step:<34} {line}{ratio}")
    one = medians["one metric"]["ground"]
    print(f"{'one flush of 16 KiB':<34} disk   {flush_ms:8.2f} ms")
    print(f"{f'{CLIENTS} clients, a metric at a time':<34} ground {together:8.0f} a second")
    print(f"\none metric in {ONE_METRIC_GOAL_MS:g} ms: {'met' if one <= ONE_METRIC_GOAL_MS else 'NOT met'}")
    for step in BATCHES if options.mlflow else ():
        ratio_of = medians[step]["mlflow"] / medians[step]["ground"]
        print(f"{step} {BATCH_GOAL:g}x as fast: {'met' if ratio_of >= BATCH_GOAL else 'NOT met'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
