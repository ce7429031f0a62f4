"""Tracking and registry through an unmodified MLflow client, then the wire itself."""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from groundplane.identity import Role

# Stages are on their way out of MLflow; scripts that use them are not.
pytestmark = pytest.mark.filterwarnings("ignore:.*stage:FutureWarning")
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, served: Any) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", served.admin_key)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"{served.url}/mlflow")
    yield
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(before)


@pytest.fixture
def client(served: Any) -> MlflowClient:
    return MlflowClient(f"{served.url}/mlflow")


@pytest.fixture
def name() -> str:
    return f"trial-{next(_numbers)}"


def weights(folder: Path) -> Path:
    """A folder that a model may be: safetensors and a word about it."""
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<ff", 1.0, 2.0))
    (folder / "config.json").write_text("{}")
    return folder


def versions_of(client: MlflowClient, query: str, order: list[str]) -> list[str]:
    """The numbers of every page, one version a page."""
    found, token = [], None
    while page := client.search_model_versions(query, 1, order, token):
        found += [each.version for each in page]
        if not (token := page.token):
            break
    return found


def names_of(client: MlflowClient, query: str, order: list[str]) -> list[str]:
    """Of every page, one name a page."""
    found, token = [], None
    while page := client.search_registered_models(query, 1, order, token):
        found += [each.name for each in page]
        if not (token := page.token):
            break
    return found


def code_of(error: pytest.ExceptionInfo[MlflowException]) -> str:
    return str(error.value.error_code)


# ---------------------------------------------------------------- runs


def test_what_a_script_logs_is_what_it_reads_back(name: str, client: MlflowClient, tmp_path: Path) -> None:
    experiment = mlflow.set_experiment(name)
    with mlflow.start_run(run_name="first", tags={"team": "vision"}) as run:
        mlflow.log_params({"lr": 0.1, "depth": 3})
        for step in range(5):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
        mlflow.log_metrics({"val/acc": 0.75, "broken": math.nan})
        mlflow.set_tag("note", "ünïcode")
        (tmp_path / "plots").mkdir()
        (tmp_path / "plots" / "a.txt").write_text("hello")
        mlflow.log_artifacts(tmp_path)
        mlflow.log_text("inside", "deep/er/b.txt")
    found = client.get_run(run.info.run_id)
    assert found.info.status == "FINISHED" and found.info.end_time >= found.info.start_time
    assert found.info.experiment_id == experiment.experiment_id and found.info.run_name == "first"
    assert found.data.params == {"lr": "0.1", "depth": "3"}
    assert found.data.metrics["loss"] == 0.2 and math.isnan(found.data.metrics["broken"])
    assert found.data.tags["team"] == "vision" and found.data.tags["note"] == "ünïcode"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(each.step, each.value) for each in history] == [(n, 1 / (n + 1)) for n in range(5)]
    assert {each.path for each in client.list_artifacts(run.info.run_id)} == {"plots", "deep"}
    assert [each.path for each in client.list_artifacts(run.info.run_id, "deep/er")] == ["deep/er/b.txt"]
    place = client.download_artifacts(run.info.run_id, "deep", str(tmp_path))
    assert (Path(place) / "er" / "b.txt").read_text() == "inside"


def test_a_batch_comes_whole_or_not_at_all(name: str, client: MlflowClient) -> None:
    run_id = client.create_run(client.create_experiment(name)).info.run_id
    metrics = [Metric(f"m{n % 10}", float(n), n, n) for n in range(1000)]
    client.log_batch(run_id, metrics=metrics)
    assert client.get_run(run_id).data.metrics["m9"] == 999.0
    assert len(client.get_metric_history(run_id, "m3")) == 100
    client.log_batch(run_id, metrics=metrics)  # a retry
    assert len(client.get_metric_history(run_id, "m3")) == 100
    client.log_batch(run_id, params=[Param("a", "1")], tags=[RunTag("t", "x")])
    with pytest.raises(MlflowException, match="parameter a is '1' already") as refused:
        client.log_batch(run_id, params=[Param("b", "1"), Param("a", "2")], tags=[RunTag("t", "y")])
    assert code_of(refused) == "INVALID_PARAMETER_VALUE"
    data = client.get_run(run_id).data
    assert data.params == {"a": "1"} and data.tags["t"] == "x"
    client.delete_tag(run_id, "t")
    assert "t" not in client.get_run(run_id).data.tags
    with pytest.raises(MlflowException) as missing:
        client.delete_tag(run_id, "t")
    assert code_of(missing) == "RESOURCE_DOES_NOT_EXIST"


