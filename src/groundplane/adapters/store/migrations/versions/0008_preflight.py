"""Preflight reports, and nodes that take no new work."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_JSON: Any = sa.Text()
_INTEGER: Any = sa.BigInteger()
_MOMENT: Any = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "cordons",
        *(sa.Column(name, _TEXT, nullable=False) for name in ("id", "pool", "node", "reason", "hint", "cordoned_by")),
        sa.Column("cordoned_at", _MOMENT, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_cordons"),
    )
    op.create_table(
        "preflight_reports",
        *(sa.Column(name, _TEXT, nullable=False) for name in ("id", "subject", "pool", "node", "project")),
        sa.Column("results", _JSON, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("advice", _JSON, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_preflight_reports"),
    )
    op.create_index("ix_preflight_reports_subject_at", "preflight_reports", ["subject", "at"])
