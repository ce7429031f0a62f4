"""The golden path, played for real on this machine: every command shown is run, every output is its own.

Starts a control plane in a throw-away home on free ports, trains a small language model on CPU, kills it in
the middle, registers, deploys, calls and bills it, prints the Monday report, and leaves nothing running.
Exits 1 as soon as a step's own check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
from openai import APIError, APIStatusError, OpenAI
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.rule import Rule

from groundplane.client import Client
from groundplane.errors import GroundError, Unavailable
from groundplane.wire.runs import RunDetail

EXAMPLE = Path(__file__).parent / "tiny-lm"
STANDSTILL_S = 240
console = Console(highlight=False, width=min(120, Console().width))


class StepFailedError(Exception):
    """A step's own check did not hold."""


def check(holds: bool, what: str) -> None:
    """Prints a tick, or ends the demo."""
    if not holds:
        raise StepFailedError(what)
    console.print(f"  [green]✓[/] {escape(what)}")


@dataclass
class Stage:
    """The throw-away installation: its home, its ports, and how `ground` is called against it."""

    home: Path
    port: int
    gateway_port: int
    number: int = 0
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        return os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GROUND_HOME": str(self.home),
            "GROUND_PORT": str(self.port),
            "GROUND_GATEWAY_PORT": str(self.gateway_port),
            "GROUND_LOCAL_PRICE": "0.10",
            "COLUMNS": str(console.width - 2),
            "NO_COLOR": "1",
        }

    @cached_property
    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", (self.home / "keys" / "admin").read_text().strip())

    def title(self, text: str) -> None:
        self.number += 1
        console.print()
        console.print(f"[bold]{self.number}. {escape(text)}[/]", soft_wrap=True)
        console.print(Rule())

    def ground(self, *args: str, expect: int = 0, show: bool = True) -> str:
        """Runs `ground …`, shows the command and its output, checks its exit code, returns its stdout."""
        if show:
            shown = " ".join(arg.replace(str(EXAMPLE), "examples/tiny-lm") for arg in args)
            console.print(f"[bold cyan]$ ground {escape(shown)}[/]")
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ground"), *args],
            env=self.env,
            stdout=subprocess.PIPE,
            # Shown, the two are one text in the order they were written; parsed, only stdout is data.
            stderr=subprocess.STDOUT if show else subprocess.PIPE,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
        if show:
            for line in done.stdout.rstrip().splitlines():
                console.print(f"  [dim]{escape(line)}[/]", soft_wrap=True)
        if done.returncode != expect:
            said = f"{done.stdout}{done.stderr or ''}"
            raise StepFailedError(f"`ground {' '.join(args)}` exited with {done.returncode}, not {expect}\n{said}")
        return done.stdout

    def data(self, *args: str) -> Any:
        """The same command's JSON, not shown."""
        return json.loads(self.ground(*args, "-o", "json", show=False))


def start(stage: Stage) -> None:
    stage.title("One command starts control plane, gateway, loops and a local pool")
    stage.ground("up", "--detach")
    stage.ground("projects", "create", "research", "--owner", "ana", "--cost-center", "ai-01", "--budget", "$2")
    stage.ground("status")
    check(stage.client.status().database == "sqlite", "ready: loopback only, state in one folder, SQLite")


def refuse_early(stage: Stage) -> None:
    stage.title("A plan says no early, with the number and the way forward")
    text = (EXAMPLE / "job.yaml").read_text()
    misspelt = stage.home.parent / "misspelt.yaml"
    misspelt.write_text(text.replace("max_cost:", "max_costs:"))
    stage.ground("plan", "-f", str(misspelt), expect=2)
    check(True, "a misspelt field is named with its line and the spelling that was meant")
    costly = stage.home.parent / "costly.yaml"
    costly.write_text(
        re.sub(r"max_cost: .*", 'max_cost: "$0.01"', text).replace("path: corpus", f"path: {EXAMPLE}/corpus")
    )
    stage.ground("plan", "-f", str(costly), expect=3)
    check(True, "a run that could cost more than its own limit is refused before it starts")


def plan_and_apply(stage: Stage) -> None:
    stage.title("Plan, then apply: money is held before it is spent")
    (plan,) = stage.data("plan", "-f", str(EXAMPLE / "job.yaml"))
    stage.ground("plan", "-f", str(EXAMPLE / "job.yaml"))
    stage.ground("apply", plan["id"], "--yes")
    stage.ground("budget", "holds")
    (run,) = stage.client.runs(project="research")
    stage.facts["run"] = run.id
    held = stage.client.budget("research").held_microusd
    check(held >= plan["worst_case_microusd"], f"its worst case is held: ${held / 1e6:.2f} of the project's $2.00")


