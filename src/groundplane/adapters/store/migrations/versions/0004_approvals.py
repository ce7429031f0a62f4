"""Approvals: who agreed to which plan; and what each project may begin without asking."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_JSON: Any = sa.Text()
_INTEGER: Any = sa.BigInteger()
_BOOLEAN: Any = sa.Boolean(create_constraint=False)
_MOMENT: Any = sa.DateTime(timezone=True)


def upgrade() -> None:
    # An empty document is the default limits: what a project had no word on before.
    op.add_column("projects", sa.Column("self_service", _JSON, nullable=False, server_default="{}"))
    op.create_table(
        "approvals",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("project", _TEXT, nullable=False),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("created_by", _TEXT, nullable=False),
        sa.Column("plan_hash", _TEXT, nullable=False),
        sa.Column("worst_case_microusd", _INTEGER, nullable=False),
        sa.Column("reasons", _JSON, nullable=False),
        sa.Column("needed", _INTEGER, nullable=False),
        sa.Column("four_eyes", _BOOLEAN, nullable=False),
        sa.Column("validity_s", _INTEGER, nullable=False),
        sa.Column("status", _TEXT, nullable=False),
        sa.Column("votes", _JSON, nullable=False),
        sa.Column("rejected_by", _TEXT, nullable=False),
        sa.Column("rejection", _TEXT, nullable=False),
        sa.Column("requested_at", _MOMENT, nullable=False),
        sa.Column("expires_at", _MOMENT, nullable=False),
        sa.Column("decided_at", _MOMENT),
        sa.Column("waited_s", _INTEGER, nullable=False),
        sa.Column("told", _JSON, nullable=False),
        sa.Column("due_at", _MOMENT),
        sa.Column("lease_owner", _TEXT, nullable=False),
        sa.Column("lease_expires_at", _MOMENT),
        sa.Column("version", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_approvals"),
        sa.ForeignKeyConstraint(["id"], ["plans.id"], name="fk_approvals_id"),
        sa.CheckConstraint("worst_case_microusd >= 0", name=op.f("ck_approvals_worst_case_microusd")),
        sa.CheckConstraint("waited_s >= 0", name=op.f("ck_approvals_waited_s")),
    )
    op.create_index("ix_approvals_due_at", "approvals", ["due_at"])
    op.create_index("ix_approvals_project_requested_at", "approvals", ["project", "requested_at"])
    op.create_index("ix_approvals_status_requested_at", "approvals", ["status", "requested_at"])
