"""Alembic's entry: runs migrations over the connection that the catalog hands in."""

from alembic import context

from voxloop.stores.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
# The caller's transaction covers all of it, so a half-made schema is never seen.
context.run_migrations()
