"""The first schema: projects, keys, money, plans, runs, models, endpoints, the audit trail."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_JSON: Any = sa.Text()
_INTEGER: Any = sa.BigInteger()
_REAL: Any = sa.Double()
_BOOLEAN: Any = sa.Boolean(create_constraint=False)
_MOMENT: Any = sa.DateTime(timezone=True)


def upgrade() -> None:
    _access()
    _money()
    _ledger()
    _plans_and_runs()
    _attempts()
    _models_and_endpoints()
    _audit()


def _access() -> None:
    op.create_table(
        "projects",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("cost_center", _TEXT, nullable=False),
        sa.Column("monthly_limit_microusd", _INTEGER),
        sa.Column("thresholds_percent", _JSON, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.CheckConstraint("monthly_limit_microusd >= 0", name=op.f("ck_projects_monthly_limit_microusd")),
    )
    op.create_table(
        "keys",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("role", _TEXT, nullable=False),
        sa.Column("secret_sha256", _TEXT, nullable=False),
        sa.Column("models", _JSON, nullable=False),
        sa.Column("requests_per_minute", _INTEGER),
        sa.Column("tokens_per_minute", _INTEGER),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("expires_at", _MOMENT),
        sa.Column("revoked_at", _MOMENT),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
        sa.UniqueConstraint("secret_sha256", name="uq_keys_secret_sha256"),
    )
    op.create_index("ix_keys_project", "keys", ["project"])
    op.create_table(
        "exposures",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("reason", _TEXT, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("expires_at", _MOMENT, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_exposures"),
    )


def _money() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("period", _TEXT, nullable=False),
        sa.Column("limit_microusd", _INTEGER, nullable=False),
        sa.Column("held_microusd", _INTEGER, nullable=False),
        sa.Column("posted_microusd", _INTEGER, nullable=False),
        sa.Column("thresholds_percent", _JSON, nullable=False),
        sa.Column("fired_percent", _JSON, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_budgets"),
        sa.CheckConstraint("held_microusd >= 0", name=op.f("ck_budgets_held_microusd")),
        sa.CheckConstraint("limit_microusd >= 0", name=op.f("ck_budgets_limit_microusd")),
        sa.CheckConstraint("posted_microusd >= 0", name=op.f("ck_budgets_posted_microusd")),
        sa.UniqueConstraint("project", "period", name="uq_budgets_project_period"),
    )
    op.create_table(
        "holds",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("budget_id", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("subject", _TEXT, nullable=False),
        sa.Column("amount_microusd", _INTEGER, nullable=False),
        sa.Column("posted_microusd", _INTEGER, nullable=False),
        sa.Column("status", _TEXT, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("closed_at", _MOMENT),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_holds"),
        sa.CheckConstraint("amount_microusd >= 0", name=op.f("ck_holds_amount_microusd")),
        sa.CheckConstraint("posted_microusd >= 0", name=op.f("ck_holds_posted_microusd")),
        sa.ForeignKeyConstraint(["budget_id"], ["budgets.id"], name="fk_holds_budget_id"),
    )
    op.create_index("ix_holds_budget_id", "holds", ["budget_id"])
    op.create_index("ix_holds_project_status", "holds", ["project", "status"])
    pending = sa.text("status = 'pending'")
    op.create_index(
        "ix_holds_subject_pending", "holds", ["subject"], unique=True, sqlite_where=pending, postgresql_where=pending
    )


def _ledger() -> None:
    op.create_table(
        "ledger_entries",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("cost_center", _TEXT, nullable=False),
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("endpoint", _TEXT, nullable=False),
        sa.Column("model", _TEXT, nullable=False),
        sa.Column("key_id", _TEXT, nullable=False),
        sa.Column("quantity", _INTEGER, nullable=False),
        sa.Column("amount_microusd", _INTEGER, nullable=False),
        sa.Column("price", _TEXT, nullable=False),
        sa.Column("hold_id", _TEXT, nullable=False),
        sa.Column("occurred_at", _MOMENT, nullable=False),
        sa.Column("posted_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ledger_entries"),
        sa.CheckConstraint("amount_microusd >= 0", name=op.f("ck_ledger_entries_amount_microusd")),
        sa.CheckConstraint("quantity >= 0", name=op.f("ck_ledger_entries_quantity")),
    )
    op.create_index("ix_ledger_entries_hold_id", "ledger_entries", ["hold_id"])
    op.create_index("ix_ledger_entries_occurred_at", "ledger_entries", ["occurred_at"])
    op.create_index("ix_ledger_entries_project_occurred_at", "ledger_entries", ["project", "occurred_at"])
    op.create_index("ix_ledger_entries_run_id", "ledger_entries", ["run_id"])
    op.create_table(
        "usage_records",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("key_id", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("model", _TEXT, nullable=False),
        sa.Column("endpoint", _TEXT, nullable=False),
        sa.Column("revision", _INTEGER, nullable=False),
        sa.Column("status", _INTEGER, nullable=False),
        sa.Column("prompt_tokens", _INTEGER, nullable=False),
        sa.Column("completion_tokens", _INTEGER, nullable=False),
        sa.Column("cached_tokens", _INTEGER, nullable=False),
        sa.Column("amount_microusd", _INTEGER, nullable=False),
        sa.Column("estimated", _BOOLEAN, nullable=False),
        sa.Column("ttft_ms", _REAL),
        sa.Column("duration_ms", _REAL, nullable=False),
        sa.Column("started_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage_records"),
        sa.CheckConstraint("amount_microusd >= 0", name=op.f("ck_usage_records_amount_microusd")),
        sa.CheckConstraint("cached_tokens >= 0", name=op.f("ck_usage_records_cached_tokens")),
        sa.CheckConstraint("completion_tokens >= 0", name=op.f("ck_usage_records_completion_tokens")),
        sa.CheckConstraint("prompt_tokens >= 0", name=op.f("ck_usage_records_prompt_tokens")),
    )
    op.create_index("ix_usage_records_project_started_at", "usage_records", ["project", "started_at"])
    op.create_index("ix_usage_records_started_at", "usage_records", ["started_at"])


def _plans_and_runs() -> None:
    op.create_table(
        "plans",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("job", _JSON),
        sa.Column("endpoint", _JSON),
        sa.Column("spec_digest", _TEXT, nullable=False),
        sa.Column("offer", _JSON),
        sa.Column("max_duration_s", _INTEGER, nullable=False),
        sa.Column("worst_case_microusd", _INTEGER, nullable=False),
        sa.Column("arithmetic", _TEXT, nullable=False),
        sa.Column("verdicts", _JSON, nullable=False),
        sa.Column("status", _TEXT, nullable=False),
        sa.Column("hash", _TEXT, nullable=False),
        sa.Column("created_by", _TEXT, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("applied_to", _TEXT, nullable=False),
        sa.Column("alternatives", _JSON, nullable=False),
        sa.Column("rejected", _JSON, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_plans"),
        sa.CheckConstraint("worst_case_microusd >= 0", name=op.f("ck_plans_worst_case_microusd")),
    )
    op.create_index("ix_plans_project_created_at", "plans", ["project", "created_at"])
    op.create_table(
        "runs",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("cost_center", _TEXT, nullable=False),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("spec_digest", _TEXT, nullable=False),
        sa.Column("plan_id", _TEXT, nullable=False),
        sa.Column("hold_id", _TEXT, nullable=False),
        sa.Column("pool", _TEXT, nullable=False),
        sa.Column("price_microusd_per_hour", _INTEGER, nullable=False),
        sa.Column("status", _TEXT, nullable=False),
        sa.Column("stop_requested", _TEXT),
        sa.Column("end_reason", _TEXT),
        sa.Column("message", _TEXT, nullable=False),
        sa.Column("attempt", _INTEGER, nullable=False),
        sa.Column("endpoint", _TEXT, nullable=False),
        sa.Column("idempotency_key", _TEXT, nullable=False),
        sa.Column("created_by", _TEXT, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("started_at", _MOMENT),
        sa.Column("ended_at", _MOMENT),
        sa.Column("end_date", _MOMENT, nullable=False),
        sa.Column("due_at", _MOMENT),
        sa.Column("lease_owner", _TEXT, nullable=False),
        sa.Column("lease_expires_at", _MOMENT),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.CheckConstraint("price_microusd_per_hour >= 0", name=op.f("ck_runs_price_microusd_per_hour")),
    )
    op.create_index("ix_runs_due_at", "runs", ["due_at"])
    op.create_index("ix_runs_project_created_at", "runs", ["project", "created_at"])
    op.create_index("ix_runs_status_created_at", "runs", ["status", "created_at"])


def _attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("number", _INTEGER, nullable=False),
        sa.Column("pool", _TEXT, nullable=False),
        sa.Column("node", _TEXT, nullable=False),
        sa.Column("port", _INTEGER, nullable=False),
        sa.Column("started", _BOOLEAN, nullable=False),
        sa.Column("resumed_from_step", _INTEGER),
        sa.Column("last_step", _INTEGER),
        sa.Column("end_reason", _TEXT),
        sa.Column("exit_code", _INTEGER),
        sa.Column("message", _TEXT, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("started_at", _MOMENT),
        sa.Column("ended_at", _MOMENT),
        sa.Column("billed_until", _MOMENT),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_attempts_run_id"),
        sa.UniqueConstraint("run_id", "number", name="uq_attempts_run_id_number"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("attempt_id", _TEXT, nullable=False),
        sa.Column("step", _INTEGER, nullable=False),
        sa.Column("path", _TEXT, nullable=False),
        sa.Column("size_bytes", _INTEGER, nullable=False),
        sa.Column("found_at", _MOMENT, nullable=False),
        sa.Column("metrics", _JSON, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoints"),
        sa.CheckConstraint("size_bytes >= 0", name=op.f("ck_checkpoints_size_bytes")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_checkpoints_run_id"),
        sa.UniqueConstraint("run_id", "step", name="uq_checkpoints_run_id_step"),
    )


def _models_and_endpoints() -> None:
    op.create_table(
        "model_versions",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("number", _INTEGER, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("files", _JSON, nullable=False),
        sa.Column("manifest_sha256", _TEXT, nullable=False),
        sa.Column("size_bytes", _INTEGER, nullable=False),
        sa.Column("certificate", _TEXT, nullable=False),
        sa.Column("certificate_sha256", _TEXT, nullable=False),
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("license", _TEXT, nullable=False),
        sa.Column("metrics", _JSON, nullable=False),
        sa.Column("created_by", _TEXT, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_model_versions"),
        sa.CheckConstraint("size_bytes >= 0", name=op.f("ck_model_versions_size_bytes")),
        sa.UniqueConstraint("name", "number", name="uq_model_versions_name_number"),
    )
    op.create_index("ix_model_versions_project_created_at", "model_versions", ["project", "created_at"])
    op.create_table(
        "endpoints",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("cost_center", _TEXT, nullable=False),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("model_version", _TEXT, nullable=False),
        sa.Column("revision", _INTEGER, nullable=False),
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("base_url", _TEXT, nullable=False),
        sa.Column("status", _TEXT, nullable=False),
        sa.Column("stop_requested", _BOOLEAN, nullable=False),
        sa.Column("message", _TEXT, nullable=False),
        sa.Column("created_by", _TEXT, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("ready_at", _MOMENT),
        sa.Column("end_date", _MOMENT, nullable=False),
        sa.Column("due_at", _MOMENT),
        sa.Column("lease_owner", _TEXT, nullable=False),
        sa.Column("lease_expires_at", _MOMENT),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_endpoints"),
    )
    op.create_index("ix_endpoints_due_at", "endpoints", ["due_at"])
    op.create_index("ix_endpoints_project_created_at", "endpoints", ["project", "created_at"])


def _audit() -> None:
    op.create_table(
        "events",
        sa.Column("id", _INTEGER, autoincrement=False, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("actor", _TEXT, nullable=False),
        sa.Column("action", _TEXT, nullable=False),
        sa.Column("object_kind", _TEXT, nullable=False),
        sa.Column("object_id", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("before", _JSON, nullable=False),
        sa.Column("after", _JSON, nullable=False),
        sa.Column("reason", _TEXT, nullable=False),
        sa.Column("previous_hash", _TEXT, nullable=False),
        sa.Column("hash", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_object_kind_object_id", "events", ["object_kind", "object_id"])
    op.create_index("ix_events_project", "events", ["project"])
    op.create_table(
        "chain_head",
        sa.Column("id", _INTEGER, autoincrement=False, nullable=False),
        sa.Column("event_id", _INTEGER, nullable=False),
        sa.Column("event_hash", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_chain_head"),
        sa.CheckConstraint("id = 1", name=op.f("ck_chain_head_one_row")),
    )
    head = sa.table("chain_head", sa.column("id"), sa.column("event_id"), sa.column("event_hash"))
    op.bulk_insert(head, [{"id": 1, "event_id": 0, "event_hash": "0" * 64}])
