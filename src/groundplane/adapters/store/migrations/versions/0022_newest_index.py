"""On SQLite the index that looks labels up by version becomes the newest one.

Of two indexes that serve a question as well, SQLite takes the newest. Databases that were made at once, not by
migrations, had theirs in any order: with another one last, a search for a common tag took a hundred times as long.
"""

from __future__ import annotations

from alembic import op

revision = "0022"
down_revision = "0021"

_NAME = "ix_version_labels_version_id_kind_name_value"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index(_NAME, "version_labels")
        op.create_index(_NAME, "version_labels", ["version_id", "kind", "name", "value"])
