"""What a request and a streamed frame cost through the gateway, beside nginx and beside no proxy at all.

    python bench/gateway.py [--rounds 5] [--seconds 1.2] [--connections 64] [--json]

The gateway does all it does in production: key, request and token limits, dollar budget, write-ahead log. nginx (when
installed) only proxies. Each proxy runs alone on the first core; upstream and load generator share the last one.
Rounds are interleaved and medians are printed. CPU time is the figure to trust on a machine that others use too.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from _gateway_load import SECRET
from groundplane.domain.snapshot import Route, Snapshot, SnapshotKey, Target, encode
from groundplane.domain.spec import TokenPrice

HERE = Path(__file__).parent
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
STREAMS = 50
CPU = ("cpu_us_per_request", "cpu_us_per_frame")

_NGINX_CONF = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log crit; {user}
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; keepalive_requests 1000000;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream model {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""


@dataclass
class Subject:
    """One way to the upstream, and what was measured on it."""

    name: str
    port: int
    process: psutil.Process
    figures: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        return statistics.median(self.figures[name])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=1.2, help="length of one round of requests per subject")
    arguments.add_argument("--connections", type=int, default=64)
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        subjects = start(Path(folder), stack)
        for _ in range(options.rounds):
            for subject in subjects:
                measure_answers(subject, options.connections, options.seconds)
            for subject in subjects[1:]:
                measure_streams(subject)
    report(subjects, as_json=options.json)


# ---------------------------------------------------------------- processes


def start(folder: Path, stack: contextlib.ExitStack) -> list[Subject]:
    """The upstream alone, nginx when there is one, the gateway: listening."""
    upstream_port = free_port()
    upstream = stack.enter_context(
        process([sys.executable, str(HERE / "_gateway_upstream.py"), str(upstream_port)], upstream_port, core=-1)
    )
    subjects = [Subject("direct", upstream_port, upstream)]
    if NGINX is not None:
        port = free_port()
        user = "user root;" if os.geteuid() == 0 else ""
        conf = folder / "nginx.conf"
        conf.write_text(_NGINX_CONF.format(folder=folder, port=port, upstream=upstream_port, user=user))
        command = [NGINX, "-c", str(conf), "-p", str(folder)]
        subjects.append(Subject("nginx", port, stack.enter_context(process(command, port, core=0))))
    port = free_port()
    (folder / "snapshot.json").write_bytes(encode(snapshot(f"http://127.0.0.1:{upstream_port}")))
    command = [sys.executable, "-m", "groundplane.gateway", "--port", str(port), "--gateway-id", "bench"]
    command += ["--snapshot", str(folder / "snapshot.json"), "--wal", str(folder / "wal")]
    subjects.append(Subject("gateway", port, stack.enter_context(process(command, port, core=0))))
    return subjects


def snapshot(base_url: str) -> Snapshot:
    """Limits nobody reaches, so that all of them are checked and none refuses."""
    key = SnapshotKey(
        id="bench",
        secret_sha256=hashlib.sha256(SECRET.encode()).hexdigest(),
        project="bench",
        owner="bench",
        role="caller",
        requests_per_minute=10**9,
        tokens_per_minute=10**12,
    )
    price = TokenPrice(prompt_microusd_per_million=150_000, completion_microusd_per_million=600_000)
    target = Target(endpoint="bench", revision=1, base_url=base_url, upstream_model="bench", price=price)
    route = Route(model="bench", project="bench", targets=(target,))
    return Snapshot(version=1, compiled_at=time.time(), keys=(key,), routes=(route,), budgets={"bench": 10**15})


@contextlib.contextmanager
def process(command: list[str], port: int, *, core: int) -> Iterator[psutil.Process]:
    """Runs until the block ends, on the machine's first (0) or last (-1) core."""
    cores = sorted(os.sched_getaffinity(0))
    child = psutil.Popen(command, stdout=subprocess.DEVNULL)
    try:
        child.cpu_affinity([cores[core]])
        wait_for(port)
        for worker in child.children():
            worker.cpu_affinity([cores[core]])
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


# ---------------------------------------------------------------- measuring


def measure_answers(subject: Subject, connections: int, seconds: float) -> None:
    before_s = cpu_s(subject.process)
    told = load("answers", subject.port, connections, seconds)
    if subject.name != "direct":  # the process there is the upstream itself
        subject.note("cpu_us_per_request", (cpu_s(subject.process) - before_s) / told["requests"] * 1e6)
    subject.note("requests_per_s", told["per_s"])
    subject.note("p50_ms", told["p50_ms"])
    subject.note("p99_ms", told["p99_ms"])


def measure_streams(subject: Subject) -> None:
    before_s = cpu_s(subject.process)
    told = load("streams", subject.port, STREAMS)
    subject.note("cpu_us_per_frame", (cpu_s(subject.process) - before_s) / told["frames"] * 1e6)


def load(kind: str, *numbers: float) -> dict[str, float]:
    """Runs the generator on the last core. Exits when an answer was not what it should be."""
    core = sorted(os.sched_getaffinity(0))[-1]
    command = [sys.executable, str(HERE / "_gateway_load.py"), kind, *map(str, numbers)]
    done = subprocess.run(
        ["taskset", "-c", str(core), *command] if shutil.which("taskset") else command,
        stdout=subprocess.PIPE,
        check=True,
    )
    told: dict[str, float] = json.loads(done.stdout)
    if told["failed"]:
        raise SystemExit(f"error: an answer on port {int(numbers[0])} was refused or cut")
    return told


def cpu_s(process: psutil.Process) -> float:
    """User and system time of a process and its workers, with the kernel's 10 ms resolution."""
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children()))


# ---------------------------------------------------------------- telling


def report(subjects: list[Subject], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({one.name: {name: one.median(name) for name in one.figures} for one in subjects}, indent=1))
        return
    reference = next((one for one in subjects if one.name == "nginx"), None)
    print(f"{'':<10}{'CPU µs/request':>16}{'CPU µs/frame':>14}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}")
    for one in subjects:
        cpu = [f"{one.median(name):.0f}" if name in one.figures else "-" for name in CPU]
        print(
            f"{one.name:<10}{cpu[0]:>16}{cpu[1]:>14}{one.median('requests_per_s'):>9.0f}"
            f"{one.median('p50_ms'):>9.2f}{one.median('p99_ms'):>9.2f}"
        )
    gateway = subjects[-1]
    if reference is not None:
        for name, unit in (("cpu_us_per_request", "request"), ("cpu_us_per_frame", "frame")):
            ratio = gateway.median(name) / reference.median(name)
            print(f"gateway / nginx, CPU per {unit}: {ratio:.2f}")
    else:
        print("nginx is not installed: no ratio")
    print(f"medians of {len(gateway.figures['requests_per_s'])} interleaved rounds")


if __name__ == "__main__":
    main()