def test_runs_are_found_by_what_they_measured(name: str, client: MlflowClient) -> None:
    experiment_id = client.create_experiment(name)
    for number in range(4):
        run_id = client.create_run(experiment_id, run_name=f"run {number}", start_time=1000 + number).info.run_id
        if number < 3:
            client.log_metric(run_id, "loss", number / 10)
        client.log_param(run_id, "size", "big" if number % 2 else "small")
        client.set_tag(run_id, "a b", f"v{number}")

    def found(query: str, order: list[str] | None = None) -> list[str]:
        return [each.info.run_name for each in client.search_runs([experiment_id], query, order_by=order)]

    assert found("") == ["run 3", "run 2", "run 1", "run 0"]
    assert found("metrics.loss >= 0.1 AND params.size = 'small'") == ["run 2"]
    assert found("tags.`a b` LIKE 'v%' and attributes.run_name IN ('run 0', 'run 3')") == ["run 3", "run 0"]
    assert found("", ["metrics.loss DESC"]) == ["run 2", "run 1", "run 0", "run 3"]
    assert found("start_time > 1002") == ["run 3"]
    first = client.search_runs([experiment_id], max_results=3)
    assert len(first) == 3 and first.token
    assert [each.info.run_name for each in client.search_runs([experiment_id], max_results=3, page_token=first.token)]
    for order, expected in (
        (["metrics.loss DESC"], ["run 2", "run 1", "run 0", "run 3"]),
        (["params.size DESC", "metrics.loss"], ["run 0", "run 2", "run 1", "run 3"]),
        (["tags.`a b`"], ["run 0", "run 1", "run 2", "run 3"]),
        (["attributes.status", "start_time ASC"], ["run 0", "run 1", "run 2", "run 3"]),
    ):
        names, token = list[str](), None
        while token != "":
            page = client.search_runs([experiment_id], order_by=order, max_results=1, page_token=token)
            if not names:  # a run that begins while somebody pages moves nothing
                late = client.create_run(experiment_id, run_name="late", start_time=5000).info.run_id
            names, token = names + [each.info.run_name for each in page], page.token or ""
        assert [each for each in names if each != "late"] == expected, order
        client.delete_run(late)
    for bad in ("loss < 1 OR 1", "metrics.loss < 'x'", "params.size > 3", "nonsense", "metrics.loss <"):
        with pytest.raises(MlflowException) as refused:
            found(bad)
        assert code_of(refused) == "INVALID_PARAMETER_VALUE"
    with pytest.raises(MlflowException, match="none orders it"):
        found("", ["datasets.name"])
    with pytest.raises(MlflowException, match="page token"):
        client.search_runs([experiment_id], "metrics.loss > 0", page_token=first.token)


def test_deleted_things_are_hidden_and_come_back(name: str, client: MlflowClient) -> None:
    experiment_id = client.create_experiment(name, tags={"a": "b"})
    run_id = client.create_run(experiment_id).info.run_id
    client.delete_run(run_id)
    assert not client.search_runs([experiment_id])
    assert client.search_runs([experiment_id], run_view_type=ViewType.DELETED_ONLY)
    with pytest.raises(MlflowException, match="is deleted"):
        client.log_metric(run_id, "x", 1)
    client.restore_run(run_id)
    assert client.search_runs([experiment_id])
    client.rename_experiment(experiment_id, f"{name}-renamed")
    assert client.get_experiment_by_name(name) is None
    client.set_experiment_tag(experiment_id, "stage", "done")
    assert client.get_experiment(experiment_id).tags == {"a": "b", "stage": "done"}
    with pytest.raises(MlflowException) as taken:
        client.create_experiment(f"{name}-renamed")
    assert code_of(taken) == "RESOURCE_ALREADY_EXISTS"
    client.delete_experiment(experiment_id)
    assert client.get_experiment(experiment_id).lifecycle_stage == "deleted"
    found = client.search_experiments(filter_string=f"name LIKE '{name}%'", view_type=ViewType.ALL)
    assert [each.experiment_id for each in found] == [experiment_id]
    with pytest.raises(MlflowException) as missing:
        client.get_run("no-such-run")
    assert code_of(missing) == "RESOURCE_DOES_NOT_EXIST"


