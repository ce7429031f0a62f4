"""Limits of dollars per day and per month: what was spent in the period that a limit counts now."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_INTEGER: Any = sa.BigInteger()


def upgrade() -> None:
    op.add_column("gateway_limits", sa.Column("period", _TEXT, nullable=False, server_default=""))
    op.add_column("gateway_limits", sa.Column("spent_microusd", _INTEGER, nullable=False, server_default="0"))
