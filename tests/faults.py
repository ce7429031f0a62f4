"""A campaign of faults against a real control plane with a local pool and a pool of sshd hosts.

It keeps runs at work while it kills control planes, runners, jobs and hosts, and cuts cables, at random from a seed.
Then everything is mended, and it is checked that no run is lost, none ran twice at once, no process is left after one
sweep, every hold is closed, and the ledger is the sum of what was used.

    python -m tests.faults --faults 500 --minutes 30 --seed 7
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tests.hosts import Hosts
from tests.journeys.conftest import Installation, bring_up, free_ports, shut_down, wait_for

from groundplane.errors import GroundError, Unavailable
from groundplane.units import cost_microusd

# Holds a lock that no second start of the same member can get, for some seconds, and says so.
WITNESS = """
import fcntl, os, sys, time
folder, seconds = sys.argv[1], float(sys.argv[2])
member = os.environ["GROUND_RUN_ID"] + "." + os.environ.get("GROUND_NODE_RANK", "0")
lock = open(os.path.join(folder, member), "a+")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    open(os.path.join(folder, "doubles"), "a").write(os.environ["GROUND_ATTEMPT_ID"] + "\\n")
    sys.exit(9)
print("started", os.environ["GROUND_ATTEMPT_ID"], flush=True)
time.sleep(seconds)
open(os.path.join(folder, "done"), "a").write(os.environ["GROUND_RUN_ID"] + "\\n")
"""
RUNS_AT_ONCE = 12
SERVER_REST_S = 5.0
HOST_REST_S = 6.0
PRICES = {"local": "0.36", "lab": "$1.20"}


@dataclass
class Campaign:
    """One seeded campaign. `faults` counts what was done by kind; `runs` are all that were submitted."""

    place: Path
    hosts: Hosts
    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    runs: list[str] = field(default_factory=list)
    cut: dict[str, float] = field(default_factory=dict)
    runs_at_once: int = RUNS_AT_ONCE

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.witness = self.place / "witness"
        self.witness.mkdir(mode=0o777)
        (self.witness / "job.py").write_text(WITNESS)
        port, gateway_port = free_ports(2)
        quick = {"GROUND_RECONCILE_PERIOD": "1", "GROUND_LOCAL_PRICE": PRICES["local"], "GROUND_LEASE": "10"}
        self.plane = Installation(self.place / "ground", port, gateway_port, quick)
        self.plane.home.mkdir()
        (self.plane.home / "pools.yaml").write_text(json.dumps(pool_file(self.hosts)))

    def begin(self) -> None:
        bring_up(self.plane)
        self.plane.ground("budget", "set", "research", "$5000")

    # ---- doing

    def inflict(self, count: int, until: float) -> None:
        """Up to `count` faults, some each second, with runs at work all the time."""
        while sum(self.faults.values()) < count and time.monotonic() < until:
            self.mend_due()
            self.keep_runs_at_work()
            kinds = (self.kill_server, self.kill_runner, self.kill_job, self.crash_host, self.cut_cable)
            kind = self.chance.choices(kinds, weights=(2, 4, 4, 1, 1))[0]
            if kind():
                self.faults[kind.__name__] += 1
            time.sleep(self.chance.uniform(0.1, 0.6))

    def keep_runs_at_work(self) -> None:
        try:
            active = [run.id for run in self.plane.client.runs(status="active")]
            while len(active) < self.runs_at_once:
                self.runs.append(self.submit())
                active.append(self.runs[-1])
        except GroundError:
            return  # the control plane is being restarted

    def submit(self) -> str:
        number = len(self.runs)
        pool = self.chance.choice(("local", "lab", "lab"))
        nodes = self.chance.choice((1, 1, 2)) if pool == "lab" else 1
        seconds = self.chance.uniform(1, 6)
        path = self.plane.job(
            f"job-{number}",
            ["python3", str(self.witness / "job.py"), str(self.witness), f"{seconds:.1f}"],
            pool=pool,
            resources={"cpus": 0.2, "memory": "64MiB", "nodes": nodes},
            max_cost="$2",
            retry={"max_attempts": 50, "backoff": "1s"},
            stop_grace="1s",
            preflight=False,
        )
        key = f"campaign-{self.seed}-{number}"
        plan = self.plane.client.plan(path.read_text())[0]
        run: str = self.plane.client.apply_plan(plan.id, idempotency_key=key).run.id
        return run

    def kill_server(self) -> bool:
        """Not while it is only starting: its supervisor waits longer after each crash in a row."""
        try:
            server = self.plane.process_running("groundplane.server")
            if time.time() - server.create_time() < SERVER_REST_S:
                return False
            server.kill()
        except (ValueError, psutil.NoSuchProcess):
            return False
        return True

    def kill_runner(self) -> bool:
        return self.kill_one(lambda process: "--detach" in process.cmdline())

    def kill_job(self) -> bool:
        return self.kill_one(lambda process: str(self.witness / "job.py") in process.cmdline())

    def kill_one(self, wanted: Any) -> bool:
        found = [process for process in self.ours() if _holds(wanted, process)]
        if not found:
            return False
        try:
            self.chance.choice(sorted(found, key=lambda process: process.pid)).kill()
        except psutil.NoSuchProcess:
            return False
        return True

    def crash_host(self) -> bool:
        rested = [host for host in self.hosts.hosts if time.monotonic() - host.started_at >= HOST_REST_S]
        if not rested:
            return False
        host = self.chance.choice(rested)
        host.crash()
        host.start()
        return True

    def cut_cable(self) -> bool:
        whole = [host for host in self.hosts.hosts if host.name not in self.cut]
        if len(whole) < 2:
            return False
        host = self.chance.choice(whole)
        host.cut()
        self.cut[host.name] = time.monotonic() + self.chance.uniform(0.5, 12)
        return True

    def mend_due(self, everything: bool = False) -> None:
        for host in self.hosts.hosts:
            if everything or time.monotonic() >= self.cut.get(host.name, float("inf")):
                self.cut.pop(host.name, None)
                host.mend()

    # ---- checking

    def ours(self) -> list[psutil.Process]:
        """Runners and jobs of this campaign, on this machine and on the hosts."""
        marks = (str(self.plane.home / "attempts"), str(self.witness))
        found = []
        inside = {pid for host in self.hosts.hosts for pid in host.processes()}
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                text = " ".join(words)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            job = str(self.witness / "job.py") in words and "-c" not in words
            runner = "--detach" in words and (process.pid in inside or any(mark in text for mark in marks))
            if process.pid != os.getpid() and (job or runner):
                found.append(process)
        return found

    def settle(self, patience_s: float) -> None:
        """Everything mended; every run comes to its end."""
        self.mend_due(everything=True)
        self.hosts.mend()

        def over() -> bool:
            try:
                return not self.plane.client.runs(status="active")
            except Unavailable:
                return False

        wait_for(over, "every run to come to its end", patience_s)
        # A submission whose answer was lost with its control plane is a run all the same.
        self.runs = [run.id for run in self.plane.client.runs(limit=1_000)]

    def sweep(self) -> None:
        """A restarted control plane sweeps at once."""
        wait_for(self.kill_server, "the control plane to be up for a while", 120)
        wait_for(lambda: not self.ours(), "no process to be left after a sweep", 30)

    def verdict(self) -> list[str]:
        """What does not hold, in words; empty when all does."""
        wrong: list[str] = []
        doubles = self.witness / "doubles"
        if doubles.exists():
            wrong.append(f"started twice at once: {doubles.read_text().split()}")
        done = Counter((self.witness / "done").read_text().split()) if (self.witness / "done").exists() else Counter()
        spent = 0
        for run_id in self.runs:
            detail = self.plane.client.run(run_id)
            run = detail.run
            if not run.status.is_over:
                wrong.append(f"{run_id} is {run.status}")
            if run.status == "succeeded" and done[run_id] < run.spec.resources.nodes:
                wrong.append(f"{run_id} is said to have succeeded, and {done[run_id]} members did")
            if run.status == "failed" and len(detail.attempts) < 50 and run.end_reason != "command-failed":
                wrong.append(f"{run_id} failed after {len(detail.attempts)} of 50 attempts: {run.message}")
            spent += self.used(detail)
        database = sqlite3.connect(f"file:{self.plane.home / 'groundplane.db'}?mode=ro", uri=True)
        (pending,) = database.execute(
            "select count(*) from holds where status = 'pending' and subject like 'run/%'"
        ).fetchone()
        if pending:
            wrong.append(f"{pending} holds of runs are still pending")
        (ledger,) = database.execute("select coalesce(sum(amount_microusd), 0) from ledger_entries").fetchone()
        (posted,) = database.execute("select coalesce(sum(posted_microusd), 0) from budgets").fetchone()
        database.close()
        if ledger != spent:
            wrong.append(f"the ledger holds {ledger} micro-dollars, the use of all attempts comes to {spent}")
        if ledger != posted:
            wrong.append(f"the ledger holds {ledger} micro-dollars, the budget has {posted} posted")
        return wrong

    def used(self, detail: Any) -> int:
        """What a run's attempts cost by their own times: price × nodes × time, as `domain.ledger` rounds it."""
        total = 0
        for attempt in detail.attempts:
            if attempt.started_at is None or attempt.billed_until is None:
                continue
            milliseconds = round((attempt.billed_until - attempt.started_at).total_seconds() * 1000)
            price, nodes = detail.run.price_microusd_per_hour, detail.run.spec.resources.nodes
            total += cost_microusd(price, milliseconds / 1000, nodes)
        return total

    def report(self) -> str:
        statuses = Counter(str(self.plane.client.run(run_id).run.status) for run_id in self.runs)
        attempts = sum(len(self.plane.client.run(run_id).attempts) for run_id in self.runs)
        kinds = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(self.faults.items()))
        return (
            f"seed {self.seed}: {sum(self.faults.values())} faults ({kinds}); {len(self.runs)} runs, "
            f"{attempts} attempts: {dict(statuses)}"
        )

    def last_words(self) -> str:
        """The ends of the logs, for whoever has to find out what went wrong."""
        logs = [self.plane.home / "log" / f"{name}.log" for name in ("supervisor", "control-plane")]
        return "\n".join(f"== {log.name}\n{log.read_text()[-4000:]}" for log in logs if log.exists())

    def close(self) -> None:
        shut_down(self.plane)