def crash_and_resume(stage: Stage) -> None:
    stage.title("03:00: the training process is killed, then the control plane too")
    run = stage.facts["run"]
    follow(stage, run, "training", until=lambda seen: len(seen.checkpoints) >= 2)
    victim = job_process(run)
    os.kill(victim.pid, signal.SIGKILL)
    console.print(f"[bold cyan]$ kill -9 {victim.pid}[/]  [dim](the training process)[/]")
    follow(stage, run, "training again", until=lambda seen: len(seen.attempts) == 2 and seen.run.status == "running")
    resumed_from = stage.client.run(run).attempts[1].resumed_from_step or 0
    check(resumed_from > 0, f"attempt 2 resumes from the checkpoint of step {resumed_from}, not from 0")
    mark = json.loads((stage.home / "run" / "control-plane.pid").read_text())
    os.kill(mark["pid"], signal.SIGKILL)
    console.print(f"[bold cyan]$ kill -9 {mark['pid']}[/]  [dim](the control plane; its supervisor starts it again)[/]")
    seen = follow(stage, run, "training goes on", until=lambda seen: seen.run.status.is_over)
    check(seen.run.status == "succeeded", "the run succeeded")
    check(len(seen.attempts) == 2, "the restarted control plane adopted the running attempt: there is no third")
    stage.ground("explain", run)
    log = b"".join(piece.data for piece in stage.client.read_log(run)).decode(errors="replace").splitlines()
    check(any(f"resumed from step {resumed_from}" in line for line in log), "the job's own log says so, too")
    for line in log[-4:]:
        console.print(f"  [dim]{escape(line)}[/]")


def register(stage: Stage) -> None:
    stage.title("The output is a model version with a signed birth certificate")
    stage.ground("models", "show", "tiny-lm@1")
    stage.ground("models", "verify", "tiny-lm@1")
    stray = stage.home.parent / "model_final_v2_FIXED.pt"
    stray.write_bytes(pickle.dumps({"weights": [0.0] * 8}))
    stage.ground("models", "register", str(stray), "--name", "final", "--project", "research", expect=3)
    check(True, "a stray pickle is refused, with the list of what is missing")