def test_datasets_that_were_read_stay_with_the_run(name: str, client: MlflowClient) -> None:
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    mlflow.set_experiment(name)
    dataset = MetaDataset(HTTPDatasetSource("https://example.com/corpus.txt"), name="corpus", digest="a" * 36)
    with mlflow.start_run() as run:
        mlflow.log_input(dataset, context="training")
        mlflow.log_input(dataset, context="training")
    (found,) = client.get_run(run.info.run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.tags[0].value) == ("corpus", "training")
    assert client.search_runs([run.info.experiment_id], "datasets.name = 'corpus' AND datasets.context = 'training'")


# ---------------------------------------------------------------- models


def test_a_logged_model_becomes_a_signed_version_and_moves_through_the_gates(
    name: str, client: MlflowClient, served: Any, tmp_path: Path
) -> None:
    mlflow.set_experiment(name)
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", 0.25)
        mlflow.log_param("lr", 0.1)
        mlflow.log_artifacts(weights(tmp_path / "w"), "model")
    source = f"{run.info.artifact_uri}/model"
    client.create_registered_model(name, description="a trial")
    with pytest.raises(MlflowException) as refused:
        client.create_model_version(name, f"runs:/{run.info.run_id}/model", run.info.run_id)
    assert "groundplane.license" in str(refused.value) and "groundplane.data" in str(refused.value)
    assert client.search_model_versions(f"name = '{name}'") == []
    client.set_tag(run.info.run_id, "groundplane.license", "Apache-2.0")
    client.set_tag(run.info.run_id, "groundplane.data.corpus", "a" * 64)
    client.set_tag(run.info.run_id, "groundplane.code_commit", "2f0c1aa")
    with pytest.raises(MlflowException, match="code-commit.*git rev-parse 2f0c1aa"):
        client.create_model_version(name, source, run.info.run_id)
    client.delete_tag(run.info.run_id, "groundplane.code_commit")
    client.set_tag(run.info.run_id, "mlflow.source.git.commit", "0" * 40)
    made = client.create_model_version(name, source, run.info.run_id, tags={"quality": "good"}, description="one")
    assert (made.version, made.status, made.current_stage, made.tags) == ("1", "READY", "None", {"quality": "good"})
    signed: Any = served.raw("GET", f"/v1/models/{name}/versions/1/certificate").json()["statement"]["predicate"]
    assert signed["metrics"]["loss"] == 0.25
    assert signed["version"]["license"] == "Apache-2.0" and signed["run"]["id"] == run.info.run_id
    client.set_registered_model_alias(name, "champion", "1")
    assert client.get_model_version_by_alias(name, "champion").aliases == ["champion"]
    moved = client.transition_model_version_stage(name, "1", "Production")
    assert moved.current_stage == "Production"
    assert served.raw("GET", f"/v1/models/{name}/aliases/production").json()[0]["to_number"] == 1
    client.delete_registered_model_alias(name, "champion")
    assert client.get_registered_model(name).aliases == {"production": "1"}
    client.update_model_version(name, "1", "said anew")
    client.set_model_version_tag(name, "1", "seen", "yes")
    found = client.search_model_versions(f"name = '{name}' AND tags.seen = 'yes'")
    assert [each.description for each in found] == ["said anew"]
    for _ in range(3):
        client.create_model_version(name, source, run.info.run_id)
    client.transition_model_version_stage(name, "2", "Archived")
    assert versions_of(client, f"name = '{name}'", []) == ["4", "3", "2", "1"]
    assert versions_of(client, f"run_id = '{run.info.run_id}'", ["version_number ASC"]) == ["1", "2", "3", "4"]
    assert versions_of(client, f"name = '{name}' AND tags.quality = 'good'", []) == ["1"]
    client.create_registered_model(f"{name}-empty", tags={"kind": "bare"})
    assert names_of(client, f"name LIKE '{name}%'", []) == [name, f"{name}-empty"]
    assert {name, f"{name}-empty"} <= {each.name for each in client.search_registered_models()}
    assert names_of(client, f"name LIKE '{name}%'", ["name DESC"]) == [f"{name}-empty", name]
    assert names_of(client, f"name LIKE '{name}%'", ["timestamp DESC"]) == [f"{name}-empty", name]
    assert names_of(client, f"name LIKE '{name}%' AND tags.kind = 'bare'", []) == [f"{name}-empty"]
    with pytest.raises(MlflowException, match="page token"):
        client.search_model_versions("", page_token="WzEsICJ4Il0=")
    place = mlflow.artifacts.download_artifacts(f"models:/{name}/1", dst_path=str(tmp_path / "got"))
    assert (Path(place) / "model.safetensors").read_bytes() == (tmp_path / "w" / "model.safetensors").read_bytes()
    for refusal in (lambda: client.delete_model_version(name, "1"), lambda: client.rename_registered_model(name, "x")):
        with pytest.raises(MlflowException, match="versions-stay"):
            refusal()


