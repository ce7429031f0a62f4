"""Requests: pasted messages with what was read from them and what was answered."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_JSON: Any = sa.Text()
_INTEGER: Any = sa.BigInteger()
_MOMENT: Any = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "requests",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("status", _TEXT, nullable=False),
        sa.Column("message", _TEXT, nullable=False),
        sa.Column("intake", _JSON, nullable=False),
        sa.Column("answers", _JSON, nullable=False),
        sa.Column("quotas", _JSON, nullable=False),
        sa.Column("suggestions", _JSON, nullable=False),
        sa.Column("suggestions_note", _TEXT, nullable=False),
        sa.Column("created_by", _TEXT, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("updated_at", _MOMENT, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_requests"),
    )
    op.create_index("ix_requests_project_created_at", "requests", ["project", "created_at"])
    op.create_index("ix_requests_status_created_at", "requests", ["status", "created_at"])
