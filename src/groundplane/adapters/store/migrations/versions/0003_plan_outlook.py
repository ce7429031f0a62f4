"""Plans: what a plan shows beside its verdict, from now on; earlier plans have none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("plans", sa.Column("outlook", sa.Text(), nullable=True))
