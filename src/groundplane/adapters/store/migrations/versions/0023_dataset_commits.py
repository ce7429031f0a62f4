"""What hub clients call a dataset version's commit, in a column: a file is asked for by it."""

from __future__ import annotations

import hashlib
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("dataset_versions", sa.Column("commit", _TEXT, nullable=False, server_default=""))
    op.create_index("ix_dataset_versions_name_commit", "dataset_versions", ["name", "commit"])
    versions = sa.table("dataset_versions", *(sa.column(name, _TEXT) for name in ("id", "digest", "commit")))
    database = op.get_bind()
    for id, digest in database.execute(sa.select(versions.c.id, versions.c.digest)).all():
        commit = hashlib.sha256(f'["{id}","{digest}"]'.encode()).hexdigest()[:40]
        database.execute(versions.update().where(versions.c.id == id).values(commit=commit))