def test_a_version_is_copied_to_another_name(name: str, client: MlflowClient, served: Any, tmp_path: Path) -> None:
    run_id = client.create_run(client.create_experiment(name)).info.run_id
    client.log_artifacts(run_id, str(weights(tmp_path / "w")), "model")
    client.log_metric(run_id, "loss", 0.25)
    for key, value in {"license": "MIT", "data.corpus": "a" * 64, "code_commit": "0" * 40}.items():
        client.set_tag(run_id, f"groundplane.{key}", value)
    for _ in range(2):
        client.create_model_version(name, f"mlflow-artifacts:/runs/{run_id}/model", run_id, {"a": "b"}, None, "said")
    client.transition_model_version_stage(name, "2", "Archived")
    client.set_registered_model_alias(name, "champion", "1")
    live = f"{name}-live"
    copy = client.copy_model_version(f"models:/{name}@champion", live)
    assert (copy.version, copy.source, copy.run_id) == ("1", f"models:/{name}/1", run_id)
    assert (copy.description, copy.tags, copy.aliases) == ("said", {"a": "b"}, [])
    place = mlflow.artifacts.download_artifacts(f"models:/{live}/1", dst_path=str(tmp_path / "got"))
    assert (Path(place) / "model.safetensors").read_bytes() == (tmp_path / "w" / "model.safetensors").read_bytes()
    signed = served.raw("GET", f"/v1/models/{live}/versions/1/certificate").json()["statement"]["predicate"]
    assert (signed["copy_of"]["version"], signed["metrics"]) == (f"{name}@1", {"loss": 0.25})
    assert (f"model:{name}@1", f"model:{live}@1") in served.client.lineage_of(f"model:{live}@1").edges
    (told,) = served.client.audit_events(object_kind="model", object_id=f"{live}@1")[1:]
    assert (told.action, told.reason) == ("model.register", f"copied from {name}@1 by an MLflow client")
    assert mlflow.register_model(f"models:/{name}@champion", live).version == "2"
    assert client.copy_model_version(f"models:/{name}/1", name).version == "3"
    client.create_registered_model(f"{name}-kept", tags={"kind": "bare"})
    for source, to, why in (
        (f"{name}/2", f"{name}-never", f"{name}@2, which is archived"),
        (f"{name}/9", f"{name}-never", f"there is no {name}@9"),
        (f"{name}@none-such", f"{name}-never", "no alias none-such"),
        (f"{name}/9", f"{name}-kept", f"there is no {name}@9"),
    ):
        with pytest.raises(MlflowException, match=why):
            mlflow.register_model(f"models:/{source}", to)
    assert names_of(client, f"name LIKE '{name}%'", []) == [name, f"{name}-kept", live]

    ours = served.client.copy_version(f"{name}@champion", live, reason="by hand")
    assert (ours.id, served.client.audit_events(object_kind="model", object_id=ours.id)[-1].reason) == (
        f"{live}@3", f"copied from {name}@1: by hand",
    )  # fmt: skip
    shown = client.get_model_version(live, "3")
    assert (shown.source, shown.run_id, shown.description) == (f"models:/{name}/1", run_id, "said")
    served.client.create_project(name=f"{name}-p", owner="bo", cost_center="cc")
    moved = served.client.copy_version(f"{name}@1", f"{name}-moved", project=f"{name}-p")
    assert (moved.project, served.client.copy_version(moved.id, f"{name}-also").project) == (f"{name}-p", f"{name}-p")
    path, body = f"/v1/models/{name}/versions/1/copy", {"name": f"{name}-no"}
    for version, to, status, why in (
        ("1", {"name": live, "project": f"{name}-p"}, 409, "belongs to another project"),
        ("1", {**body, "project": "absent"}, 404, "no project 'absent'"),
        ("1", {"name": "../x"}, 422, "no model name"),
        ("2", body, 409, f"{name}@2, which is archived"),
        ("9", body, 404, f"there is no {name}@9"),
    ):
        refused = served.raw("POST", path.replace("/1/", f"/{version}/"), json=to)
        assert (refused.status_code, why in refused.text) == (status, True), refused.text
    assert served.raw("POST", path, json=body, key=served.key(Role.VIEWER)).status_code == 403
    assert served.raw("POST", path, json=body, key=served.key(Role.MEMBER, f"{name}-p")).status_code == 404
    assert names_of(client, f"name = '{name}-no'", []) == []


