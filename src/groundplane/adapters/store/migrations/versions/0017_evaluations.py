"""Evaluations and batches: what was asked of models row by row, and what came of it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_JSON: Any = sa.Text()
_INTEGER: Any = sa.BigInteger()
_REAL: Any = sa.Double()
_MOMENT: Any = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "evaluations",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("target", _TEXT, nullable=False),
        sa.Column("model_version", _TEXT, nullable=False),
        sa.Column("dataset", _TEXT, nullable=False),
        sa.Column("dataset_sha256", _TEXT, nullable=False),
        sa.Column("items_sha256", _TEXT, nullable=False),
        sa.Column("items", _INTEGER, nullable=False),
        sa.Column("failed", _INTEGER, nullable=False),
        sa.Column("confidence", _REAL, nullable=False),
        sa.Column("scores", _JSON, nullable=False),
        sa.Column("slices", _JSON, nullable=False),
        sa.Column("latency_p50_s", _REAL, nullable=True),
        sa.Column("latency_p95_s", _REAL, nullable=True),
        sa.Column("prompt_tokens", _INTEGER, nullable=False),
        sa.Column("completion_tokens", _INTEGER, nullable=False),
        sa.Column("cost_microusd", _INTEGER, nullable=False),
        sa.Column("cost_microusd_per_1000", _INTEGER, nullable=False),
        sa.Column("cost_source", _TEXT, nullable=False),
        sa.Column("models", _JSON, nullable=False),
        sa.Column("fingerprints", _JSON, nullable=False),
        sa.Column("agreement", _REAL, nullable=True),
        sa.Column("records_id", _TEXT, nullable=False),
        sa.Column("records_sha256", _TEXT, nullable=False),
        sa.Column("compared_with", _TEXT, nullable=False),
        sa.Column("alarms", _JSON, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_evaluations"),
        sa.CheckConstraint("cost_microusd >= 0", name=op.f("ck_evaluations_cost_microusd")),
    )
    op.create_index("ix_evaluations_project_name_at", "evaluations", ["project", "name", "at"])
    op.create_index("ix_evaluations_model_version", "evaluations", ["model_version"])
    op.create_table(
        "batches",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("target", _TEXT, nullable=False),
        sa.Column("model_version", _TEXT, nullable=False),
        sa.Column("dataset", _TEXT, nullable=False),
        sa.Column("output", _TEXT, nullable=False),
        sa.Column("artifact_id", _TEXT, nullable=False),
        sa.Column("rows", _INTEGER, nullable=False),
        sa.Column("errors", _INTEGER, nullable=False),
        sa.Column("shards", _INTEGER, nullable=False),
        sa.Column("prompt_tokens", _INTEGER, nullable=False),
        sa.Column("completion_tokens", _INTEGER, nullable=False),
        sa.Column("cost_microusd", _INTEGER, nullable=False),
        sa.Column("cost_microusd_per_1000", _INTEGER, nullable=False),
        sa.Column("cost_source", _TEXT, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
        sa.CheckConstraint("cost_microusd >= 0", name=op.f("ck_batches_cost_microusd")),
    )
    op.create_index("ix_batches_project_at", "batches", ["project", "at"])
