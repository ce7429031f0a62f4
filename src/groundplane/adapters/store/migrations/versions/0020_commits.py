"""A model's versions by the digest of their certificates: what hub clients call a commit."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    op.create_index("ix_model_versions_name_certificate_sha256", "model_versions", ["name", "certificate_sha256"])
