"""Policy exceptions: rules lifted for a while, with owner, reason and end."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_MOMENT: Any = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "policy_exceptions",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("rule", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("reason", _TEXT, nullable=False),
        sa.Column("expires_at", _MOMENT, nullable=False),
        sa.Column("created_by", _TEXT, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_policy_exceptions"),
    )
    op.create_index("ix_policy_exceptions_project_expires_at", "policy_exceptions", ["project", "expires_at"])
