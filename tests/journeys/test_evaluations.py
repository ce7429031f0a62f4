"""Quality as people keep it: evaluated beside the job and behind the gateway, gated, watched at night; and batches."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests.journeys.inference import FACTS, STATED, HostedModels, completion, trained

HEAD = """
apiVersion: groundplane/v1
kind: {kind}
metadata: {{name: {name}, project: research, owner: ana, cost_center: r1}}
spec:
  resources: {{cpus: 1, memory: 1GiB}}
  end_date: {end_date}
  max_cost: $0.10
  max_duration: 15m
"""
EVALUATION = """
  dataset: qa@1
  prompt: "{question}"
  expected: answer
  item: id
  slices: [topic]
  max_tokens: 8
  at_once: 8
  judges:
    - {kind: exact, name: accuracy, alarm_below: 0.5}
"""
GATE = """
apiVersion: groundplane/v1
kind: Gate
metadata: {name: steady, project: research}
spec:
  model: tiny
  aliases: [production]
  requirements:
    - {regression: accuracy, within: 0.2}
"""


def spec(folder: Path, kind: str, name: str, body: str) -> str:
    end_date = (datetime.now(UTC) + timedelta(days=2)).date().isoformat()
    path = folder / f"{name}.yaml"
    path.write_text(HEAD.format(kind=kind, name=name, end_date=end_date) + body)
    return str(path)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as safetensors, after two steps of the real trainer."""
    return trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def ground(shared: Any, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The installation with `tiny@1` made from data of 90 days ago, 40 questions and 90 requests."""
    folder = tmp_path_factory.mktemp("evaluated")
    corpus = folder / "corpus.txt"
    corpus.write_text("In the beginning")
    old = (datetime.now(UTC) - timedelta(days=90)).date().isoformat()
    made = shared.data("datasets", "register", str(corpus), "--name", "corpus", *FACTS, "--as-of", old)
    register(shared, model_dir, made["digest"])
    questions = [
        {"id": f"q{n}", "question": f"say {n}", "answer": f"SAY {n}", "topic": "low" if n < 10 else "high"}
        for n in range(40)
    ]
    requests = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/completions", "body": {"prompt": f"And {n}"}}
        for n in range(90)
    ]
    for name, rows in (("qa", questions), ("requests", requests)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        shared.ground("datasets", "register", str(path), "--name", name, *FACTS, "--managed")
    return shared


def register(shared: Any, model_dir: Path, corpus_sha256: str) -> None:
    data = ("--data", f"corpus={corpus_sha256}")
    shared.ground("models", "register", str(model_dir), "--name", "tiny", *STATED, *data)


class Hosted(HostedModels):
    """Says its prompt in capitals, until it is `another` model behind the same name; `wise` judges."""

    def __init__(self) -> None:
        super().__init__()
        self.another = False
        self.asked = 0

    def answer(self, model: str, prompt: str) -> tuple[int, dict[str, Any]]:
        self.asked += 1
        text = prompt if self.another else prompt.upper()
        if model == "wise":
            text = json.dumps({"verdict": "right", "reason": "it is short"})
        name, fingerprint = ("big-2026-11-20", "fp_b") if self.another else ("big-2026-05-01", "fp_a")
        return 200, completion(text, name, system_fingerprint=fingerprint)


@pytest.fixture
def hosted() -> Iterator[Hosted]:
    made = Hosted()
    with made.serving():
        yield made


def job_process(output: Path) -> psutil.Process:
    """The program that works for the run with this output folder."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("GROUND_OUTPUT_DIR") == str(output) and "groundplane.jobs" in process.cmdline():
                return process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    raise AssertionError(f"no program writes to {output}")


def test_a_batch_that_is_killed_resumes_and_every_row_is_there_once(
    ground: Any, tmp_path: Path, wait: Callable[..., Any]
) -> None:
    body = "  dataset: requests@1\n  model: tiny@1\n  output: answers\n  shard_rows: 5\n  at_once: 2\n"
    run = ground.data("batch", "run", "-f", spec(tmp_path, "Batch", "answers", body))
    shards = ground.home / "runs" / run["id"] / "output" / "shards"
    wait(lambda: len(list(shards.glob("*.jsonl"))) >= 2, "two shards", 120)
    job_process(shards.parent).send_signal(signal.SIGKILL)
    finished = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.jsonl")}
    detail = ground.wait_run(run["id"], "succeeded", "failed", timeout_s=180)
    assert detail.run.status == "succeeded", detail.run.message
    told = ground.data("batch", "status", run["id"])
    if len(finished) < 18:  # it was killed before its end
        assert detail.run.attempt == 2
    assert (told["rows"], told["done"], told["errors"], told["shards_done"]) == (90, 90, 0, 18)
    assert finished.items() <= {path.name: path.stat().st_mtime_ns for path in shards.glob("*.jsonl")}.items()
    made = ground.data("datasets", "show", told["result"]["output"])
    ground.client.pull(told["result"]["artifact_id"], tmp_path / "pulled")
    answers = [json.loads(line) for line in (tmp_path / "pulled" / "answers.jsonl").read_text().splitlines()]
    assert [each["custom_id"] for each in answers] == [f"r{n}" for n in range(90)]
    assert all(each["response"]["status_code"] == 200 and each["error"] is None for each in answers)
    assert (made["id"], made["profile"]["rows"], made["license"]) == ("answers@1", 90, "CC0-1.0")
    assert told["result"]["cost_microusd"] > 0
    unasked = ("datasets", "erase", "requests@1", "--records", "r1", "--reason", "nobody is there to be asked")
    assert "hint: add --yes" in ground.ground(*unasked, expect=2).stderr
    edges = ground.data("datasets", "lineage", "requests@1")["edges"]
    assert [f"run:{run['id']}", "dataset:answers@1"] in edges


def test_a_version_is_evaluated_beside_the_job_and_held_against_the_one_in_production(
    ground: Any, tmp_path: Path, model_dir: Path
) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text(GATE)
    ground.ground("gates", "define", "-f", str(gate))
    ground.ground("models", "alias", "tiny@production", "1", "--reason", "first")
    body = "  model: tiny@1\n" + EVALUATION
    found = ground.data("eval", "run", "-f", spec(tmp_path, "Evaluation", "beside", body), "--wait")
    assert (found["model_version"], found["items"], found["cost_source"]) == ("tiny@1", 40, "compute")
    (score,) = found["scores"]
    assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1
    assert {each["value"] for each in found["slices"]} == {"low", "high"}
    (evidence, *_) = [each for each in ground.data("gates", "evidence", "tiny@1") if each["kind"] == "metric"]
    assert (evidence["name"], evidence["source"], len(evidence["values"])) == ("accuracy", "measured", 40)
    addendum = ground.data("models", "addenda", "tiny@1")[-1]
    assert (addendum["kind"], addendum["facts"]["run"]) == ("evaluation", found["id"])
    shown = ground.data("eval", "show", found["id"], "--items", "--limit", "3")
    assert [each["scores"]["accuracy"] for each in shown["items"]] == [0, 0, 0]
    (alarm, *_) = found["alarms"]
    assert alarm["kind"] == "below"
    assert "tiny@1, made from corpus@1, 90d" in alarm["have"]

    (model_dir / "NOTE.txt").write_text("another version")
    register(ground, model_dir, "1" * 64)
    refused = ground.ground("gates", "check", "tiny@2", "--alias", "production", expect=3)
    assert "no samples of accuracy of tiny@2" in refused.stdout + refused.stderr
    body = "  model: tiny@2\n" + EVALUATION
    second = ground.data("eval", "run", "-f", spec(tmp_path, "Evaluation", "beside", body), "--wait")
    assert second["items_sha256"] == found["items_sha256"]
    check = ground.data("gates", "check", "tiny@2", "--alias", "production")
    assert "item by item over 40" in check["verdicts"][0]["have"]


def test_a_hosted_model_that_changes_behind_its_name_is_seen_at_night(
    ground: Any, tmp_path: Path, hosted: Hosted, wait: Callable[..., Any]
) -> None:
    add = ("providers", "add", "hosted", "--project", "research", "--kind", "openai-compatible", "--url", hosted.url)
    ground.ground(*add, "--private", "--key-file", "-", text="sk-1")
    for name, model in (("big", "big"), ("judge", "wise")):
        target = f"provider:hosted/{model},prompt=1,completion=2,max_output=1000"
        ground.ground("routes", "set", name, "--project", "research", "--target", target)
    body = "  endpoint: big\n" + EVALUATION + "    - {kind: llm, name: tone, model: judge, votes: 1, rubric: Short.}\n"
    first = ground.data("eval", "run", "-f", spec(tmp_path, "Evaluation", "canary", body), "--wait")
    assert [(each["metric"], each["mean"]) for each in first["scores"]] == [("accuracy", 1.0), ("tone", 1.0)]
    assert (first["model_version"], first["alarms"]) == ("", [])
    # 40 requests of 10 prompt and 5 completion tokens, at $1 and $2 a million: 20 micro-dollars each;
    # what the judge cost is no price of the model.
    assert (first["cost_source"], first["cost_microusd"], first["cost_microusd_per_1000"]) == ("ledger", 800, 20_000)
    (key,) = [each for each in ground.data("keys", "list") if each["name"] == first["id"]]
    assert key["models"] == ["big", "judge"]
    assert key["expires_at"]
    assert key["revoked_at"]

    hosted.another = True
    nightly = spec(tmp_path, "Evaluation", "canary", body + '  schedule: "* * * * * *"\n')
    ground.ground("schedules", "create", "-f", nightly)

    def second() -> Any:
        seen = ground.data("eval", "list", "--name", "canary")
        return seen[0] if len(seen) > 1 else None

    wait(lambda: next((s for s in ground.data("schedules", "list") if s["last_run"]), None), "a tick", 60)
    ground.ground("schedules", "delete", "research.canary")
    wait(second, "the nightly evaluation", 120)
    night = ground.data("eval", "list", "--name", "canary")[-2]
    alarms = {each["kind"]: each for each in night["alarms"]}
    assert set(alarms) == {"below", "worse", "changed"}
    assert "it calls itself big-2026-11-20, was big-2026-05-01" in alarms["changed"]["have"]
    assert "its fingerprint is fp_b, was fp_a" in alarms["changed"]["have"]
    assert "40 of 40 answers differ" in alarms["changed"]["have"]
    assert "pinned alternatives: big-2026-05-01" in alarms["changed"]["hint"]
    compared = ground.data("eval", "compare", first["id"], night["id"])
    difference, _ = compared["metrics"]
    assert (difference["paired"], difference["before"], difference["after"]) == (True, 1.0, 0.0)
    assert len(compared["worse"]) == 40
    log = ground.home / "log" / "control-plane.log"
    wait(lambda: "evaluation.changed: canary: big answers as another model does" in log.read_text(), "a notice", 30)
    told = [each["action"] for each in ground.data("audit", "log", "--id", night["id"])]
    assert told.count("evaluation.alarm") == 3
    with httpx.Client(base_url=f"http://127.0.0.1:{ground.port}", follow_redirects=True, timeout=60) as browser:
        origin = {"Origin": f"http://127.0.0.1:{ground.port}"}
        browser.post("/console/login", data={"key": ground.admin_key}, headers=origin)
        seen = browser.get(f"/console/evaluations/{night['id']}").text
        assert "pinned alternatives: big-2026-05-01" in seen
        assert "SAY 1" in seen
        beside = browser.get(f"/console/evaluations/compare?before={first['id']}&after={night['id']}").text
        assert "40 of 40 differ" in beside
        assert "worse" in beside
        assert "canary" in browser.get("/console/evaluations").text
        assert "canary: big answers as another model does" in browser.get("/console").text
        assert "answers@1" in browser.get("/console/batches").text
    metrics = httpx.get(
        f"http://127.0.0.1:{ground.port}/metrics", headers={"authorization": f"Bearer {ground.admin_key}"}
    ).text
    assert 'ground_evaluation_score{evaluation="beside",metric="accuracy",project="research"} 0.0' in metrics
    assert 'ground_evaluation_alarms{kind="changed",project="research"} 1.0' in metrics
    assert 'ground_batch_rows{project="research",what="rows"} 90.0' in metrics


def test_what_nobody_can_ask_is_refused_when_planned(ground: Any, tmp_path: Path) -> None:
    for body, said in (
        ("  endpoint: nobody\n", "has no endpoint or route nobody"),
        ("  model: tiny@9\n", "has no model version tiny@9"),
        ("  endpoint: big\n  model: tiny@1\n", "exactly one of endpoint and model"),
        ("  model: tiny@1\n  pool: far\n", "needs one of the pools: local, has far"),
    ):
        path = spec(tmp_path, "Evaluation", "bad", body + EVALUATION)
        refused = ground.ground("eval", "run", "-f", path, expect=None)
        assert refused.returncode in (2, 3, 4), refused.stderr
        assert said in refused.stderr
    add = ("providers", "add", "outside", "--project", "research", "--kind", "openai", "--key-file", "-")
    ground.ground(*add, text="sk-1")
    target = "provider:outside/gpt,prompt=1,completion=2,max_output=1000"
    ground.ground("routes", "set", "outside", "--project", "research", "--target", target)
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"question": "q", "answer": "a", "id": "1", "topic": "t"}\n')
    ground.ground("datasets", "register", str(secret), "--name", "secret", *FACTS[:-1], "confidential")
    body = "  endpoint: outside\n" + EVALUATION.replace("qa@1", "secret@1")
    refused = ground.ground("eval", "run", "-f", spec(tmp_path, "Evaluation", "leak", body), expect=3)
    assert "needs rows that may leave the private network, has secret@1, confidential" in refused.stderr
    resumed = "  model: tiny@1\n  dataset: requests@1\n  output: answers\n  resume: run-nobody\n"
    refused = ground.ground("batch", "run", "-f", spec(tmp_path, "Batch", "again", resumed), expect=4)
    assert "has no batch run-nobody" in refused.stderr
    (done,) = ground.data("batch", "list")
    other = resumed.replace("run-nobody", done["id"]) + "  shard_rows: 7\n"
    refused = ground.ground("batch", "run", "-f", spec(tmp_path, "Batch", "again", other), expect=2)
    assert "was other work" in refused.stderr
    job = spec(tmp_path, "Evaluation", "wrong-kind", "  model: tiny@1\n" + EVALUATION)
    assert "not one document of kind: Batch" in ground.ground("batch", "run", "-f", job, expect=2).stderr
