"""What must hold of runs on one machine, through the real command and server."""

from __future__ import annotations

import json
import os
import signal
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from groundplane.errors import Refusal

COUNTER = textwrap.dedent("""
    import hashlib, json, os, pathlib, sys, time
    folder = pathlib.Path(os.environ["GROUND_CHECKPOINT_DIR"])
    resume = os.environ.get("GROUND_RESUME_FROM", "")
    step = json.loads(pathlib.Path(resume, "state.json").read_text())["step"] if resume else 0
    print("resumed from step", step, flush=True) if step else None
    last, period = int(sys.argv[1]), float(sys.argv[2])
    while step < last:
        step += 1
        print("step", step, flush=True)
        if step % 5 == 0:
            making = folder / f".making-{step}"
            making.mkdir(exist_ok=True)
            body = json.dumps({"step": step}).encode()
            (making / "state.json").write_bytes(body)
            files = [{"path": "state.json", "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}]
            (making / "manifest.json").write_text(json.dumps({"step": step, "files": files, "metrics": {}}))
            making.rename(folder / f"step-{step:06d}")
        time.sleep(period)
""")


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    """A job that counts, prints each step, and checkpoints every fifth."""
    path = tmp_path / "counter.py"
    path.write_text(COUNTER)
    return path


def job_process(run_id: str) -> psutil.Process:
    """The job's own process: the youngest that carries the run's id and is not its runner."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("GROUND_RUN_ID") == run_id:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return max(found, key=lambda process: process.create_time())


def steps_of(log: str) -> list[int]:
    return [int(line.split()[1]) for line in log.splitlines() if line.startswith("step ")]


def test_a_job_runs_bills_and_gives_back_what_it_did_not_spend(shared: Any) -> None:
    run_id = shared.submit(shared.job("hello", ["sh", "-c", "echo hello; sleep 1"]))
    detail = shared.wait_run(run_id, "succeeded")
    assert "hello" in shared.log(run_id)
    assert len(detail.attempts) == 1
    (row,) = [row for row in shared.data("cost", "--by", "run") if row["group"] == run_id]
    assert 100 <= row["total_microusd"] <= 2000  # $0.36 an hour is 100 micro-dollars a second
    budget = shared.data("budget", "show", "research")
    assert budget["posted_microusd"] >= row["total_microusd"]


def test_a_command_that_exits_3_fails_once_and_says_so(shared: Any) -> None:
    run_id = shared.submit(shared.job("three", ["sh", "-c", "echo before; exit 3"]))
    detail = shared.wait_run(run_id, "failed")
    assert [attempt.exit_code for attempt in detail.attempts] == [3]
    assert detail.run.end_reason == "command-failed"
    assert "exit 3" in shared.ground("explain", run_id).stdout


def test_a_program_that_does_not_exist_is_named(shared: Any) -> None:
    run_id = shared.submit(shared.job("nothing", ["no-such-program"]))
    detail = shared.wait_run(run_id, "failed")
    assert detail.run.end_reason == "command-not-found"
    assert "no-such-program" in detail.run.message


def test_stopping_a_run_ends_its_processes_and_closes_its_hold(shared: Any, counter: Path) -> None:
    run_id = shared.submit(shared.job("long", ["python3", str(counter), "1000", "0.1"]))
    shared.wait_run(run_id, "running")
    process = job_process(run_id)
    shared.ground("stop", run_id)
    detail = shared.wait_run(run_id, "stopped")
    assert detail.run.end_reason == "stopped-by-user"
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    holds = [hold for hold in shared.client.holds("research") if hold.subject == f"run/{run_id}"]
    assert [hold.status for hold in holds] != ["pending"]


def test_logs_that_are_no_text_and_lines_without_end_are_served(shared: Any) -> None:
    script = r"""printf '\377\376 not utf-8\n'; head -c 200000000 /dev/zero | tr '\0' x; echo; echo after"""
    run_id = shared.submit(shared.job("noise", script))
    shared.wait_run(run_id, "succeeded")
    shown = shared.ground("logs", run_id).stdout
    assert "not utf-8" in shown
    assert "after" in shown
    assert len(shown) < 2_000_000


def test_a_killed_job_resumes_from_its_last_checkpoint(installation: Any, counter: Path, wait: Any) -> None:
    run_id = installation.submit(installation.job("resume", ["python3", str(counter), "40", "0.05"]))
    wait(lambda: steps_of(installation.log(run_id))[-1:] > [12], "step 12")
    os.kill(job_process(run_id).pid, signal.SIGKILL)
    detail = installation.wait_run(run_id, "succeeded")
    assert [attempt.end_reason for attempt in detail.attempts] == ["killed", "succeeded"]
    assert detail.attempts[1].resumed_from_step >= 10
    second = steps_of(installation.log(run_id, attempt=2))
    assert second[0] == detail.attempts[1].resumed_from_step + 1
    assert second[-1] == 40


def test_killing_the_control_plane_neither_stops_nor_doubles_a_job(
    installation: Any, counter: Path, wait: Callable[..., Any]
) -> None:
    run_id = installation.submit(installation.job("adopt", ["python3", str(counter), "60", "0.1"]))
    wait(lambda: steps_of(installation.log(run_id))[-1:] > [3], "step 3")
    job = job_process(run_id)
    control_plane = installation.process_running("groundplane.server")
    control_plane.kill()
    control_plane.wait(10)
    assert job.is_running()
    detail = installation.wait_run(run_id, "succeeded")
    assert len(detail.attempts) == 1
    assert steps_of(installation.log(run_id)) == list(range(1, 61))


def test_a_run_goes_on_while_everything_else_is_down_and_is_adopted_on_return(
    installation: Any, counter: Path, wait: Callable[..., Any]
) -> None:
    run_id = installation.submit(installation.job("absence", ["python3", str(counter), "120", "0.1"]))
    wait(lambda: steps_of(installation.log(run_id))[-1:] > [3], "step 3")
    said = installation.ground("down")
    assert "1 run" in said.stdout + said.stderr
    assert job_process(run_id).is_running()
    installation.ground("up", "--detach")
    detail = installation.wait_run(run_id, "succeeded")
    assert len(detail.attempts) == 1


def test_fifty_submissions_at_once_against_money_for_ten_admit_exactly_ten(installation: Any) -> None:
    installation.ground("budget", "set", "research", "$0.60")  # a plan below holds $0.06: 0.36/h for 10 min
    path = installation.job("ten", ["sleep", "60"], max_cost="$0.06")
    text = path.read_text()

    def submit(_: int) -> str:
        try:
            submitted: str = installation.client.apply(text).runs[0].id
            return submitted
        except Refusal as refusal:
            assert "budget" in str(refusal)
            return ""

    with ThreadPoolExecutor(10) as pool:
        admitted = [run_id for run_id in pool.map(submit, range(50)) if run_id]
    assert len(admitted) == 10
    budget = installation.data("budget", "show", "research")
    assert budget["held_microusd"] == 600_000
    assert budget["held_microusd"] + budget["posted_microusd"] <= budget["limit_microusd"]


def test_the_same_submission_sent_twice_is_one_run(shared: Any) -> None:
    text = shared.job("twice", ["true"]).read_text()
    plan = shared.client.plan(text)[0]
    first = shared.client.apply_plan(plan.id, idempotency_key="monday-1")
    again = shared.client.apply_plan(plan.id, idempotency_key="monday-1")
    assert first.run.id == again.run.id


def test_a_plan_is_applied_once(shared: Any) -> None:
    plan = shared.data("plan", "-f", str(shared.job("once", ["true"])))[0]
    assert (
        f"{plan['id']} is not applied yet; applied now, it would start" in shared.ground("explain", plan["id"]).stdout
    )
    shared.ground("apply", plan["id"], "--yes")
    refused = shared.ground("apply", plan["id"], "--yes", expect=3)
    assert "applied" in refused.stderr


def test_every_change_is_on_a_trail_that_verifies(shared: Any) -> None:
    verdict = json.loads(shared.ground("audit", "verify", "-o", "json").stdout)
    assert verdict["broken"] is None
    assert verdict["events"] > 10


@pytest.mark.needs("postgresql")
def test_the_same_code_runs_on_postgresql(
    new_installation: Callable[..., Any], empty_postgresql_url: str, counter: Path, wait: Callable[..., Any]
) -> None:
    on_postgresql = new_installation(GROUND_DATABASE_URL=empty_postgresql_url)
    on_postgresql.ground("up", "--detach")
    on_postgresql.ground("projects", "create", "research", "--owner", "ana", "--cost-center", "r1", "--budget", "$1")
    assert on_postgresql.client.status().database == "postgresql"
    run_id = on_postgresql.submit(on_postgresql.job("resume", ["python3", str(counter), "30", "0.05"]))
    wait(lambda: steps_of(on_postgresql.log(run_id))[-1:] > [7], "step 7")
    os.kill(job_process(run_id).pid, signal.SIGKILL)
    detail = on_postgresql.wait_run(run_id, "succeeded")
    assert detail.attempts[1].resumed_from_step >= 5
    assert not (on_postgresql.home / "groundplane.db").exists()
    assert on_postgresql.data("audit", "verify")["broken"] is None


def test_metrics_tell_what_runs_what_it_may_cost_and_how_the_loops_fare(shared: Any) -> None:
    run_id = shared.submit(shared.job("measured", ["sleep", "60"]))
    shared.wait_run(run_id, "running")
    text = shared.client.metrics()
    shared.ground("stop", run_id, "--wait")
    assert 'ground_runs{project="research",status="running"} 1.0' in text
    assert 'ground_budget_dollars{part="limit",project="research"} 20.0' in text
    assert 'ground_loop_failures{loop="runs"} 0.0' in text
