"""A job that logs with MLflow: its metrics on the run's page, in the certificate and on the command line."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from tests.console.plane import HOSTILE, Plane, poll

from groundplane.cli.root import run as ground
from groundplane.console.charts import chart
from groundplane.domain.run import Run

SCRIPT = f"""
import json, os, struct, sys
from pathlib import Path
import mlflow
for step in range(4):
    mlflow.log_metric("loss", 1.0 / (step + 1), step=step)
mlflow.log_params({{"lr": 0.1, "words": {HOSTILE!r}}})
mlflow.log_text("kept", "notes/a.txt")
with mlflow.start_run(nested=True, run_name="second"):
    mlflow.log_metric("loss", float("nan"), step=1)
    mlflow.log_metric("loss", 0.5, step=2)
    mlflow.log_metric("loss", 0.4, step=3)
try:
    mlflow.MlflowClient().create_registered_model("not-by-a-job")
except mlflow.exceptions.MlflowException as refused:
    print("refused", refused.error_code)
header = json.dumps({{"w": {{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}}}).encode()
place = Path(os.environ["GROUND_OUTPUT_DIR"]) / "model.safetensors"
place.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
print("token ends in", os.environ["MLFLOW_TRACKING_TOKEN"], file=open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def told(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """The run of a job that told of itself, over; and its token."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "train.py").write_text(SCRIPT)
    document = {
        "apiVersion": "groundplane/v1",
        "kind": "Job",
        "metadata": {"name": "teller", "project": "vision", "owner": "dana", "cost_center": "cc-1"},
        "spec": {
            "command": [sys.executable, str(folder / "train.py"), str(folder / "token")],
            "env": {
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
                "GIT_PYTHON_REFRESH": "quiet",
            },
            "resources": {"cpus": 0.5, "memory": "2GiB"},
            "outputs": {"models": [{"name": "told", "path": ".", "license": "MIT"}]},
            "end_date": (datetime.now(UTC) + timedelta(days=2)).date().isoformat(),
            "max_cost": "$0.10",
            "max_duration": "10m",
        },
    }
    run = plane.client.apply(json.dumps(document)).runs[0]
    over = poll(lambda: (found := plane.client.run(run.id).run).status.is_over and found, "the job to end", 240)
    log = b"".join(piece.data for piece in plane.client.read_log(run.id, None)).decode()
    assert over.status == "succeeded", log + over.message
    assert "refused PERMISSION_DENIED" in log
    return over, (folder / "token").read_text().split()[-1]


def test_what_a_job_logs_is_its_runs_own(plane: Plane, told: tuple[Run, str]) -> None:
    run, _ = told
    own, second = plane.client.tracked_of_run(run.id)
    assert (own.run.id, own.run.name, own.run.state) == (run.id, "teller", "FINISHED")
    assert own.metrics["loss"].value == 0.25 and own.points == 4 and own.run.params["lr"] == "0.1"
    assert (second.run.name, second.run.job, second.metrics["loss"].text) == ("second", run.id, "0.4")
    assert [each.experiment.name for each in plane.client.experiments()] == ["teller"]
    signed = plane.client.certificate("told", 1).statement["predicate"]
    assert isinstance(signed, dict) and signed["metrics"] == {"loss": 0.25}
    series = plane.client.metric_series(second.run.id, ["loss"])[0]
    assert [each.value for each in series.points] == [None, 0.5, 0.4]


def test_a_jobs_token_is_for_its_own_run_alone(plane: Plane, told: tuple[Run, str]) -> None:
    _, token = told
    headers = {"Authorization": f"Bearer {token}"}
    other = httpx.post(
        f"{plane.url}/mlflow/api/2.0/mlflow/experiments/delete",
        json={"experiment_id": plane.client.experiments()[0].experiment.id},
        headers=headers,
    )
    assert (other.status_code, other.json()["error_code"]) == (403, "PERMISSION_DENIED")
    assert httpx.get(f"{plane.url}/v1/runs", headers=headers).status_code == 403
    changed = token[:-1] + ("0" if token[-1] != "0" else "1")
    assert httpx.get(f"{plane.url}/v1/whoami", headers={"Authorization": f"Bearer {changed}"}).status_code == 401
    assert httpx.get(f"{plane.url}/v1/whoami", headers=headers).json()["role"] == "job"


def test_metrics_are_drawn_where_people_look(plane: Plane, told: tuple[Run, str]) -> None:
    run, _ = told
    browser = plane.browser()
    page = browser.get(f"/console/runs/{run.id}").text
    assert "What it measured" in page and "<polyline points=" in page and "loss over steps 0 to 3" in page
    experiment = plane.client.experiments()[0].experiment
    listed = browser.get(f"/console/experiments/{experiment.id}", params={"filter": "metrics.loss < 0.3"}).text
    assert "teller" in listed and "second" not in listed
    wrong = browser.get(f"/console/experiments/{experiment.id}", params={"filter": "loss <"})
    assert wrong.status_code == 200 and 'role="alert"' in wrong.text
    assert experiment.id in browser.get("/console/experiments").text
    shown = browser.get(f"/console/experiments/runs/{run.id}").text
    assert "notes/a.txt" in shown and HOSTILE not in shown and "&lt;script&gt;" in shown
    ids = [each.run.id for each in plane.client.tracked_of_run(run.id)]
    beside = browser.get("/console/experiments/compare", params={"run": ids}).text
    assert "2 runs side by side" in beside and "teller" in beside and "second" in beside
    assert browser.get("/console/experiments/compare", params={"run": ids[:1]}).status_code == 422
    exported = httpx.get(f"{plane.url}/metrics", headers={"Authorization": f"Bearer {plane.key}"}).text
    assert 'ground_tracked_runs{project="vision"} 2.0' in exported


def test_the_command_line_tells_the_same(
    plane: Plane, told: tuple[Run, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = told
    monkeypatch.setenv("GROUND_HOME", str(plane.home))
    monkeypatch.setenv("GROUND_URL", plane.url)
    monkeypatch.setenv("GROUND_PORT", plane.url.rpartition(":")[2])

    def said(*words: str) -> str:
        assert ground(["experiments", *words]) == 0
        return capsys.readouterr().out

    assert "teller" in said()
    assert "0.25" in said("metrics", run.id)
    assert json.loads(said("metrics", run.id, "-o", "json"))[0]["metrics"]["loss"]["value"] == 0.25
    assert [line.split()[0] for line in said("metrics", run.id, "--key", "loss").splitlines()[-2:]] == ["2", "3"]
    ids = [each.run.id for each in plane.client.tracked_of_run(run.id)]
    rows = json.loads(said("compare", *ids, "-o", "json"))["rows"]
    assert ["metric", "loss", ["0.25", "0.4"]] in [[row["part"], row["name"], row["values"]] for row in rows]
    experiment = plane.client.experiments()[0].experiment.id
    found = json.loads(said("show", experiment, "--filter", "metrics.loss > 0.3", "-o", "json"))
    assert [each["run"]["name"] for each in found] == ["second"]
    assert ground(["experiments", "show", experiment, "--filter", "loss >"]) == 2
    assert "hint:" in capsys.readouterr().err


def test_a_line_breaks_where_a_value_is_no_number() -> None:
    drawn = chart("loss", {"a": [(0, 1.0), (1, 2.0), (2, float("nan")), (3, 1.0)], "b": []})
    assert drawn is not None
    assert [len(line.pieces) for line in drawn.lines] == [1, 0] and len(drawn.lines[0].dots) == 1
    assert drawn.up[0].text == "1" and drawn.up[-1].text == "2"
    assert chart("none", {"a": [(0, float("inf"))]}) is None
    assert chart("flat", {"a": [(5, 0.0)]}) is not None
