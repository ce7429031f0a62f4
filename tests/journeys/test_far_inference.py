"""Evaluations and batches on machines of a pool: program, rows and model brought there, the gateway reached."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.faults import pool_file
from tests.hosts import Host, Hosts
from tests.journeys.conftest import Installation, bring_up, free_ports, shut_down, wait_for
from tests.journeys.inference import FACTS, STATED, HostedModels, completion, trained

pytestmark = pytest.mark.needs("sshd")
HEAD = """
apiVersion: groundplane/v1
kind: {kind}
metadata: {{name: {name}, project: research, owner: ana, cost_center: r1}}
spec:
  pool: lab
  resources: {{cpus: 1, memory: 1GiB}}
  end_date: {end_date}
  max_cost: $1
  max_duration: 15m
"""
EVALUATION = """
  dataset: qa@1
  prompt: "{question}"
  expected: answer
  item: id
  max_tokens: 8
  judges: [{kind: exact, name: accuracy}]
"""


class Hosted(HostedModels):
    """A model which no node of the pool sees: answers in capitals, slowly if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.refused = ""

    def answer(self, model: str, prompt: str) -> tuple[int, dict[str, Any]]:
        self.go.wait(120)
        self.asked.append(prompt)
        if prompt == self.refused:
            return 400, {"error": {"message": "no", "type": "invalid_request_error"}}
        return 200, completion(prompt.upper(), "big")


@pytest.fixture(scope="module")
def hosted() -> Iterator[Hosted]:
    made = Hosted()
    with made.serving():
        yield made