def flip_a_bit(stage: Stage) -> None:
    stage.title("One flipped bit in the store is found, and named")
    (weights,) = (stage.home / "runs").rglob("output/**/model.safetensors")
    middle = weights.read_bytes()[weights.stat().st_size // 2 :][:64]
    blob = next(p for p in (stage.home / "store").rglob("*") if p.is_file() and middle in p.read_bytes())
    at = blob.read_bytes().index(middle)
    blob.chmod(0o600)
    flip(blob, at)
    stage.ground("models", "verify", "tiny-lm@1", expect=8)
    flip(blob, at)
    blob.chmod(0o444)
    stage.ground("models", "verify", "tiny-lm@1", show=False)
    check(True, "the damaged file is named; with the bit put back the version verifies again")


def serve(stage: Stage) -> None:
    stage.title("Deploy privately; an unmodified OpenAI client talks to it")
    stage.ground("apply", "-f", str(EXAMPLE / "endpoint.yaml"), "--yes", "--wait")
    stage.ground("endpoints", "show", "tiny-lm")
    made = stage.data("keys", "create", "--name", "demo-app", "--project", "research", "--owner", "ana")
    console.print(
        "[bold cyan]$ ground keys create --name demo-app --project research[/]  [dim](its secret is not shown)[/]"
    )
    base_url = f"http://127.0.0.1:{stage.gateway_port}/v1"
    client = OpenAI(base_url=base_url, api_key=made["secret"], max_retries=0)
    wait(lambda: models_of(client) == ["tiny-lm"], "the gateway knows the key and the model", 10)
    console.print(f"[bold cyan]>>> client = OpenAI(base_url={base_url!r}, api_key=…)[/]")
    prompt = "And the king said"
    console.print(f"[bold cyan]>>> client.completions.create(model='tiny-lm', prompt={prompt!r})[/]")
    answer = client.completions.create(model="tiny-lm", prompt=prompt, max_tokens=48, temperature=0.7, seed=7)
    console.print(f"  [dim]{prompt}[/][white]{escape(answer.choices[0].text)}[/]", soft_wrap=True)
    used = answer.usage
    check(used is not None and used.completion_tokens > 0, f"usage: {used and used.total_tokens} tokens")
    words = [word for word in re.findall(r"[a-z]+", answer.choices[0].text.lower()) if len(word) > 1]
    known = set(re.findall(r"[a-z]+", (EXAMPLE / "corpus.txt").read_text().lower()))
    share = sum(word in known for word in words) / max(1, len(words))
    check(share > 0.7, f"{share:.0%} of the words it wrote are words of the corpus")
    console.print("[bold cyan]>>> client.chat.completions.create(…, stream=True)[/]")
    chunks = client.chat.completions.create(
        model="tiny-lm", messages=[{"role": "user", "content": "And God said unto"}], max_tokens=32, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    console.print(f"  [dim]{escape(''.join(pieces).strip())}[/]", soft_wrap=True)
    check(len(pieces) > 2, f"streamed in {len(pieces)} pieces")
    for _ in range(20):
        client.completions.create(model="tiny-lm", prompt="And the", max_tokens=8)
    try:
        OpenAI(base_url=base_url, api_key="gp-caller-wrong", max_retries=0).models.list()
    except APIStatusError as error:
        check(error.status_code == 401, f"a wrong key gets {error.status_code}: {error.message}")


def meter(stage: Stage) -> None:
    stage.title("Every answered request is in the ledger, once")
    wait(lambda: metered(stage) >= 22, "22 requests are metered and rated", 20)
    stage.ground("cost", "--by", "model")
    stage.ground("cost", "--by", "run")
    check(metered(stage) == 22, "22 requests were answered, 22 are in the ledger")


def report(stage: Stage) -> None:
    stage.title("Monday: who ran what and what it cost, on a tamper-evident trail")
    stage.ground("stop", "tiny-lm", "--wait")
    stage.ground("report")
    stage.ground("audit", "verify")


def tear_down(stage: Stage) -> None:
    stage.title("Teardown leaves nothing running")
    check(not stage.client.runs(status="active"), "no run is active")
    stage.ground("down", "--stop-runs")
    wait(lambda: not left_running(stage), "no process of this installation is left", 15)


STEPS: tuple[Callable[[Stage], None], ...] = (
    start,
    refuse_early,
    plan_and_apply,
    crash_and_resume,
    register,
    flip_a_bit,
    serve,
    meter,
    report,
    tear_down,
)


# ---------------------------------------------------------------- looking


def follow(stage: Stage, run: str, doing: str, *, until: Callable[[RunDetail], bool]) -> RunDetail:
    """Watches a run with a progress bar of its training steps until `until` holds; the control plane may be gone.

    A slow machine may take its time: only one that gets nowhere for `STANDSTILL_S` is given up.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[last]}"))
    deadline, last = time.monotonic() + STANDSTILL_S, ""
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task(doing, total=1.0, last="")
        while time.monotonic() < deadline:
            time.sleep(0.25)
            try:
                seen = stage.client.run(run)
                log = b"".join(piece.data for piece in stage.client.read_log(run)).decode(errors="replace")
            except Unavailable:
                continue
            lines = [line for line in log.splitlines() if line.startswith("step ")]
            if lines and lines[-1] != last and (at := re.match(r"step (\d+)/(\d+)", lines[-1])):
                deadline, last = time.monotonic() + STANDSTILL_S, lines[-1]
                progress.update(task, completed=int(at[1]) / int(at[2]), last=lines[-1])
            if until(seen):
                if lines:
                    progress.console.print(f"  [dim]{doing}: {escape(lines[-1])}[/]")
                return seen
            if seen.run.status.is_over:
                raise StepFailedError(f"{run} {seen.run.status}: {seen.run.message}")
    raise StepFailedError(f"{run} got nowhere for {STANDSTILL_S} s while {doing}")


def job_process(run: str) -> psutil.Process:
    """The youngest process that carries the run's id: the job, not its runner."""
    return max(having("GROUND_RUN_ID", run), key=lambda process: process.create_time())


def left_running(stage: Stage) -> list[psutil.Process]:
    return having("GROUND_HOME", str(stage.home))


def having(variable: str, value: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(variable) == value:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def models_of(client: OpenAI) -> list[str]:
    try:
        return [model.id for model in client.models.list()]
    except APIStatusError:
        return []


def metered(stage: Stage) -> int:
    return sum(line.requests for line in stage.client.costs(by="model"))


def wait(holds: Callable[[], bool], what: str, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > deadline:
            raise StepFailedError(f"not within {limit_s:.0f} s: {what}")
        time.sleep(0.1)
    check(True, what)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--keep", action="store_true", help="keep the throw-away home for a look")
    options = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="groundplane-demo-"))
    stage = Stage(folder / "ground", free_port(), free_port())
    began = time.monotonic()
    try:
        for step in STEPS:
            step(stage)
    except (StepFailedError, GroundError, APIError) as failure:
        console.print(f"\n[bold red]error:[/] step {stage.number} did not hold: {escape(str(failure))}")
        for log in sorted((stage.home / "log").glob("*.log")):
            console.print(f"[dim]--- {log.name}\n{escape(log.read_text(errors='replace')[-2000:])}[/]")
        return 1
    finally:
        for process in left_running(stage):
            process.kill()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    console.print(f"\n[bold green]The golden path holds.[/] {stage.number} steps in {time.monotonic() - began:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
