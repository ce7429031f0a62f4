"""How requests of a route wait and which answers it keeps; what caches saved, per request."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_JSON: Any = sa.Text()
_INTEGER: Any = sa.BigInteger()


def upgrade() -> None:
    op.add_column("routes", sa.Column("queue", _JSON, nullable=True))
    op.add_column("routes", sa.Column("cache", _JSON, nullable=True))
    op.add_column("usage_records", sa.Column("written_tokens", _INTEGER, nullable=False, server_default="0"))
    op.add_column("usage_records", sa.Column("saved_microusd", _INTEGER, nullable=False, server_default="0"))
    op.add_column("usage_records", sa.Column("cache", _TEXT, nullable=False, server_default=""))
