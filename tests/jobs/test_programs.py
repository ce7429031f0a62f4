"""The programs of evaluations and batches as nodes run them: real processes, real HTTP, killed and started again."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.stage import Answer, Asked, Played

from groundplane.domain.spec.inference import Asking, BatchNeed, EvaluationNeed, JudgeNeed
from groundplane.jobs.batch import PACK, pack_shards
from groundplane.jobs.order import ORDER_FILE, STAGED_SHARDS, ProgramOrder

REQUESTS = 60


class Model:
    """A model server that answers with what `says` makes of a prompt; `stop_after` requests it holds its breath."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.says: Callable[[str], str | tuple[int, dict[str, str], object]] = lambda prompt: prompt.upper()
        self.hold_after = 10**9
        self.held = threading.Event()
        self.go = threading.Event()
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self._played = Played(self._answer)
        self.url = self._played.url

    def close(self) -> None:
        self.go.set()
        self._played.close()

    def _answer(self, asked: Asked) -> Answer:
        status, headers, body = self.answer(asked.path, asked.json)
        return Answer(status, body, headers)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], object]:
        if path == "/v1/embeddings":
            vectors = [[float("cat" in text), 1.0] for text in body["input"]]
            return 200, {}, {"data": [{"index": n, "embedding": each} for n, each in enumerate(vectors)]}
        prompt = body.get("prompt") or body["messages"][-1]["content"]
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.seen[prompt] += 1
            if sum(self.seen.values()) > self.hold_after:
                self.held.set()
        if self.held.is_set():
            self.go.wait(60)
        said = self.says(prompt)
        with self._lock:
            self._at_once -= 1
        if not isinstance(said, str):
            return said
        text = {"text": said} if path == "/v1/completions" else {"message": {"content": said}}
        usage = {"prompt_tokens": 2, "completion_tokens": 3}
        return 200, {}, {"model": "m", "system_fingerprint": "fp", "choices": [text], "usage": usage}


@pytest.fixture
def model() -> Iterator[Model]:
    made = Model()
    yield made
    made.close()


def start(folder: Path, model: Model, data: Path, taken: Path | None = None, **need: object) -> subprocess.Popen[str]:
    order = ProgramOrder(
        target="m",
        gateway_url=model.url,
        key="k",
        files={data.name: hashlib.sha256(data.read_bytes()).hexdigest()},
        path=str(data),
        **need,  # type: ignore[arg-type]
    )
    secrets, output = folder / "secrets", folder / "output"
    for each in (secrets, output):
        each.mkdir(exist_ok=True)
    (secrets / ORDER_FILE).write_bytes(msgspec.json.encode(order))
    env = {**os.environ, "GROUND_SECRETS_DIR": str(secrets), "GROUND_OUTPUT_DIR": str(output)}
    env |= {STAGED_SHARDS: str(taken)} if taken is not None else {}
    command = [sys.executable, "-m", "groundplane.jobs"]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def work(folder: Path, model: Model, data: Path, expect: int = 0, taken: Path | None = None, **need: object) -> str:
    said, _ = (process := start(folder, model, data, taken, **need)).communicate(timeout=120)
    assert process.returncode == expect, said
    return said


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def requests_file(folder: Path, count: int) -> Path:
    path = folder / "requests.jsonl"
    rows = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/completions", "body": {"prompt": f"p{n}"}}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def batch(**fields: object) -> BatchNeed:
    known: dict[str, object] = {"dataset": "d@1", "output": "o", "asking": Asking(endpoint="m"), "shard_rows": 10}
    return BatchNeed(**{**known, **fields})  # type: ignore[arg-type]


def test_a_batch_that_is_killed_in_the_middle_goes_on_and_has_every_row_exactly_once(
    tmp_path: Path, model: Model
) -> None:
    data = requests_file(tmp_path, REQUESTS)
    model.hold_after = 34
    process = start(tmp_path, model, data, batch=batch())
    assert model.held.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    kept = sorted(path.name for path in (tmp_path / "output" / "shards").glob("*.jsonl"))
    before = {name: (tmp_path / "output" / "shards" / name).stat().st_mtime_ns for name in kept}
    assert kept == ["000000.jsonl", "000001.jsonl", "000002.jsonl"]
    model.held.clear()
    model.hold_after = 10**9
    model.go.set()
    work(tmp_path, model, data, batch=batch())
    answers = lines(tmp_path / "output" / "answers.jsonl")
    assert [each["custom_id"] for each in answers] == [f"r{n}" for n in range(REQUESTS)]
    assert [each["response"]["body"]["choices"][0]["text"] for each in answers] == [f"P{n}" for n in range(REQUESTS)]
    assert all(model.seen[f"p{n}"] == 1 for n in range(30)), "a finished shard is not asked again"
    assert before == {name: (tmp_path / "output" / "shards" / name).stat().st_mtime_ns for name in kept}
    summary = json.loads((tmp_path / "output" / "batch.json").read_text())
    assert (summary["rows"], summary["asked"], summary["errors"]) == (REQUESTS, 30, 0)
    assert (summary["prompt_tokens"], summary["completion_tokens"]) == (2 * REQUESTS, 3 * REQUESTS)


