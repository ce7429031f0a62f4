"""Hosted providers, and routes of model names to endpoints and providers."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_JSON: Any = sa.Text()
_INTEGER: Any = sa.BigInteger()
_FLAG: Any = sa.Boolean(create_constraint=False)
_MOMENT: Any = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "providers",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("base_url", _TEXT, nullable=False),
        sa.Column("api_version", _TEXT, nullable=False),
        sa.Column("region", _TEXT, nullable=False),
        sa.Column("private", _FLAG, nullable=False),
        sa.Column("key_version", _INTEGER, nullable=False),
        sa.Column("set_by", _TEXT, nullable=False),
        sa.Column("set_at", _MOMENT, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_providers"),
    )
    op.create_index("ix_providers_project", "providers", ["project"])
    op.create_table(
        "routes",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("model", _TEXT, nullable=False),
        sa.Column("policy", _TEXT, nullable=False),
        sa.Column("targets", _JSON, nullable=False),
        sa.Column("sticky", _FLAG, nullable=False),
        sa.Column("hedge_ms", _INTEGER, nullable=True),
        sa.Column("set_by", _TEXT, nullable=False),
        sa.Column("set_at", _MOMENT, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_routes"),
    )
    op.create_index("ix_routes_project", "routes", ["project"])
