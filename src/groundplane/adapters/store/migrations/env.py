"""Alembic's entry: runs the migrations on the connection that `migrate.upgrade` opened, inside its transaction."""

from __future__ import annotations

from alembic import context

from groundplane.adapters.store.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
