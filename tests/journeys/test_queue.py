"""Who gets the machine, through the real command and server: order, preemption with resume, quotas, and why not yet."""

from __future__ import annotations

import itertools
import json
import re
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.journeys.conftest import bring_up

# Counts until a file is there; asked to stop it keeps the step it is at before it goes, as a job does on SIGTERM.
KEEPER = textwrap.dedent("""
    import hashlib, json, os, pathlib, signal, sys, time
    folder = pathlib.Path(os.environ["GROUND_CHECKPOINT_DIR"])
    resume = os.environ.get("GROUND_RESUME_FROM", "")
    step = json.loads(pathlib.Path(resume, "state.json").read_text())["step"] if resume else 0
    def keep(*_):
        making = folder / f".making-{step}"
        making.mkdir(exist_ok=True)
        body = json.dumps({"step": step}).encode()
        (making / "state.json").write_bytes(body)
        files = [{"path": "state.json", "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}]
        (making / "manifest.json").write_text(json.dumps({"step": step, "files": files, "metrics": {}}))
        making.rename(folder / f"step-{step:06d}")
        sys.exit(143)
    signal.signal(signal.SIGTERM, keep)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.1)
        step += 1
        print("step", step, flush=True)
""")


@pytest.fixture
def keeper(tmp_path: Path) -> Path:
    path = tmp_path / "keeper.py"
    path.write_text(KEEPER)
    return path


class Team:
    """Submits work that takes the whole machine, so that one run at a time has it."""

    def __init__(self, installation: Any) -> None:
        self.installation = installation
        (pool,) = installation.data("who")
        self.cpus = pool["nodes"][0]["cpus"]

    def submit(self, name: str, command: list[str], project: str = "research", **spec: object) -> str:
        path: Path = self.installation.job(name, command, resources={"cpus": self.cpus, "memory": "64MiB"}, **spec)
        document = json.loads(path.read_text())
        document["metadata"]["project"] = project
        path.write_text(json.dumps(document))
        run_id: str = self.installation.submit(path)
        return run_id

    def says(self, run_id: str, words: str) -> str:
        """The sentence that explains the run, once these words are in it."""
        sentence: str = self.installation.data("explain", run_id)["sentence"]
        return sentence if words in sentence else ""


@pytest.fixture
def team(shared: Any) -> Team:
    if any(project["id"] == "vision" for project in shared.data("projects", "list")):
        return Team(shared)
    shared.ground(
        "projects", "create", "vision", "--owner", "bo", "--cost-center", "r2", "--budget", "20", "--accelerators", "8"
    )
    return Team(shared)


def test_more_important_work_takes_the_machine_and_the_other_goes_on_where_it_was(
    team: Team, shared: Any, keeper: Path, wait: Callable[..., Any]
) -> None:
    enough = keeper.with_name("enough")
    toy = team.submit("toy", ["python3", str(keeper), str(enough)], priority="exploratory")
    wait(lambda: "step 5" in shared.log(toy), "step 5")
    waits = team.submit("waits", ["true"], priority="exploratory")
    sentence = wait(lambda: team.says(waits, "1st of 1"), "the wait")
    assert "pool-capacity: it needs 1 node" in sentence
    assert re.search(r"It starts about (\w{3} )?\d\d:\d\d UTC", sentence), sentence

    real = team.submit("real", ["true"], project="vision", priority="training")
    shared.wait_run(real, "succeeded")
    shared.wait_run(toy, "running")
    wait(lambda: shared.log(toy, attempt=2), "its second attempt to count")
    enough.touch()
    detail = shared.wait_run(toy, "succeeded")
    first, second = detail.attempts
    assert first.end_reason == "preempted"
    kept = re.findall(r"step (\d+)", shared.log(toy, attempt=1))[-1]
    assert second.resumed_from_step == int(kept), "it kept the step at which it was asked to go"
    assert f"step {int(kept) + 1}\n" in shared.log(toy, attempt=2)
    shared.wait_run(waits, "succeeded")
    # It was preempted, yet its time in the queue counted on: it went before the one that came after it.
    started = {run_id: shared.client.run(run_id).attempts[-1].started_at for run_id in (toy, waits)}
    assert started[toy] < started[waits]

    actions = [event["action"] for event in shared.data("audit", "log", "--id", toy, "-n", "100")]
    assert {"run.queue", "run.place", "run.preempt", "run.requeue"} <= set(actions)


def test_one_command_says_who_has_the_machine_and_who_waits(team: Team, shared: Any, wait: Callable[..., Any]) -> None:
    holder = team.submit("holder", ["sleep", "60"])
    shared.wait_run(holder, "running")
    waiter = team.submit("waiter", ["true"], project="vision")
    pool = wait(lambda: next((p for p in shared.data("who") if p["waiting"]), None), "somebody waiting")
    (held,) = pool["nodes"][0]["held"]
    assert (held["run"], held["project"], held["owner"]) == (holder, "research", "ana")
    (line,) = pool["waiting"]
    assert (line["run"], line["position"], line["project"]) == (waiter, 1, "vision")
    starts = datetime.fromisoformat(line["starts_at"])
    assert timedelta(0) < starts - datetime.now(UTC) < timedelta(minutes=11)
    said = shared.ground("who").stdout
    assert holder in said and waiter in said and "1 waiting" in said
    shared.ground("stop", holder, "--wait")
    shared.wait_run(waiter, "succeeded")


