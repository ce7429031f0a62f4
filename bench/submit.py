"""How fast a job starts, and how many submissions one node takes.

    python bench/submit.py [--rounds 15] [--burst 30] [--json]

Starts an installation of its own in a throw-away home, on free ports, and stops it. Three figures:
submit → first log line (median, p99), submissions per second (plan + admit + hold + audit, one client and eight),
and the growth of both with the number of runs already in the database.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from groundplane.client import Client

BURST_ROUNDS = 3
GROUND = str(Path(sys.executable).parent / "ground")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=15, help="jobs timed one by one")
    arguments.add_argument("--burst", type=int, default=30, help="jobs submitted in one burst")
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "ground"
        ports = [_free_port(), _free_port()]
        env = os.environ | {
            "GROUND_HOME": str(home),
            "GROUND_PORT": str(ports[0]),
            "GROUND_GATEWAY_PORT": str(ports[1]),
            "GROUND_LOCAL_PRICE": "0.01",
        }
        subprocess.run([GROUND, "up", "--detach"], env=env, check=True, capture_output=True)
        try:
            figures = measure(f"http://127.0.0.1:{ports[0]}", (home / "keys" / "admin").read_text().strip(), options)
        finally:
            subprocess.run([GROUND, "down", "--stop-runs"], env=env, check=True, capture_output=True)
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:<58} {value:>10.3f}")


def measure(url: str, key: str, options: argparse.Namespace) -> dict[str, float]:
    """Each figure by name, its unit last."""
    client = Client(url, key)
    client.create_project(
        name="bench", owner="bench", cost_center="bench", monthly_limit_microusd=1_000_000_000, reason="bench"
    )
    first_line = [_first_log_line_s(client) for _ in range(options.rounds)]
    figures = {
        "submit_to_first_log_line_median_ms": statistics.median(first_line) * 1000,
        "submit_to_first_log_line_max_ms": max(first_line) * 1000,
    }
    rates: dict[int, list[float]] = {1: [], 8: []}
    for clients in (1, 8) * BURST_ROUNDS:  # interleaved, so that a slow minute hits both alike
        began = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            submitted = list(pool.map(lambda _: _submit(client), range(options.burst)))
        rates[clients].append(options.burst / (time.monotonic() - began))
        for run_id in submitted:
            client.wait(run_id, timeout_s=300)
    for clients, measured in rates.items():
        figures[f"submissions_per_second_{clients}_clients_median"] = statistics.median(measured)
    later = [_first_log_line_s(client) for _ in range(options.rounds)]
    before = 2 * BURST_ROUNDS * options.burst
    figures[f"submit_to_first_log_line_after_{before}_runs_median_ms"] = statistics.median(later) * 1000
    return figures


def _spec(command: list[str]) -> str:
    return json.dumps(
        {
            "apiVersion": "groundplane/v1",
            "kind": "Job",
            "metadata": {"name": "bench", "project": "bench", "owner": "bench", "cost_center": "bench"},
            "spec": {
                "command": command,
                "resources": {"cpus": 1, "memory": "64MiB"},
                "end_date": (datetime.now(UTC) + timedelta(days=2)).date().isoformat(),
                "max_cost": "$0.01",
                "max_duration": "10m",
            },
        }
    )


def _submit(client: Client) -> str:
    return client.apply(_spec(["true"])).runs[0].id


def _first_log_line_s(client: Client) -> float:
    began = time.monotonic()
    run_id = client.apply(_spec(["echo", "first"])).runs[0].id
    while not client.log(run_id).data:
        if time.monotonic() - began > 60:
            raise SystemExit(f"{run_id} wrote nothing within 60 s")
        time.sleep(0.005)
    took = time.monotonic() - began
    client.wait(run_id, timeout_s=60)
    return took


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
