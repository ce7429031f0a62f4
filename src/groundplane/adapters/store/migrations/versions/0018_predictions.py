"""What of a project's requests through the gateway is kept in the prediction log."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_INTEGER: Any = sa.BigInteger()
_NUMBER: Any = sa.Double()
_FLAG: Any = sa.Boolean(create_constraint=False)
_MOMENT: Any = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "prediction_rules",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("model", _TEXT, nullable=False),
        sa.Column("enabled", _FLAG, nullable=False),
        sa.Column("sample_percent", _NUMBER, nullable=False),
        sa.Column("content", _FLAG, nullable=False),
        sa.Column("redact", _FLAG, nullable=False),
        sa.Column("retention_days", _INTEGER, nullable=False),
        sa.Column("form", _TEXT, nullable=False),
        sa.Column("set_by", _TEXT, nullable=False),
        sa.Column("set_at", _MOMENT, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_prediction_rules"),
    )
    op.create_index("ix_prediction_rules_project", "prediction_rules", ["project"])
