"""Nights nobody watches: a crash at three, a machine that idles, a gang with one link down, a machine that is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.adapters.test_executor_checkpoints import GANG, SAVE, joined, severed
from tests.faults import pool_file
from tests.hosts import Hosts
from tests.journeys.conftest import Installation, bring_up, free_ports, shut_down
from tests.journeys.test_checkpoints import TRAIN, train

FORGETFUL = TRAIN.replace(
    'step = json.load(open(resume + "/manifest.json"))["step"] if resume else 0', "step = 0"
).replace(
    'if not os.path.exists(f"{root}/step-{step}"): os.rename(draft, f"{root}/step-{step}")',
    'import shutil; shutil.rmtree(f"{root}/step-{step}", ignore_errors=True); os.rename(draft, f"{root}/step-{step}")',
)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One installation where an idle clock begins after two seconds, and a file is a spot notice."""
    port, gateway_port = free_ports(2)
    home = tmp_path_factory.mktemp("night") / "ground"
    env = {"GROUND_IDLE_NOTICE": "2s", "GROUND_SPOT_METADATA": f"simulated:{home.parent / 'notice'}"}
    yield bring_up(made := Installation(home, port, gateway_port, extra_env=env))
    shut_down(made)


def test_a_crash_at_three_is_resumed_once_and_its_cost_is_told(night: Any) -> None:
    """T3: seen, resumed once, the nodes free within a quarter of an hour; and what an idle weekend would have cost."""
    path = night.job(
        "weekend", train(6, 3, 1, 0.2), retry={"max_attempts": 2, "backoff": "1s"}, env={"LINGER": "1.5"}
    )  # fmt: skip
    run_id = night.submit(path)
    detail = night.wait_run(run_id, "succeeded", "failed", timeout_s=90)
    assert detail.run.status == "succeeded", detail.run.message
    first, second = detail.attempts
    assert (first.end_reason, second.resumed_from_step) == ("killed", 3)
    assert second.started_at - first.ended_at < timedelta(minutes=15)
    said = night.ground("explain", run_id).stdout
    assert "the crash of attempt 1 cost" in said
    assert "an unattended weekend of 60 h would have cost $21.60" in said  # 60 h × $0.36
    assert night.log(run_id, 2).startswith("from step 3\n")
    (pool,) = [each for each in night.data("who") if each["pool"] == "local"]
    assert all(held["run"] != run_id for node in pool["nodes"] for held in node["held"])