def test_a_damaged_shard_is_answered_anew(tmp_path: Path, model: Model) -> None:
    data = requests_file(tmp_path, 20)
    work(tmp_path, model, data, batch=batch())
    shard = tmp_path / "output" / "shards" / "000001.jsonl"
    shard.write_bytes(shard.read_bytes()[:-20])
    work(tmp_path, model, data, batch=batch())
    assert len(lines(tmp_path / "output" / "answers.jsonl")) == 20
    assert (model.seen["p5"], model.seen["p15"]) == (1, 2)


def test_at_most_so_many_requests_are_under_way_and_a_429_is_waited_for_by_all(tmp_path: Path, model: Model) -> None:
    data = requests_file(tmp_path, 24)
    moments: list[float] = []

    def says(prompt: str) -> str | tuple[int, dict[str, str], object]:
        moments.append(time.monotonic())
        if len(moments) == 5:
            return 429, {"Retry-After": "1.2"}, {"error": {"message": "slow down"}}
        time.sleep(0.01)
        return prompt

    model.says = says
    work(tmp_path, model, data, batch=batch(asking=Asking(endpoint="m", at_once=3), shard_rows=100))
    assert model.most_at_once <= 3
    assert len(lines(tmp_path / "output" / "answers.jsonl")) == 24
    assert max(later - earlier for earlier, later in pairwise(moments)) >= 1.0
    assert model.seen.total() == 25


def test_rows_in_error_stay_rows_and_too_many_fail_the_job_with_the_number(tmp_path: Path, model: Model) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("text,n\ngood,1\nbad,2\nshort\ngood,3\n")
    model.says = lambda prompt: (400, {}, {"error": {"message": "no"}}) if "bad" in prompt else prompt
    asking = Asking(endpoint="m", prompt="{n}: {text}")
    table = batch(format="table", asking=asking, bad_rows=2)
    work(tmp_path, model, data, batch=table)
    answers = lines(tmp_path / "output" / "answers.jsonl")
    assert [(each.get("text"), each["answer"], each["error"]) for each in answers] == [
        ("good", "1: good", ""),
        ("bad", "", "HTTP 400: no"),
        (None, "", "line 4 has 1 cells for 2 columns"),
        ("good", "3: good", ""),
    ]
    said = work(tmp_path, model, data, expect=3, batch=batch(format="table", asking=asking, bad_rows=1))
    assert "error: 2 rows are in error; spec.bad_rows allows 1" in said
    next_run, asked = tmp_path / "next", model.seen.total()
    next_run.mkdir()
    pack_shards(tmp_path / "output" / "shards", tmp_path / PACK)
    said = work(next_run, model, data, batch=table, taken=tmp_path)
    assert "1 shards of" in said
    assert model.seen.total() == asked
    assert lines(next_run / "output" / "answers.jsonl") == answers


def test_a_row_that_is_never_answered_in_time_is_a_row_in_error_and_holds_up_no_other(
    tmp_path: Path, model: Model
) -> None:
    data = requests_file(tmp_path, 3)

    def says(prompt: str) -> str:
        if prompt == "p1":
            model.go.wait(60)
        return prompt

    model.says = says
    work(tmp_path, model, data, batch=batch(bad_rows=1, asking=Asking(endpoint="m", timeout_s=1)))
    found = lines(tmp_path / "output" / "answers.jsonl")
    assert [each["error"] is None for each in found] == [True, False, True]
    assert "timed out" in found[1]["error"]["message"]
    assert model.seen["p1"] == 6


def test_bad_lines_and_doubled_ids_of_a_batch_file_become_lines_with_an_error(tmp_path: Path, model: Model) -> None:
    data = tmp_path / "requests.jsonl"
    row = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}
    data.write_text("\n".join(["{", json.dumps(row), json.dumps(row), json.dumps({**row, "custom_id": "b"})]) + "\n")
    work(tmp_path, model, data, batch=batch(bad_rows=3))
    found = lines(tmp_path / "output" / "answers.jsonl")
    assert [(each["custom_id"], each["error"] is not None) for each in found] == [
        ("line-1", True),
        ("a", True),
        ("a", True),
        ("b", False),
    ]


# ---------------------------------------------------------------- evaluations


def evaluation(*judges: JudgeNeed, **fields: object) -> EvaluationNeed:
    asking = fields.pop("asking", Asking(endpoint="m", prompt="{q}"))
    return EvaluationNeed(dataset="d@1", asking=asking, judges=judges, expected="a", item="id", **fields)  # type: ignore[arg-type]


def questions(folder: Path, rows: list[tuple[str, str]]) -> Path:
    path = folder / "qa.jsonl"
    path.write_text("".join(json.dumps({"id": f"i{n}", "q": q, "a": a}) + "\n" for n, (q, a) in enumerate(rows)))
    return path


EXACT = JudgeNeed(kind="exact", name="accuracy")


