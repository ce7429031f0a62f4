"""Artifacts: named sets of stored files, and how much a project may keep."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_JSON: Any = sa.Text()
_INTEGER: Any = sa.BigInteger()
_MOMENT: Any = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "artifacts",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("files", _JSON, nullable=False),
        sa.Column("manifest_sha256", _TEXT, nullable=False),
        sa.Column("size_bytes", _INTEGER, nullable=False),
        sa.Column("created_by", _TEXT, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("keep_until", _MOMENT, nullable=True),
        sa.Column("pinned", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.CheckConstraint("size_bytes >= 0", name=op.f("ck_artifacts_size_bytes")),
        sa.PrimaryKeyConstraint("id", name="pk_artifacts"),
    )
    op.create_index("ix_artifacts_project_created_at", "artifacts", ["project", "created_at"])
    op.create_index("ix_artifacts_name_created_at", "artifacts", ["name", "created_at"])
    op.create_table(
        "storage_quotas",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("limit_bytes", _INTEGER, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.CheckConstraint("limit_bytes >= 0", name=op.f("ck_storage_quotas_limit_bytes")),
        sa.PrimaryKeyConstraint("id", name="pk_storage_quotas"),
    )
