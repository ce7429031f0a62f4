"""What can be asked of experiments, tracked runs, logged models, model names and versions, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import NoneType

from groundplane.domain.conditions import By
from groundplane.domain.tracking.filter import Facts, Grammar, Order
from groundplane.domain.tracking.records import Experiment, LoggedModel, Point, RunMetrics, TrackedRun

EXPERIMENTS = Grammar(
    what="experiments",
    kinds=("attribute", "tag"),
    numbers={"creation_time": "creation_time", "last_update_time": "last_update_time"},
    texts={"name": "name"},
    order_only=("experiment_id",),
)
RUNS = Grammar(
    what="runs",
    kinds=("metric", "param", "tag", "attribute", "dataset"),
    numbers={
        "start_time": "start_time", "end_time": "end_time", "created": "start_time", "Created": "start_time",
    },
    texts={
        "run_id": "run_id", "run_name": "run_name", "run name": "run_name", "Run name": "run_name",
        "Run Name": "run_name", "experiment_id": "experiment_id", "user_id": "user_id", "status": "status",
        "artifact_uri": "artifact_uri", "lifecycle_stage": "lifecycle_stage",
    },
)  # fmt: skip
LOGGED_MODELS = Grammar(
    what="logged models",
    kinds=("metric", "param", "tag", "attribute"),
    numbers={
        "creation_timestamp": "creation_timestamp", "last_updated_timestamp": "last_updated_timestamp",
        "creation_time": "creation_timestamp", "last_updated_time": "last_updated_timestamp",
    },
    texts={
        "name": "name", "model_id": "model_id", "model_type": "model_type", "status": "status",
        "source_run_id": "source_run_id", "experiment_id": "experiment_id",
    },
)  # fmt: skip
MODEL_NAMES = Grammar(
    what="registered models",
    kinds=("attribute", "tag"),
    numbers={},
    texts={"name": "name"},
    order_only=("timestamp", "last_updated_timestamp", "creation_timestamp"),
)
MODEL_VERSIONS = Grammar(
    what="model versions",
    kinds=("attribute", "tag"),
    numbers={"version_number": "version_number"},
    texts={"name": "name", "run_id": "run_id", "source_path": "source_path"},
    order_only=("creation_timestamp", "last_updated_timestamp"),
)


def millis(moment: datetime) -> int:
    """Milliseconds since 1970."""
    return round(moment.timestamp() * 1000)


def experiment_facts(found: Experiment) -> Facts:
    return {
        "tag": found.tags,
        "attribute": {
            "name": found.name,
            "experiment_id": found.id,
            "creation_time": millis(found.created_at),
            "last_update_time": millis(found.updated_at),
        },
    }


def run_facts(found: TrackedRun, latest: Mapping[str, Point]) -> Facts:
    contexts = [each.tags["mlflow.data.context"] for each in found.datasets if "mlflow.data.context" in each.tags]
    return {
        "metric": {key: point.value for key, point in latest.items()},
        "param": found.params,
        "tag": found.tags,
        "attribute": {
            "run_id": found.id,
            "run_name": found.name,
            "experiment_id": found.experiment_id,
            "user_id": found.user,
            "status": found.state.value,
            "artifact_uri": f"mlflow-artifacts:/runs/{found.id}",
            "lifecycle_stage": found.stage.value,
            "start_time": found.started_ms,
            "end_time": found.ended_ms,
        },
        "dataset": {
            "name": tuple(each.name for each in found.datasets) or None,
            "digest": tuple(each.digest for each in found.datasets) or None,
            "context": tuple(contexts) or None,
        },
    }


_RUN_COLUMNS = {
    "run_id": "id",
    "run_name": "name",
    "experiment_id": "experiment_id",
    "user_id": "user",
    "status": "state",
    "artifact_uri": "id",
    "lifecycle_stage": "stage",
    "start_time": "started_ms",
    "end_time": "ended_ms",
}


def run_ranks(orders: Sequence[Order]) -> tuple[list[By], list[tuple[type, ...]]]:
    """Orders of runs as the store knows them, ties by the newest start; and of which kinds a run's values are."""
    by, kinds = list[By](), list[tuple[type, ...]]()
    for each in (*orders, Order("attribute", "start_time", descending=True)):
        if each.kind == "attribute":
            by.append(By(_RUN_COLUMNS[each.name], each.descending))
            kinds.append({"start_time": (int,), "end_time": (int, NoneType)}.get(each.name, (str,)))
        elif each.kind == "metric":
            by.append(By("latest", each.descending, key=each.name, kind=RunMetrics, is_number=True))
            kinds.append((float, NoneType))
        else:
            by.append(By("params" if each.kind == "param" else "tags", each.descending, key=each.name))
            kinds.append((str, NoneType))
    return by, kinds


def logged_model_facts(found: LoggedModel) -> Facts:
    return {
        "metric": {each.key: float(each.value) for each in found.metrics},
        "param": found.params,
        "tag": found.tags,
        "attribute": {
            "name": found.name,
            "model_id": found.id,
            "model_type": found.model_type,
            "status": found.state.value.removeprefix("LOGGED_MODEL_").replace("UPLOAD_FAILED", "FAILED"),
            "source_run_id": found.run_id,
            "experiment_id": found.experiment_id,
            "creation_timestamp": millis(found.created_at),
            "last_updated_timestamp": millis(found.updated_at),
        },
    }