def test_a_quota_holds_says_so_and_lets_go_when_it_is_raised(team: Team, shared: Any, wait: Callable[..., Any]) -> None:
    shared.ground("quotas", "set", "research", "--runs", "0")
    run_id = shared.submit(shared.job("held-back", ["true"]))
    sentence = wait(lambda: team.says(run_id, "quota"), "the quota")
    assert "project-quota: project research runs 0 of the 0 it may at once" in sentence
    shared.ground("quotas", "set", "research", "--runs", "none", "--reason", "tried")
    shared.wait_run(run_id, "succeeded")


def test_a_pipeline_hands_on_what_each_run_made(shared: Any, tmp_path: Path) -> None:
    one = shared.job("prepare", "echo data > $GROUND_OUTPUT_DIR/rows.txt")
    two = shared.job("train", 'cat "$GROUND_INPUT_PREPARE/rows.txt"', needs=["prepare"])
    both = tmp_path / "pipeline.yaml"
    both.write_text(f"{one.read_text()}\n---\n{two.read_text()}")
    applied = json.loads(shared.ground("apply", "-f", str(both), "--yes", "-o", "json").stdout)
    _, train = (run["id"] for run in applied["runs"])
    shared.wait_run(train, "succeeded")
    assert shared.log(train) == "data\n"


def test_what_needs_a_run_that_failed_fails_and_names_it(shared: Any) -> None:
    bad = shared.submit(shared.job("bad", ["false"]))
    next_one = shared.submit(shared.job("after", ["true"], needs=["bad"]))
    detail = shared.wait_run(next_one, "failed")
    assert detail.run.end_reason == "need-failed"
    assert detail.run.attempt == 0
    assert bad


def test_an_array_runs_its_elements_so_many_at_once(shared: Any) -> None:
    path = shared.job(
        "sweep", "echo index $GROUND_ARRAY_INDEX", array="1-3%1", resources={"cpus": 0.1, "memory": "32MiB"}
    )
    applied = json.loads(shared.ground("apply", "-f", str(path), "--yes", "-o", "json").stdout)
    runs = [run["id"] for run in applied["runs"]]
    details = [shared.wait_run(run_id, "succeeded") for run_id in runs]
    assert [shared.log(run_id) for run_id in runs] == ["index 1\n", "index 2\n", "index 3\n"]
    spans = sorted((d.attempts[0].started_at, d.attempts[0].ended_at) for d in details)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans)), "one at a time"


def test_a_schedule_submits_at_its_tick_once(shared: Any, wait: Callable[..., Any]) -> None:
    path = shared.job("nightly", ["true"], schedule="* * * * * *", end_date="1d")
    made = shared.data("schedules", "create", "-f", str(path))
    assert made["id"] == "research.nightly"
    kept = wait(lambda: next((s for s in shared.data("schedules", "list") if s["last_run"]), None), "a tick")
    shared.wait_run(kept["last_run"], "succeeded")
    shared.ground("schedules", "delete", "research.nightly")
    bad = shared.job("never", ["true"], schedule="61 * * * *")
    said = shared.ground("schedules", "create", "-f", str(bad), expect=2)
    assert "error: schedule '61 * * * *' can't be read" in said.stderr


def test_a_reservation_is_kept_and_refused_when_there_is_not_as_much(
    team: Team, shared: Any, wait: Callable[..., Any]
) -> None:
    window = ("--from", "1h", "--to", "3h")
    shared.ground("reserve", "create", "--project", "vision", "--cpus", str(team.cpus), *window)
    again = shared.ground("reserve", "create", "--project", "research", "--cpus", "1", *window, expect=None)
    assert again.returncode != 0
    assert "error:" in again.stderr and "0 that no run may hold until then" in again.stderr
    long = team.submit("long", ["true"], max_duration="2h", max_cost="$2")
    sentence = wait(lambda: team.says(long, "reservation"), "the reservation")
    assert "reservation: there is room, but a reservation begins before it would end" in sentence
    assert "max_duration" in sentence, "a shorter run would start now, and that is said"
    (made,) = shared.data("reserve", "list")
    shared.ground("reserve", "cancel", made["id"])
    shared.wait_run(long, "succeeded")


@pytest.mark.needs("postgresql")
def test_the_queue_is_the_same_on_postgresql(
    new_installation: Callable[..., Any], empty_postgresql_url: str, keeper: Path, wait: Callable[..., Any]
) -> None:
    installation = bring_up(new_installation(GROUND_DATABASE_URL=empty_postgresql_url))
    team, enough = Team(installation), keeper.with_name("enough")
    toy = team.submit("toy", ["python3", str(keeper), str(enough)], priority="exploratory")
    wait(lambda: "step 2" in installation.log(toy), "step 2")
    real = team.submit("real", ["true"])
    installation.wait_run(real, "succeeded")
    wait(lambda: installation.client.run(toy).attempts[-1].number == 2, "its second attempt")
    enough.touch()
    first, second = installation.wait_run(toy, "succeeded").attempts
    assert first.end_reason == "preempted"
    assert second.resumed_from_step is not None
    assert installation.data("audit", "verify")["broken"] is None