@pytest.fixture(scope="module")
def lab(session_hosts: Hosts, hosted: Hosted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The pool `lab` of two machines whose Python is this one; `tiny@1`, 12 questions, 40 rows, and the route `big`."""
    session_hosts.mend()
    folder = tmp_path_factory.mktemp("lab")
    installation = Installation(folder / "ground", *free_ports(2))
    installation.home.mkdir()
    write_pools(installation, session_hosts)
    bring_up(installation)
    stated = (*STATED, "--data", f"c={'1' * 64}")
    installation.ground("models", "register", str(trained(folder)), "--name", "tiny", *stated)
    questions = [{"id": f"q{n}", "question": f"say {n}", "answer": f"SAY {n}"} for n in range(12)]
    for name, rows in (("qa", questions), ("rows", [{"text": f"row {n}"} for n in range(40)])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        installation.ground("datasets", "register", str(folder / f"{name}.jsonl"), "--name", name, *FACTS, "--managed")
    add = ("providers", "add", "hosted", "--project", "research", "--kind", "openai-compatible", "--url", hosted.url)
    installation.ground(*add, "--private", "--key-file", "-", text="sk-1")
    target = "provider:hosted/big,prompt=1,completion=2,max_output=1000"
    installation.ground("routes", "set", "big", "--project", "research", "--target", target)
    wait_for(lambda: lab_ready(installation) == 2, "both nodes to answer", 60)
    yield installation
    shut_down(installation)
    session_hosts.clear()


def write_pools(lab: Installation, hosts: Hosts, **change: object) -> None:
    file: dict[str, Any] = pool_file(hosts)
    file["pools"]["lab"] |= {"python": sys.executable, "nodes": file["pools"]["lab"]["nodes"][:2], **change}
    (lab.home / "pools.yaml").write_text(json.dumps(file))


def lab_ready(lab: Installation) -> int:
    return {pool["name"]: pool["ready"] for pool in lab.data("pools")}["lab"]


def spec(folder: Path, kind: str, name: str, body: str) -> str:
    end_date = (datetime.now(UTC) + timedelta(days=2)).date().isoformat()
    path = folder / f"{name}.yaml"
    path.write_text(HEAD.format(kind=kind, name=name, end_date=end_date) + body)
    return str(path)


def job_on(host: Host) -> psutil.Process | None:
    """The program that is at work on this machine."""
    for pid in host.processes():
        try:
            process = psutil.Process(pid)
            if process.cmdline()[-1:] and process.cmdline()[-1].endswith("program.zip"):
                return process
        except psutil.NoSuchProcess:
            continue
    return None


def test_a_route_and_a_version_are_evaluated_from_another_machine(lab: Any, tmp_path: Path, hosted: Hosted) -> None:
    found = lab.data(
        "eval", "run", "-f", spec(tmp_path, "Evaluation", "route", "  endpoint: big\n" + EVALUATION), "--wait"
    )
    assert (found["items"], found["failed"], found["scores"][0]["mean"]) == (12, 0, 1.0)
    assert (found["cost_source"], found["cost_microusd"]) == ("ledger", 240)
    assert lab.client.run(found["id"]).attempts[0].node in {"n0", "n1"}
    beside = spec(tmp_path, "Evaluation", "beside", "  model: tiny@1\n" + EVALUATION)
    found = lab.data("eval", "run", "-f", beside, "--wait")
    assert (found["model_version"], found["items"], found["failed"]) == ("tiny@1", 12, 0)
    assert lab.client.run(found["id"]).attempts[0].node in {"n0", "n1"}
    assert found["cost_source"] == "compute"
    assert found["cost_microusd"] > 0


def test_a_batch_far_away_outlives_its_job_the_control_plane_and_its_way(
    lab: Any, tmp_path: Path, hosted: Hosted, session_hosts: Hosts, wait: Callable[..., Any]
) -> None:
    body = '  dataset: rows@1\n  endpoint: big\n  format: table\n  prompt: "{text}"\n  output: far-answers\n'
    hosted.asked.clear()
    run = lab.data("batch", "run", "-f", spec(tmp_path, "Batch", "far", f"{body}  shard_rows: 4\n  at_once: 2\n"))
    hosts = session_hosts.hosts[:2]

    def at_work() -> tuple[Host, psutil.Process] | None:
        return next(((host, job) for host in hosts if (job := job_on(host)) is not None), None)

    wait(lambda: len(hosted.asked) >= 10, "rows to be answered", 120)
    hosted.go.clear()
    host, job = wait(at_work, "the job")
    assert lab.data("batch", "status", run["id"])["rows"] == 40
    job.send_signal(signal.SIGKILL)
    lab.process_running("groundplane.server").send_signal(signal.SIGKILL)
    ways = host.root.glob("*/attempts/*/way-*")
    wait(lambda: not job.is_running() or job.status() == psutil.STATUS_ZOMBIE, "the end of the job")
    hosted.go.set()
    detail = lab.wait_run(run["id"], "succeeded", "failed", timeout_s=180)
    assert detail.run.status == "succeeded", detail.run.message
    told = lab.data("batch", "status", run["id"])
    assert (told["rows"], told["done"], told["errors"], told["shards_done"]) == (40, 40, 0, 10)
    lab.client.pull(told["result"]["artifact_id"], tmp_path / "pulled")
    answers = [json.loads(line) for line in (tmp_path / "pulled" / "answers.jsonl").read_text().splitlines()]
    assert [each["answer"] for each in answers] == [f"ROW {n}" for n in range(40)]
    assert len(hosted.asked) < 40 + 10  # what a finished shard holds was not asked again
    wait(lambda: not list(ways), "the ways to be closed")
    assert ["dataset:rows@1", f"run:{run['id']}"] in lab.data("datasets", "lineage", "rows@1")["edges"]


def test_a_batch_that_failed_is_taken_up_in_its_pool_and_in_another(lab: Any, tmp_path: Path, hosted: Hosted) -> None:
    body = '  dataset: rows@1\n  endpoint: big\n  format: table\n  prompt: "{text}"\n  output: taken\n  shard_rows: 4\n'
    hosted.asked.clear()
    before, steps = "", (("lab", "row 13", 16), ("lab", "row 25", 12), ("local", "", 12))
    for allowed, (pool, refused, asked) in enumerate(steps):
        hosted.refused, so_far = refused, len(hosted.asked)
        path = Path(spec(tmp_path, "Batch", "taken", f"{body}  bad_rows: {allowed}\n{before}"))
        path.write_text(path.read_text().replace("pool: lab", f"pool: {pool}"))
        run = lab.data("batch", "run", "-f", str(path))
        over = lab.wait_run(run["id"], "succeeded", "failed", timeout_s=180)
        assert over.run.status == ("failed" if refused else "succeeded"), over.run.message
        assert over.attempts[0].pool == pool
        assert len(hosted.asked) - so_far == asked
        before = f"  resume: {run['id']}\n"
    assert sorted(hosted.asked) == sorted(f"row {n}" for n in range(40))
    told = lab.data("batch", "status", run["id"])
    assert (told["rows"], told["errors"], told["shards_done"], told["result"]["output"]) == (40, 2, 10, "taken@1")
    assert told["result"]["cost_microusd"] == 20 * asked
    lab.client.pull(told["result"]["artifact_id"], tmp_path / "pulled")
    answers = [json.loads(line) for line in (tmp_path / "pulled" / "answers.jsonl").read_text().splitlines()]
    assert [each["answer"] for each in answers] == ["" if n in (13, 25) else f"ROW {n}" for n in range(40)]


def test_what_a_pool_lacks_for_it_is_said_when_it_is_planned(
    lab: Any, tmp_path: Path, session_hosts: Hosts, wait: Callable[..., Any]
) -> None:
    write_pools(lab, session_hosts, python="python3")
    lab.ground("pools", "reload")
    wait(lambda: lab_ready(lab) == 2, "both nodes to answer", 60)
    beside = spec(tmp_path, "Evaluation", "bare", "  model: tiny@1\n" + EVALUATION)
    refused = lab.ground("plan", "-f", beside, expect=3).stdout
    assert "asking-in-reach" in refused
    assert "python3 has no ctranslate2" in refused
    lab.ground("plan", "-f", spec(tmp_path, "Evaluation", "way", "  endpoint: big\n" + EVALUATION))
    config = session_hosts.hosts[0].folder / "sshd_config"
    before = config.read_text()
    config.write_text(f"{before}AllowStreamLocalForwarding no\n")
    session_hosts.hosts[0].crash()
    session_hosts.mend()
    try:
        wait(lambda: lab_ready(lab) == 2, "both nodes to answer", 60)
        write_pools(lab, session_hosts)
        lab.ground("pools", "reload")
        wait(lambda: lab_ready(lab) == 2, "both nodes to answer", 60)
        refused = lab.ground(
            "plan", "-f", spec(tmp_path, "Evaluation", "deaf", "  endpoint: big\n" + EVALUATION), expect=3
        )
        assert "n0: its sshd forwards no sockets" in refused.stdout
        lab.ground("nodes", "cordon", "n0", "--pool", "lab", "--reason", "forwards nothing")
        lab.ground("plan", "-f", spec(tmp_path, "Evaluation", "other", "  endpoint: big\n" + EVALUATION))
        lab.ground("nodes", "uncordon", "n0", "--pool", "lab")
    finally:
        config.write_text(before)
        session_hosts.hosts[0].crash()
        session_hosts.mend()
