"""What a request and a streamed frame cost through the gateway, beside nginx and beside no proxy at all.

    python bench/gateway.py [--rounds 5] [--seconds 1.2] [--connections 64] [--workers 1] [--json]

The gateway does all it does in production: key, request and token limits, dollar budget, write-ahead log (tier 2; it
has no smaller one). nginx and Envoy, where they are installed (ENVOY names its program), only proxy (tier 0). `varied`
is the gateway asked by callers whose every request head differs, so that no head is known. Each proxy runs alone on
the first core (more workers: on the first ones); upstream and load generator share the last. Rounds are interleaved
and medians are printed. CPU time is the figure to trust on a machine that others use too.
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
ENVOY = os.environ.get("ENVOY") or shutil.which("envoy")
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


_ENVOY_CONF = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{match: {{prefix: /}}, route: {{cluster: model, timeout: 0s}}}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: model
    connect_timeout: 1s
    load_assignment:
      cluster_name: model
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}
"""


@dataclass
class Subject:
    """One way to the upstream, and what was measured on it."""

    name: str
    port: int
    process: psutil.Process
    others: list[psutil.Process] = field(default_factory=list)
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
    arguments.add_argument("--workers", type=int, default=1, help="gateway workers, each on a core of its own")
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        subjects = start(Path(folder), stack, options.workers)
        for _ in range(options.rounds):
            for subject in subjects:
                measure_answers(subject, options.connections, options.seconds)
            for subject in subjects[1:]:
                if subject.name != "varied":
                    measure_streams(subject)
    report(subjects, as_json=options.json)


# ---------------------------------------------------------------- processes


def start(folder: Path, stack: contextlib.ExitStack, workers: int = 1) -> list[Subject]:
    """The upstream alone, nginx and Envoy when they are there, the gateway: listening."""
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
    if ENVOY is not None:
        port = free_port()
        conf = folder / "envoy.yaml"
        conf.write_text(_ENVOY_CONF.format(port=port, upstream=upstream_port))
        command = [ENVOY, "-c", str(conf), "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]
        subjects.append(Subject("envoy", port, stack.enter_context(process(command, port, core=0))))
    (folder / "snapshot.json").write_bytes(encode(snapshot(f"http://127.0.0.1:{upstream_port}")))
    gateway = start_gateway(folder, stack, workers)
    return [*subjects, gateway, Subject("varied", gateway.port, gateway.process, others=gateway.others)]


def start_gateway(folder: Path, stack: contextlib.ExitStack, workers: int) -> Subject:
    """One worker, or several on one port, as the supervisor starts them."""
    port, started = 0, []
    for number in range(workers):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(1024)
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "groundplane.gateway", "--gateway-id", f"gw-{number}"]
        command += ["--snapshot", str(folder / "snapshot.json"), "--wal", str(folder / "wal")]
        command += ["--fd", str(listener.fileno()), "--workers", str(workers), "--shared", str(folder / "shared")]
        started.append(stack.enter_context(process(command, port, core=number, pass_fds=(listener.fileno(),))))
        listener.close()
    return Subject("gateway", port, started[0], others=started[1:])


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
def process(command: list[str], port: int, *, core: int, pass_fds: tuple[int, ...] = ()) -> Iterator[psutil.Process]:
    """Runs until the block ends, on one of the machine's cores: 0 is the first, -1 the last."""
    cores = sorted(os.sched_getaffinity(0))
    child = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=pass_fds)
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
    before_s = cpu_s(subject.process, *subject.others)
    told = load("varied" if subject.name == "varied" else "answers", subject.port, connections, seconds)
    if subject.name != "direct":  # the process there is the upstream itself
        subject.note(
            "cpu_us_per_request", (cpu_s(subject.process, *subject.others) - before_s) / told["requests"] * 1e6
        )
    subject.note("requests_per_s", told["per_s"])
    subject.note("p50_ms", told["p50_ms"])
    subject.note("p99_ms", told["p99_ms"])


def measure_streams(subject: Subject) -> None:
    before_s = cpu_s(subject.process, *subject.others)
    told = load("streams", subject.port, STREAMS)
    subject.note("cpu_us_per_frame", (cpu_s(subject.process, *subject.others) - before_s) / told["frames"] * 1e6)


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


def cpu_s(*processes: psutil.Process) -> float:
    """User and system time of processes and their workers, with the kernel's 10 ms resolution."""
    return sum(sum(one.cpu_times()[:2]) for process in processes for one in (process, *process.children()))


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
    gateway = next(one for one in subjects if one.name == "gateway")
    if reference is not None:
        for name, unit in (("cpu_us_per_request", "request"), ("cpu_us_per_frame", "frame")):
            ratio = gateway.median(name) / reference.median(name)
            print(f"gateway / nginx, CPU per {unit}: {ratio:.2f}")
    else:
        print("nginx is not installed: no ratio")
    print(f"medians of {len(gateway.figures['requests_per_s'])} interleaved rounds")


if __name__ == "__main__":
    main()