def test_a_gate_refuses_a_stage_with_its_rule(name: str, client: MlflowClient, served: Any, tmp_path: Path) -> None:
    run_id = client.create_run(client.create_experiment(name)).info.run_id
    client.log_artifacts(run_id, str(weights(tmp_path / "w")), "model")
    client.log_metric(run_id, "loss", 3.0)
    facts = {"license": "MIT", "data.corpus": "a" * 64, "code_commit": "0" * 40}
    for key, value in facts.items():
        client.set_tag(run_id, f"groundplane.{key}", value)
    client.create_registered_model(name)
    client.create_model_version(name, f"mlflow-artifacts:/runs/{run_id}/model", run_id)
    gate = f"""
apiVersion: groundplane/v1
kind: Gate
metadata: {{name: {name}, project: default}}
spec: {{model: {name}, aliases: [production], requirements: [{{metric: loss, at_most: 1}}]}}
"""
    defined = served.raw("PUT", "/v1/gates", json={"text": gate})
    assert defined.status_code == 200, defined.text
    for move in (
        lambda: client.transition_model_version_stage(name, "1", "Production"),
        lambda: client.set_registered_model_alias(name, "production", "1"),
    ):
        with pytest.raises(MlflowException, match="loss") as refused:
            move()
        assert code_of(refused) == "BAD_REQUEST"
    assert client.get_model_version(name, "1").current_stage == "None"
    assert client.transition_model_version_stage(name, "1", "Staging").current_stage == "Staging"


def test_weights_in_a_pickle_are_refused(name: str, client: MlflowClient, tmp_path: Path) -> None:
    import pickle

    run_id = client.create_run(client.create_experiment(name)).info.run_id
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"a": print}))
    client.log_artifact(run_id, str(tmp_path / "model.pkl"), "model")
    with pytest.raises(MlflowException, match="no-pickles"):
        mlflow.register_model(f"mlflow-artifacts:/runs/{run_id}/model", name)


