"""Which runs are dev environments, in a column: a list of them need not read what else waits."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("runs", sa.Column("dev", _TEXT, nullable=False, server_default=""))
    op.create_index("ix_runs_dev_status", "runs", ["dev", "status"])
    runs = sa.table("runs", sa.column("id", _TEXT), sa.column("spec", _TEXT), sa.column("dev", _TEXT))
    database = op.get_bind()
    for id, spec in database.execute(sa.select(runs.c.id, runs.c.spec).where(runs.c.spec.like('%"dev":"%'))).all():
        if kind := json.loads(spec).get("dev", ""):
            database.execute(runs.update().where(runs.c.id == id).values(dev=kind))
