"""Manifests and tags that OCI clients pushed; lineage told to others, and told by them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_KINDS: dict[str, Any] = {
    "text": _TEXT,
    "json": sa.Text(),
    "int": sa.BigInteger(),
    "time": sa.DateTime(timezone=True),
}


def upgrade() -> None:
    _table(
        "pushed_manifests",
        "id:text project:text name:text digest:text artifact_type:text subject:text content:text config:text "
        "config_digest:text content_sha256:text files:json size_bytes:int version_id:text pushed_by:text at:time "
        "version:int",
        sa.CheckConstraint("size_bytes >= 0", name="size_bytes"),
    )
    _index("pushed_manifests", "name")
    _index("pushed_manifests", "project")
    _table("pushed_tags", "id:text project:text name:text tag:text number:int digest:text version:int")
    _index("pushed_tags", "name")
    _table(
        "lineage_cursors", "id:text event_id:int told:int failures:int error:text at:time retry_at:time? version:int"
    )
    _table(
        "outside_events",
        "id:text project:text job:text run:text state:text occurred_at:time producer:text inputs:json outputs:json "
        "reported_by:text at:time version:int",
    )
    _index("outside_events", "project", "at")
    _table(
        "outside_edges",
        "id:text parent:text child:text project:text job:text run:text event_id:text reported_by:text at:time "
        "version:int",
    )
    _index("outside_edges", "parent")
    _index("outside_edges", "child")


def _table(name: str, columns: str, *constraints: Any) -> None:
    """`columns`: `name:kind` each, `?` at the end where it may be NULL."""
    made = []
    for word in columns.split():
        column, _, kind = word.partition(":")
        made.append(sa.Column(column, _KINDS[kind.rstrip("?")], nullable=kind.endswith("?")))
    op.create_table(name, *made, *constraints, sa.PrimaryKeyConstraint("id", name=f"pk_{name}"))


def _index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))