def test_a_logged_model_keeps_its_files_parameters_and_metrics(name: str, client: MlflowClient, tmp_path: Path) -> None:
    mlflow.set_experiment(name)
    with mlflow.start_run() as run:
        model = mlflow.initialize_logged_model(name="net", params={"lr": "0.1"}, tags={"a": "b"}, model_type="toy")
        client.log_model_artifacts(model.model_id, str(weights(tmp_path / "w")))
        mlflow.log_metric("loss", 0.5, model_id=model.model_id)
        mlflow.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        mlflow.log_outputs(models=[mlflow.entities.LoggedModelOutput(model.model_id, 3)])
    found = mlflow.get_logged_model(model.model_id)
    assert found.status == LoggedModelStatus.READY and found.params == {"lr": "0.1"} and found.tags["a"] == "b"
    assert [(each.key, each.value) for each in found.metrics or []] == [("loss", 0.5)]
    assert [each.model_id for each in client.get_run(run.info.run_id).outputs.model_outputs] == [model.model_id]
    searched = mlflow.search_logged_models([run.info.experiment_id], "metrics.loss < 1", output_format="list")
    assert [each.model_id for each in searched] == [model.model_id]
    mlflow.set_logged_model_tags(model.model_id, {"groundplane.license": "MIT", "groundplane.data.c": "a" * 64})
    mlflow.set_logged_model_tags(model.model_id, {"groundplane.code_commit": "0" * 40})
    made = mlflow.register_model(f"models:/{model.model_id}", name)
    assert made.version == "1"
    assert Path(mlflow.artifacts.download_artifacts(f"models:/{name}/1")).is_dir()


# ---------------------------------------------------------------- who may


def test_projects_do_not_see_each_other(name: str, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if served.raw("GET", "/v1/projects/other").status_code == 404:
        served.client.create_project(name="other", owner="o", cost_center="c")
    own = MlflowClient(f"{served.url}/mlflow")
    run_id = own.create_run(own.create_experiment(name)).info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", served.key(Role.MEMBER, "other"))
    other = MlflowClient(f"{served.url}/mlflow")
    assert other.get_experiment_by_name(name) is None
    with pytest.raises(MlflowException) as hidden:
        other.log_metric(run_id, "x", 1)
    assert code_of(hidden) == "RESOURCE_DOES_NOT_EXIST"
    assert other.create_experiment(name)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", served.key(Role.VIEWER, "other"))
    with pytest.raises(MlflowException) as refused:
        other.create_experiment(f"{name}-too")
    assert code_of(refused) == "PERMISSION_DENIED"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "gp-nobody")
    with pytest.raises(MlflowException) as unknown:
        other.search_experiments()
    assert code_of(unknown) == "UNAUTHENTICATED"


def test_a_password_is_a_key_too(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anybody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", served.admin_key)
    assert MlflowClient(f"{served.url}/mlflow").search_experiments() is not None


def test_what_is_not_served_says_so(served: Any) -> None:
    answer = served.raw("POST", "/mlflow/api/3.0/mlflow/traces", json={})
    assert (answer.status_code, answer.json()["error_code"]) == (404, "ENDPOINT_NOT_FOUND")
    assert served.raw("GET", "/mlflow/api/3.0/mlflow/server-info").json()["multipart_uploads_enabled"] is False
    bad = served.raw("POST", "/mlflow/api/2.0/mlflow/runs/log-metric", content=b"{")
    assert (bad.status_code, bad.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    page = served.raw("GET", "/mlflow/")
    assert (page.status_code, page.headers["location"]) == (303, "/console/experiments")
    climbing = served.raw("PUT", "/mlflow/api/2.0/mlflow-artifacts/artifacts/runs/x/%2e%2e/y", content=b"a")
    assert climbing.status_code in (400, 404)


def test_autologging_of_scikit_learn_works(name: str, client: MlflowClient) -> None:
    from sklearn.linear_model import Ridge

    mlflow.set_experiment(name)
    mlflow.sklearn.autolog(log_models=False, log_datasets=True, silent=True)
    try:
        with mlflow.start_run() as run:
            Ridge(alpha=0.5).fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
    finally:
        mlflow.sklearn.autolog(disable=True)
    found = client.get_run(run.info.run_id)
    assert found.data.params["alpha"] == "0.5"
    assert found.data.metrics["training_r2_score"] > 0.9
    assert found.data.tags["estimator_name"] == "Ridge"