def test_an_evaluation_judges_each_row_and_says_what_answered(tmp_path: Path, model: Model) -> None:
    data = questions(tmp_path, [("x", "X"), ("y", "y"), ("cat", "CAT")])
    near = JudgeNeed(kind="embedding", name="near", model="e", pass_at=0.9)
    work(tmp_path, model, data, evaluation=evaluation(EXACT, near, repeats=2))
    items = lines(tmp_path / "output" / "items.jsonl")
    assert [(each["id"], each["scores"]) for each in items] == [
        ("i0", {"accuracy": 1.0, "near": 1.0}),
        ("i1", {"accuracy": 0.0, "near": 1.0}),
        ("i2", {"accuracy": 1.0, "near": 1.0}),
    ]
    told = json.loads((tmp_path / "output" / "evaluation.json").read_text())
    assert (told["models"], told["fingerprints"], told["agreement"]) == (["m"], ["fp"], 1.0)
    assert (told["requests"], told["prompt_tokens"]) == (6, 12)


def test_an_evaluation_that_is_killed_asks_only_what_was_not_answered(tmp_path: Path, model: Model) -> None:
    data = questions(tmp_path, [(f"q{n}", f"Q{n}") for n in range(30)])
    model.hold_after = 17
    process = start(tmp_path, model, data, evaluation=evaluation(EXACT))
    assert model.held.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    with (tmp_path / "output" / "answers.jsonl").open("a") as kept:
        kept.write('{"item": "i29", "turn"')  # as a kill in the middle of a line leaves it
    model.held.clear()
    model.hold_after = 10**9
    model.go.set()
    work(tmp_path, model, data, evaluation=evaluation(EXACT))
    assert [each["id"] for each in lines(tmp_path / "output" / "items.jsonl")] == [f"i{n}" for n in range(30)]
    assert sum(count == 1 for count in model.seen.values()) >= 20
    assert all(each["scores"]["accuracy"] == 1.0 for each in lines(tmp_path / "output" / "items.jsonl"))


def judging(prompt: str) -> str:
    """A judge that says right of an answer in capitals, and answers others as a model does."""
    if "Is the answer right" not in prompt:
        return prompt.upper() if prompt != "lower" else prompt
    answer = prompt.split("<answer-")[1].splitlines()[1]
    return json.dumps({"verdict": "right" if answer.isupper() else "wrong", "reason": "capitals"})


LLM = JudgeNeed(kind="llm", name="tone", model="judge", rubric="in capitals")


def test_a_model_judges_by_a_rubric_and_its_majority_counts(tmp_path: Path, model: Model) -> None:
    model.says = judging
    data = questions(tmp_path, [("hello", ""), ("lower", "")])
    work(tmp_path, model, data, evaluation=evaluation(LLM))
    items = lines(tmp_path / "output" / "items.jsonl")
    assert [each["scores"]["tone"] for each in items] == [1.0, 0.0]
    assert (items[0]["why"], items[0]["agreement"]) == ({"tone": "3 of 3 say right"}, {"tone": 1.0})


def test_a_judge_that_cannot_be_read_fails_the_evaluation(tmp_path: Path, model: Model) -> None:
    model.says = lambda prompt: "Looks right to me!" if "Is the answer right" in prompt else prompt
    said = work(tmp_path, model, questions(tmp_path, [("x", "")]), expect=2, evaluation=evaluation(LLM))
    assert "judge tone could not judge 1 of 1 items" in said
    assert not (tmp_path / "output" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"id": "1", "q": "x"}\n', "line 1 has no column 'a'"),
        ('{"id": "1", "q": "x", "a": "y"}\n{"id": "1", "q": "x", "a": "y"}\n', "line 2: item '1' occurs twice"),
        ("[1]\n", "line 1 is no JSON object"),
        ("", "has no rows"),
    ],
)
def test_rows_that_cannot_be_judged_are_told_before_anything_is_asked(
    tmp_path: Path, model: Model, content: str, said: str
) -> None:
    data = tmp_path / "qa.jsonl"
    data.write_text(content)
    assert said in work(tmp_path, model, data, expect=2, evaluation=evaluation(EXACT))
    assert not model.seen


def test_other_bytes_than_were_registered_are_refused(tmp_path: Path, model: Model) -> None:
    data = questions(tmp_path, [("x", "X")])
    order_time = data.read_bytes()
    process = start(tmp_path, model, data, evaluation=evaluation(EXACT))
    process.communicate(timeout=60)
    assert process.returncode == 0
    data.write_bytes(order_time + b"\n\n")
    secrets = tmp_path / "secrets" / ORDER_FILE
    env = {**os.environ, "GROUND_SECRETS_DIR": str(secrets.parent), "GROUND_OUTPUT_DIR": str(tmp_path / "output")}
    command = [sys.executable, "-m", "groundplane.jobs"]
    again = subprocess.run(command, env=env, text=True, capture_output=True, check=False, timeout=60)
    assert again.returncode == 2
    assert "is not what was registered as d@1" in again.stdout