def test_one_that_crashes_again_is_given_up_and_holds_nothing(night: Any) -> None:
    path = night.job(
        "doomed", ["python3", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"],
        retry={"max_attempts": 2, "backoff": "1s"},
    )  # fmt: skip
    detail = night.wait_run(night.submit(path), "failed", timeout_s=90)
    assert len(detail.attempts) == 2
    (pool,) = [each for each in night.data("who") if each["pool"] == "local"]
    assert all(held["run"] != detail.run.id for node in pool["nodes"] for held in node["held"])


def test_an_idle_machine_has_a_clock_in_dollars_and_stops_with_its_data(night: Any, wait: Callable[..., Any]) -> None:
    """T4: what it costs while it does nothing, who is told, and that nothing it saved is lost."""
    text = SAVE + "import time\nsave(4, b'weights' * 1000)\ntime.sleep(600)"
    run_id = night.submit(night.job("forgotten", ["python3", "-c", text], idle_limit="8s"))
    wait(lambda: "idle since" in (said := night.ground("explain", run_id).stdout) and said, "its idle clock", 60)
    detail = night.wait_run(run_id, "stopped", timeout_s=60)
    assert detail.run.end_reason == "idle"
    (told,) = [each for each in night.data("audit", "log") if each["action"] == "run.idle"]
    assert "so far at $0.36 an hour; it is stopped after 8s" in told["reason"]
    copy = wait(lambda: next((c for c in night.data("checkpoints", run_id) if c["copy"] == "copied"), None), "a copy")
    assert copy["step"] == 4
    assert (Path(copy["path"]) / "w.bin").read_bytes() == b"weights" * 1000


def test_spot_is_for_jobs_that_were_seen_to_resume(night: Any, wait: Callable[..., Any]) -> None:
    path = night.job("spotty", train(400, 0, 0, 0.3), spot=True)
    refused = night.ground("apply", "-f", str(path), "--yes", expect=3).stderr
    assert "resume-proven" in refused
    assert "ground prove-resume" in refused
    proof = night.data("prove-resume", "-f", str(path))
    assert proof["status"] == "proved"
    assert proof["continued_at_step"] > proof["killed_at_step"]
    run_id = night.submit(path)
    wait(lambda: night.data("checkpoints", run_id), "a checkpoint", 60)
    (notice := night.home.parent / "notice").touch()
    detail = wait(lambda: (d := night.client.run(run_id)).attempts[0].end_reason and d, "the machine to go", 60)
    notice.unlink()
    assert (detail.attempts[0].end_reason, detail.attempts[0].message) == (
        "spot-reclaimed", "simulated notice: the machine is taken back"
    )  # fmt: skip
    later = wait(lambda: (d := night.client.run(run_id)).attempts[-1].number > 1 and d, "another attempt", 60)
    assert later.attempts[1].resumed_from_step >= 1
    night.ground("stop", run_id, "--reason", "seen enough", "--yes", expect=None)
    attempts = night.data("explain", proof["run_id"])
    assert "test-kill" in json.dumps(attempts)

    again = night.data("prove-resume", run_id)
    assert (again["status"], again["run_id"] != proof["run_id"]) == ("proved", True)

    forgetful = night.job("forgetful", ["python3", "-c", FORGETFUL, "400", "0", "0", "0.3"], spot=True)
    said = night.ground("prove-resume", "-f", str(forgetful), expect=3)
    assert "; ground explain run-" in said.stderr, "it is told while it goes on"
    assert "again" in said.stdout + said.stderr
    assert "resume-proven" in night.ground("plan", "-f", str(forgetful), expect=3).stderr


@pytest.fixture
def lab(new_installation: Callable[..., Installation], hosts: Hosts) -> Installation:
    """An installation with the pool `lab` of four machines."""
    installation = new_installation()
    installation.home.mkdir()
    (installation.home / "pools.yaml").write_text(json.dumps(pool_file(hosts)))
    return bring_up(installation)


@pytest.mark.needs("sshd")
def test_a_gang_with_one_link_down_goes_on_with_three_from_its_copy(
    lab: Any, hosts: Hosts, wait: Callable[..., Any]
) -> None:
    """T17. Checkpoints lie on the first node alone, so the others get them from the artifact store."""
    *well, bad = hosts.hosts
    job = lab.job(
        "allreduce", ["python3", "-c", GANG], pool="lab", max_cost="$2", preflight=False, hang_limit="3s",
        resources={"cpus": 1, "memory": "256MiB", "nodes": 4, "nodes_min": 3}, stop_grace="1s",
        retry={"max_attempts": 3, "backoff": "1s"},
    )  # fmt: skip
    wait(lambda: len([n for n in lab.data("nodes") if n["pool"] == "lab" and n["health"] == "ready"]) == 4, "nodes", 60)
    run_id = lab.submit(job)
    wait(lambda: [c for c in lab.data("checkpoints", run_id) if c["copy"] == "copied"], "a copy", 60)
    severed(bad, well)
    try:
        began = time.monotonic()
        wait(lambda: len(lab.client.run(run_id).attempts) > 1, "a second attempt", 90)
        assert time.monotonic() - began < 600
        detail = wait(lambda: (d := lab.client.run(run_id)).attempts[-1].started_at and d, "it to run", 60)
        first, second = detail.attempts
        assert first.end_reason == "hung"
        assert "n3 (rank 3) can't be reached by 3 of the 3 others" in first.message
        assert sorted(second.node.split(",")) == ["n0", "n1", "n2"]
        assert second.resumed_from_step >= 5
        said = wait(lambda: (text := lab.log(run_id, 2)).count("\n") > 1 and text, "its words", 60)
        assert f"of 3 from step {second.resumed_from_step}" in said
        (cordoned,) = [node for node in lab.data("nodes") if node["cordoned"]]
        assert cordoned["name"] == "n3"
        assert "python3" in lab.ground("stacks", run_id, "--attempt", "1", "--rank", "2").stdout
        assert "the crash of attempt 1 cost" in lab.ground("explain", run_id).stdout
        lab.ground("stop", run_id, "--reason", "seen enough", "--yes", expect=None)
    finally:
        joined(bad, well)
