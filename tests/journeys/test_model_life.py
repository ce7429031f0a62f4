"""One model's whole life: facts that are missing, an evaluation through the gateway, a gate, a batch that is killed."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests.journeys.conftest import Installation, bring_up, free_ports, shut_down
from tests.journeys.inference import FACTS, STATED, HostedModels, completion, trained
from tests.services.test_lineage import faults

HEAD = """
apiVersion: groundplane/v1
kind: {kind}
metadata: {{name: {name}, project: research, owner: ana, cost_center: r1}}
spec:
  resources: {{cpus: 1, memory: 512MiB}}
  end_date: {end_date}
  max_cost: $0.20
  max_duration: 20m
"""
GATE = """
apiVersion: groundplane/v1
kind: Gate
metadata: {name: polite, project: research}
spec:
  model: tiny
  aliases: [production]
  requirements:
    - {metric: tone, at_least: 0.9}
"""
ASKED = """
  dataset: qa@1
  prompt: "{question}"
  expected: answer
  item: id
  max_tokens: 4
  judges:
    - {kind: exact, name: accuracy}
"""
TONE = "    - {kind: llm, name: tone, model: judge, votes: 1, rubric: Short and polite.}\n"


class Hosted(HostedModels):
    """`wise` judges as it is told to, `big` says its prompt in capitals while it may."""

    def __init__(self) -> None:
        super().__init__()
        self.verdict = "wrong"
        self.refused = ""
        self.asked: Counter[str] = Counter()

    def answer(self, model: str, prompt: str) -> tuple[int, dict[str, Any]]:
        text = json.dumps({"verdict": self.verdict, "reason": "so it is"}) if model == "wise" else prompt.upper()
        if model == "big":
            self.go.wait(120)
            if prompt == self.refused:
                return 400, {"error": {"message": "this row is not for me", "type": "invalid_request_error"}}
            self.asked[prompt] += 1
        return 200, completion(text, model)


@pytest.fixture(scope="module")
def hosted() -> Iterator[Hosted]:
    made = Hosted()
    with made.serving():
        yield made


@pytest.fixture(scope="module")
def ground(hosted: Hosted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation with `tiny@1`, made from corpus@1; 6 questions, 40 rows, and the hosted models as routes."""
    folder = tmp_path_factory.mktemp("life")
    told = {"GROUND_LINEAGE_URL": str(folder / "events.jsonl")}
    made = bring_up(Installation(folder / "ground", *free_ports(2), told))
    model = trained(folder)
    (folder / "corpus.txt").write_text("In the beginning")
    corpus = made.data("datasets", "register", str(folder / "corpus.txt"), "--name", "corpus", *FACTS)
    data = ("--data", f"corpus={corpus['digest']}")
    made.ground("models", "register", str(model), "--name", "tiny", *STATED, *data)
    questions = [{"id": f"q{n}", "question": f"say {n}", "answer": f"SAY {n}"} for n in range(6)]
    for name, rows in (("qa", questions), ("rows", [{"text": f"row {n}"} for n in range(40)])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        made.ground("datasets", "register", str(folder / f"{name}.jsonl"), "--name", name, *FACTS, "--managed")
    add = ("providers", "add", "hosted", "--project", "research", "--kind", "openai-compatible", "--url", hosted.url)
    made.ground(*add, "--private", "--key-file", "-", text="sk-1")
    for name, model in (("big", "big"), ("judge", "wise")):
        target = f"provider:hosted/{model},prompt=1,completion=2,max_output=1000"
        made.ground("routes", "set", name, "--project", "research", "--target", target)
    yield made
    shut_down(made)


def spec(folder: Path, kind: str, name: str, body: str) -> str:
    end_date = (datetime.now(UTC) + timedelta(days=2)).date().isoformat()
    path = folder / f"{name}.yaml"
    path.write_text(HEAD.format(kind=kind, name=name, end_date=end_date) + body)
    return str(path)


def process_of(marker: str, module: str) -> psutil.Process:
    """The process of a module that carries this in its environment."""
    for process in psutil.process_iter():
        try:
            if marker in process.environ().values() and module in process.cmdline():
                return process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    raise AssertionError(f"no {module} carries {marker}")


def page(ground: Any, path: str) -> str:
    """A page of the console."""
    with httpx.Client(base_url=f"http://127.0.0.1:{ground.port}", follow_redirects=True, timeout=60) as browser:
        origin = {"Origin": f"http://127.0.0.1:{ground.port}"}
        browser.post("/console/login", data={"key": ground.admin_key}, headers=origin)
        return browser.get(path).text


def told_of(ground: Any, wait: Callable[..., Any], run_id: str) -> list[dict[str, Any]]:
    """What others were told of a run that is over; every event so far is as OpenLineage has them."""

    def told() -> list[dict[str, Any]]:
        text = (ground.home.parent / "events.jsonl").read_text()
        events = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        assert [fault for event in events for fault in faults(event)] == []
        runs = [event for event in events if "run" in event]
        return [each for each in runs if each["run"]["facets"]["groundplane_run"]["id"] == run_id]

    wait(lambda: told() and told()[-1]["eventType"] in ("COMPLETE", "FAIL"), f"the end of {run_id} to be told", 60)
    return told()


def test_a_version_is_deployed_when_its_facts_are_known_and_promoted_when_its_endpoint_was_judged(
    ground: Any, hosted: Hosted, tmp_path: Path, wait: Callable[..., Any]
) -> None:
    endpoint = spec(
        tmp_path, "Endpoint", "tiny", "  model: tiny@1\n  token_price: {prompt: $1000, completion: $2000}\n"
    )
    ground.ground("models", "require", "research", "evaluations>=1", "--reason", "audit")
    refused = ground.ground("apply", "-f", endpoint, "--yes", expect=3)
    assert "evaluations>=1" in refused.stdout + refused.stderr
    batch = spec(
        tmp_path,
        "Batch",
        "early",
        '  dataset: rows@1\n  model: tiny@1\n  format: table\n  prompt: "{text}"\n  output: early\n',
    )
    assert "evaluations>=1" in ground.ground("plan", "-f", batch, expect=3).stderr
    beside = spec(tmp_path, "Evaluation", "beside", "  model: tiny@1\n" + ASKED)
    assert ground.data("eval", "run", "-f", beside, "--wait")["model_version"] == "tiny@1"
    ground.ground("apply", "-f", endpoint, "--yes", "--wait")

    # A replica that is started anew is asked again; without its facts it takes no traffic.
    ground.ground("models", "require", "research", "evaluations>=1", "sla", "--reason", "the customer asks")
    run_id = next(each["run_id"] for each in ground.data("endpoints", "list"))
    process_of(run_id, "groundplane.adapters.model_servers.engine").send_signal(signal.SIGKILL)

    def failed() -> Any:
        return next((each for each in ground.data("endpoints", "list") if each["status"] == "failed"), None)

    assert "requires facts that tiny@1 lacks: sla" in wait(failed, "the replica to be refused", 90)["message"]
    assert "sla" in ground.ground("apply", "-f", endpoint, "--yes", expect=3).stderr
    ground.ground("models", "add", "tiny@1", "--sla", "99 % within 2 s")
    ground.ground("apply", "-f", endpoint, "--yes", "--wait")

    gate = tmp_path / "gate.yaml"
    gate.write_text(GATE)
    ground.ground("gates", "define", "-f", str(gate))
    move = ("models", "alias", "tiny@production", "1", "--reason", "first")
    refused = ground.ground(*move, expect=3)
    assert "tone" in refused.stdout + refused.stderr
    behind = spec(tmp_path, "Evaluation", "behind", "  endpoint: tiny\n" + ASKED + TONE)
    rude = ground.data("eval", "run", "-f", behind, "--wait")
    assert (rude["model_version"], rude["items"], rude["failed"], rude["cost_source"]) == ("tiny@1", 6, 0, "ledger")
    refused = ground.ground(*move, expect=3)
    assert "0.9" in refused.stdout + refused.stderr
    hosted.verdict = "right"
    kind = ground.data("eval", "run", "-f", behind, "--wait")
    assert {each["metric"]: each["mean"] for each in kind["scores"]}["tone"] == 1.0
    told = [each for each in ground.data("gates", "evidence", "tiny@1") if each["name"] == "tone"]
    assert [each["source"] for each in told] == ["measured", "measured"]
    ground.ground(*move)
    edges = ground.data("lineage", "show", "model:tiny@1")
    assert ["model:tiny@1", "endpoint:tiny"] in edges["edges"]
    for edge in (
        ("dataset:corpus@1", "model:tiny@1"),
        ("model:tiny@1", f"run:{kind['id']}"),
        ("endpoint:tiny", f"run:{kind['id']}"),
    ):
        assert list(edge) in edges["edges"], edges
    assert edges["names"][f"run:{kind['id']}"].startswith("evaluation behind: accuracy 0, tone 1")
    assert "sha256:" not in json.dumps(edges["edges"])
    assert "/console/endpoints/tiny" in page(ground, "/console/lineage/model:tiny@1")
    start, end = told_of(ground, wait, kind["id"])
    assert (start["eventType"], end["eventType"]) == ("START", "COMPLETE")
    assert end["job"]["facets"]["jobType"]["jobType"] == "EVALUATION"
    assert {each["name"] for each in end["inputs"]} == {"research/datasets/qa", "research/models/tiny"}


def test_a_batch_whose_job_and_control_plane_are_killed_is_taken_up_and_each_row_answered_once(
    ground: Any, hosted: Hosted, tmp_path: Path, wait: Callable[..., Any]
) -> None:
    body = (
        '  dataset: rows@1\n  endpoint: big\n  format: table\n  prompt: "{text}"\n  output: answers\n  shard_rows: 4\n'
    )
    hosted.refused = "row 33"
    run = ground.data("batch", "run", "-f", spec(tmp_path, "Batch", "answers", body + "  at_once: 2\n"))
    output = ground.home / "runs" / run["id"] / "output"
    wait(lambda: len(list(output.glob("shards/*.jsonl"))) >= 2, "two shards", 120)
    hosted.go.clear()
    process_of(str(output), "groundplane.jobs").send_signal(signal.SIGKILL)
    ground.process_running("groundplane.server").send_signal(signal.SIGKILL)
    hosted.go.set()
    detail = ground.wait_run(run["id"], "succeeded", "failed", timeout_s=180)
    assert (detail.run.status, detail.run.attempt) == ("failed", 2)
    assert "1 rows are in error" in detail.run.message
    finished = {int(path.stem) for path in output.glob("shards/*.jsonl")}
    assert 8 in finished  # the one with the row in error is whole too
    (output / "shards" / "000008.jsonl").unlink()  # to be answered anew, now that the row is taken
    hosted.refused, before = "", Counter(hosted.asked)
    again = body + f"  resume: {run['id']}\n"
    second = ground.data("batch", "run", "-f", spec(tmp_path, "Batch", "answers", again))
    done = ground.wait_run(second["id"], "succeeded", "failed", timeout_s=180)
    assert done.run.status == "succeeded", done.run.message
    told = ground.data("batch", "status", second["id"])
    assert (told["rows"], told["done"], told["errors"], told["shards_done"]) == (40, 40, 0, 10)
    ground.client.pull(told["result"]["artifact_id"], tmp_path / "pulled")
    answers = [json.loads(line) for line in (tmp_path / "pulled" / "answers.jsonl").read_text().splitlines()]
    assert [each["answer"] for each in answers] == [f"ROW {n}" for n in range(40)]
    taken = {f"row {n}" for shard in finished - {8} for n in range(4 * shard, 4 * shard + 4)}
    assert not taken & set(hosted.asked - before)  # no shard twice
    assert (told["result"]["cost_source"], told["result"]["cost_microusd"]) == ("ledger", 20 * (40 - len(taken)))
    keys = [(each["name"], each["id"]) for each in ground.data("keys", "list")]  # each attempt had one

    def counted(run_id: str) -> int:
        rows = ground.data("cost", "--by", "key")
        return sum(each["requests"] for each in rows if (run_id, each["group"]) in keys)

    # Each answer once. What was under way in the kill is charged as far as the gateway got; it was nobody's answer.
    wait(lambda: counted(second["id"]) >= 40 - len(taken), "the second run's answers in the ledger", 60)
    assert counted(second["id"]) == 40 - len(taken)
    wait(lambda: counted(run["id"]) >= len(taken), "the first run's answers in the ledger", 60)
    assert counted(run["id"]) <= sum(before.values()) + 1  # and the row that was refused
    shown = ground.data("lineage", "show", f"dataset:{told['result']['output']}")
    assert ["dataset:rows@1", f"run:{second['id']}"] in shown["edges"]
    assert [f"run:{second['id']}", "dataset:answers@1"] in shown["edges"]
    assert shown["names"][f"run:{second['id']}"] == "batch answers: succeeded"
    assert "batch answers: succeeded" in page(ground, "/console/lineage/dataset:answers@1")
    first, last = (told_of(ground, wait, each["id"]) for each in (run, second))
    assert [each["eventType"] for each in first] == ["START", "RUNNING", "FAIL"]
    assert [each["eventType"] for each in last] == ["START", "COMPLETE"]
    assert last[-1]["job"]["facets"]["jobType"]["jobType"] == "INFERENCE"
    assert [each["name"] for each in last[-1]["outputs"]] == ["research/datasets/answers"]
