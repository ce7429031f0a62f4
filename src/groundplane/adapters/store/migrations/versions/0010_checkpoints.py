"""Copies of checkpoints in the artifact store, idle clocks of attempts, and proofs that a job resumes."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_JSON: Any = sa.Text()
_INTEGER: Any = sa.BigInteger()
_MOMENT: Any = sa.DateTime(timezone=True)


def upgrade() -> None:
    for name in ("project", "node", "manifest_sha256", "note"):
        op.add_column("checkpoints", sa.Column(name, _TEXT, nullable=False, server_default=""))
    op.add_column("checkpoints", sa.Column("copy", _TEXT, nullable=False, server_default="off"))
    op.add_column("checkpoints", sa.Column("files", _JSON, nullable=False, server_default="[]"))
    for name in ("copied_at", "removed_at"):
        op.add_column("checkpoints", sa.Column(name, _MOMENT, nullable=True))
    op.execute("UPDATE checkpoints SET project = (SELECT project FROM runs WHERE runs.id = checkpoints.run_id)")
    op.create_index("ix_checkpoints_copy", "checkpoints", ["copy"])
    op.add_column("attempts", sa.Column("nodes", _INTEGER, nullable=False, server_default="0"))
    op.add_column("attempts", sa.Column("idle_since", _MOMENT, nullable=True))
    op.create_index("ix_attempts_idle_since", "attempts", ["idle_since"])
    op.create_table(
        "resume_proofs",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("status", _TEXT, nullable=False),
        sa.Column("killed_at_step", _INTEGER, nullable=True),
        sa.Column("continued_at_step", _INTEGER, nullable=True),
        sa.Column("message", _TEXT, nullable=False),
        sa.Column("asked_by", _TEXT, nullable=False),
        sa.Column("asked_at", _MOMENT, nullable=False),
        sa.Column("ended_at", _MOMENT, nullable=True),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_resume_proofs"),
    )
    op.create_index("ix_resume_proofs_status", "resume_proofs", ["status"])
