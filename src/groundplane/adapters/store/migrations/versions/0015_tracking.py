"""Tracking: experiments, tracked runs, their metrics, logged models and files; names and origins of models."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_JSON: Any = sa.Text()
_INTEGER: Any = sa.BigInteger()
_MOMENT: Any = sa.DateTime(timezone=True)
_KINDS: dict[str, Any] = {"text": _TEXT, "json": _JSON, "int": _INTEGER, "time": _MOMENT}


def _column(spec: str) -> sa.Column[Any]:
    name, _, kind = spec.partition(":")
    return sa.Column(name, _KINDS[kind.rstrip("?") or "text"], nullable=kind.endswith("?"))


def _table(name: str, columns: str, *rest: sa.SchemaItem) -> None:
    op.create_table(
        name, *(_column(spec) for spec in columns.split()), *rest, sa.PrimaryKeyConstraint("id", name=f"pk_{name}")
    )


def upgrade() -> None:
    _table(
        "experiments",
        "id project name stage tags:json created_by created_at:time updated_at:time version:int",
        sa.UniqueConstraint("project", "name", name="uq_experiments_project_name"),
    )
    _table(
        "tracked_runs",
        "id experiment_id project name user job state stage started_ms:int ended_ms:int? params:json tags:json"
        " datasets:json model_inputs:json model_outputs:json created_by created_at:time version:int",
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name="fk_tracked_runs_experiment_id"),
    )
    op.create_index("ix_tracked_runs_experiment_id_started_ms", "tracked_runs", ["experiment_id", "started_ms"])
    op.create_index("ix_tracked_runs_job", "tracked_runs", ["job"])
    _table(
        "run_metrics",
        "id latest batches:int points:int version:int",
        sa.ForeignKeyConstraint(["id"], ["tracked_runs.id"], name="fk_run_metrics_id"),
    )
    _table("metric_parts", "id run_id key points")
    op.create_index("ix_metric_parts_run_id_key", "metric_parts", ["run_id", "key"])
    _table(
        "logged_models",
        "id experiment_id project name run_id model_type state stage params:json tags:json metrics:json created_by"
        " created_at:time updated_at:time version:int",
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name="fk_logged_models_experiment_id"),
    )
    op.create_index("ix_logged_models_experiment_id_created_at", "logged_models", ["experiment_id", "created_at"])
    op.create_index("ix_logged_models_run_id", "logged_models", ["run_id"])
    _table(
        "logged_files",
        "id root project path sha256 size_bytes:int created_at:time version:int",
        sa.CheckConstraint("size_bytes >= 0", name="size_bytes"),
    )
    op.create_index("ix_logged_files_root", "logged_files", ["root"])
    op.create_index("ix_logged_files_project", "logged_files", ["project"])
    _table("model_names", "id project description tags:json created_by created_at:time updated_at:time version:int")
    op.create_index("ix_model_names_project", "model_names", ["project"])
    _table("version_origins", "id name run_id model_id source description updated_at:time version:int")
    op.create_index("ix_version_origins_name", "version_origins", ["name"])
    op.create_index("ix_version_origins_run_id", "version_origins", ["run_id"])
