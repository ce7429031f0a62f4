"""What is measured: the upstream alone, other proxies, and our gateway in each tier, as processes on their own cores.

Whatever is measured runs alone on the first core, pinned to it; upstream and load generator share the last. Of workers
each has a core of its own where there are enough, otherwise all have the first: then each of them gets a part of it
that the kernel keeps it to, so that what drives them has room. A gateway listens on a socket of ours, as the
supervisor starts it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from _gateway_load import SECRET
from _gateway_peers import PEERS, Peer
from groundplane.domain.serving.limits import Limit, Measure
from groundplane.domain.serving.snapshot import Route, Snapshot, SnapshotKey, Target, encode
from groundplane.domain.spec import TokenPrice
from groundplane.runner.cgroups import make_cgroups, remove_cgroup

HERE = Path(__file__).parent
FLOOD = "gp-bench-flood"
START_S = 90.0
LONGEST_S = 240.0
"""What one load may take, lest a subject that has died hold up the rest."""


class Failed(Exception):
    """A subject did not do what it was asked."""


@dataclass
class Subject:
    """One way to the upstream, and what was measured on it. `tier`: 0 proxies, 1 with key, limits and metrics, 2 with
    dollars and a durable log; -1 is no proxy at all."""

    name: str
    tier: int
    port: int
    processes: list[psutil.Process]
    headers: tuple[str, ...] = ()
    slow: bool = False
    figures: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float | None:
        return statistics.median(self.figures[name]) if self.figures.get(name) else None

    def cpu_s(self) -> float:
        """User and system time with the kernel's 10 ms resolution, of whatever belongs to it."""
        return sum(sum(one.cpu_times()[:2]) for process in self.processes for one in (process, *process.children(True)))

    def rss_bytes(self) -> int:
        return sum(one.memory_info().rss for process in self.processes for one in (process, *process.children(True)))

    def own_bytes(self) -> int:
        """Resident memory of its own: without files it has mapped, as the usage log's open segment."""
        text = "".join(Path(f"/proc/{one.pid}/status").read_text() for one in self.processes)
        return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon:"))

    def load(self, kind: str, *, failures: bool = False, **options: object) -> dict[str, float]:
        """What the generator says, run on the last core. Raises Failed when an answer was not what it should be."""
        try:
            done = subprocess.run(self.command(kind, **options), stdout=subprocess.PIPE, check=False, timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"the generator of {kind} was not done after {LONGEST_S:g} s") from None
        if done.returncode:
            raise Failed(f"the generator of {kind} could not go on with it")
        told: dict[str, float] = json.loads(done.stdout)
        if told["failed"] and not failures:
            raise Failed(f"{told['failed']:g} answers to {kind} were refused or cut")
        return told

    def command(self, kind: str, **options: object) -> list[str]:
        core = sorted(os.sched_getaffinity(0))[-1]
        command = ["taskset", "-c", str(core)] if shutil.which("taskset") else []
        command += [sys.executable, str(HERE / "_gateway_load.py"), kind, str(self.port)]
        for name, value in options.items():
            values = value if isinstance(value, (list, tuple)) else (value,)
            for one in values:
                command += [f"--{name}"] if one is True else [f"--{name}", str(one)]
        for header in self.headers:
            command += ["--header", header]
        return command


class Yard:
    """Starts subjects as they are asked for, and ends them all."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, workers: int, cap: float = 0.0) -> None:
        """`cap`: the part of a core that each of several workers gets, and one beside them; 0 is no bound."""
        self.folder = folder
        self.stack = stack
        self.workers = workers
        self.cap = cap
        self.absent: dict[str, str] = {}
        self.faults: dict[tuple[str, str], str] = {}
        port = self.upstream_port = free_port()
        command = [sys.executable, str(HERE / "_gateway_upstream.py"), str(port)]
        self.direct = Subject("direct", -1, port, [stack.enter_context(process(command, port, core=-1))])
        self._started: dict[str, Subject] = {"direct": self.direct}

    def subject(self, name: str) -> Subject | None:
        """A subject by its name, started when it is first asked for; None, and why in `absent`, when it can't be."""
        if name not in self._started and name not in self.absent:
            try:
                found = self._ours(name) if name.startswith("ours") else self._peer(PEERS[name])
            except (OSError, RuntimeError) as error:
                self.absent[name] = str(error)
            else:
                if found is None:
                    self.absent[name] = "not installed: make bench-gateway, or python bench/_gateway_peers.py"
                else:
                    self._started[name] = found
        return self._started.get(name)

    def _peer(self, peer: Peer) -> Subject | None:
        program = peer.find()
        if program is None:
            return None
        folder = self.folder / peer.name
        folder.mkdir()
        port = free_port()
        command = peer.command(program, folder, port, self.upstream_port)
        one = self.stack.enter_context(
            process(command.words, port, core=0, environment=dict(command.environment), log=folder / "log")
        )
        subject = Subject(peer.name, peer.tier, port, [one], command.headers, peer.slow)
        try:
            subject.load("answers", seconds=8 if peer.slow else 0.3, connections=8, failures=True)  # warm
        except Failed as error:
            raise RuntimeError(str(error)) from None
        return subject

    def _ours(self, name: str) -> Subject:
        """`ours-T0`, `ours-T1`, `ours-T2` with one worker; `ours-workers` with as many as were asked for, each with
        its cap of CPU, and `ours-worker` one like each of them."""
        tier = 2 if name.startswith("ours-worker") else int(name[-1])
        folder = self.folder / name
        folder.mkdir()
        snapshot = folder / "snapshot.json"
        snapshot.write_bytes(encode(compiled(f"http://127.0.0.1:{self.upstream_port}", tier)))
        count = self.workers if name == "ours-workers" else 1
        alone = not self.cap or len(os.sched_getaffinity(0)) > count
        port, started = 0, []
        for number in range(count):
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(1024)
            port, fd = listener.getsockname()[1], listener.fileno()
            if tier < 2:
                command = [sys.executable, str(HERE / "_gateway_tier.py"), str(tier), "--folder", str(folder)]
            else:
                command = [sys.executable, "-m", "groundplane.gateway", "--gateway-id", f"gw-{number}"]
                command += ["--wal", str(folder / "wal"), "--workers", str(count), "--shared", str(folder / "shared")]
            command += ["--fd", str(fd), "--snapshot", str(snapshot)]
            one = self.stack.enter_context(
                process(command, port, core=number if alone else 0, pass_fds=(fd,), log=folder / f"log-{number}")
            )
            if self.cap and name.startswith("ours-worker"):
                self.stack.enter_context(capped(one, self.cap))
            started.append(one)
            listener.close()
        subject = Subject(name, tier, port, started)
        try:
            for _ in range(count):
                subject.load("answers", seconds=0.3, connections=16)  # it answers, and has its heads and lanes ready
        except Failed as error:
            words = (folder / "log-0").read_text(errors="replace").strip()[-300:]
            raise SystemExit(f"error: {name}: {error}: {words}") from None
        return subject


