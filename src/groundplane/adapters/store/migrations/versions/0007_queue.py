"""The queue: each run's place in it, quotas, reservations, what projects held of late, and jobs submitted at times."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_JSON: Any = sa.Text()
_INTEGER: Any = sa.BigInteger()
_FLOAT: Any = sa.Double()
_MOMENT: Any = sa.DateTime(timezone=True)


def _column(name: str, kind: Any, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=null)


def upgrade() -> None:
    _entries()
    _quotas_and_reservations()
    _state_and_schedules()


def _entries() -> None:
    op.create_table(
        "queue_entries",
        *(_column(name, _TEXT) for name in ("id", "name", "project", "pool", "owner")),
        _column("priority", _INTEGER),
        _column("queued_at", _MOMENT),
        _column("stage", _TEXT),
        _column("nodes", _INTEGER),
        _column("accelerators", _INTEGER),
        _column("accelerator", _TEXT),
        _column("cpus_milli", _INTEGER),
        _column("memory_bytes", _INTEGER),
        _column("expected_s", _FLOAT),
        _column("grace_s", _FLOAT),
        _column("not_before", _MOMENT, null=True),
        _column("needs", _JSON),
        _column("array", _TEXT),
        _column("array_limit", _INTEGER),
        _column("placements", _JSON),
        _column("placed_at", _MOMENT, null=True),
        _column("ends_at", _MOMENT, null=True),
        _column("gives_way_to", _TEXT),
        _column("preemptions", _INTEGER),
        _column("version", _INTEGER),
        sa.PrimaryKeyConstraint("id", name="pk_queue_entries"),
        sa.ForeignKeyConstraint(["id"], ["runs.id"], name="fk_queue_entries_id"),
    )
    op.create_index("ix_queue_entries_pool_stage", "queue_entries", ["pool", "stage"])


def _quotas_and_reservations() -> None:
    op.create_table(
        "project_quotas",
        _column("id", _TEXT),
        *(_column(name, _INTEGER, null=True) for name in ("accelerators", "cpus_milli", "memory_bytes", "runs")),
        _column("cohort", _TEXT),
        _column("weight", _FLOAT),
        _column("updated_at", _MOMENT),
        _column("version", _INTEGER),
        sa.PrimaryKeyConstraint("id", name="pk_project_quotas"),
        sa.ForeignKeyConstraint(["id"], ["projects.id"], name="fk_project_quotas_id"),
        *(
            sa.CheckConstraint(f"{name} >= 0", name=name)
            for name in ("accelerators", "cpus_milli", "memory_bytes", "runs")
        ),
    )
    op.create_table(
        "reservations",
        *(_column(name, _TEXT) for name in ("id", "project", "pool", "owner", "reason")),
        _column("starts_at", _MOMENT),
        _column("ends_at", _MOMENT),
        _column("parts", _JSON),
        _column("created_at", _MOMENT),
        _column("version", _INTEGER),
        sa.PrimaryKeyConstraint("id", name="pk_reservations"),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_reservations_project"),
    )
    op.create_index("ix_reservations_pool_ends_at", "reservations", ["pool", "ends_at"])


def _state_and_schedules() -> None:
    op.create_table(
        "queue_state",
        _column("id", _TEXT),
        _column("usage", _JSON),
        _column("usage_at", _MOMENT),
        *(_column(name, _INTEGER) for name in ("passes", "starts", "preemptions")),
        _column("waited_s", _JSON),
        _column("started", _JSON),
        _column("version", _INTEGER),
        sa.PrimaryKeyConstraint("id", name="pk_queue_state"),
    )
    op.create_table(
        "schedules",
        *(
            _column(name, _TEXT)
            for name in ("id", "project", "name", "owner", "cron", "timezone", "missed", "text", "created_by")
        ),
        _column("created_at", _MOMENT),
        _column("until", _MOMENT),
        _column("paused", sa.Boolean(create_constraint=False)),
        _column("last_tick_at", _MOMENT, null=True),
        _column("last_run", _TEXT),
        _column("last_message", _TEXT),
        _column("due_at", _MOMENT, null=True),
        _column("lease_owner", _TEXT),
        _column("lease_expires_at", _MOMENT, null=True),
        _column("version", _INTEGER),
        sa.PrimaryKeyConstraint("id", name="pk_schedules"),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_schedules_project"),
    )
    op.create_index("ix_schedules_due_at", "schedules", ["due_at"])
