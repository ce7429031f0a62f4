"""Arrivals: pushes that are stored and still lack their files' SHA-256."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_JSON: Any = sa.Text()
_INTEGER: Any = sa.BigInteger()
_MOMENT: Any = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "arrivals",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("files", _JSON, nullable=False),
        sa.Column("size_bytes", _INTEGER, nullable=False),
        sa.Column("created_by", _TEXT, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("keep_until", _MOMENT, nullable=True),
        sa.Column("pinned", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("problem", _TEXT, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.CheckConstraint("size_bytes >= 0", name=op.f("ck_arrivals_size_bytes")),
        sa.PrimaryKeyConstraint("id", name="pk_arrivals"),
    )
    op.create_index("ix_arrivals_name", "arrivals", ["name"])
