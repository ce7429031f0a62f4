"""Limits of projects, models, endpoints and keys at the gateway; keys with two live secrets and allowed networks."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_JSON: Any = sa.Text()
_INTEGER: Any = sa.BigInteger()
_MOMENT: Any = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("keys", sa.Column("networks", _JSON, nullable=False, server_default="[]"))
    op.add_column("keys", sa.Column("old_secret_sha256", _TEXT, nullable=False, server_default=""))
    op.add_column("keys", sa.Column("old_secret_expires_at", _MOMENT, nullable=True))
    op.create_index("ix_keys_old_secret_sha256", "keys", ["old_secret_sha256"])
    op.create_table(
        "gateway_limits",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("scope", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("measure", _TEXT, nullable=False),
        sa.Column("value", _INTEGER, nullable=False),
        sa.Column("when_down", _TEXT, nullable=False),
        sa.Column("set_by", _TEXT, nullable=False),
        sa.Column("set_at", _MOMENT, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.CheckConstraint("value >= 0", name=op.f("ck_gateway_limits_value")),
        sa.PrimaryKeyConstraint("id", name="pk_gateway_limits"),
    )
    op.create_index("ix_gateway_limits_project", "gateway_limits", ["project"])
