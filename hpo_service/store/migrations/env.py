"""Runs the migrations on the connection that the caller has opened and locked."""

from __future__ import annotations

from alembic import context

from hpo_service.store.schema import VERSION_TABLE
from hpo_service.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