def pool_file(hosts: Hosts) -> dict[str, object]:
    """The pool `lab` of all the machines."""
    return {
        "apiVersion": "groundplane/v1",
        "kind": "Pools",
        "pools": {
            "lab": {
                "user": "root",
                "key_file": str(hosts.key),
                "known_hosts": str(hosts.known_hosts),
                "price": PRICES["lab"],
                "price_as_of": "2026-11-20",
                "nodes": [{"name": host.name, "host": host.address} for host in hosts.hosts],
            }
        },
    }


def _holds(wanted: Any, process: psutil.Process) -> bool:
    try:
        return bool(wanted(process))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def play(
    place: Path,
    hosts: Hosts,
    *,
    seed: int,
    faults: int,
    limit_s: float,
    patience_s: float = 180,
    runs_at_once: int = RUNS_AT_ONCE,
) -> str:
    """A whole campaign; returns its report. AssertionError with what does not hold, and the seed."""
    campaign = Campaign(place, hosts, seed, runs_at_once=runs_at_once)
    try:
        campaign.begin()
        campaign.inflict(faults, time.monotonic() + limit_s)
        campaign.settle(patience_s)
        campaign.sweep()
        wait_for(lambda: _answers(campaign), "the control plane to answer", 90)
        wrong = campaign.verdict()
        assert not wrong, f"seed {seed}: {wrong}\n{campaign.report()}"
        return campaign.report()
    except BaseException:
        print(campaign.last_words(), file=sys.stderr)
        raise
    finally:
        campaign.close()


def _answers(campaign: Campaign) -> bool:
    try:
        return bool(campaign.plane.client.pools())
    except Unavailable:
        return False


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--faults", type=int, default=500)
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    asked = options.parse_args()
    print(f"seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="ground-faults-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        (place / "hosts").mkdir()
        hosts = Hosts(place / "hosts", 4)
        try:
            print(play(place, hosts, seed=asked.seed, faults=asked.faults, limit_s=60 * asked.minutes))
        finally:
            hosts.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