def compiled(base_url: str, tier: int) -> Snapshot:
    """Limits nobody reaches, so that all of them are checked and none refuses; but the flooding key's is reached."""
    digest = {name: hashlib.sha256(name.encode()).hexdigest() for name in (SECRET, FLOOD)}
    limits = {"requests_per_minute": 10**9, "tokens_per_minute": 10**12} if tier else {}
    key = SnapshotKey(
        id="bench",
        secret_sha256=digest[SECRET],
        project="bench",
        owner="bench",
        role="caller",
        **limits,
    )
    flood = SnapshotKey(
        id="flood",
        secret_sha256=digest[FLOOD],
        project="bench",
        owner="bench",
        role="caller",
        requests_per_minute=6_000,
    )
    price = TokenPrice(prompt_microusd_per_million=150_000, completion_microusd_per_million=600_000)
    target = Target(endpoint="bench", revision=1, base_url=base_url, upstream_model="bench", price=price)
    route = Route(model="bench", project="bench", targets=(target,))
    dollars = (Limit("key", "bench", Measure.DOLLARS_MONTH, 10**15),) if tier == 2 else ()
    return Snapshot(
        version=1,
        compiled_at=time.time(),
        keys=(key, flood),
        routes=(route,),
        budgets={"bench": 10**15},
        limits=dollars,
    )


def may_cap() -> bool:
    """Whether this machine lets us bound a process's CPU time."""
    made = make_cgroups(f"ground-bench-{os.getpid()}", {"cpu": 0.5})
    for folder in made.values():
        remove_cgroup(folder)
    return bool(made)


@contextlib.contextmanager
def capped(one: psutil.Process, cores: float) -> Iterator[None]:
    """Keeps it to a part of a core until the block ends: the kernel does, by a cgroup of its own."""
    (folder,) = make_cgroups(f"ground-bench-{one.pid}", {"cpu": cores}).values()
    try:
        (Path(folder) / "cgroup.procs").write_text(str(one.pid))
        yield
    finally:
        with contextlib.suppress(OSError):  # it may have ended
            (Path(folder).parent / "cgroup.procs").write_text(str(one.pid))
        remove_cgroup(folder)


@contextlib.contextmanager
def process(
    command: list[str],
    port: int,
    *,
    core: int,
    pass_fds: tuple[int, ...] = (),
    environment: dict[str, str] | None = None,
    log: Path | None = None,
) -> Iterator[psutil.Process]:
    """Runs until the block ends, with all it starts, on one of the machine's cores: 0 is the first, -1 the last."""
    cores = sorted(os.sched_getaffinity(0))
    wanted = cores[core] if core < len(cores) else cores[core % len(cores)]
    with (log or Path(os.devnull)).open("wb") as told:
        child = psutil.Popen(
            command,
            stdout=told,
            stderr=told,
            pass_fds=pass_fds,
            env={**os.environ, **(environment or {})},
            preexec_fn=lambda: os.sched_setaffinity(0, {wanted}),
            start_new_session=True,
        )
    try:
        wait_for(port, child, log)
        yield psutil.Process(child.pid)
    finally:
        family = child.children(True) if child.is_running() else []
        for one in (child, *family):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired, psutil.TimeoutExpired):
            child.wait(20)
        for one in (child, *family):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, child: psutil.Popen, log: Path | None) -> None:
    """Raises RuntimeError with its last words when it ends before it listens, or does not listen in time."""
    end = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            ended = child.poll() is not None
            if ended or time.monotonic() > end:
                words = "" if log is None else log.read_text(errors="replace").strip()[-300:]
                raise RuntimeError(f"{'it ended' if ended else 'it does not listen'}: {words}") from None
            time.sleep(0.05)
