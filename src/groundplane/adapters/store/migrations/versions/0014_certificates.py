"""Around birth certificates: signed addenda, what was seen at an attempt's start, and the facts a project requires."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_JSON: Any = sa.Text()
_INTEGER: Any = sa.BigInteger()
_NUMBER: Any = sa.Double()
_MOMENT: Any = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "certificate_addenda",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("version_id", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("sequence", _INTEGER, nullable=False),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("facts", _JSON, nullable=False),
        sa.Column("envelope", _TEXT, nullable=False),
        sa.Column("sha256", _TEXT, nullable=False),
        sa.Column("previous_sha256", _TEXT, nullable=False),
        sa.Column("by", _TEXT, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["model_versions.id"], name="fk_certificate_addenda_version_id"),
        sa.PrimaryKeyConstraint("id", name="pk_certificate_addenda"),
        sa.UniqueConstraint("version_id", "sequence", name="uq_certificate_addenda_version_id_sequence"),
    )
    op.create_index("ix_certificate_addenda_project_at", "certificate_addenda", ["project", "at"])
    op.create_table(
        "attempt_circumstances",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("members", _JSON, nullable=False),
        sa.Column("energy_j", _NUMBER, nullable=True),
        sa.Column("energy_how", _TEXT, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.ForeignKeyConstraint(["id"], ["attempts.id"], name="fk_attempt_circumstances_id"),
        sa.PrimaryKeyConstraint("id", name="pk_attempt_circumstances"),
    )
    op.create_index("ix_attempt_circumstances_run_id", "attempt_circumstances", ["run_id"])
    op.create_table(
        "required_facts",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("required", _JSON, nullable=False),
        sa.Column("set_by", _TEXT, nullable=False),
        sa.Column("set_at", _MOMENT, nullable=False),
        sa.Column("reason", _TEXT, nullable=False),
        sa.Column("version", _INTEGER, nullable=False),
        sa.ForeignKeyConstraint(["id"], ["projects.id"], name="fk_required_facts_id"),
        sa.PrimaryKeyConstraint("id", name="pk_required_facts"),
    )
